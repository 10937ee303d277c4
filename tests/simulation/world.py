"""A whole simulated cluster under a workload and faults, watched all the time.

One seed fixes everything. A run has a time of faults and a time of peace: what must never happen is checked at every
step of both, and that the cluster gets over its faults is checked in the second.
"""

from __future__ import annotations

import asyncio
import gc
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
from raftkv.errors import FatalError, RemovedFromCluster, StateDiverged, StorageFailed
from raftkv.membership import Membership
from raftkv.operations import AlarmKind, Event, PutOperation, RefusalKind, Refused, TransactionResult
from raftkv.runtime.identity import cluster_id_of
from raftkv.service.slices import SlicePolicy
from raftkv.store.commands import (
    Put,
    RevokeLease,
    SetAlarm,
    Transact,
    decode_commands,
)
from raftkv.store.machine import Machine
from raftkv.store.mvcc import Change, event_of
from raftkv.store.results import Result
from raftkv.types import Member, NodeId, Written
from raftkv.verification.history import Kind, Operation
from raftkv.verification.history import Outcome as OperationOutcome
from raftkv.verification.linearizability import Verdict, check_history
from raftkv.verification.revisions import check_revisions
from tests.simulation.access import DirectAccess
from tests.simulation.archive import Archive, Restoration, values_of
from tests.simulation.bounds import Bounds
from tests.simulation.disaster import Disaster, Recovery
from tests.simulation.faults import AT_THE_END, FAULTS, FaultInjector, Strike
from tests.simulation.features import Features
from tests.simulation.http_access import HttpAccess, fast_heartbeats
from tests.simulation.loop import SimulationLoop, collecting_on_virtual_time
from tests.simulation.network import Network
from tests.simulation.node import (
    CURRENT_NODE,
    JournalDefect,
    NodeSettings,
    SimulatedNode,
    small_limits,
)
from tests.simulation.operator import Operator
from tests.simulation.parsing import SECONDS_PER_KB, costly_parsing
from tests.simulation.rollback import Rollbacks, Wipes
from tests.simulation.versions import Releases, gated_puts
from tests.simulation.wired import HttpWorkload, WiredNetwork
from tests.simulation.workload import KEYS, Workload

PEACE_SECONDS = 40.0
"""Bound on the time after the last fault in which every node must serve writes and reads again."""

_HASH_EVERY = 8
_LONG_KEEP_SECONDS = 600
_RESTORED_SECONDS = 8.0
_OLD_MEMBER_SECONDS = 6.0
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
        is_wired: Whether nodes have the real transport and front-end, over virtual streams, instead of messages.
        disasters: Share of the runs that end in the loss of a majority, when that is one of their faults.
    """

    seed: int
    nodes: int = 3
    seconds: float = 30.0
    faults: frozenset[str] = frozenset(FAULTS)
    guards: Guards = ALL_GUARDS
    has_features: bool = True
    has_autopilot: bool = True
    is_wired: bool = False
    disasters: float = 1 / 8


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
        # What a step on the store costs: at the highest, a busy node is always behind with applying.
        costs = random.Random(f"costs of {plan.seed}")
        self.slices = SlicePolicy(steps=1, pause_seconds=costs.choice((0.0002, 0.002, 0.01)))
        self.parse_seconds_per_kb = costs.choice(SECONDS_PER_KB) if plan.is_wired else 0.0
        self._committed: dict[int, tuple[int, bytes | None]] = {}
        self._committed_in: dict[int, int] = {}
        self._results: dict[int, str] = {}
        self._revisions: dict[int, int] = {}
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
        self.rollbacks = Rollbacks(self)
        self.wipes = Wipes(self)
        self.releases = Releases(self, plan.seed, is_restored=restoration is not None)
        self.nodes = {member.name: SimulatedNode(self, member.name, members) for member in members}
        self.network: Network | WiredNetwork = WiredNetwork(self) if plan.is_wired else self._messages()
        for node in self.nodes.values():
            node.release = self.releases.first_release()
        self.operator = Operator(self)
        self.faults = FaultInjector(self, strikes)
        self.releases.is_mixed = "versions" in self.faults.enabled
        # Their checks know nothing of what a rollback may take.
        self.has_features = plan.has_features and "rollback" not in self.faults.enabled
        kind_of_workload = HttpWorkload if plan.is_wired else Workload
        self.workload = kind_of_workload(self, 0 if restoration is None else _SECOND_LIFE)
        self.features = Features(self, plan.seed, HttpAccess(self, plan.seed) if plan.is_wired else DirectAccess())
        self.archive = Archive(self)
        self.disaster = Disaster.of(self)
        self.recovery: Recovery | None = None
        self.changes: dict[int, tuple[Event, ...]] = {}
        self._highest_token = 0
        self._bounds = Bounds(self)

    def _messages(self) -> Network:
        return Network(
            self.loop,
            self.rng,
            list(self.nodes),
            self._deliver,
            lambda source, target: self._tell(source, "on_connected", target),
            lambda source, target: self._tell(source, "on_disconnected", target),
            lambda name: self.nodes[name].is_up,
            self._shake_hands,
            lambda source, target, is_congested: self._tell(
                source, "on_congested" if is_congested else "on_drained", target
            ),
        )

    def settings_of(self, name: NodeId) -> NodeSettings:
        """Return the settings of a node: in a third of the runs each has its own, in a sixth all are tight."""
        chance = random.Random(f"settings of {self.plan.seed}").random()
        if chance >= 1 / 2:
            return NodeSettings()
        if chance >= 1 / 3:
            return NodeSettings.tight()
        return NodeSettings.random(random.Random(f"settings of {name} in {self.plan.seed}"))

    @property
    def outcomes_may_expire(self) -> bool:
        """Whether some node forgets outcomes within a run, with clocks that run fast and jump: a retry is new then."""
        return any(node.settings.idempotency_keep_seconds < _LONG_KEEP_SECONDS for node in self.nodes.values())

    def run(self) -> Outcome:
        """Do what the plan says."""
        with collecting_on_virtual_time():
            return self._run_to_the_end()

    def _run_to_the_end(self) -> Outcome:
        logging.disable(logging.CRITICAL)
        asyncio.set_event_loop(self.loop)
        try:
            with (
                small_limits(small_chunks="interrupt" in self.plan.faults),
                gated_puts(),
                fast_heartbeats(),
                costly_parsing(self.parse_seconds_per_kb),
            ):
                self.loop.run_until_complete(self._run())
                # Exceptions that nobody took are reported when their futures go, also those in reference cycles.
                gc.collect()
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
        return max((node.core.term for node in self.nodes.values() if node.was_started), default=0) - len(self._leaders)

    def _close(self) -> None:
        # What is cut off by the end of the run is nobody's fault.
        self.loop.set_exception_handler(lambda *_: None)
        for node in self.nodes.values():
            node.crash(power_loss=False)
        while tasks := asyncio.all_tasks(self.loop):
            # Again and again: some clean up first, with the help of a thread that ended with its node.
            # In the order in which they were created: they have numbers for names.
            for task in sorted(tasks, key=lambda task: (len(task.get_name()), task.get_name())):
                task.cancel()
            self.loop.run_until_complete(asyncio.wait(tasks, timeout=0.1))
        self.loop.close()
        asyncio.set_event_loop(None)
        logging.disable(logging.NOTSET)

    async def _run(self) -> None:
        if self._restoration is not None:
            await self._begin_restored(self._restoration)
        else:
            for node in self.nodes.values():
                node.start()
        self.workload.start()
        self.releases.start()
        if self.has_features:
            self.features.start()
        self.faults.start()
        if self.disaster is not None:
            await self._pass(self.disaster.seconds)
            self.faults.end()
            self.recovery = self.disaster.strike()
            self.raise_violation()
            if self.recovery is not None:
                return
        await self._pass(self.plan.seconds)
        self.faults.stop()
        self.log("peace")
        for node in self.nodes.values():
            node.lift_quota()
        await self.operator.finish()
        await self._recover()
        await self.releases.check_the_end()
        self.raise_violation()
        self.workload.stop()
        self.releases.stop()
        self.features.stop()
        if self.rollbacks.is_lossy:
            await self.rollbacks.check_the_end()
            self.raise_violation()
            return
        await self.workload.read_everything()
        if self._restoration is not None:
            await self.features.retry_onces(self._restoration.tokens)
        if self.has_features:
            await self.features.check_the_end()
        self._check_the_end()

    async def _begin_restored(self, restoration: Restoration) -> None:
        """Start the members of a restored cluster; an old member that comes back is refused, and restored then."""
        old = self._old_member(restoration)
        members = [node for node in self.nodes.values() if node is not old]
        for node in members:
            node.restore(restoration)
            node.start()
        self._check_restored(restoration, members)
        if old is not None:
            await self._refuse(old, restoration)
            self._check_restored(restoration, [old])
        await self.features.check_old_watches(restoration.positions)

    def _old_member(self, restoration: Restoration) -> SimulatedNode | None:
        if not isinstance(restoration, Recovery) or restoration.old is None:
            return None
        name, disk = restoration.old
        node = self.nodes[name]
        node.disk, node.is_of_old_cluster = disk, True
        return node

    async def _refuse(self, old: SimulatedNode, restoration: Restoration) -> None:
        """Let an old member come back for a while: the members of the new cluster must not care."""
        if self.start_node(old):
            self.counts["old members came back"] += 1
        await self._pass(_OLD_MEMBER_SECONDS)
        for node in self.nodes.values():
            if node is not old and (not node.is_up or node.core.leader in (None, old.name)):
                self.violate(f"{node.name} of the new cluster does not go on beside {old.name} of the old one")
        self.raise_violation()
        old.crash(power_loss=False)
        old.restore(restoration)
        old.start()

    def _check_restored(self, restoration: Restoration, nodes: Sequence[SimulatedNode]) -> None:
        """Check that nodes have what they were restored from, and let the history begin with it."""
        for node in nodes:
            if values_of(node.storage.machine) != restoration.expected:
                self.violate(f"{node.name} does not have what was restored")
        for key in KEYS if not self.workload.history else ():
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
                if self.rollbacks.explain_standstill():
                    return
                self.violate(f"no progress within {PEACE_SECONDS:g} s of peace", is_local=True)
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
        findings = check_revisions(self.workload.history)
        if findings:
            self.violate(f"{len(findings)} revisions are wrong: {findings[0]}")
        self.raise_violation()

    def log(self, event: str) -> None:
        """Note what happens."""
        self.events.append(f"{self.loop.time():.6f} {event}")

    def violate(self, what: str, *, is_local: bool = False) -> None:
        """Note a violation; the run ends at its next step.

        Args:
            what: What must never happen.
            is_local: Whether it must not, whatever the disks of others have forgotten.
        """
        if self.rollbacks.is_lossy and not is_local:
            self.log(f"after a rollback: {what}")
        elif self._violation is None:
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
                self.rollbacks.has_contradiction = True
                self.violate(f"{node.name} applied another entry at index {entry.index} than others did")
            self._bounds.check_results(node, result)
            described = repr(result)
            if self._results.setdefault(entry.index, described) != described:
                self.violate(f"{node.name} has another result at index {entry.index} than others had")
            if entry.index > self._noted:
                self._noted = entry.index
                self._note_commands(entry.payload, result)
                reached = [getattr(each, "revision", 0) for each in result]
                self._revisions[entry.index] = max(self._revisions.get(entry.index - 1, 0), *reached, 0)
        index = machine.applied_index
        if index % _HASH_EVERY == 0 and not node.is_flipped:
            state = machine.state_hash()
            if self._hashes.setdefault(index, state) != state:
                self.violate(f"{node.name} has another state at index {index} than others had")

    def on_changes(self, node: SimulatedNode, changes: Sequence[Change]) -> None:
        """Check that every node sees the same changes at the same revision."""
        for revision, events in groupby(map(event_of, changes), key=lambda event: event[0]):
            changed = tuple(event for _revision, event in events)
            if self.changes.setdefault(revision, changed) != changed:
                self.violate(f"{node.name} changed {changed} at revision {revision}, others {self.changes[revision]}")

    def _note_commands(self, payload: bytes | None, results: Sequence[Result]) -> None:
        """Look at what an entry does, the first time that a node applies it."""
        commands = [] if payload is None else decode_commands(payload)
        for command, result in zip(commands, results, strict=True):
            if isinstance(command, Put) and not isinstance(result, Refused):
                self._applied_values.add(command.value)
            elif isinstance(command, Transact) and isinstance(result, TransactionResult) and result.succeeded:
                puts = (part for part in command.transaction.success if isinstance(part, PutOperation))
                self._applied_values.update(put.value for put in puts if put.value)
            elif isinstance(result, Refused) and result.kind is RefusalKind.TOO_MANY_KEYS:
                self.counts["transactions that read too much"] += 1
            elif isinstance(command, SetAlarm) and command.alarm.kind is AlarmKind.CORRUPT:
                self.counts["alarms CORRUPT"] += 1
            elif isinstance(command, RevokeLease) and not isinstance(result, Refused):
                self.features.on_lease_removed(command.lease_id)
            token = self.features.token_of(command)
            if token is not None and isinstance(result, Written):
                if token < self._highest_token:
                    self.violate(f"a write under the token {token} after one of {self._highest_token}")
                self._highest_token = token

    def committed_terms(self) -> dict[int, int]:
        """Return the term of every entry, by index, that a node has applied."""
        return {index: term for index, (term, _payload) in self._committed.items()}

    def revision_at(self, index: int) -> int:
        """Return the store's revision after an entry that was applied, or a lower one if the entry has removed keys."""
        return self._revisions.get(index, 0)

    def on_turn(self, node: SimulatedNode) -> None:
        """Check a node's log, and what a leader must be: alone in its term, in possession of everything committed."""
        if node.is_of_old_cluster:
            return
        self._check_log(node)
        self._check_leader(node)
        self._bounds.check(node)
        self._check_comparisons(node)
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

    def _check_leader(self, node: SimulatedNode) -> None:
        """Check that a node reports no leader that has said nothing for an election timeout."""
        now = node.clock.now()
        if node.spoke:
            node.heard.update(dict.fromkeys(node.spoke, now))
            node.spoke.clear()
        # What status and refusals name comes from here.
        leader = node.core.leader
        if leader is None or leader == node.name:
            return
        silent = now - node.heard.get(leader, float("-inf"))
        if silent > node.settings.election_timeout_seconds:
            what = f"{node.name} reports the leader {leader}, which has been silent for {silent:.1f} s"
            self.violate(what, is_local=True)

    def _check_comparisons(self, node: SimulatedNode) -> None:
        """Check that comparisons of states find nothing where nothing was changed silently."""
        checks = node.replica.checks
        if checks.mismatches and not self.counts["states flipped"]:
            self.violate(f"{node.name} found states that differ, which do not")
        self.counts["states compared"] += checks.succeeded - node.checks_noted
        node.checks_noted = checks.succeeded

    def _check_log(self, node: SimulatedNode) -> None:
        """Check log matching: the same entry, after the same one, at the same index and term (Raft paper, 5.3)."""
        journal = node.storage.journal
        if not journal.has_durable_term:
            # An only voter leads at once. What it appends before its term is durable nobody else sees.
            return
        if node.checked_position == journal.position:
            # Every change of the log is a record, but for compaction, which adds nothing.
            return
        node.checked_position = journal.position
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
        """Return the nodes that are not removed, as far as any node knows, and not set aside."""
        removed = self.latest_membership().removed
        nodes = [node for node in self.nodes.values() if not node.is_retired and not node.is_set_aside]
        return [node for node in nodes if node.member_id not in removed]

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
        if dialler.storage.identity.cluster_id != acceptor.storage.identity.cluster_id:
            return False
        known, mirrored = dialler.storage.machine.membership, acceptor.storage.machine.membership
        if known.named(target) is None and target not in dialler.guests:
            return False
        if (rejected := acceptor.judge(dialler)) is not None:
            dialler.enter(dialler.handler.on_rejected, target, rejected.code, rejected.text)
            return False
        if dialler.judge(acceptor) is not None:
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
        if node.is_of_old_cluster:
            return
        if isinstance(error, RemovedFromCluster):
            node.is_retired = True
            return
        if self.rollbacks.may_end(error):
            if self.rollbacks.note_end(node, error, self.rng):
                self.faults.later(self.rng.uniform(0.5, 4), lambda: self.faults.restart(node))
            return
        if self.releases.may_end(node, error):
            self.releases.put_back(node)
            self.loop.call_later(0.5, self.faults.restart, node)
            return
        if isinstance(error, StateDiverged) and node.is_flipped:
            # Its operator puts its data back in order.
            node.flip(is_flipped=False)
            self.loop.call_later(0.5, self.faults.restart, node)
            return
        is_of_disk = isinstance(error, StorageFailed) and self.faults.had_broken_disk(node)
        expected = is_of_disk or isinstance(error, JournalDefect)
        if not expected:
            self.violate(f"{node.name} ended: {type(error).__name__}: {error}", is_local=True)

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
        self.violate(f"{context['message']}: {context.get('exception')!r}", is_local=True)

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
            if node.disk_stall_seconds > 0:
                node.later(min(node.disk_stall_seconds, 0.5), finish)
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

    If the run ended in the loss of a majority, a new cluster is recovered from what is left; if not, and a backup was
    taken, a new cluster is restored from the last one. It has faults, too.
    """
    world = World(plan, strikes)
    outcome = world.run()
    origin = world.recovery or world.archive.last
    if outcome.violation is not None or origin is None:
        return outcome
    second = replace(
        plan,
        seconds=_RESTORED_SECONDS,
        faults=plan.faults - {"backup"} - AT_THE_END,
        has_features=False,
        has_autopilot=False,
    )
    restoration = replace(origin, positions=world.features.positions(), tokens=world.features.idempotency_keys())
    return _joined(outcome, World(second, None, restoration).run())


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
