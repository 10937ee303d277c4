"""A whole simulated cluster under a workload and faults, watched all the time.

One seed fixes everything. A run has a time of faults and a time of peace: what must never happen is checked at every
step of both, and that the cluster gets over its faults is checked in the second.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from raftkv.consensus.guard import ALL_GUARDS, Guards
from raftkv.consensus.messages import Message
from raftkv.errors import FatalError, RemovedFromCluster, StorageFailed
from raftkv.membership import Membership
from raftkv.operations import Event, PutOperation, Refused, TransactionResult
from raftkv.runtime.identity import cluster_id_of
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
from raftkv.verification.history import Kind, Operation
from raftkv.verification.history import Outcome as OperationOutcome
from raftkv.verification.linearizability import Verdict, check_history
from tests.simulation.archive import Archive, Restoration, values_of
from tests.simulation.faults import FAULTS, FaultInjector, Strike
from tests.simulation.features import Features
from tests.simulation.loop import SimulationLoop
from tests.simulation.network import Network
from tests.simulation.node import CURRENT_NODE, SimulatedNode, small_limits
from tests.simulation.operator import Operator
from tests.simulation.workload import KEYS, Workload

PEACE_SECONDS = 40.0
"""Bound on the time after the last fault in which every node must serve writes and reads again."""

_HASH_EVERY = 8
_RESTORED_SECONDS = 8.0
_SECOND_LIFE = 1_000_000


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
        has_autopilot: Whether the autopilot may be on, as it is in a third of the runs.
    """

    seed: int
    nodes: int = 3
    seconds: float = 30.0
    faults: frozenset[str] = frozenset(FAULTS)
    guards: Guards = ALL_GUARDS
    has_features: bool = True
    has_autopilot: bool = True


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
        counts: How often some other things happened.
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
    counts: Counter[str] = field(default_factory=Counter)
    events: list[str] = field(default_factory=list)
    strikes: list[Strike] = field(default_factory=list)


class World:
    """The cluster of one run.

    Args:
        plan: What to do.
        strikes: Faults of an earlier run to repeat, instead of new ones.
        restoration: What the cluster is restored from, instead of being a new one.
    """

    def __init__(
        self, plan: Plan, strikes: Sequence[Strike] | None = None, restoration: Restoration | None = None
    ) -> None:
        self.plan = plan
        self._restoration = restoration
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
        self.initial_members = members
        self.cluster_id = cluster_id_of(members) if restoration is None else restoration.cluster_id(members)
        chance = random.Random(f"autopilot of {plan.seed}").random()
        self.has_autopilot = plan.has_autopilot and "membership" in plan.faults and chance < 1 / 3
        self.counts: Counter[str] = Counter()
        self.nodes = {member.name: SimulatedNode(self, member.name, members) for member in members}
        self.network = Network(
            self.loop,
            self.rng,
            list(self.nodes),
            self._deliver,
            lambda source, target: self._tell(source, "on_connected", target),
            lambda source, target: self._tell(source, "on_disconnected", target),
            lambda name: self.nodes[name].is_up,
            self._shake_hands,
        )
        self.operator = Operator(self)
        self.faults = FaultInjector(self, strikes)
        self.workload = Workload(self, 0 if restoration is None else _SECOND_LIFE)
        self.features = Features(self, plan.seed)
        self.archive = Archive(self)
        self.changes: dict[int, tuple[Event, ...]] = {}
        self._highest_token = 0

    def run(self) -> Outcome:
        """Do what the plan says."""
        logging.disable(logging.CRITICAL)
        asyncio.set_event_loop(self.loop)
        try:
            with small_limits(small_chunks="interrupt" in self.plan.faults):
                self.loop.run_until_complete(self._run())
        except Violation as violation:
            self._violation = self._violation or str(violation)
        finally:
            self._close()
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
            self.counts,
            self.events,
            self.faults.strikes,
        )

    def _wasted_terms(self) -> int:
        return max((node.core.term for node in self.nodes.values()), default=0) - len(self._leaders)

    def _close(self) -> None:
        # What is cut off by the end of the run is nobody's fault.
        self.loop.set_exception_handler(lambda *_: None)
        for node in self.nodes.values():
            node.crash(power_loss=False)
        while tasks := asyncio.all_tasks(self.loop):
            # Again and again: some clean up first, with the help of a thread that ended with its node.
            for task in tasks:
                task.cancel()
            self.loop.run_until_complete(asyncio.wait(tasks, timeout=0.1))
        self.loop.close()
        asyncio.set_event_loop(None)
        logging.disable(logging.NOTSET)

    async def _run(self) -> None:
        for node in self.nodes.values():
            if self._restoration is not None:
                node.restore(self._restoration)
            node.start()
        if self._restoration is not None:
            self._check_restored(self._restoration)
        self.workload.start()
        if self.plan.has_features:
            self.features.start()
        self.faults.start()
        await self._pass(self.plan.seconds)
        self.faults.stop()
        self.log("peace")
        await self.operator.finish()
        await self._recover()
        self.workload.stop()
        self.features.stop()
        await self.workload.read_everything()
        if self.plan.has_features:
            await self.features.check_the_end()
        self._check_the_end()

    def _check_restored(self, restoration: Restoration) -> None:
        """Check that every node has what it was restored from, and let the history begin with it."""
        for node in self.nodes.values():
            if values_of(node.storage.machine) != restoration.expected:
                self.violate(f"{node.name} does not have what was restored")
        for key in KEYS:
            value = restoration.expected.get(key)
            if value is not None:
                self.workload.history.append(
                    Operation("backup", key, Kind.PUT, value, -2.0, -1.0, OperationOutcome.DONE)
                )

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
            changed = tuple(event for _revision, event in events)
            if self.changes.setdefault(revision, changed) != changed:
                self.violate(f"{node.name} changed {changed} at revision {revision}, others {self.changes[revision]}")

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
        if not journal.has_durable_term:
            # An only voter leads at once. What it appends before its term is durable nobody else sees.
            return
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

    def present(self) -> list[SimulatedNode]:
        """Return the nodes that are not removed, as far as any node knows."""
        removed = self.latest_membership().removed
        return [node for node in self.nodes.values() if not node.is_retired and node.member_id not in removed]

    def latest_membership(self) -> Membership:
        """Return the membership that most changes have led to."""
        known = [node.storage.machine.membership for node in self.nodes.values() if node.was_started]
        return max(known, key=lambda membership: membership.version)

    def introduce(self, node: SimulatedNode) -> None:
        """Let a new node take part."""
        self.nodes[node.name] = node
        self.network.add(node.name)
        self.start_node(node)

    def _shake_hands(self, source: NodeId, target: NodeId) -> bool:
        """Do what a transport does before a connection is up, and with the members that it knows."""
        dialler, acceptor = self.nodes[source], self.nodes[target]
        known, mirrored = dialler.storage.machine.membership, acceptor.storage.machine.membership
        if known.named(target) is None and target not in dialler.guests:
            return False
        if mirrored.turns_away(dialler.member_id):
            dialler.enter(dialler.replica.on_failed, RemovedFromCluster(f"{target} says so"))
            return False
        if known.turns_away(acceptor.member_id):
            return False
        member = mirrored.named(source)
        is_guest = member is None or member.id != dialler.member_id
        if is_guest and source not in acceptor.guests:
            acceptor.guests.add(source)
            acceptor.enter(acceptor.replica.on_guest, source)
        elif not is_guest and source in acceptor.guests:
            acceptor.guests.discard(source)
            acceptor.enter(acceptor.replica.on_guest_gone, source)
        return True

    def on_fatal(self, node: SimulatedNode, error: BaseException) -> None:
        """A node ended itself: removed, or right after a fault of its disk; wrong at any other time."""
        self.log(f"{node.name} ended: {type(error).__name__}")
        if isinstance(error, RemovedFromCluster):
            node.is_retired = True
            return
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
        if not node.is_up:
            return
        node.enter(getattr(node.replica, event), *arguments)
        if event == "on_disconnected" and arguments[0] in node.guests:
            node.guests.discard(arguments[0])
            node.enter(node.replica.on_guest_gone, *arguments)

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
    """Run one plan from the beginning to the end, with faults of its own or those of an earlier run.

    If a backup was taken, a new cluster is restored from the last one when everything is over, and has faults, too.
    """
    world = World(plan, strikes)
    outcome = world.run()
    if outcome.violation is not None or world.archive.last is None:
        return outcome
    second = replace(
        plan, seconds=_RESTORED_SECONDS, faults=plan.faults - {"backup"}, has_features=False, has_autopilot=False
    )
    return _joined(outcome, World(second, None, world.archive.last).run())


def _joined(first: Outcome, second: Outcome) -> Outcome:
    """Return how a run ended whose cluster was restored in the end."""
    return replace(
        first,
        violation=None if second.violation is None else f"after the restoration: {second.violation}",
        virtual_seconds=first.virtual_seconds + second.virtual_seconds,
        operations=first.operations + second.operations,
        done=first.done + second.done,
        applied=first.applied + second.applied,
        faults=dict(sorted((Counter(first.faults) + Counter(second.faults)).items())),
        digest=hashlib.sha256(f"{first.digest} {second.digest}".encode()).hexdigest(),
        wasted_terms=max(first.wasted_terms, second.wasted_terms),
        counts=first.counts + second.counts + Counter({"restored": 1}),
        events=[*first.events, "restored", *second.events],
    )
