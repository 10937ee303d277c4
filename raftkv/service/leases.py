"""Leases: granted and removed through the log, timed by the leader alone.

Time is no part of the replicated state. A leader counts from when it knows a lease: from its grant or keep-alive, or,
for one that it found when it was elected, from its election, with some time on top. So a change of leader prolongs
leases and never shortens one.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from raftkv.errors import InvalidRequest, LeaseNotFound
from raftkv.operations import MAX_LEASE_SECONDS, NO_SAFEGUARDS, AtRevision, Lease, LeaseTime, Safeguards
from raftkv.ports import Clock, Randomness
from raftkv.service.reads import ReadGate
from raftkv.service.slices import Slices
from raftkv.service.writes import Writes
from raftkv.store import steps
from raftkv.store.commands import GrantLease, RevokeLease
from raftkv.store.lease import LeaseChange
from raftkv.store.results import Granted
from raftkv.store.steps import SortedRuns, Steps
from raftkv.types import Revision, Written

LONGEST_STEP_SECONDS = 0.5

EXPIRED_AT_ONCE = 200
"""Leases that the leader proposes to remove in one tick."""

_MAX_LEASE_ID = 2**63 - 1
_MAX_RANDOM_LEASE_ID = 2**53 - 1
"""What every JSON reader keeps exact."""


class SteadyClock:
    """Time that stands still while a process does: a pause, or a jump of the clock, counts for half a second at most.

    What is timed by it lasts longer than it should after such a moment, and never ends early. It must be asked often,
    as the leader's duties do.

    Args:
        clock: Monotonic time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last = clock.now()
        self._now = 0.0

    def now(self) -> float:
        """Return the time in seconds."""
        now = self._clock.now()
        self._now += min(max(0.0, now - self._last), LONGEST_STEP_SECONDS)
        self._last = now
        return self._now


class LeaseClock:
    """What a leader knows of the time that leases have left; without asyncio, files or a clock of its own.

    Args:
        extension_seconds: Given on top to leases that a new leader finds.

    Attributes:
        began: Since when it times the leases of this leadership.
    """

    def __init__(self, extension_seconds: float) -> None:
        self._extension_seconds = extension_seconds
        self.began = -math.inf
        self._is_running = False
        self._seconds: dict[int, int] = {}
        self._deadlines: dict[int, float] = {}
        self._queue: list[tuple[float, int]] = []

    def begin(self, leases: Iterable[Lease], now: float) -> None:
        """Time leases anew, at the beginning of a leadership."""
        self.end()
        self.began = now
        self._is_running = True
        for lease in leases:
            self.find(lease)

    def find(self, lease: Lease) -> None:
        """Take a lease that there was when this leadership began, unless it is known already.

        There may be many of them, so they are found a few at a time. One that is found late has the time that it would
        have had at the beginning.
        """
        if self._is_running and lease.id not in self._deadlines:
            self._seconds[lease.id] = lease.seconds
            self._set(lease.id, self.began + lease.seconds + self._extension_seconds)

    def end(self) -> None:
        """Forget everything: this node leads no more."""
        self._is_running = False
        self._seconds.clear()
        self._deadlines.clear()
        self._queue.clear()

    def change(self, change: LeaseChange, now: float) -> None:
        """Take the news of a lease that was granted or removed."""
        if change.seconds is None:
            self._seconds.pop(change.id, None)
            self._deadlines.pop(change.id, None)
        else:
            self._seconds[change.id] = change.seconds
            self._set(change.id, now + change.seconds)

    def renew(self, lease_id: int, since: float, now: float) -> int | None:
        """Give a lease its full time again.

        Args:
            lease_id: The lease.
            since: When its time begins.
            now: The present: what is over by now may be proposed for removal already, and no more be saved.

        Returns:
            Its time in seconds, None when it is unknown or its time is over.
        """
        if self.remaining(lease_id, now) is None:
            return None
        self._set(lease_id, max(since + self._seconds[lease_id], self._deadlines[lease_id]))
        return self._seconds[lease_id]

    def remaining(self, lease_id: int, now: float) -> float | None:
        """Return the seconds that a lease has left, None when it is unknown or its time is over."""
        deadline = self._deadlines.get(lease_id)
        return None if deadline is None or deadline <= now else deadline - now

    def is_expired(self, lease_id: int, now: float) -> bool:
        """Whether the time of a lease is over that is not removed yet."""
        deadline = self._deadlines.get(lease_id)
        return deadline is not None and deadline <= now

    def take_expired(self, now: float, retry_seconds: float, limit: int = EXPIRED_AT_ONCE) -> list[int]:
        """Return leases whose time is over; those that are still there after some time are returned again.

        Args:
            now: The present.
            retry_seconds: That time.
            limit: Leases at most; the next call returns more.
        """
        expired: list[int] = []
        while self._queue and self._queue[0][0] <= now and len(expired) < limit:
            _due, lease_id = heapq.heappop(self._queue)
            deadline = self._deadlines.get(lease_id)
            if deadline is None:
                continue
            if deadline > now:
                heapq.heappush(self._queue, (deadline, lease_id))
                continue
            expired.append(lease_id)
            heapq.heappush(self._queue, (now + retry_seconds, lease_id))
        return expired

    def _set(self, lease_id: int, deadline: float) -> None:
        if lease_id not in self._deadlines or deadline < self._deadlines[lease_id]:
            heapq.heappush(self._queue, (deadline, lease_id))
        # A later deadline is found when the earlier one comes up.
        self._deadlines[lease_id] = deadline


class LeaseStore(Protocol):
    """What this service needs of the store."""

    @property
    def revision(self) -> Revision:
        """The store's revision."""
        ...

    def lease(self, lease_id: int) -> Lease | None:
        """Return a lease."""
        ...

    def leases_steps(self) -> Steps[list[Lease]]:
        """Return all leases, in steps."""
        ...

    def attached_keys_steps(self, lease_id: int) -> Steps[list[bytes]]:
        """Return the keys of a lease, in steps."""
        ...


class Leases:
    """The lease service of one node; only the leader's answers anything but reads.

    Args:
        store: The local store.
        writes: The way of changes.
        gate: The way of linearizable reads.
        timer: The leader's time.
        clock: Monotonic time.
        randomness: Where ids come from.
        min_seconds: Shortest time of a lease; a shorter one is raised to this.
        require_leader: Raises ``NotLeader`` or ``NoLeader`` at a node that does not lead.
        slices: Runs long reads.
    """

    def __init__(
        self,
        store: LeaseStore,
        writes: Writes,
        gate: ReadGate,
        timer: LeaseClock,
        clock: Clock,
        randomness: Randomness,
        min_seconds: int,
        require_leader: Callable[[], None],
        slices: Slices,
    ) -> None:
        self._slices = slices
        self._store = store
        self._writes = writes
        self._gate = gate
        self._timer = timer
        self._clock = clock
        self._randomness = randomness
        self._min_seconds = min_seconds
        self._require_leader = require_leader

    async def grant(self, lease_id: int, seconds: int, *, safeguards: Safeguards = NO_SAFEGUARDS) -> AtRevision[Lease]:
        """Make a lease.

        Args:
            lease_id: Its id, 0 for a random one.
            seconds: For how long.
            safeguards: Under what.

        Raises:
            LeaseExists: There is one of this id.
            InvalidRequest: Id or time are out of bounds.
        """
        if seconds > MAX_LEASE_SECONDS:
            raise InvalidRequest(f"a lease of {seconds} s is too long, the limit is {MAX_LEASE_SECONDS}")
        if not 0 <= lease_id <= _MAX_LEASE_ID:
            raise InvalidRequest(f"{lease_id} is no id of a lease")
        lease = Lease(lease_id or self._random_id(), max(seconds, self._min_seconds))
        result = await self._writes.apply(GrantLease(lease.id, lease.seconds), safeguards)
        assert isinstance(result, Granted), "the result of a grant"
        return AtRevision(result.revision, result.lease)

    async def revoke(self, lease_id: int, *, safeguards: Safeguards = NO_SAFEGUARDS) -> Revision:
        """Remove a lease, and delete its keys; return the store's revision after that.

        Args:
            lease_id: Its id.
            safeguards: Under what.

        Raises:
            LeaseNotFound: There is none.
        """
        self._check(lease_id)
        result = await self._writes.apply(RevokeLease(lease_id), safeguards)
        assert isinstance(result, Written), "the result of a revocation"
        return result.revision

    async def keep_alive(self, lease_id: int) -> AtRevision[int]:
        """Give a lease its full time again, from now on; return that time in seconds.

        A lease whose time is over, and that is not removed yet, is waited for: then it is certainly gone.

        Raises:
            LeaseNotFound: There is none, or its time is over.
        """
        self._check(lease_id)
        began = await self._confirmed_since()
        now = self._clock.now()
        # The store may know of its end before the clock does.
        seconds = None if self._find(lease_id) is None else self._timer.renew(lease_id, began, now)
        if seconds is None:
            if self._timer.is_expired(lease_id, now):
                await self._wait_until_removed(lease_id)
            raise LeaseNotFound(f"lease {lease_id} does not exist")
        # The lease exists in this state: its removal, should that be decided next, has a later revision.
        return AtRevision(self._store.revision, seconds)

    async def time_to_live(self, lease_id: int, *, wants_keys: bool = False) -> AtRevision[LeaseTime]:
        """Return what is left of a lease.

        Raises:
            LeaseNotFound: There is none, or its time is over.
        """
        self._require_leader()
        await self._gate.wait()
        self._require_leader()
        lease = self._find(lease_id) if 0 < lease_id <= _MAX_LEASE_ID else None
        remaining = self._timer.remaining(lease_id, self._clock.now())
        if lease is None or remaining is None:
            raise LeaseNotFound(f"lease {lease_id} does not exist")
        revision = self._store.revision
        keys = tuple(await self._slices.run(self._store.attached_keys_steps(lease_id))) if wants_keys else ()
        return AtRevision(revision, LeaseTime(lease.seconds, math.floor(remaining), keys))

    async def all(self) -> AtRevision[Sequence[int]]:
        """Return the ids of all leases, the one that ends soonest first."""
        self._require_leader()
        await self._gate.wait()
        self._require_leader()
        revision = self._store.revision
        return AtRevision(revision, await self._slices.run(self._all_steps()))

    def _all_steps(self) -> Steps[list[int]]:
        leases = yield from self._store.leases_steps()
        now = self._clock.now()
        ids: SortedRuns = SortedRuns(lambda lease_id: (self._timer.remaining(lease_id, now) or 0.0, lease_id))
        for start in range(0, len(leases), steps.OPERATIONS):
            page = leases[start : start + steps.OPERATIONS]
            for lease in page:
                self._timer.find(lease)
            ids.add([lease.id for lease in page])
            yield
        return (yield from ids.merge())

    def _find(self, lease_id: int) -> Lease | None:
        """Return a lease; the timer knows it then, if it did not yet."""
        lease = self._store.lease(lease_id)
        if lease is not None:
            self._timer.find(lease)
        return lease

    async def _confirmed_since(self) -> float:
        """Return a moment since which this node has led without a break, and all that was decided before is applied.

        Whoever leads later was elected after that moment, and gives every lease its full time from then on.
        """
        while True:
            self._require_leader()
            began = self._clock.now()
            await self._gate.wait()
            self._require_leader()
            # Else this node lost its leadership meanwhile and has it again: the removal of a lease that it proposed in
            # the earlier one may yet be decided.
            if began >= self._timer.began:
                return began

    async def _wait_until_removed(self, lease_id: int) -> None:
        while self._store.lease(lease_id) is not None:
            self._require_leader()
            await asyncio.sleep(0.05)

    def _check(self, lease_id: int) -> None:
        if not 0 < lease_id <= _MAX_LEASE_ID:
            raise LeaseNotFound(f"lease {lease_id} does not exist")

    def _random_id(self) -> int:
        return (int(self._randomness.token(), 16) & _MAX_RANDOM_LEASE_ID) or 1
