"""The client for programs without an event loop: each method waits for the one of ``Client`` that has its name."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

from raftkv.client.answers import ClusterView, Counted, Deleted, Found, Leader, Missing, StateCheckView, Stored
from raftkv.client.client import (
    DEFAULT_ATTEMPT_TIMEOUT_SECONDS,
    DEFAULT_HOLD_SECONDS,
    DEFAULT_TIMEOUT_SECONDS,
    Client,
)
from raftkv.client.dispatch import DEFAULT_MAX_EVENT_BYTES
from raftkv.client.failures import ImportedBatch
from raftkv.client.imports import DEFAULT_BATCHES_AT_ONCE
from raftkv.client.leases import HeldLease
from raftkv.client.snapshots import TakenSnapshot
from raftkv.client.turns import Fence, HeldLock, Leadership
from raftkv.client.watch import Change
from raftkv.operations import (
    MAX_OPERATIONS,
    Compare,
    EventKind,
    Lease,
    LeaseTime,
    Operation,
    PutOperation,
    TransactionResult,
)
from raftkv.tls import TlsFiles
from raftkv.types import Condition, Consistency, KeyValue, Revision

_Result = TypeVar("_Result")


class BlockingClient:
    """Talks to a cluster through some of its nodes; a context manager, to be used by any threads.

    Args:
        endpoints: URLs of nodes, asked in this order until one serves.
        timeout_seconds: Time in which a request must be served by anybody.
        attempt_timeout_seconds: Time after which one node's silence ends a try.
        tls: Certificates for ``https://`` endpoints, None to trust whom the system trusts and show nothing.
        max_event_bytes: Bytes that one event of a watch may have: all that one revision changed, in JSON and base64.

    Raises:
        InvalidRequest: An endpoint is malformed, or there is none.
        ConfigurationError: A file of ``tls`` cannot be used.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        attempt_timeout_seconds: float = DEFAULT_ATTEMPT_TIMEOUT_SECONDS,
        *,
        tls: TlsFiles | None = None,
        max_event_bytes: int = DEFAULT_MAX_EVENT_BYTES,
    ) -> None:
        self._client = Client(
            endpoints, timeout_seconds, attempt_timeout_seconds, tls=tls, max_event_bytes=max_event_bytes
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="raftkv-client", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._wait(self._client.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wait(self._client.__aexit__(kind, error, trace))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def put(
        self,
        key: bytes,
        value: bytes,
        condition: Condition | None = None,
        *,
        lease: int = 0,
        content_type: str = "",
        fence: Fence | None = None,
    ) -> Stored:
        """Write a key."""
        return self._wait(self._client.put(key, value, condition, lease=lease, content_type=content_type, fence=fence))

    def delete(self, key: bytes, condition: Condition | None = None, *, fence: Fence | None = None) -> Deleted:
        """Delete a key."""
        return self._wait(self._client.delete(key, condition, fence=fence))

    def delete_prefix(self, prefix: bytes, *, fence: Fence | None = None) -> Deleted:
        """Delete all keys with a prefix, in one revision."""
        return self._wait(self._client.delete_prefix(prefix, fence=fence))

    def get(
        self,
        key: bytes,
        consistency: Consistency = Consistency.LINEARIZABLE,
        *,
        revision: Revision | None = None,
    ) -> Found | Missing:
        """Read a key, as it is or as it was at a revision."""
        return self._wait(self._client.get(key, consistency, revision=revision))

    def wait_for_change(
        self, key: bytes, known: Revision, wait_seconds: float, consistency: Consistency = Consistency.LINEARIZABLE
    ) -> Found | Missing | None:
        """Wait until a key changes behind a revision; None when it does not within a time."""
        return self._wait(self._client.wait_for_change(key, known, wait_seconds, consistency))

    def list(
        self, prefix: bytes = b"", *, keys_only: bool = False, consistency: Consistency = Consistency.LINEARIZABLE
    ) -> Iterator[KeyValue]:
        """Yield all keys with a prefix."""
        return self._iterate(self._client.list(prefix, keys_only=keys_only, consistency=consistency))

    def count(self, prefix: bytes = b"", consistency: Consistency = Consistency.LINEARIZABLE) -> Counted:
        """Count the keys with a prefix."""
        return self._wait(self._client.count(prefix, consistency))

    def transact(
        self,
        when: Sequence[Compare],
        then: Sequence[Operation],
        otherwise: Sequence[Operation] = (),
        *,
        fence: Fence | None = None,
    ) -> TransactionResult:
        """Carry out a transaction; see ``raftkv.client.txn`` for its parts.

        Args:
            when: Conditions.
            then: Operations for when all of them hold.
            otherwise: Operations for when one does not.
            fence: The lock that this client believes to hold.
        """
        builder = self._client.transaction(fence=fence)
        return self._wait(builder.when(*when).then(*then).otherwise(*otherwise).commit())

    def import_items(
        self,
        items: Iterable[PutOperation],
        *,
        skip: int = 0,
        batches_at_once: int = DEFAULT_BATCHES_AT_ONCE,
        batch_items: int = MAX_OPERATIONS,
        fence: Fence | None = None,
    ) -> Iterator[ImportedBatch]:
        """Write any number of keys, and yield what was written, batch by batch and in order."""
        return self._iterate(
            self._client.import_items(
                items, skip=skip, batches_at_once=batches_at_once, batch_items=batch_items, fence=fence
            )
        )

    def compact(self, revision: Revision) -> None:
        """Forget the history below a revision."""
        self._wait(self._client.compact(revision))

    def watch(
        self,
        *,
        key: bytes | None = None,
        prefix: bytes | None = None,
        from_revision: Revision | None = None,
        wants_previous: bool = False,
        ignored: EventKind | None = None,
    ) -> Iterator[Change]:
        """Yield every change of a key or of a prefix; close the iterator to end the watch."""
        return self._iterate(
            self._client.watch(
                key=key, prefix=prefix, from_revision=from_revision, wants_previous=wants_previous, ignored=ignored
            )
        )

    def grant_lease(self, seconds: int, lease_id: int = 0) -> Lease:
        """Make a lease."""
        return self._wait(self._client.grant_lease(seconds, lease_id))

    def keep_lease_alive(self, lease_id: int) -> int:
        """Give a lease its full time again; return that time in seconds."""
        return self._wait(self._client.keep_lease_alive(lease_id))

    def revoke_lease(self, lease_id: int) -> None:
        """End a lease, and delete its keys."""
        self._wait(self._client.revoke_lease(lease_id))

    def lease_time(self, lease_id: int) -> LeaseTime:
        """Return what is left of a lease, and its keys."""
        return self._wait(self._client.lease_time(lease_id))

    def leases(self) -> Sequence[int]:
        """Return the numbers of all leases."""
        return self._wait(self._client.leases())

    @contextmanager
    def lease(self, seconds: int) -> Iterator[HeldLease]:
        """Make a lease, keep it alive for as long as the context lasts, and end it then."""
        with self._context(self._client.lease(seconds)) as held:
            yield held

    @contextmanager
    def lock(
        self, name: bytes, *, seconds: int = DEFAULT_HOLD_SECONDS, wait_seconds: float | None = None
    ) -> Iterator[HeldLock]:
        """Hold a lock for as long as the context lasts."""
        with self._context(self._client.lock(name, seconds=seconds, wait_seconds=wait_seconds)) as held:
            yield held

    @contextmanager
    def campaign(
        self, name: bytes, value: bytes, *, seconds: int = DEFAULT_HOLD_SECONDS, wait_seconds: float | None = None
    ) -> Iterator[BlockingLeadership]:
        """Be elected, and lead for as long as the context lasts."""
        context = self._client.campaign(name, value, seconds=seconds, wait_seconds=wait_seconds)
        with self._context(context) as leadership:
            yield BlockingLeadership(leadership, self)

    def leader(self, name: bytes) -> Leader | None:
        """Return who leads an election, None when nobody does."""
        return self._wait(self._client.leader(name))

    def observe(self, name: bytes) -> Iterator[Leader]:
        """Yield who leads an election; close the iterator to end it."""
        return self._iterate(self._client.observe(name))

    def take_snapshot(self) -> TakenSnapshot:
        """Let the node that answers take a snapshot of itself."""
        return self._wait(self._client.take_snapshot())

    def cluster(self) -> ClusterView:
        """Describe the cluster as the node that answers sees it."""
        return self._wait(self._client.cluster())

    def check_states(self) -> StateCheckView:
        """Let the leader compare the stores of all members at one index."""
        return self._wait(self._client.check_states())

    def _wait(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            # Such as Ctrl-C: what nobody waits for any more must not go on.
            future.cancel()
            raise

    @contextmanager
    def _context(self, context: AbstractAsyncContextManager[_Result]) -> Iterator[_Result]:
        entered = self._wait(_enter(context))
        try:
            yield entered
        finally:
            self._wait(_leave(context))

    def _iterate(self, items: AsyncIterator[_Result]) -> Iterator[_Result]:
        try:
            while True:
                try:
                    yield self._wait(_next(items))
                except StopAsyncIteration:
                    return
        finally:
            self._wait(_close(items))


class BlockingLeadership:
    """A leadership that this client holds for as long as its lease lasts.

    Args:
        leadership: It.
        client: The client that holds it.
    """

    def __init__(self, leadership: Leadership, client: BlockingClient) -> None:
        self.name = leadership.name
        self.token = leadership.token
        self.lease = leadership.lease
        self._leadership = leadership
        self._client = client

    def proclaim(self, value: bytes) -> None:
        """Say something new to whoever observes the election.

        Raises:
            NotHeld: Another leads by now, or nobody.
        """
        self._client._wait(self._leadership.proclaim(value))  # noqa: SLF001 - they belong together


async def _enter(context: AbstractAsyncContextManager[_Result]) -> _Result:
    return await context.__aenter__()


async def _leave(context: AbstractAsyncContextManager[Any]) -> None:
    await context.__aexit__(None, None, None)


async def _next(items: AsyncIterator[_Result]) -> _Result:
    return await anext(items)


async def _close(items: AsyncIterator[Any]) -> None:
    close = getattr(items, "aclose", None)
    if close is not None:
        await close()
