"""Linearizable reads of a node: callers wait until a majority has confirmed an index and the store has applied it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

from raftkv.errors import NoLeader, ReadTimeout, ShuttingDown
from raftkv.ports import Clock
from raftkv.types import Index


class ReadConfirmation(Protocol):
    """What reads need of the Raft core."""

    def request_read(self, token: int) -> None:
        """Ask for a confirmed index under a token."""
        ...

    def forget_reads(self, tokens: Iterable[int]) -> None:
        """Drop tokens whose callers gave up."""
        ...


class _Batch:
    """Reads that began in the same turn of the event loop share one question."""

    def __init__(self, deadline: float, future: asyncio.Future[None]) -> None:
        self.deadline = deadline
        self.future = future


class ReadGate:
    """Lets a read pass once it is certain to see everything acknowledged before it began.

    Args:
        confirmation: The Raft core.
        clock: Monotonic time.
        timeout_seconds: A read that is not confirmed within this time is refused.
        has_leader: Whether a leader is known, for the words of the refusal.
        wake: Asks for a turn of the node soon.
    """

    def __init__(
        self,
        confirmation: ReadConfirmation,
        clock: Clock,
        timeout_seconds: float,
        has_leader: Callable[[], bool],
        wake: Callable[[], None],
    ) -> None:
        self._confirmation = confirmation
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        self._has_leader = has_leader
        self._wake = wake
        self._last_token = 0
        self._collecting: _Batch | None = None
        self._asked: dict[int, _Batch] = {}
        self._confirmed: list[tuple[Index, _Batch]] = []
        self._stopped = False

    async def wait(self) -> None:
        """Return when a read of the local state is linearizable.

        Raises:
            NoLeader: No leader confirmed it in time, and none is known.
            ReadTimeout: The leader did not confirm it in time.
            ShuttingDown: The node is stopping.
        """
        if self._stopped:
            raise ShuttingDown("the node is stopping")
        if self._collecting is None:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._collecting = _Batch(self._clock.now() + self._timeout_seconds, future)
            self._wake()
        # One caller that is cancelled must not take the others along.
        await asyncio.shield(self._collecting.future)

    def flush(self) -> None:
        """Ask for the reads that have gathered."""
        if self._collecting is not None:
            self._last_token += 1
            self._asked[self._last_token] = self._collecting
            self._collecting = None
            self._confirmation.request_read(self._last_token)

    def confirmed(self, reads: Iterable[tuple[int, Index]]) -> None:
        """Take confirmed indexes from the Raft core."""
        for token, index in reads:
            batch = self._asked.pop(token, None)
            if batch is not None:
                self._confirmed.append((index, batch))

    def applied(self, index: Index) -> None:
        """Let pass what waits for an index up to the applied one."""
        if not self._confirmed:
            return
        still_waiting = []
        for read_index, batch in self._confirmed:
            if read_index <= index:
                batch.future.set_result(None)
            else:
                still_waiting.append((read_index, batch))
        self._confirmed = still_waiting

    def expire(self) -> None:
        """Refuse what has waited for too long; call this regularly."""
        now = self._clock.now()
        late = [token for token, batch in self._asked.items() if batch.deadline <= now]
        if late:
            self._confirmation.forget_reads(late)
            for token in late:
                self._refuse(self._asked.pop(token))
        for read in [read for read in self._confirmed if read[1].deadline <= now]:
            self._confirmed.remove(read)
            self._refuse(read[1])

    def refuse_unapplied(self, reason: str) -> None:
        """Refuse the confirmed reads that wait for entries which this node cannot apply soon.

        Args:
            reason: Why it cannot, for the words of the refusal.
        """
        refused, self._confirmed = self._confirmed, []
        for _index, batch in refused:
            self._fail(batch, ReadTimeout(reason))

    def refuse_all(self, error: Exception) -> None:
        """Refuse every read that has asked for its index, or waits for it.

        Args:
            error: Why.
        """
        waiting = [*self._asked.values(), *(batch for _index, batch in self._confirmed)]
        if not waiting:
            return
        self._confirmation.forget_reads(list(self._asked))
        self._asked.clear()
        self._confirmed.clear()
        for batch in waiting:
            self._fail(batch, error)

    def stop(self) -> None:
        """Refuse everything, now and later."""
        self._stopped = True
        waiting = [*self._asked.values(), *(batch for _index, batch in self._confirmed)]
        if self._collecting is not None:
            waiting.append(self._collecting)
        self._collecting = None
        self._asked.clear()
        self._confirmed.clear()
        for batch in waiting:
            self._fail(batch, ShuttingDown("the node is stopping"))

    def _refuse(self, batch: _Batch) -> None:
        if self._has_leader():
            self._fail(batch, ReadTimeout("the read could not be confirmed by a majority in time"))
        else:
            self._fail(batch, NoLeader("no leader is known that could confirm the read"))

    def _fail(self, batch: _Batch, error: Exception) -> None:
        batch.future.set_exception(error)
        # Every caller may have been cancelled; that nobody looks at the error is then no fault.
        batch.future.exception()
