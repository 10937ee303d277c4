"""Group commit: commands that arrive while entries are in flight travel together in the next one.

The engine's cost is per entry, so hundreds of commands share it. Each command ends in exactly one of three ways: a
result (it was applied), ``NotApplied`` (it never will be) or ``UnknownOutcome``; none hangs (H10). Each has a deadline
until its entry is known to be committed: from then on the store is certain to apply it, and its result is waited for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from raftkv.consensus.entries import Slot
from raftkv.errors import (
    ClusterVersionTooLow,
    InvalidRequest,
    LeadershipLost,
    MembersUnsettled,
    NoLeader,
    NotApplied,
    Overloaded,
    RaftkvError,
    ShuttingDown,
    Superseded,
    Timeout,
)
from raftkv.ports import Clock
from raftkv.store.commands import ChangeMembers, Command, encode_commands, encoded_size_hint, required_version
from raftkv.store.results import Result
from raftkv.types import MAX_COMMAND_GROUP_BYTES, MAX_ENTRY_BYTES, Index, Term
from raftkv.versions import FIRST_VERSION, ClusterVersion

_ANSWERS_AT_ONCE = 128
"""Outcomes that are handed out in one iteration of the event loop: each lets a request go on and be answered."""


class ReplicatedLog(Protocol):
    """What the proposer needs of the Raft core."""

    def propose(self, payload: bytes) -> Slot | None:
        """Append a command group at the leader; None anywhere else."""
        ...

    def propose_membership(self, payload: bytes) -> Slot | None:
        """Append a change of the membership at a leader that may; None otherwise."""
        ...


@dataclass(frozen=True, slots=True)
class ProposerLimits:
    """Bounds of what may wait.

    Attributes:
        pending_commands: Commands that wait or are in flight; more are refused with ``Overloaded``.
        pending_bytes: Their size; more is refused likewise.
        entries_in_flight: Entries proposed and not yet applied; commands beyond wait for the next one.
        commands_per_entry: Commands that one entry holds at most.
        timeout_seconds: Time from submission until the outcome of what is not known to be committed is called unknown.
    """

    pending_commands: int = 20_000
    pending_bytes: int = 134_217_728
    entries_in_flight: int = 2
    commands_per_entry: int = 2_000
    timeout_seconds: float = 5.0


@dataclass(slots=True)
class _Waiter:
    command: Command
    size: int
    deadline: float
    future: asyncio.Future[Result]


@dataclass(slots=True)
class _Group:
    slot: Slot
    waiters: list[_Waiter]


class Proposer:
    """Submits commands to the log and hands their outcomes back.

    Args:
        log: The Raft core.
        clock: Monotonic time.
        limits: Bounds.
        refusal: Returns why this node cannot propose a command now (another leads, no leader is known, a disk is full,
            it is stopping), or None when it can. Called with None for reasons that hold for every command.
        wake: Asks for a call of ``flush`` soon.
        cluster_version: Returns the cluster's version, as far as this node has applied. It only rises, so what it
            allows now it allows at every later entry too.
        will_be_applied: Returns whether the entry at an index is known to be committed, and will be applied here.

    Attributes:
        applied_commands: Commands that have ended in a result.
        failed_commands: Commands that have ended in an error after they were queued.
    """

    def __init__(
        self,
        log: ReplicatedLog,
        clock: Clock,
        limits: ProposerLimits,
        refusal: Callable[[Command | None], NotApplied | None],
        wake: Callable[[], None],
        cluster_version: Callable[[], ClusterVersion] = lambda: FIRST_VERSION,
        will_be_applied: Callable[[Index], bool] = lambda _index: False,
    ) -> None:
        self._will_be_applied = will_be_applied
        self._cluster_version = cluster_version
        self._log = log
        self._clock = clock
        self._limits = limits
        self._settled: deque[tuple[asyncio.Future[Result], Result | RaftkvError]] = deque()
        self._room = _ANSWERS_AT_ONCE
        self._refusal = refusal
        self._wake = wake
        self._queue: deque[_Waiter] = deque()
        self._in_flight: dict[Index, _Group] = {}
        self._pending_commands = 0
        self._pending_bytes = 0
        self.applied_commands = 0
        self.failed_commands = 0

    @property
    def pending_commands(self) -> int:
        """Commands whose outcome is open."""
        return self._pending_commands

    @property
    def pending_bytes(self) -> int:
        """Their size."""
        return self._pending_bytes

    @property
    def entries_in_flight(self) -> int:
        """Entries proposed and not yet applied."""
        return len(self._in_flight)

    @property
    def can_flush(self) -> bool:
        """Whether another call of ``flush`` would propose commands that wait, or hand out results."""
        return bool(self._settled) or (bool(self._queue) and len(self._in_flight) < self._limits.entries_in_flight)

    def submit(self, command: Command) -> asyncio.Future[Result]:
        """Queue a command.

        Returns:
            A future of its result; it may also end in ``NotApplied`` or ``UnknownOutcome``.

        Raises:
            NotApplied: It is refused at once.
        """
        refusal = self._refusal(command)
        if refusal is not None:
            raise refusal
        required, version = required_version(command), self._cluster_version()
        if required > version:
            raise ClusterVersionTooLow(
                f"this needs cluster version {required}, and the cluster is at version {version}"
            )
        size = encoded_size_hint(command)
        if size > MAX_ENTRY_BYTES:
            raise InvalidRequest(f"a command of {size} bytes exceeds the limit of {MAX_ENTRY_BYTES}")
        limits = self._limits
        if self._pending_commands >= limits.pending_commands or self._pending_bytes + size > limits.pending_bytes:
            raise Overloaded(f"{self._pending_commands} commands are waiting already")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiter(command, size, self._clock.now() + limits.timeout_seconds, future))
        self._pending_commands += 1
        self._pending_bytes += size
        self._wake()
        return future

    def flush(self) -> None:
        """Propose as many groups as may be in flight; refuse what waits when this node cannot propose any more.

        It begins a new iteration: outcomes that were too many for the one before are handed out.
        """
        self._room = _ANSWERS_AT_ONCE
        self._hand_out()
        refusal = self._refusal(None) if self._queue else None
        if refusal is not None:
            # Even when nothing could be proposed now: what was decided in one leadership (to end a lease, say) must not
            # wait for the next one.
            self._fail_queue(refusal)
        while self._queue and len(self._in_flight) < self._limits.entries_in_flight:
            group = self._next_group()
            if not group:
                return
            changes_members = isinstance(group[0].command, ChangeMembers)
            propose = self._log.propose_membership if changes_members else self._log.propose
            slot = propose(encode_commands([waiter.command for waiter in group]))
            if slot is None and changes_members:
                self._fail(group, lambda: MembersUnsettled("another change of the membership is under way"))
            elif slot is None:
                self._fail(group, lambda: NoLeader("leadership was lost before the command was proposed"))
            else:
                self._in_flight[slot.index] = _Group(slot, group)

    def applied(self, index: Index, term: Term, results: Sequence[Result]) -> None:
        """Take the results of the entry that was committed at an index, whoever proposed it."""
        group = self._in_flight.pop(index, None)
        if group is None:
            return
        if group.slot.term != term:
            self._fail(group.waiters, lambda: Superseded(f"index {index} went to an entry of term {term}"))
            return
        self._forget(group.waiters)
        self.applied_commands += len(group.waiters)
        self._settled += zip((waiter.future for waiter in group.waiters), results, strict=True)
        self._hand_out()

    def _hand_out(self) -> None:
        """Hand out outcomes, up to the bound on those of one iteration of the event loop."""
        while self._settled and self._room > 0:
            self._room -= 1
            future, outcome = self._settled.popleft()
            if future.done():
                continue
            if isinstance(outcome, RaftkvError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    def expire(self) -> None:
        """End what has waited for too long; call this regularly.

        A long entry may take longer to apply than the time that a request has. While it is applied, its outcome is
        certain to be known, as is that of the entries behind it: to call it unknown would help no caller.
        """
        now = self._clock.now()
        while self._queue and self._queue[0].deadline <= now:
            self._fail([self._queue.popleft()], lambda: Overloaded("the command could not be proposed in time"))
        for index, group in list(self._in_flight.items()):
            if group.waiters[-1].deadline <= now and not self._will_be_applied(index):
                del self._in_flight[index]
                self._fail(
                    group.waiters, lambda: Timeout("the write was proposed, and its outcome was not known in time")
                )

    def stop(self) -> None:
        """End everything: what waits is refused, what is in flight has an unknown outcome."""
        waiting, self._queue = list(self._queue), deque()
        self._fail(waiting, lambda: ShuttingDown("the node is stopping"))
        self.abandon("the node stopped before the outcome was known")
        self._room = len(self._settled)
        self._hand_out()

    def abandon(self, reason: str) -> None:
        """End what is in flight: its outcome is unknown, and this node will not learn it soon.

        Args:
            reason: Why it will not.
        """
        groups, self._in_flight = list(self._in_flight.values()), {}
        for group in groups:
            self._fail(group.waiters, lambda: LeadershipLost(reason))

    def skipped_to(self, index: Index) -> None:
        """A snapshot took the store past an index: the outcomes of what was in flight up to there are not known."""
        for skipped in [position for position in self._in_flight if position <= index]:
            group = self._in_flight.pop(skipped)
            self._fail(group.waiters, lambda: LeadershipLost("a snapshot of another leader covers the entry"))

    def _next_group(self) -> list[_Waiter]:
        group: list[_Waiter] = []
        size = 0
        while self._queue and len(group) < self._limits.commands_per_entry:
            if self._queue[0].future.done():
                # Its caller is gone, and it was never proposed.
                self._forget([self._queue.popleft()])
                continue
            size += self._queue[0].size
            # The consensus must see a change of the membership, so that travels alone.
            is_change = isinstance(self._queue[0].command, ChangeMembers)
            if group and (is_change or size > MAX_COMMAND_GROUP_BYTES):
                break
            group.append(self._queue.popleft())
            if is_change:
                break
        return group

    def _fail_queue(self, refusal: NotApplied) -> None:
        waiting, self._queue = list(self._queue), deque()
        self._fail(waiting, lambda: refusal)

    def _fail(self, waiters: Sequence[_Waiter], error: Callable[[], RaftkvError]) -> None:
        self._forget(waiters)
        self.failed_commands += len(waiters)
        self._settled += ((waiter.future, error()) for waiter in waiters)
        self._hand_out()

    def _forget(self, waiters: Sequence[_Waiter]) -> None:
        self._pending_commands -= len(waiters)
        self._pending_bytes -= sum(waiter.size for waiter in waiters)
