"""Real nodes in processes of their own, on loopback, for tests to kill."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Self

READY_SECONDS = 40.0


def is_free(port: int) -> bool:
    """Whether nobody listens on a port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now, from a range that the system does not hand out by itself."""
    found: list[int] = []
    candidate = 20_000 + os.getpid() * 37 % 10_000
    while len(found) < count:
        candidate += 1
        if is_free(candidate):
            found.append(candidate)
    return found


LOGS: set[Path] = set()
"""Logs of the nodes that this test has made; ``tests/conftest.py`` reads what they say of their event loops."""


class NodeProcess:
    """One ``raftkv serve``."""

    def __init__(
        self, name: str, directory: Path, client_port: int, peer_port: int, members: str | None, *flags: str
    ) -> None:
        self.name = name
        self.data_dir = directory / name
        self.log_path = directory / f"{name}.log"
        LOGS.add(self.log_path)
        self.url = f"http://127.0.0.1:{client_port}"
        self.command = [
            sys.executable,
            "-m",
            "raftkv",
            "serve",
            f"--name={name}",
            f"--data-dir={self.data_dir}",
            f"--listen-client=127.0.0.1:{client_port}",
            f"--listen-peer=127.0.0.1:{peer_port}",
            *([] if members is None else [f"--initial-cluster={members}"]),
            *flags,
        ]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *flags: str, environment: dict[str, str] | None = None) -> None:
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.command, *flags], stdout=log, stderr=log, env={**os.environ, **(environment or {})}
            )

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def terminate(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def wait(self, seconds: float = 20) -> int:
        assert self.process is not None
        return self.process.wait(seconds)

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def peak_memory_bytes(self) -> int:
        """Return the most memory that the process has had so far."""
        assert self.process is not None
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

    def ask(
        self,
        path: str,
        *,
        method: str = "GET",
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        timeout: float = 6,
    ) -> tuple[int, Any]:
        """Return status and JSON, or the bytes when the answer is none; status 0 when nobody answers."""
        request = urllib.request.Request(f"{self.url}{path}", data=body, headers=headers or {}, method=method)
        try:
            with self.open(request, timeout) as answer:
                return answer.status, _content(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _content(error)
        except OSError:
            return 0, None

    def open(self, request: urllib.request.Request, timeout: float) -> Any:
        return _opener.open(request, timeout=timeout)

    def wait_ready(self) -> None:
        """Wait until it serves linearizable requests."""
        deadline = time.monotonic() + READY_SECONDS
        while not self.is_ready():
            assert self.is_running, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    def is_ready(self) -> bool:
        return self.is_running and self.ask("/readyz")[0] == 200

    def status(self) -> dict[str, Any]:
        """What the node says of itself."""
        _status, document = self.ask("/v1/cluster")
        (own,) = [member for member in document["members"] if member["name"] == self.name]
        return own["status"]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_args, **_kwargs):
        return None


_opener = urllib.request.build_opener(_NoRedirect)


def _content(answer) -> Any:
    body = answer.read()
    return json.loads(body) if "json" in answer.headers.get("Content-Type", "") else body


class ProcessCluster:
    """Some nodes; a context manager that ends what it started."""

    def __init__(self, directory: Path, count: int = 3, *flags: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        ports = free_ports(2 * count)
        names = [f"n{number}" for number in range(1, count + 1)]
        members = ",".join(f"{name}=127.0.0.1:{ports[2 * at + 1]}" for at, name in enumerate(names))
        self.members = members
        self.nodes = [
            NodeProcess(name, directory, ports[2 * at], ports[2 * at + 1], members, *flags)
            for at, name in enumerate(names)
        ]

    @property
    def endpoints(self) -> str:
        return ",".join(node.url for node in self.nodes)

    def environment_of(self, node: NodeProcess) -> dict[str, str]:
        """Variables of a node's process, besides those of this one."""
        return {}

    def __enter__(self) -> Self:
        for node in self.nodes:
            node.start(environment=self.environment_of(node))
        try:
            self.wait_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        for node in self.nodes:
            if node.is_running:
                node.process.terminate()
        for node in self.nodes:
            if node.process is not None:
                try:
                    node.process.wait(20)
                except subprocess.TimeoutExpired:
                    node.kill()

    def wait_ready(self, *names: str) -> None:
        """Wait until nodes (all that run, without names) serve linearizable requests."""
        deadline = time.monotonic() + READY_SECONDS
        waiting = [node for node in self.nodes if (node.name in names if names else node.is_running)]
        while waiting:
            waiting = [node for node in waiting if not node.is_ready()]
            dead = [node for node in waiting if not node.is_running]
            if dead or time.monotonic() > deadline:
                logs = "\n".join(f"--- {node.name}\n{node.log()[-2000:]}" for node in self.nodes)
                raise AssertionError(f"not ready: {[node.name for node in waiting]}\n{logs}")
            time.sleep(0.05)

    def leader(self) -> NodeProcess:
        """Wait until some node knows a leader that runs, and return that."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            for node in self.nodes:
                if not node.is_running:
                    continue
                _status, document = node.ask("/v1/cluster")
                for other in self.nodes:
                    if document and other.name == document["leader"] and other.is_running:
                        return other
            time.sleep(0.05)
        raise AssertionError("no leader")

    def followers(self) -> list[NodeProcess]:
        leader = self.leader()
        return [node for node in self.nodes if node is not leader]
