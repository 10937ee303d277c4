"""Compares the members' stores at one index, now and then, and ends a node whose store differs from a majority's.

The leader asks for the hash of the state at the last index of its log. No member can be beyond that when the question
reaches it: a later entry, or its commit, is sent after the question on the same connection. So each member ends a
group of entries exactly there, opens a view of its store, and hashes that in a thread while the store goes on. A member
that cannot do so answers without a hash, and is not compared.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from raftkv.consensus.core import RaftCore
from raftkv.consensus.log_comparison import REPLACE_ADVICE
from raftkv.consensus.messages import Message, StateDivergence, StateHashRequest, StateHashResult
from raftkv.consensus.state_check import CheckReport, CheckRound, MemberResult, judge
from raftkv.errors import FatalError, NoLeader, StateDiverged
from raftkv.membership import Membership
from raftkv.operations import Alarm, AlarmKind
from raftkv.ports import Clock
from raftkv.runtime.apply_loop import ApplyLoop
from raftkv.runtime.pacing import Pace
from raftkv.store.backend import HeldView
from raftkv.store.machine import Machine
from raftkv.store.state_hash import HASH_VERSION, hash_held
from raftkv.types import Index, NodeId, Role, Term

logger = logging.getLogger(__name__)

_SOON_SECONDS = 60.0
"""From the beginning of a leadership to its first check, at most."""

_AGAIN_SECONDS = 600.0
"""From a check that some member did not answer, or that found a difference, to the next one, at most."""

_RETURNED_SECONDS = 1.0
"""From the return of a member with an alarm to a check."""

_PATIENCE_SECONDS = 30.0
"""What members are given after the leader's own hash, at least; four times what that took otherwise."""

_ALARM_SECONDS = 5.0
"""What a leader that is wrong gives its alarm to be committed, before it stops."""

_ADVICE = f"Its data is damaged, or was changed: what it has answered may be wrong. {REPLACE_ADVICE}"


@dataclass(frozen=True, slots=True)
class CheckPolicy:
    """When states are compared, and how fast.

    Attributes:
        period_seconds: Time from one check to the next, 0 for none but those that are asked for.
        records_per_second: A state is hashed no faster than this: a small share of a processor.
    """

    period_seconds: float = 0.0
    records_per_second: int = 150_000


class StateChecks:
    """Both sides of the comparison at one node: the leader's, and each member's.

    Args:
        name: This node.
        core: Its Raft core.
        last_index: Returns the last index of its log.
        machine: Its store.
        apply_loop: Brings the store to an index exactly.
        clock: Monotonic time.
        policy: When, and how fast.
        send: Sends a message to a member; whether it is on its way.
        membership: Returns who belongs to the cluster.
        raise_alarm: Called at a leader with a member that the alarm ``CORRUPT`` is to be raised for, until it is.
        failed: Called with an error that must stop the node.

    Attributes:
        begun: Checks that this node has begun as the leader.
        succeeded: Those in which every member answered, and all states were equal.
        mismatches: Differences that were found: members that differ from a majority, and checks without a majority.
        hashed: States that this node has hashed, for itself or another leader.
    """

    def __init__(
        self,
        name: NodeId,
        core: RaftCore,
        last_index: Callable[[], Index],
        machine: Machine,
        apply_loop: ApplyLoop,
        clock: Clock,
        policy: CheckPolicy,
        send: Callable[[NodeId, Message], bool],
        membership: Callable[[], Membership],
        raise_alarm: Callable[[NodeId], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._name = name
        self._core = core
        self._last_index = last_index
        self._machine = machine
        self._apply_loop = apply_loop
        self._clock = clock
        self._policy = policy
        self._send = send
        self._membership = membership
        self._raise_alarm = raise_alarm
        self._accused: set[NodeId] = set()
        self._failed = failed
        self._pace = Pace(policy.records_per_second)
        self._led_term: Term | None = None
        self._due_at = float("inf")
        self._round: CheckRound | None = None
        self._began_at = 0.0
        self._deadline = float("inf")
        self._waiters: list[asyncio.Future[CheckReport]] = []
        self._question: tuple[NodeId, Term, Index] | None = None
        self._view: HeldView | None = None
        self._walks: set[asyncio.Task[None]] = set()
        self._own: tuple[Index, str] | None = None
        self._end: tuple[FatalError, float] | None = None
        self._is_stopped = False
        self.begun = 0
        self.succeeded = 0
        self.mismatches = 0
        self._succeeded_at: float | None = None
        self.hashed = 0

    def poll(self) -> None:
        """Begin a check when one is due, and end one that takes too long; call this regularly."""
        now = self._clock.now()
        self._end_when_alarmed(now)
        if self._is_stopped:
            return
        term = self._core.term if self._core.role is Role.LEADER else None
        if term != self._led_term:
            self._led_term = term
            self._accused.clear()
            self._give_up_round()
            self._due_at = now + min(self._policy.period_seconds, _SOON_SECONDS)
        if term is None:
            return
        self._raise_alarms()
        if self._round is not None:
            if now >= self._deadline:
                for member in tuple(self._round.waiting):
                    self._round.answer(member, None)
                self._evaluate()
        elif self._policy.period_seconds and now >= self._due_at and not self._machine.is_being_copied:
            self._begin()

    async def run_now(self) -> CheckReport:
        """Compare the states now, or wait for the check under way; at the leader only.

        Raises:
            NoLeader: This node does not lead, or does not any more.
        """
        self.poll()
        if self._led_term is None or self._is_stopped:
            raise NoLeader("this node does not lead")
        waiter: asyncio.Future[CheckReport] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        if self._round is None:
            self._begin()
        return await waiter

    @property
    def seconds_since_success(self) -> float | None:
        """Time since the last check of this node that succeeded, None when none has."""
        return None if self._succeeded_at is None else self._clock.now() - self._succeeded_at

    def connected(self, peer: NodeId) -> None:
        """A member has come back: one with an alarm is compared at once, since nobody may have replaced its data."""
        if self._policy.period_seconds and Alarm(AlarmKind.CORRUPT, peer) in self._machine.alarms():
            self._due_at = min(self._due_at, self._clock.now() + _RETURNED_SECONDS)

    def disconnected(self, peer: NodeId) -> None:
        """A member cannot be reached any more, so it will not answer."""
        if self._round is not None and peer in self._round.waiting:
            self._round.answer(peer, None)
            self._evaluate()

    def receive_request(self, peer: NodeId, request: StateHashRequest) -> None:
        """Take the leader's question."""
        if not self._is_of_leader(peer, request.term):
            return
        if request.hash_version != HASH_VERSION:
            # Members of two releases hash different things.
            self._answer(peer, Term(request.term), Index(request.index), None)
            return
        self._expect(peer, Term(request.term), Index(request.index))

    def receive_result(self, peer: NodeId, result: StateHashResult) -> None:
        """Take a member's answer."""
        current = self._round
        if current is None or (result.term, result.index) != (current.term, current.index):
            return
        is_comparable = result.hash_version == HASH_VERSION and result.state_hash
        current.answer(peer, result.state_hash if is_comparable else None)
        self._evaluate()

    def receive_divergence(self, peer: NodeId, message: StateDivergence) -> None:
        """Take the leader's order to stop, unless it does not fit what this node has answered."""
        if not self._is_of_leader(peer, message.term) or self._own is None:
            return
        index, own = self._own
        if index == message.index and own != message.state_hash:
            self._failed(
                StateDiverged(
                    f"the store of this node differs from those of a majority at index {index}: "
                    f"the hash here is {own}, at {peer} and the majority it is {message.state_hash}. {_ADVICE}"
                )
            )

    def applied(self) -> None:
        """The store has come to another index."""
        if self._is_stopped or self._question is None or self._machine.applied_index < self._question[2]:
            return
        peer, term, index = self._question
        self._question = self._apply_loop.group_end = None
        if self._machine.applied_index > index or self._view is not None:
            # A hash that is still under way may wait for its disk, and to close its view would wait for it too.
            self._answer(peer, term, index, None)
            return
        self._view = view = self._machine.hold()
        walk = asyncio.get_running_loop().create_task(self._hash(view, peer, term, index))
        self._walks.add(walk)
        walk.add_done_callback(self._finish_walk)

    def stop(self) -> None:
        """Give up what is under way."""
        self._is_stopped = True
        self._question = None
        self._pace.lift()
        self._close_view()
        for walk in self._walks:
            walk.cancel()
        self._give_up_round()

    def _is_of_leader(self, peer: NodeId, term: int) -> bool:
        return term == self._core.term and peer == self._core.leader

    def _begin(self) -> None:
        membership = self._membership()
        index = self._last_index()
        names = [member.name for member in membership.members]
        self._round = current = CheckRound(self._core.term, index, names)
        self._began_at = self._clock.now()
        self._deadline = float("inf")
        self.begun += 1
        request = StateHashRequest(current.term, index, HASH_VERSION)
        for name in names:
            if name != self._name and not self._send(name, request):
                current.answer(name, None)
        self._expect(self._name, current.term, index)

    def _expect(self, peer: NodeId, term: Term, index: Index) -> None:
        self._question = peer, term, index
        self._apply_loop.group_end = index
        self.applied()

    def _close_view(self) -> None:
        if self._view is not None:
            self._view.close()
            self._view = None

    async def _hash(self, view: HeldView, peer: NodeId, term: Term, index: Index) -> None:
        found = await asyncio.to_thread(hash_held, view, self._pace)
        if self._view is view:
            self._view = None
        if found is not None:
            self.hashed += 1
            self._own = index, found
        self._answer(peer, term, index, found)

    def _finish_walk(self, walk: asyncio.Task[None]) -> None:
        self._walks.discard(walk)
        if not walk.cancelled() and (error := walk.exception()) is not None:
            # A store that cannot be read through must not be served from.
            self._failed(error)

    def _answer(self, peer: NodeId, term: Term, index: Index, found: str | None) -> None:
        if peer != self._name:
            self._send(peer, StateHashResult(term, index, HASH_VERSION, found or ""))
            return
        current = self._round
        if current is not None and (term, index) == (current.term, current.index):
            now = self._clock.now()
            self._deadline = now + max(_PATIENCE_SECONDS, 4 * (now - self._began_at))
            current.answer(peer, found)
            self._evaluate()

    def _evaluate(self) -> None:
        """Act on what is known by now; a majority need not wait for the rest to say who is wrong."""
        current = self._round
        if current is None or self._core.role is not Role.LEADER or self._core.term != current.term:
            return
        voters = self._membership().voters
        verdict = judge(current.hashes, frozenset(voters))
        if verdict.right is not None:
            for member in sorted(verdict.wrong - current.reported):
                current.reported.add(member)
                self.mismatches += 1
                self._act_on(member, current, verdict.right)
        if not current.waiting:
            self._finish_round(current, current.report(frozenset(voters)))

    def _act_on(self, member: NodeId, current: CheckRound, right: str) -> None:
        own = current.hashes[member]
        logger.error(
            "the store of %s differs from those of a majority at index %d: its hash is %s, theirs is %s",
            member,
            current.index,
            own,
            right,
        )
        self._accused.add(member)
        self._raise_alarms()
        if member != self._name:
            self._send(member, StateDivergence(current.term, current.index, right))
            return
        error = StateDiverged(
            f"the store of this leader differs from those of a majority at index {current.index}: "
            f"the hash here is {own}, theirs is {right}. {_ADVICE}"
        )
        self._end = error, self._clock.now() + _ALARM_SECONDS

    def _end_when_alarmed(self, now: float) -> None:
        """Stop a leader that is wrong once its alarm is raised: its log is sound, and others could not know of it."""
        if self._end is None:
            return
        error, deadline = self._end
        is_raised = Alarm(AlarmKind.CORRUPT, self._name) in self._machine.alarms()
        if is_raised or now >= deadline or self._core.role is not Role.LEADER:
            self._end = None
            self._failed(error)

    def _finish_round(self, current: CheckRound, report: CheckReport) -> None:
        self._round = None
        now = self._clock.now()
        period = self._policy.period_seconds
        self._due_at = now + (period if report.is_sound else min(period, _AGAIN_SECONDS))
        if report.is_sound:
            self.succeeded += 1
            self._succeeded_at = now
            logger.info("the stores of all members are equal at index %d", current.index)
        elif MemberResult.DISPUTED in report.members.values():
            self.mismatches += 1
            self._report_dispute(current)
        else:
            missing = [member for member, result in report.members.items() if result is MemberResult.UNKNOWN]
            logger.info("the stores at index %d were not compared with: %s", current.index, ", ".join(missing) or "-")
        for waiter in self._take_waiters():
            waiter.set_result(report)

    def _report_dispute(self, current: CheckRound) -> None:
        """Without a majority no member stops; the alarm names those that differ from this leader."""
        hashes = ", ".join(f"{member}: {found}" for member, found in sorted(current.hashes.items()))
        logger.error(
            "the stores of members differ at index %d, and no majority of the voters has the same: %s",
            current.index,
            hashes,
        )
        own = current.hashes.get(self._name)
        for member, found in current.hashes.items():
            if own is not None and found != own:
                self._accused.add(member)
        self._raise_alarms()

    def _raise_alarms(self) -> None:
        if self._accused:
            self._accused.difference_update(
                alarm.member for alarm in self._machine.alarms() if alarm.kind is AlarmKind.CORRUPT
            )
            for member in sorted(self._accused):
                self._raise_alarm(member)

    def _give_up_round(self) -> None:
        self._round = None
        for waiter in self._take_waiters():
            waiter.set_exception(NoLeader("this node does not lead any more, or is stopping"))

    def _take_waiters(self) -> list[asyncio.Future[CheckReport]]:
        waiters, self._waiters = self._waiters, []
        return [waiter for waiter in waiters if not waiter.done()]
