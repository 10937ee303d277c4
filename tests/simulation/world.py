"""A whole simulated cluster under a workload and faults, watched all the time.

One seed fixes everything. A run has a time of faults and a time of peace: what must never happen is checked at every
step of both, and that the cluster gets over its faults is checked in the second.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import raftkv.consensus.core as core_module
from raftkv.consensus import engine
from raftkv.consensus.guard import ALL_GUARDS, Guards
from raftkv.consensus.messages import Message
from raftkv.errors import FatalError, StorageFailed
from raftkv.operations import Event, PutOperation, Refused, TransactionResult
from raftkv.store.commands import (
    Guarded,
    MalformedCommand,
    Put,
    RevokeLease,
    Transact,
    decode_commands,
)
from raftkv.store.machine import Machine
from raftkv.store.results import Result
from raftkv.types import Member, NodeId, Written
from raftkv.verification.linearizability import Verdict, check_history
from tests.simulation.faults import FAULTS, FaultInjector, Strike
from tests.simulation.features import Features
from tests.simulation.loop import SimulationLoop
from tests.simulation.network import Network
from tests.simulation.node import CURRENT_NODE, SimulatedNode, shrink_limits
from tests.simulation.workload import Workload

PEACE_SECONDS = 40.0
"""Bound on the time after the last fault in which every node must serve writes and reads again."""

_HASH_EVERY = 8


class Violation(Exception):
    """Something happened that must never happen."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run does.

    Attributes:
        seed: Fixes everything else.
        nodes: Members of the cluster.
        seconds: Virtual time of faults.
        faults: Names of the faults that may happen.
        guards: Rules that are on.
        has_features: Whether there are clients of more than single keys.
    """

    seed: int
    nodes: int = 3
    seconds: float = 30.0
    faults: frozenset[str] = frozenset(FAULTS)
    guards: Guards = ALL_GUARDS
    has_features: bool = True


@dataclass(slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        plan: What it did.
        violation: What went wrong, None when nothing did.
        virtual_seconds: Time that passed inside.
        operations: Operations of clients.
        done: Those of them that succeeded.
        applied: Entries of the log that were applied somewhere.
        faults: How often each fault happened.
        digest: Digest of everything that happened; equal for equal plans.
        wasted_terms: Terms in which nobody led: campaigns that could not be won.
        events: Everything that happened, a line each.
        strikes: The faults, in their order.
    """

    plan: Plan
    violation: str | None
    virtual_seconds: float
    operations: int
    done: int
    applied: int
    faults: dict[str, int]
    digest: str
    wasted_terms: int
    events: list[str] = field(default_factory=list)
    strikes: list[Strike] = field(default_factory=list)


class World:
    """The cluster of one run.

    Args:
        plan: What to do.
        strikes: Faults of an earlier run to repeat, instead of new ones.
    """

    def __init__(self, plan: Plan, strikes: Sequence[Strike] | None = None) -> None:
        self.plan = plan
        self.rng = random.Random(plan.seed)
        self.guards = plan.guards
        self.loop = SimulationLoop()
        self.loop.run_worker = self._run_worker
        self.loop.set_exception_handler(self._on_loop_error)
        self.events: list[str] = []
        self.slow_disks = False
        self._committed: dict[int, tuple[int, bytes | None]] = {}
        self._committed_in: dict[int, int] = {}
        self._results: dict[int, str] = {}
        self._hashes: dict[int, str] = {}
        self._logged: dict[tuple[int, int], tuple[bytes, int | None]] = {}
        self._leaders: dict[int, NodeId] = {}
        self._leading: dict[NodeId, int] = {}
        self._applied_values: set[bytes] = set()
        self._noted = 0
        self._violation: str | None = None
        members = tuple(Member(NodeId(f"n{number}"), f"host{number}:1") for number in range(1, plan.nodes + 1))
        self.nodes = {member.name: SimulatedNode(self, member.name, members) for member in members}
        self.network = Network(
            self.loop,
            self.rng,
            list(self.nodes),
            self._deliver,
            lambda source, target: self._tell(source, "on_connected", target),
            lambda source, target: self._tell(source, "on_disconnected", target),
            lambda name: self.nodes[name].is_up,
        )
        self.faults = FaultInjector(self, strikes)
        self.workload = Workload(self)
        self.features = Features(self, plan.seed)
        self.changes: dict[int, tuple[bytes, ...]] = {}
        self._highest_token = 0

    def run(self) -> Outcome:
        """Do what the plan says."""
        logging.disable(logging.CRITICAL)
        asyncio.set_event_loop(self.loop)
        limits = engine._BATCH_BYTES, core_module._STEP_BYTES
        shrink_limits()
        try:
            self.loop.run_until_complete(self._run())
        except Violation as violation:
            self._violation = self._violation or str(violation)
        finally:
            self._close()
            engine._BATCH_BYTES, core_module._STEP_BYTES = limits
        history = self.workload.history
        text = "\n".join(self.events).encode()
        return Outcome(
            self.plan,
            self._violation,
            self.loop.virtual_time,
            len(history),
            self.workload.done,
            len(self._committed),
            dict(sorted(self.faults.counts.items())),
            hashlib.sha256(text).hexdigest(),
            self._wasted_terms(),
            self.events,
            self.faults.strikes,
        )

    def _wasted_terms(self) -> int:
        return max((node.core.term for node in self.nodes.values()), default=0) - len(self._leaders)

    def _close(self) -> None:
        for node in self.nodes.values():
            node.crash(power_loss=False)
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self.loop.close()
        asyncio.set_event_loop(None)
        logging.disable(logging.NOTSET)

    async def _run(self) -> None:
        for node in self.nodes.values():
            node.start()
        self.workload.start()
        if self.plan.has_features:
            self.features.start()
        self.faults.start()
        await self._pass(self.plan.seconds)
        self.faults.stop()
        self.log("peace")
        await self._recover()
        self.workload.stop()
        self.features.stop()
        await self.workload.read_everything()
        if self.plan.has_features:
            await self.features.check_the_end()
        self._check_the_end()

    async def _pass(self, seconds: float) -> None:
        end = self.loop.time() + seconds
        while self.loop.time() < end:
            await asyncio.sleep(min(0.5, end - self.loop.time()))
            self.raise_violation()

    async def _recover(self) -> None:
        """After the last fault every node must serve again within a bounded time."""
        end = self.loop.time() + PEACE_SECONDS
        while not await self.workload.everybody_serves():
            self.raise_violation()
            if self.loop.time() > end:
                self.violate(f"no progress within {PEACE_SECONDS:g} s of peace")
                self.raise_violation()

    def _check_the_end(self) -> None:
        self.raise_violation()
        never = self.workload.refused_values & self._applied_values
        if never:
            self.violate(f"refused writes were applied: {sorted(never)[:3]}")
        report = check_history(self.workload.history)
        if report.verdict is not Verdict.LINEARIZABLE:
            shown = "\n    ".join(str(operation) for operation in report.operations[-12:])
            self.violate(f"the history of key {report.key!r} is {report.verdict.value}:\n    {shown}")
        self.raise_violation()

    def log(self, event: str) -> None:
        """Note what happens."""
        self.events.append(f"{self.loop.time():.6f} {event}")

    def violate(self, what: str) -> None:
        """Note a violation; the run ends at its next step."""
        if self._violation is None:
            self._violation = what
            self.log(f"VIOLATION {what}")

    def raise_violation(self) -> None:
        """End the run if there was a violation.

        Raises:
            Violation: There was.
        """
        if self._violation is not None:
            raise Violation(self._violation)

    def sync_seconds(self) -> float:
        """Return how long the next write and sync of a journal takes."""
        if self.slow_disks:
            return self.rng.uniform(0.05, 0.6)
        return self.rng.uniform(0.0001, 0.003)

    def on_applied(
        self, node: SimulatedNode, entries: Sequence[Any], results: list[list[Result]], machine: Machine
    ) -> None:
        """Check that every node applies the same entries with the same results."""
        for entry, result in zip(entries, results, strict=True):
            known = self._committed.setdefault(entry.index, (entry.term, entry.payload))
            # Whoever applies it has heard of its commit in this term or an earlier one.
            self._committed_in.setdefault(entry.index, node.core.term if node.is_up else entry.term)
            if known != (entry.term, entry.payload):
                self.violate(f"{node.name} applied another entry at index {entry.index} than others did")
            if self._results.setdefault(entry.index, repr(result)) != repr(result):
                self.violate(f"{node.name} has another result at index {entry.index} than others had")
            if entry.index > self._noted:
                self._noted = entry.index
                self._note_commands(entry.payload, result)
        index = machine.applied_index
        if index % _HASH_EVERY == 0:
            state = machine.state_hash()
            if self._hashes.setdefault(index, state) != state:
                self.violate(f"{node.name} has another state at index {index} than others had")

    def on_changes(self, node: SimulatedNode, changes: Sequence[tuple[int, Event]]) -> None:
        """Check that every node sees the same changes at the same revision."""
        for revision, events in groupby(changes, key=lambda change: change[0]):
            keys = tuple(event.item.key for _revision, event in events)
            if self.changes.setdefault(revision, keys) != keys:
                self.violate(f"{node.name} changed {keys} at revision {revision}, others {self.changes[revision]}")

    def _note_commands(self, payload: bytes | None, results: Sequence[Result]) -> None:
        """Look at what an entry does, the first time that a node applies it."""
        try:
            commands = [] if payload is None else decode_commands(payload)
        except MalformedCommand:
            return
        for command, result in zip(commands, results, strict=True):
            if isinstance(command, Put):
                self._applied_values.add(command.value)
            elif isinstance(command, Transact) and isinstance(result, TransactionResult) and result.succeeded:
                puts = (part for part in command.transaction.success if isinstance(part, PutOperation))
                self._applied_values.update(put.value for put in puts if put.value)
            elif isinstance(command, RevokeLease) and not isinstance(result, Refused):
                self.features.on_lease_removed(command.lease_id)
            elif isinstance(command, Guarded) and command.fence is not None and isinstance(result, Written):
                if command.fence.token < self._highest_token:
                    self.violate(f"a write under the token {command.fence.token} after one of {self._highest_token}")
                self._highest_token = command.fence.token

    def on_turn(self, node: SimulatedNode) -> None:
        """Check a node's log, and what a leader must be: alone in its term, in possession of everything committed."""
        self._check_log(node)
        if not node.leads:
            self._leading.pop(node.name, None)
            return
        term = node.core.term
        if self._leading.get(node.name) == term:
            return
        self._leading[node.name] = term
        self.log(f"{node.name} leads term {term}")
        first = self._leaders.setdefault(term, node.name)
        if first != node.name:
            self.violate(f"{first} and {node.name} both lead term {term}")
        journal = node.storage.journal
        for index, (committed_term, _payload) in self._committed.items():
            is_older = self._committed_in[index] < term
            if is_older and index > journal.base_index and journal.term_at(index) != committed_term:
                self.violate(f"{node.name} leads term {term} without the committed entry {index}")

    def _check_log(self, node: SimulatedNode) -> None:
        """Check log matching: the same entry, after the same one, at the same index and term (Raft paper, 5.3)."""
        journal = node.storage.journal
        for position in range(len(journal) - 1, 0, -1):
            command, index, term = journal[position]
            if (index, term) in node.matched:
                # Everything before it was compared when it was.
                return
            node.matched.add((index, term))
            previous = journal[position - 1]
            entry = (command, previous[2] if previous[1] > 1 else None)
            if self._logged.setdefault((index, term), entry) != entry:
                self.violate(f"{node.name} has another entry {index} of term {term} than others have")

    def on_fatal(self, node: SimulatedNode, error: BaseException) -> None:
        """A node ended itself: right after a fault of its disk, wrong at any other time."""
        self.log(f"{node.name} ended: {type(error).__name__}")
        expected = isinstance(error, StorageFailed) and self.faults.had_broken_disk(node)
        if not expected:
            self.violate(f"{node.name} ended: {type(error).__name__}: {error}")

    def start_node(self, node: SimulatedNode) -> bool:
        """Start a node; return whether it started."""
        try:
            node.start()
        except FatalError as error:
            self.log(f"{node.name} refuses to start: {type(error).__name__}")
            node.failure = error
            return False
        self.faults.note_start(node)
        self.log(f"{node.name} started")
        return True

    def _on_loop_error(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An exception that nobody took would otherwise be a line in a log."""
        self.violate(f"{context['message']}: {context.get('exception')!r}")

    def _deliver(self, source: NodeId, target: NodeId, message: Message) -> None:
        self._tell(target, "on_message", source, message)

    def _tell(self, name: NodeId, event: str, *arguments: Any) -> None:
        node = self.nodes[name]
        if node.is_up:
            node.enter(getattr(node.replica, event), *arguments)

    def _run_worker(self, work: Callable[[], Any], future: asyncio.Future[Any]) -> None:
        node = CURRENT_NODE.get()
        assert node is not None, "only nodes use threads"

        def finish() -> None:
            if future.cancelled():
                return
            try:
                result = work()
            except Exception as error:  # noqa: BLE001 - handed to whoever waits
                future.set_exception(error)
            else:
                future.set_result(result)

        node.later(self.rng.uniform(0.001, 0.2), finish)


def run_plan(plan: Plan, strikes: Sequence[Strike] | None = None) -> Outcome:
    """Run one plan from the beginning to the end, with faults of its own or those of an earlier run."""
    return World(plan, strikes).run()
