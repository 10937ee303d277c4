"""Clients that write and read some keys at random, at every node, and record what they did and saw."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from raftkv.client import Client, ConditionNotMet, Found, UnexpectedAnswer
from raftkv.errors import NotApplied, UnknownOutcome
from raftkv.types import Condition, Revision
from raftkv.verification.history import Kind, Operation, Outcome

PROBE = "probe"
"""The client whose writes show whether the cluster can be written to: it begins them however long others take."""

_REQUEST_SECONDS = 1.5
_PROBE_SECONDS = 3.0
_PROBE_ATTEMPT_SECONDS = 1.0
_PROBE_PERIOD_SECONDS = 0.05
_PROBES_AT_A_TIME = 100
_REQUESTS_AT_A_TIME = 16

_KEYS_AT_A_TIME = 8
_OPERATIONS_A_KEY = 150
"""A key is left behind after about so many operations: checking one is exponential in what is open at a time."""


@dataclass(frozen=True, slots=True)
class _Write:
    kind: Kind
    key: bytes
    value: bytes | None
    expected: bytes | None = None
    condition: Condition | None = None


class Workload:
    """The clients of one run; an asynchronous context manager.

    Args:
        endpoints: URLs of the nodes.
        prefix: What all keys begin with.
        rng: Where every choice comes from.
        rate: Operations a second, of all clients together.
        max_operations: Operations after which no more are begun.
        elapsed: Seconds since the beginning.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        prefix: bytes,
        rng: random.Random,
        rate: float,
        max_operations: int,
        elapsed: Callable[[], float],
    ) -> None:
        self._endpoints = tuple(endpoints)
        self._prefix = prefix
        self._rng = rng
        self._rate = rate
        self._max_operations = max_operations
        self._elapsed = elapsed
        self._clients: dict[str, Client] = {}
        self._stack = AsyncExitStack()
        self._begun = 0
        self._sequence = 0
        self.history: list[Operation] = []
        self.surprises: list[str] = []

    async def __aenter__(self) -> Self:
        for url in self._endpoints:
            client = Client([url], _REQUEST_SECONDS, _REQUEST_SECONDS)
            self._clients[url] = await self._stack.enter_async_context(client)
        probe = Client(self._endpoints, _PROBE_SECONDS, _PROBE_ATTEMPT_SECONDS)
        self._clients[PROBE] = await self._stack.enter_async_context(probe)
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def run(self, clients: int, stop: asyncio.Event) -> None:
        """Run clients until told to stop, or until there were enough operations."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(1, clients + 1):
                tasks.create_task(self._run_client(f"c{number}", clients / self._rate, stop))
            tasks.create_task(self._probe(stop))

    async def read_everything(self) -> list[str]:
        """Read every key once at every node; return the nodes that did not serve one."""
        failed: set[str] = set()

        async def read(url: str, key: bytes) -> None:
            if url not in failed and await self._get(f"reader of {url}", url, key) is None:
                failed.add(url)

        keys = self.keys()
        for url in self._endpoints:
            await _for_each(keys, lambda key, url=url: read(url, key))  # type: ignore[misc]
        return sorted(failed)

    async def remove_everything(self) -> None:
        """Delete every key of this run.

        Raises:
            NotApplied: The cluster does not serve it.
            UnknownOutcome: Some may be left.
        """
        client = self._clients[self._endpoints[0]]
        await _for_each(self.keys(), client.delete)

    def keys(self) -> list[bytes]:
        """Return every key that was used so far."""
        return sorted({operation.key for operation in self.history})

    async def _run_client(self, name: str, mean_pause: float, stop: asyncio.Event) -> None:
        while not stop.is_set() and self._begun < self._max_operations:
            await asyncio.sleep(self._rng.expovariate(1 / mean_pause))
            self._begun += 1
            epoch = self._begun // (_KEYS_AT_A_TIME * _OPERATIONS_A_KEY)
            key = self._prefix + f"{epoch:04}-{self._rng.randrange(_KEYS_AT_A_TIME)}".encode()
            url = self._rng.choice(self._endpoints)
            dice = self._rng.random()
            if dice < 0.35:
                await self._write(name, url, _Write(Kind.PUT, key, self._next_value(name)))
            elif dice < 0.42:
                await self._write(name, url, _Write(Kind.DELETE, key, None))
            elif dice < 0.60:
                await self._swap(name, url, key)
            else:
                await self._get(name, url, key)

    async def _probe(self, stop: asyncio.Event) -> None:
        """Begin a write to a key of its own again and again, without waiting for the one before."""
        number = 0
        async with asyncio.TaskGroup() as writes:
            begun: set[asyncio.Task[None]] = set()
            while not stop.is_set():
                if len(begun) < _PROBES_AT_A_TIME:
                    number += 1
                    write = _Write(Kind.PUT, self._prefix + f"{PROBE}-{number:06}".encode(), self._next_value(PROBE))
                    task = writes.create_task(self._write(PROBE, PROBE, write))
                    begun.add(task)
                    task.add_done_callback(begun.discard)
                await asyncio.sleep(_PROBE_PERIOD_SECONDS)

    async def _swap(self, name: str, url: str, key: bytes) -> None:
        """Read, then write if nobody has written since."""
        read = await self._get(name, url, key)
        if read is None:
            return
        found, revision = read
        swap = _Write(Kind.SWAP, key, self._next_value(name), found, Condition(revision))
        await self._write(name, self._rng.choice(self._endpoints), swap)

    async def _get(self, name: str, url: str, key: bytes) -> tuple[bytes | None, Revision] | None:
        """Return value and revision (None and 0 for no such key), or None when nobody served the read."""
        started = self._elapsed()
        outcome, value, mod_revision = Outcome.DONE, None, Revision(0)
        revision: Revision | None = None
        try:
            found = await self._clients[url].get(key)
            revision = found.revision
            if isinstance(found, Found):
                value, mod_revision = found.item.value, found.item.mod_revision
        except NotApplied:
            outcome = Outcome.REFUSED
        except UnexpectedAnswer as error:
            outcome = Outcome.REFUSED
            self.surprises.append(str(error))
        ended = self._elapsed()
        self.history.append(
            Operation(name, key, Kind.GET, value, started, ended, outcome, None, revision, mod_revision)
        )
        return (value, mod_revision) if outcome is Outcome.DONE else None

    async def _write(self, name: str, url: str, write: _Write) -> None:
        client = self._clients[url]
        started, outcome = self._elapsed(), Outcome.DONE
        revision: Revision | None = None
        mod_revision: Revision | None = None
        has_changed = True
        try:
            if write.value is None:
                deleted = await client.delete(write.key)
                revision, has_changed = deleted.revision, deleted.deleted > 0
            else:
                stored = await client.put(write.key, write.value, write.condition)
                revision, mod_revision = stored.revision, stored.mod_revision
        except ConditionNotMet as error:
            outcome = Outcome.CONDITION_FAILED
            revision, mod_revision = error.revision, error.mod_revision
        except NotApplied:
            outcome = Outcome.REFUSED
        except UnknownOutcome as error:
            outcome = Outcome.UNKNOWN
            if isinstance(error, UnexpectedAnswer):
                self.surprises.append(str(error))
        ended = math.inf if outcome is Outcome.UNKNOWN else self._elapsed()
        self.history.append(
            Operation(
                name,
                write.key,
                write.kind,
                write.value,
                started,
                ended,
                outcome,
                write.expected,
                revision,
                mod_revision,
                has_changed,
            )
        )

    def _next_value(self, name: str) -> bytes:
        self._sequence += 1
        return f"{name}-{self._sequence}".encode()


async def _for_each(keys: Sequence[bytes], act: Callable[[bytes], Awaitable[object]]) -> None:
    """Do something with every key, a few at a time; the first error ends it."""
    pending = list(keys)

    async def work() -> None:
        while pending:
            await act(pending.pop())

    try:
        async with asyncio.TaskGroup() as workers:
            for _ in range(_REQUESTS_AT_A_TIME):
                workers.create_task(work())
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
