"""Breaks nodes and links of a cluster, one after the other, mends them, and keeps a record."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from raftkv.chaos.schedule import PROCESS_FAULTS, Fault, Injection, Schedule
from raftkv.chaos.session import Session
from raftkv.types import NodeId


@dataclass(frozen=True, slots=True)
class FaultSpan:
    """What was broken, and when, in seconds from the beginning."""

    fault: Fault
    nodes: tuple[NodeId, ...]
    text: str
    started: float
    ended: float


class Injector:
    """Runs faults of processes and faults of links side by side.

    Args:
        session: The cluster.
        schedule: Says what to break.
        leader: Says who leads.
        say: Tells people what happens.
        elapsed: Seconds since the beginning.
    """

    def __init__(
        self,
        session: Session,
        schedule: Schedule,
        leader: Callable[[], Awaitable[NodeId | None]],
        say: Callable[[str], None],
        elapsed: Callable[[], float],
    ) -> None:
        self._session = session
        self._schedule = schedule
        self._leader = leader
        self._say = say
        self._elapsed = elapsed
        self.spans: list[FaultSpan] = []

    async def run(self, faults: Sequence[Fault], stop: asyncio.Event) -> None:
        """Break things until told to stop; everything is mended at the end.

        Raises:
            SessionFailed: The cluster is gone, or cannot be mended.
        """
        of_processes = [fault for fault in faults if fault in PROCESS_FAULTS]
        of_links = [fault for fault in faults if fault not in PROCESS_FAULTS]
        try:
            async with asyncio.TaskGroup() as tasks:
                for kinds in (of_processes, of_links):
                    if kinds:
                        tasks.create_task(self._repeat(kinds, stop))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _repeat(self, kinds: Sequence[Fault], stop: asyncio.Event) -> None:
        while not await _stopped_within(stop, self._schedule.calm_seconds()):
            injection = self._schedule.draw(kinds, await self._leader())
            started = self._elapsed()
            self._say(injection.text)
            try:
                await self._begin(injection)
                await _stopped_within(stop, injection.seconds)
            finally:
                await self._end(injection)
            self.spans.append(
                FaultSpan(injection.fault, injection.nodes, injection.text, started, max(self._elapsed(), started))
            )

    async def _begin(self, injection: Injection) -> None:
        if injection.fault is Fault.BREAK:
            await self._session.break_links(injection.links)
        elif injection.links:
            await self._session.set_links(injection.links)
        elif injection.fault is Fault.PAUSE:
            await self._session.pause(injection.nodes)
        else:
            await self._session.kill(injection.nodes)

    async def _end(self, injection: Injection) -> None:
        if injection.fault is Fault.BREAK:
            return
        if injection.links:
            await self._session.set_links({})
            self._say("links are whole again")
        elif injection.fault is Fault.PAUSE:
            await self._session.resume(injection.nodes)
            self._say(f"{', '.join(injection.nodes)} goes on")
        else:
            await self._session.start(injection.nodes)
            self._say(f"{', '.join(injection.nodes)} started again")


async def _stopped_within(stop: asyncio.Event, seconds: float) -> bool:
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
    return stop.is_set()
