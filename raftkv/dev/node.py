"""One node of a cluster on loopback: where it is, and its process."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from raftkv.errors import ConfigurationError
from raftkv.ports import PRIVATE_DIRECTORY
from raftkv.types import NodeId

HOST = "127.0.0.1"
PORT_STEP = 10


@dataclass(slots=True, eq=False)
class DevNode:
    """One node of the cluster.

    Attributes:
        name: Its name.
        client_port: Where it serves clients.
        peer_port: Where its peers reach it.
        data_dir: Its data directory.
        hidden_peer_port: Where it listens for its peers while a proxy has ``peer_port``.
        is_proxied: Whether it is to leave ``peer_port`` to a proxy at its next start.
        process: Its process, once started.
        unexpected_ends: How often its process has ended although nobody had asked for it here.
    """

    name: NodeId
    client_port: int
    peer_port: int
    data_dir: Path
    hidden_peer_port: int
    is_proxied: bool = False
    process: asyncio.subprocess.Process | None = None
    unexpected_ends: int = 0

    @property
    def url(self) -> str:
        """Its client URL."""
        return f"http://{HOST}:{self.client_port}"

    @property
    def log_path(self) -> Path:
        """The file that collects its log."""
        return self.data_dir / "log"

    @property
    def pid_path(self) -> Path:
        """The file that has its process id while it runs."""
        return self.data_dir / "pid"

    @property
    def pid(self) -> int | None:
        """Its process id, while it runs."""
        process = self.process
        return None if process is None or process.returncode is not None else process.pid

    async def start(self, nodes: Sequence[DevNode]) -> None:
        """Start its process.

        Args:
            nodes: All nodes of the cluster.

        Raises:
            OSError: Its data directory or log cannot be written.
        """
        self.data_dir.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "raftkv",
                "serve",
                *self._flags(nodes),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C reaches the whole foreground group; the nodes are stopped by this process alone.
                start_new_session=True,
            )
        # Renamed into place: whoever reads it finds a whole number.
        partial = self.data_dir / "pid.partial"
        partial.write_text(f"{self.process.pid}\n")
        partial.replace(self.pid_path)

    async def is_ready(self, session: aiohttp.ClientSession) -> bool:
        """Whether it serves linearizable requests."""
        try:
            async with session.get(f"{self.url}/readyz") as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    def last_log_line(self) -> str:
        """Return the last thing that it said."""
        lines = self.log_path.read_text(errors="backslashreplace").splitlines()
        return lines[-1] if lines else "its log is empty"

    def _flags(self, nodes: Sequence[DevNode]) -> list[str]:
        members = ",".join(f"{other.name}={HOST}:{other.peer_port}" for other in nodes)
        listen_port = self.hidden_peer_port if self.is_proxied else self.peer_port
        return [
            f"--name={self.name}",
            f"--data-dir={self.data_dir}",
            f"--listen-client={HOST}:{self.client_port}",
            f"--advertise-client={self.url}",
            f"--listen-peer={HOST}:{listen_port}",
            f"--advertise-peer={HOST}:{self.peer_port}",
            f"--initial-cluster={members}",
        ]


def plan_nodes(count: int, port: int, data_dir: Path) -> tuple[DevNode, ...]:
    """Return the nodes of a cluster, not started yet.

    Args:
        count: How many.
        port: Client port of the first.
        data_dir: Directory above theirs.

    Raises:
        ConfigurationError: The last port would not be a port.
    """
    last = port + PORT_STEP * (count - 1) + 2
    if last > 65_535:
        raise ConfigurationError(f"--port {port} with {count} nodes would need port {last}; ports end at 65535")
    return tuple(
        DevNode(
            NodeId(f"n{number}"),
            client_port=port + PORT_STEP * (number - 1),
            peer_port=port + PORT_STEP * (number - 1) + 1,
            data_dir=data_dir / f"n{number}",
            hidden_peer_port=port + PORT_STEP * (number - 1) + 2,
        )
        for number in range(1, count + 1)
    )


def check_port_is_free(node: DevNode, port: int) -> None:
    """Refuse to start beside another program: its answers could be taken for those of a node.

    Raises:
        ConfigurationError: Somebody listens on this port of a node.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ConfigurationError(f"port {port} of {node.name} is not free: {error.strerror}") from error
