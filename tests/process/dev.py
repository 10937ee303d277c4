"""A ``raftkv dev`` as a process, for tests to use and to hurt."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.process.cluster import NodeProcess, free_ports, is_free

RAFTKV = [sys.executable, "-m", "raftkv"]


class DevCluster:
    """A ``raftkv dev`` with its output."""

    def __init__(self, directory: Path, *flags: str) -> None:
        self.directory = directory
        candidates = free_ports(100)
        self.port = next(
            port for port in candidates if all(is_free(port + 10 * at + side) for at in range(3) for side in (0, 1, 2))
        )
        self._flags = flags
        self.nodes = [
            NodeProcess(f"n{at + 1}", directory, self.port + 10 * at, self.port + 10 * at + 1, "") for at in range(3)
        ]
        self.start()

    def start(self) -> None:
        """Start it, again once it was stopped, with the same data and ports."""
        self.process = subprocess.Popen(
            [*RAFTKV, "dev", "--nodes", "3", "--port", str(self.port), "--data-dir", str(self.directory), *self._flags],
            stdout=subprocess.PIPE,
            text=True,
        )

    def read_until(self, text: str) -> list[str]:
        lines = []
        for line in self.process.stdout:
            lines.append(line.rstrip("\n"))
            if text in line:
                return lines
        raise AssertionError(f"{text!r} did not come: {lines}")

    def pid(self, node: NodeProcess) -> int:
        return int((self.directory / node.name / "pid").read_text())

    def leader(self) -> NodeProcess:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for node in self.nodes:
                _status, document = node.ask("/v1/cluster")
                for other in self.nodes:
                    if document and document["leader"] == other.name:
                        return other
            time.sleep(0.05)
        raise AssertionError("no leader")

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(40)
        finally:
            self.process.stdout.close()
