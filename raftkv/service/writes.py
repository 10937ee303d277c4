"""The way of every write: proposed under its sender's safeguards, and its refusals turned into errors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from raftkv.errors import AlreadyApplied
from raftkv.operations import NO_SAFEGUARDS, Idempotency, Refused, Safeguards
from raftkv.ports import Clock
from raftkv.service.refusals import error_of
from raftkv.store.commands import Command, ForgetOutcomes, Guarded, Once, PlainCommand
from raftkv.store.results import AppliedBefore, Result
from raftkv.types import Term


class Submitter(Protocol):
    """What writes need of the proposer."""

    def submit(self, command: Command) -> asyncio.Future[Result]:
        """Queue a command."""
        ...


class TimedStore(Protocol):
    """What time needs of the store."""

    @property
    def time(self) -> int:
        """Greatest time in seconds that a command brought."""
        ...


class ClusterTime:
    """Time that never goes back, whoever leads: it goes on from what the log has, at the leader's own pace.

    No clock that somebody sets has a part in it. While nobody leads it stands still.

    Args:
        store: The local store.
        clock: Monotonic time.
        leading: Returns the term in which this node leads, None when it does not.
    """

    def __init__(self, store: TimedStore, clock: Clock, leading: Callable[[], Term | None]) -> None:
        self._store = store
        self._clock = clock
        self._leading = leading
        self._term: Term | None = None
        self._offset = 0.0

    def now(self) -> int:
        """Return the time in whole seconds."""
        term = self._leading()
        if term != self._term:
            self._term = term
            self._offset = self._store.time - self._clock.now()
        return max(self._store.time, int(self._clock.now() + self._offset))


class OutcomeStore(Protocol):
    """What the expiry of outcomes needs of the store."""

    def first_outcome_end(self) -> int | None:
        """Return the time in seconds at which the first kept result expires, None when none is kept."""
        ...


class OutcomeExpiry:
    """A leader task: results of idempotent writes expire also when no other command brings the time.

    Args:
        store: The local store.
        time: The cluster's time.
    """

    def __init__(self, store: OutcomeStore, time: ClusterTime) -> None:
        self._store = store
        self._time = time

    def due(self) -> ForgetOutcomes | None:
        """Return the command that is to be proposed now, None for none."""
        end, now = self._store.first_outcome_end(), self._time.now()
        return ForgetOutcomes(now) if end is not None and end <= now else None


class Writes:
    """Proposes commands.

    Args:
        proposer: Where to.
        time: Time for what is forgotten again.
        keep_seconds: For how long a write is recognised that is sent again.
        max_bytes: Bound on the results that are kept for that, 0 for none.
    """

    def __init__(self, proposer: Submitter, time: ClusterTime, keep_seconds: int, max_bytes: int = 0) -> None:
        self._proposer = proposer
        self._time = time
        self._keep_seconds = keep_seconds
        self._max_bytes = max_bytes

    async def apply(self, command: PlainCommand, safeguards: Safeguards = NO_SAFEGUARDS) -> Result:
        """Return a command's result when it is durable on a majority and applied here.

        Raises:
            NotApplied: It was refused; one of its kinds says why.
            UnknownOutcome: It may have been applied, or may yet be.
            AlreadyApplied: It was applied when it came before, with a result that is not kept.
        """
        if safeguards is NO_SAFEGUARDS:
            result = await self._proposer.submit(command)
        else:
            once = None if safeguards.idempotency is None else self._once(safeguards.idempotency)
            result = await self._proposer.submit(Guarded(command, safeguards.fence, once))
        if isinstance(result, Refused):
            raise error_of(result)
        if isinstance(result, AppliedBefore):
            raise AlreadyApplied(result.revision)
        return result

    def _once(self, idempotency: Idempotency) -> Once:
        return Once(idempotency.key, idempotency.fingerprint, self._time.now(), self._keep_seconds, self._max_bytes)
