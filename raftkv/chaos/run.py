"""One run from the beginning to the verdict."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from raftkv.chaos.injector import Injector
from raftkv.chaos.report import Summary, latencies_over_time, percentile, revision_failures, surprise_failures
from raftkv.chaos.schedule import PROCESS_FAULTS, Fault, Schedule
from raftkv.chaos.session import NodeView, Session
from raftkv.chaos.workload import Workload
from raftkv.client import Client
from raftkv.errors import NotApplied, RaftkvError, UnknownOutcome
from raftkv.types import NodeId
from raftkv.verification.history import Operation, Outcome
from raftkv.verification.linearizability import check_history
from raftkv.verification.revisions import check_revisions

_PROGRESS_SECONDS = 5.0
_LEADER_SECONDS = 1.0
_PROBE_KEY = b"chaos/probe"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run does.

    Attributes:
        seconds: How long clients run and things are broken.
        faults: Kinds of faults that may happen.
        data_dir: Data directory of the ``raftkv dev``; without faults it may be None.
        endpoints: URLs of the nodes; empty for those of the ``raftkv dev``.
        clients: How many clients.
        rate: Operations a second, of all clients together.
        max_operations: Operations after which no more are begun.
        recovery_seconds: Time after the last fault in which every node must serve again.
        seed: Where every choice comes from.
        keep_keys: Leave the keys of the run in the cluster.
    """

    seconds: float
    faults: Sequence[Fault]
    data_dir: Path | None
    endpoints: Sequence[str]
    clients: int
    rate: float
    max_operations: int
    recovery_seconds: float
    seed: int
    keep_keys: bool = False


class Run:
    """One run.

    Args:
        plan: What to do.
        say: Prints a line.
    """

    def __init__(self, plan: Plan, say: Callable[[str], None]) -> None:
        self._plan = plan
        self._print = say
        self._began = time.monotonic()
        self._rng = random.Random(plan.seed)
        self._stop = asyncio.Event()
        self.nodes: tuple[NodeView, ...] = ()

    def stop(self) -> None:
        """End early: mend everything, and check what there is."""
        self._stop.set()

    async def go(self) -> Summary:
        """Do what the plan says.

        Raises:
            ConfigurationError: There is no such cluster.
            SessionFailed: The cluster is gone, or cannot be mended.
            RaftkvError: The cluster does not serve at the beginning.
        """
        plan = self._plan
        async with AsyncExitStack() as stack:
            session: Session | None = None
            if plan.data_dir is not None:
                session = await stack.enter_async_context(Session(plan.data_dir))
                self.nodes = await session.nodes()
            endpoints = tuple(plan.endpoints) or tuple(node.url for node in self.nodes)
            if session is not None and not PROCESS_FAULTS.issuperset(plan.faults):
                self._print("putting a proxy before each node; the nodes restart one by one the first time")
                await session.proxy_links()
            for url in endpoints:
                await _require_service(url, plan.recovery_seconds)
            # No two runs share keys: what an earlier one left would be a value that nobody wrote.
            prefix = f"chaos/{secrets.token_hex(6)}/".encode()
            workload = Workload(endpoints, prefix, self._rng, plan.rate, plan.max_operations, self._elapsed)
            await stack.enter_async_context(workload)
            return await self._run(session, endpoints, workload)

    async def _run(self, session: Session | None, endpoints: tuple[str, ...], workload: Workload) -> Summary:
        self._began = time.monotonic()
        schedule = Schedule(random.Random(self._rng.random()), [node.name for node in self.nodes])
        injector = None if session is None else Injector(session, schedule, self._leader, self._say, self._elapsed)
        clients_stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            clients = tasks.create_task(workload.run(self._plan.clients, clients_stop))
            progress = tasks.create_task(self._tell_progress(workload.history))
            timer = tasks.create_task(self._stop_after(self._plan.seconds))
            clients.add_done_callback(lambda _task: self._stop.set())
            try:
                if injector is not None:
                    await injector.run(self._plan.faults, self._stop)
                await self._stop.wait()
            finally:
                clients_stop.set()
                for task in (progress, timer):
                    task.cancel()
        seconds = self._elapsed()
        self._say("everything is mended; waiting until every node serves")
        failures = await self._failures_after(session, endpoints, workload)
        self._say(f"checking {len(workload.history)} operations")
        report = await asyncio.to_thread(check_history, workload.history)
        failures += revision_failures(await asyncio.to_thread(check_revisions, workload.history))
        summary = Summary(
            self._plan.seed,
            seconds,
            tuple(workload.history),
            tuple(injector.spans) if injector is not None else (),
            report,
            tuple(failures),
        )
        if summary.is_proven and not self._plan.keep_keys:
            await workload.remove_everything()
        return summary

    async def _failures_after(
        self, session: Session | None, endpoints: tuple[str, ...], workload: Workload
    ) -> list[str]:
        """Return what is wrong besides the history, after time to recover."""
        recovery = self._plan.recovery_seconds
        failures = surprise_failures(workload.surprises)
        for url in endpoints:
            try:
                await _require_service(url, recovery)
            except NotApplied as error:
                failures.append(f"{url} does not serve {recovery:g} s after the last fault: {error}")
        if not failures:
            failures += [f"{url} did not serve a read in peace" for url in await workload.read_everything()]
        if session is not None:
            before = {node.name: node.unexpected_ends for node in self.nodes}
            failures += [
                f"{node.name} ended by itself; its log is {node.log}"
                for node in await session.nodes()
                if node.unexpected_ends > before[node.name]
            ]
        return failures

    async def _leader(self) -> NodeId | None:
        with suppress(RaftkvError):
            async with Client([node.url for node in self.nodes], _LEADER_SECONDS, _LEADER_SECONDS / 4) as client:
                return (await client.cluster()).leader
        return None

    async def _stop_after(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self._stop.set()

    async def _tell_progress(self, history: list[Operation]) -> None:
        told = 0
        while True:
            await asyncio.sleep(_PROGRESS_SECONDS)
            recent = history[told:]
            told = len(history)
            latencies = sorted(latency for _at, latency in latencies_over_time(recent))
            lost = sum(operation.outcome in (Outcome.UNKNOWN, Outcome.REFUSED) for operation in recent)
            self._say(
                f"{told} operations; of the last {len(recent)}, {lost} refused or unknown, "
                f"p99 {1000 * percentile(latencies, 99):.0f} ms"
            )

    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _say(self, text: str) -> None:
        self._print(f"{self._elapsed():7.1f} s  {text}")


async def _require_service(url: str, seconds: float) -> None:
    """Return when a node serves linearizable reads and knows a leader that takes writes.

    Raises:
        NotApplied: It does not in time.
    """
    async with Client([url], seconds) as client:
        await client.get(_PROBE_KEY)
        while True:
            with suppress(UnknownOutcome):
                await client.delete(_PROBE_KEY)
                return
