"""Servers to compare: a node of raftkv and etcd itself, both fresh, in processes of their own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Self

import pytest

from tests.process.cluster import NodeProcess, free_ports

READY_SECONDS = 30.0


def etcd_program() -> str | None:
    """Return the etcd beside the running Python, or in the path."""
    beside = Path(sys.executable).parent / "etcd"
    return str(beside) if beside.exists() else shutil.which("etcd")


needs_etcd = pytest.mark.skipif(etcd_program() is None, reason="etcd is not installed")


class EtcdProcess:
    """One etcd; a context manager."""

    def __init__(self, directory: Path) -> None:
        client, peer = free_ports(2)
        self.url = f"http://127.0.0.1:{client}"
        peer_url = f"http://127.0.0.1:{peer}"
        self._command = [
            str(etcd_program()),
            f"--data-dir={directory / 'etcd'}",
            f"--listen-client-urls={self.url}",
            f"--advertise-client-urls={self.url}",
            f"--listen-peer-urls={peer_url}",
            f"--initial-advertise-peer-urls={peer_url}",
            f"--initial-cluster=default={peer_url}",
            "--log-level=error",
        ]
        self._log = directory / "etcd.log"

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + READY_SECONDS
        while ask(self.url, "/v3/kv/range", {"key": "YQ=="})[0] != 200:
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.05)
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.terminate()
        self._process.wait(20)


class RaftkvProcess:
    """One node; a context manager."""

    def __init__(self, directory: Path) -> None:
        client, peer = free_ports(2)
        self._node = NodeProcess("n1", directory, client, peer, f"n1=127.0.0.1:{peer}")
        self.url = self._node.url

    def __enter__(self) -> Self:
        self._node.start()
        self._node.wait_ready()
        return self

    def __exit__(self, *_error: object) -> None:
        self._node.terminate()


def ask(url: str, path: str, document: Any) -> tuple[int, Any]:
    """Return status and JSON of a request; status 0 when nobody answers. Bytes are sent as they are."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    request = urllib.request.Request(url + path, data=body, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            text = error.read()
            try:
                return error.code, json.loads(text)
            except ValueError:
                return error.code, text.decode()
    except OSError:
        return 0, None
