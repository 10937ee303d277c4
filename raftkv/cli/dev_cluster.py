"""Starts, watches and stops the node processes of ``raftkv dev``."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from raftkv.cli.failures import NotDone
from raftkv.errors import ConfigurationError
from raftkv.types import NodeId

HOST = "127.0.0.1"
PORT_STEP = 10

_STOP_SECONDS = 15.0
_POLL_SECONDS = 0.05
_POLL_TIMEOUT_SECONDS = 5.0
_RESTART_SECONDS = 0.5


@dataclass(slots=True)
class DevNode:
    """One node of the cluster.

    Attributes:
        name: Its name.
        client_port: Where it serves clients.
        peer_port: Where it serves its peers.
        data_dir: Its data directory.
        process: Its process, once started.
    """

    name: NodeId
    client_port: int
    peer_port: int
    data_dir: Path
    process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """Its client URL."""
        return f"http://{HOST}:{self.client_port}"

    @property
    def log_path(self) -> Path:
        """The file that collects its log."""
        return self.data_dir / "log"

    @property
    def pid(self) -> int | None:
        """Its process id, while it runs."""
        process = self.process
        return None if process is None or process.returncode is not None else process.pid


def plan_nodes(count: int, port: int, data_dir: Path) -> tuple[DevNode, ...]:
    """Return the nodes of a cluster, not started yet.

    Args:
        count: How many.
        port: Client port of the first.
        data_dir: Directory above theirs.

    Raises:
        ConfigurationError: The last port would not be a port.
    """
    last = port + PORT_STEP * (count - 1) + 1
    if last > 65_535:
        raise ConfigurationError(f"--port {port} with {count} nodes would need port {last}; ports end at 65535")
    return tuple(
        DevNode(
            NodeId(f"n{number}"),
            port + PORT_STEP * (number - 1),
            port + PORT_STEP * (number - 1) + 1,
            data_dir / f"n{number}",
        )
        for number in range(1, count + 1)
    )


class DevCluster:
    """A cluster of node processes.

    Args:
        nodes: What ``plan_nodes`` returned.
        restart: Start a node again when it dies.
        say: Prints a line.
        introduce: Called with the nodes once they serve.
    """

    def __init__(
        self,
        nodes: tuple[DevNode, ...],
        *,
        restart: bool,
        say: Callable[[str], None],
        introduce: Callable[[tuple[DevNode, ...]], None],
    ) -> None:
        self._nodes = nodes
        self._restart = restart
        self._say = say
        self._introduce = introduce
        self._stop = asyncio.Event()
        self._started = False
        self._failure: str | None = None

    async def run(self) -> None:
        """Start all nodes, and serve until SIGINT or SIGTERM.

        Raises:
            ConfigurationError: A port is not free.
            NotDone: A node could not start, or had to be killed at the end.
            OSError: A data directory or log cannot be written.
        """
        check_ports_are_free(self._nodes)
        loop = asyncio.get_running_loop()
        for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(signal_number, self._stop.set)
        watchers: list[asyncio.Task[None]] = []
        try:
            for node in self._nodes:
                await self._start(node)
            watchers = [asyncio.create_task(self._watch(node)) for node in self._nodes]
            announcement = asyncio.create_task(self._announce_ready())
            watchers.append(announcement)
            await self._stop.wait()
        finally:
            for watcher in watchers:
                watcher.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)
            killed = await self._stop_all()
        if self._failure is not None:
            raise NotDone(self._failure)
        if killed:
            raise NotDone(f"had to be killed: {', '.join(killed)}")
        self._say("stopped")

    async def _start(self, node: DevNode) -> None:
        node.data_dir.mkdir(parents=True, exist_ok=True)
        with node.log_path.open("ab") as log:
            node.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "raftkv",
                "serve",
                *_flags(node, self._nodes),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C reaches the whole foreground group; the nodes are stopped by this process alone.
                start_new_session=True,
            )
        # Renamed into place: whoever reads it finds a whole number.
        partial = node.data_dir / "pid.partial"
        partial.write_text(f"{node.process.pid}\n")
        partial.replace(node.data_dir / "pid")

    async def _watch(self, node: DevNode) -> None:
        while True:
            assert node.process is not None
            status = await node.process.wait()
            if not self._started and status > 0:
                # It refuses to start: waiting for it, or starting it again, would be in vain.
                self._failure = f"{node.name} did not start (exit status {status}): {_last_line(node.log_path)}"
                self._stop.set()
                return
            self._say(f"{node.name} {_describe(status)}; its log is {node.log_path}")
            if not self._restart:
                self._say(f"{node.name} is left dead")
                return
            await asyncio.sleep(_RESTART_SECONDS)
            await self._start(node)
            self._say(f"{node.name} started again (pid {node.pid})")

    async def _announce_ready(self) -> None:
        timeout = aiohttp.ClientTimeout(total=_POLL_TIMEOUT_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            for node in self._nodes:
                while not await _is_ready(session, node):  # noqa: ASYNC110 - another process gets ready
                    await asyncio.sleep(_POLL_SECONDS)
        self._started = True
        self._introduce(self._nodes)
        self._say("ready")

    async def _stop_all(self) -> list[str]:
        """End every process that runs; return the names of those that did not end when asked."""
        running = [node for node in self._nodes if node.pid is not None]
        for node in running:
            assert node.process is not None
            node.process.terminate()
        killed = []
        for node in running:
            assert node.process is not None
            try:
                await asyncio.wait_for(node.process.wait(), _STOP_SECONDS)
            except TimeoutError:
                killed.append(str(node.name))
                node.process.kill()
                await node.process.wait()
        for node in self._nodes:
            (node.data_dir / "pid").unlink(missing_ok=True)
        return killed


def check_ports_are_free(nodes: Sequence[DevNode]) -> None:
    """Refuse to start beside another program: its answers could be taken for those of a node.

    Raises:
        ConfigurationError: Somebody listens on a port of a node.
    """
    for node in nodes:
        for port in (node.client_port, node.peer_port):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((HOST, port))
                except OSError as error:
                    raise ConfigurationError(f"port {port} of {node.name} is not free: {error.strerror}") from error


def _flags(node: DevNode, nodes: Sequence[DevNode]) -> list[str]:
    members = ",".join(f"{other.name}={HOST}:{other.peer_port}" for other in nodes)
    return [
        f"--name={node.name}",
        f"--data-dir={node.data_dir}",
        f"--listen-client={HOST}:{node.client_port}",
        f"--advertise-client={node.url}",
        f"--listen-peer={HOST}:{node.peer_port}",
        f"--advertise-peer={HOST}:{node.peer_port}",
        f"--initial-cluster={members}",
    ]


async def _is_ready(session: aiohttp.ClientSession, node: DevNode) -> bool:
    try:
        async with session.get(f"{node.url}/readyz") as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


def _describe(status: int) -> str:
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with exit status {status}"


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="backslashreplace").splitlines()
    return lines[-1] if lines else "its log is empty"
