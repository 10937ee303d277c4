"""Starts, watches and stops the node processes of ``raftkv dev``."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import aiohttp

from raftkv.dev.node import DevNode, check_port_is_free
from raftkv.errors import RaftkvError

_STOP_SECONDS = 15.0
_POLL_SECONDS = 0.05
_POLL_TIMEOUT_SECONDS = 5.0
_RESTART_SECONDS = 0.5
_READY_SECONDS = 60.0


class ClusterFailed(RaftkvError):
    """A node could not start, or had to be killed at the end."""


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
        self.nodes = nodes
        self.say = say
        self._restart = restart
        self._introduce = introduce
        self._stop = asyncio.Event()
        self._started = False
        self._watchers: dict[DevNode, asyncio.Task[None]] = {}
        self._bringing_back = asyncio.Lock()
        self._failure: str | None = None

    async def run(self, attachment: AbstractAsyncContextManager[Any]) -> None:
        """Start all nodes, and serve until SIGINT or SIGTERM.

        Args:
            attachment: Entered before the nodes start, left before they stop.

        Raises:
            ConfigurationError: A port is not free.
            ClusterFailed: A node could not start, or had to be killed at the end.
            OSError: A data directory or log cannot be written.
        """
        for node in self.nodes:
            for port in (node.client_port, node.peer_port):
                check_port_is_free(node, port)
        loop = asyncio.get_running_loop()
        for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(signal_number, self._stop.set)
        killed: list[str] = []
        try:
            async with attachment:
                await self._serve()
        finally:
            killed = await self._stop_all()
        if self._failure is not None:
            raise ClusterFailed(self._failure)
        if killed:
            raise ClusterFailed(f"had to be killed: {', '.join(killed)}")
        self.say("stopped")

    async def _serve(self) -> None:
        for node in self.nodes:
            await self.start(node)
        announcement = asyncio.create_task(self._announce_ready())
        try:
            await self._stop.wait()
        finally:
            announcement.cancel()
            await asyncio.gather(announcement, return_exceptions=True)

    async def start(self, node: DevNode) -> None:
        """Start a node unless it runs, and watch it.

        Raises:
            OSError: Its data directory or log cannot be written.
        """
        await self._end_watch(node)
        if node.pid is None:
            await node.start(self.nodes)
        self._watchers[node] = asyncio.create_task(self._watch(node))

    async def restart(self, node: DevNode, before_start: Callable[[], Awaitable[None]]) -> None:
        """Stop a node in good order and start it again; return when it serves.

        Args:
            node: The node.
            before_start: Called while it does not run.

        Raises:
            ClusterFailed: It did not serve in time.
        """
        await self._end_watch(node)
        if node.pid is not None:
            await _stop(node)
        await before_start()
        await self.start(node)
        await self.wait_ready(node)

    async def kill(self, nodes: Sequence[DevNode]) -> None:
        """Kill nodes at once, and leave them dead; those that do not run are dead already."""
        for node in nodes:
            await self._end_watch(node)
        running = [node.process for node in nodes if node.process is not None and node.pid is not None]
        for process in running:
            process.kill()
        for process in running:
            await process.wait()
        self.say(f"killed on request: {', '.join(node.name for node in nodes)}")

    async def wait_ready(self, node: DevNode) -> None:
        """Return when a node serves linearizable requests.

        Raises:
            ClusterFailed: It did not in time.
        """
        try:
            async with asyncio.timeout(_READY_SECONDS), _session() as session:
                while not await node.is_ready(session):  # noqa: ASYNC110 - another process gets ready
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            raise ClusterFailed(f"{node.name} does not serve after {_READY_SECONDS:g} s") from None

    async def _watch(self, node: DevNode) -> None:
        while True:
            assert node.process is not None
            status = await node.process.wait()
            if not self._started and status > 0:
                # It refuses to start: waiting for it, or starting it again, would be in vain.
                self._failure = f"{node.name} did not start (exit status {status}): {node.last_log_line()}"
                self._stop.set()
                return
            node.unexpected_ends += 1
            self.say(f"{node.name} {_describe(status)}; its log is {node.log_path}")
            if not self._restart:
                self.say(f"{node.name} is left dead")
                return
            await asyncio.sleep(_RESTART_SECONDS)
            async with self._bringing_back:
                await node.start(self.nodes)
            self.say(f"{node.name} started again (pid {node.pid})")

    async def _end_watch(self, node: DevNode) -> None:
        watcher = self._watchers.pop(node, None)
        if watcher is not None:
            # Cancelled in the middle of a start, it would leave a process that nobody knows.
            async with self._bringing_back:
                watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)

    async def _announce_ready(self) -> None:
        async with _session() as session:
            for node in self.nodes:
                while not await node.is_ready(session):  # noqa: ASYNC110 - another process gets ready
                    await asyncio.sleep(_POLL_SECONDS)
        self._started = True
        self._introduce(self.nodes)
        self.say("ready")

    async def _stop_all(self) -> list[str]:
        """End every process that runs; return the names of those that did not end when asked."""
        for node in self.nodes:
            await self._end_watch(node)
        running = [node for node in self.nodes if node.pid is not None]
        ended = await asyncio.gather(*(_stop(node) for node in running))
        for node in self.nodes:
            node.pid_path.unlink(missing_ok=True)
        return [str(node.name) for node, willingly in zip(running, ended, strict=True) if not willingly]


async def _stop(node: DevNode) -> bool:
    """End a node's process; return whether it ended when asked."""
    assert node.process is not None
    node.process.terminate()
    try:
        await asyncio.wait_for(node.process.wait(), _STOP_SECONDS)
    except TimeoutError:
        node.process.kill()
        await node.process.wait()
        return False
    return True


@asynccontextmanager
async def _session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_POLL_TIMEOUT_SECONDS)) as session:
        yield session


def _describe(status: int) -> str:
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with exit status {status}"
