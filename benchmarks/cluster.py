"""A cluster on loopback for the length of a benchmark."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_STOP_SECONDS = 30
_READY_SECONDS = 60


class BenchmarkCluster:
    """A cluster that ``raftkv dev`` runs in a directory of its own; a context manager.

    Args:
        count: Number of nodes.
        directory: Where its data goes: the disk that is measured. A temporary directory when None.
        restart: Whether nodes that die are started again.
    """

    def __init__(self, count: int = 3, directory: Path | None = None, *, restart: bool = False) -> None:
        self._count = count
        self._temporary = tempfile.TemporaryDirectory(prefix="raftkv-benchmark-", dir=directory)
        self._restart = restart
        self.directory = Path(self._temporary.name)
        self._port = free_ports(count)
        self.urls = [f"http://127.0.0.1:{self._port + 10 * number}" for number in range(count)]
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "raftkv", "dev", f"--nodes={self._count}", f"--port={self._port}"]
        command.append(f"--data-dir={self.directory}")
        if self._restart:
            command.append("--restart")
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line == "ready\n":
                return self
        raise SystemExit("the cluster did not get ready")

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        self._process.communicate(timeout=_STOP_SECONDS)
        self._temporary.cleanup()

    def describe(self, node: int = 0) -> dict[str, Any]:
        """Return what a node says of the cluster."""
        with urllib.request.urlopen(f"{self.urls[node]}/v1/cluster", timeout=10) as answer:
            document: dict[str, Any] = json.load(answer)
        return document

    def leader(self) -> int:
        """Return the number of the leader, from 0."""
        return int(self.describe()["leader"].removeprefix("n")) - 1

    def pid(self, node: int) -> int:
        """Return a node's process id."""
        return int((self.directory / f"n{node + 1}" / "pid").read_text())

    def wait_until_all_ready(self, without_pid: int | None = None) -> None:
        """Wait until every node serves linearizable reads, and none is the process ``without_pid``."""
        deadline = time.monotonic() + _READY_SECONDS
        waiting = list(range(self._count))
        while waiting:
            if time.monotonic() > deadline:
                raise SystemExit("the cluster did not get ready again")
            waiting = [node for node in waiting if self.pid(node) == without_pid or not is_ready(self.urls[node])]
            time.sleep(0.05)

    def resident_bytes(self, node: int) -> int:
        """Return the physical memory that a node uses, its share of mapped files included."""
        return resident_bytes(self.pid(node))

    def private_bytes(self, node: int) -> int:
        """Return the physical memory of a node that is no mapped file."""
        return private_bytes(self.pid(node))


def is_ready(url: str) -> bool:
    """Return whether a node serves linearizable reads."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def resident_bytes(pid: int) -> int:
    """Return the physical memory that a process uses, its share of mapped files included."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def private_bytes(pid: int) -> int:
    """Return the physical memory of a process that is no mapped file."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def free_ports(count: int) -> int:
    """Return a port so that it, and those of the nodes after it, are free now."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first = int(probe.getsockname()[1])
        wanted = [first + 10 * number + side for number in range(count) for side in (0, 1)]
        if max(wanted) < 65_536 and all(_is_free(port) for port in wanted):
            return first


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
