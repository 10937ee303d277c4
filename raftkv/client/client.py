"""The client itself: one method for each thing that can be asked of a cluster."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from types import TracebackType
from typing import Self

import orjson

from raftkv.client.answers import (
    Answer,
    ClusterView,
    Counted,
    Deleted,
    Found,
    Leader,
    Missing,
    StateCheckView,
    Stored,
    document_of,
    parse_cluster,
    parse_count,
    parse_deleted,
    parse_found,
    parse_granted,
    parse_leader,
    parse_lease_ids,
    parse_lease_time,
    parse_missing,
    parse_page,
    parse_state_check,
    parse_stored,
    parse_token,
)
from raftkv.client.dispatch import DEFAULT_MAX_EVENT_BYTES, Dispatcher, Request
from raftkv.client.failures import ImportedBatch, NotAcquired, Unreachable
from raftkv.client.imports import DEFAULT_BATCHES_AT_ONCE, Importer
from raftkv.client.leases import HeldLease, end_lease, kept_alive
from raftkv.client.maintenance import MaintenanceClient
from raftkv.client.members import MembersClient
from raftkv.client.snapshots import TakenSnapshot, parse_taken_snapshot
from raftkv.client.targets import (
    base64_text,
    check_value,
    election_path,
    key_path,
    lock_path,
    query_string,
    url_text,
)
from raftkv.client.transaction_json import parse_transaction_answer, render_transaction
from raftkv.client.turns import Fence, HeldLock, Leadership
from raftkv.client.txn import TransactionBuilder
from raftkv.client.watch import Change, observe_leaders, watch_changes, watch_parameters
from raftkv.errors import InvalidRequest
from raftkv.operations import (
    MAX_OPERATIONS,
    EventKind,
    Lease,
    LeaseTime,
    PutOperation,
    Transaction,
    TransactionResult,
)
from raftkv.tls import TlsFiles, dialling_context
from raftkv.types import BackupReport, Condition, Consistency, KeyRange, KeyValue, Revision

DEFAULT_TIMEOUT_SECONDS = 10.0
DEFAULT_ATTEMPT_TIMEOUT_SECONDS = 6.0
"""A node gives up on a request after five seconds by default, so its own word on it comes first."""

PAGE_KEYS = 1000

DEFAULT_HOLD_SECONDS = 10
"""Of locks and leaderships: so long they outlive a holder that dies."""

_LONGEST_WAIT_SECONDS = 600.0
_LONGEST_POLL_SECONDS = 60.0
"""A node that dies without a word is noticed some seconds later at the latest."""

_LONGEST_COPY_SECONDS = 120.0
_LONGEST_CHECK_SECONDS = 600.0
_IDEMPOTENCY_BYTES = 16


class Client:
    """Talks to a cluster through some of its nodes; an asynchronous context manager.

    Args:
        endpoints: URLs of nodes, asked in this order until one serves.
        timeout_seconds: Time in which a request must be served by anybody.
        attempt_timeout_seconds: Time after which one node's silence ends a try.
        tls: Certificates for ``https://`` endpoints, None to trust whom the system trusts and show nothing.
        max_event_bytes: Bytes that one event of a watch may have: all that one revision changed, in JSON and base64.

    Raises:
        InvalidRequest: An endpoint is malformed, or there is none.
        ConfigurationError: A file of ``tls`` cannot be used.

    Attributes:
        members: Who belongs to the cluster, and changes of that.
        maintenance: The status of nodes, alarms, and the move of the leadership.
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
        context = None if tls is None else dialling_context(tls.authority, tls.certificate, tls.key)
        self._dispatcher = Dispatcher(
            list(endpoints), timeout_seconds, attempt_timeout_seconds, tls=context, max_event_bytes=max_event_bytes
        )
        self.members = MembersClient(self._dispatcher)
        self.maintenance = MaintenanceClient(self._dispatcher)

    async def __aenter__(self) -> Self:
        await self._dispatcher.open()
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self._dispatcher.close()

    async def put(
        self,
        key: bytes,
        value: bytes,
        condition: Condition | None = None,
        *,
        lease: int = 0,
        content_type: str = "",
        fence: Fence | None = None,
    ) -> Stored:
        """Write a key. A try without an answer is repeated, and the write happens once all the same.

        Args:
            key: The key.
            value: Its new value.
            condition: What must hold of the key for the write to happen.
            lease: The lease that it is to end with, 0 for none.
            content_type: Media type to store with the value, such as ``text/plain``; empty for none. Reads over HTTP
                answer with it.
            fence: The lock that this client believes to hold.

        Raises:
            InvalidRequest: The content type is none; nothing was written.
            ConditionNotMet: The condition did not hold; nothing was written.
            FenceLost: The lock has moved on; nothing was written.
            NotApplied: It was refused, or no node served it in time; nothing was written.
            UnknownOutcome: It may have been written, or may yet be.
        """
        check_value(value)
        parameters = {"lease": str(lease)} if lease else {}
        if content_type:
            # Not as a header, where a node takes a type that some clients send with everything for none.
            parameters["content_type"] = content_type
        target = key_path(key) + query_string(parameters)
        return parse_stored(await self._write("PUT", target, value, _condition_headers(condition), fence))

    async def delete(self, key: bytes, condition: Condition | None = None, *, fence: Fence | None = None) -> Deleted:
        """Delete a key, which need not exist unless the condition says so.

        Args:
            key: The key.
            condition: What must hold of the key for the deletion to happen.
            fence: The lock that this client believes to hold.

        Raises:
            ConditionNotMet: The condition did not hold; nothing was deleted.
            FenceLost: The lock has moved on; nothing was deleted.
            NotApplied: It was refused, or no node served it in time; nothing was deleted.
            UnknownOutcome: It may have been deleted, or may yet be.
        """
        return parse_deleted(await self._write("DELETE", key_path(key), None, _condition_headers(condition), fence))

    async def delete_prefix(self, prefix: bytes, *, fence: Fence | None = None) -> Deleted:
        """Delete all keys with a prefix, however many, in one revision.

        A hundred thousand keys take several seconds, for which the client's timeout should have room.

        Args:
            prefix: What the keys begin with. Not empty: a transaction deletes everything, if that is meant.
            fence: The lock that this client believes to hold.

        Raises:
            InvalidRequest: The prefix is empty.
            FenceLost: The lock has moved on; nothing was deleted.
            NotApplied: It was refused, or no node served it in time; nothing was deleted.
            UnknownOutcome: They may have been deleted, or may yet be.
        """
        target = "/v1/kv" + query_string({"prefix": base64_text(prefix), "encoding": "base64"})
        return parse_deleted(await self._write("DELETE", target, None, {}, fence))

    def transaction(self, *, fence: Fence | None = None) -> TransactionBuilder:
        """Begin a transaction; see ``raftkv.client.txn``.

        Args:
            fence: The lock that this client believes to hold.
        """

        async def commit(transaction: Transaction) -> TransactionResult:
            body = orjson.dumps({"encoding": "base64", **render_transaction(transaction)})
            return parse_transaction_answer(await self._write("POST", "/v1/txn", body, {}, fence))

        return TransactionBuilder(commit)

    async def import_items(
        self,
        items: Iterable[PutOperation] | AsyncIterable[PutOperation],
        *,
        skip: int = 0,
        batches_at_once: int = DEFAULT_BATCHES_AT_ONCE,
        batch_items: int = MAX_OPERATIONS,
        fence: Fence | None = None,
    ) -> AsyncGenerator[ImportedBatch, None]:
        """Write any number of keys, and yield what was written, batch by batch and in order.

        Each batch is a transaction: all of it is written, in one revision, or nothing. The whole is not atomic. A batch
        without an answer is sent again, and written once all the same. Of two items of one key the later one wins.

        Args:
            items: The items, made with ``txn.put``; they are taken as they are needed.
            skip: Items at their beginning to leave out, such as the ``position`` at which an import stopped.
            batches_at_once: Batches under way at the same time; with 1 nothing is under way behind a batch that fails.
            batch_items: Most items of a batch, 1 to 128.
            fence: The lock that this client believes to hold.

        Raises:
            ImportStopped: A batch was not written, or may not have been, or ``items`` raised an exception. Nothing is
                under way any more, and it says what was written.
            InvalidRequest: A number is out of its bounds.
        """

        async def commit(operations: Sequence[PutOperation]) -> Revision:
            item, *others = operations
            if not others and item.value is not None and item.lease is not None:
                # A transaction with one of the largest values has no room for the key.
                written = await self.put(
                    item.key, item.value, lease=item.lease, content_type=item.content_type, fence=fence
                )
                return written.revision
            return (await self.transaction(fence=fence).then(*operations).commit()).revision

        async with aclosing(Importer(commit, batches_at_once, batch_items).run(items, skip)) as batches:
            async for batch in batches:
                yield batch

    async def transact_json(self, body: bytes) -> tuple[bytes, bool]:
        """Carry out a transaction in the JSON form of ``POST /v1/txn``; return its answer, and whether it succeeded.

        Raises:
            InvalidRequest: It is no transaction.
            NotApplied: It was refused; nothing was written.
            UnknownOutcome: It may have been applied, or may yet be.
        """
        answer = await self._write("POST", "/v1/txn", body)
        return answer.body, document_of(answer).flag("succeeded")

    async def compact(self, revision: Revision) -> None:
        """Forget the history below a revision.

        Raises:
            RevisionCompacted: It was compacted before.
            NotApplied: It was refused, or no node served it in time.
            UnknownOutcome: It may have been compacted, or may yet be.
        """
        await self._write("POST", "/v1/compaction", orjson.dumps({"revision": revision}))

    async def get(
        self,
        key: bytes,
        consistency: Consistency = Consistency.LINEARIZABLE,
        *,
        revision: Revision | None = None,
    ) -> Found | Missing:
        """Read a key.

        Args:
            key: The key.
            consistency: What the read promises.
            revision: The revision at which to read it, None for now.

        Raises:
            RevisionCompacted: History at that revision was compacted.
            RevisionInFuture: The store has not reached that revision.
            NotApplied: It was refused, or no node served it in time.
        """
        past = {} if revision is None else {"revision": str(revision)}
        target = key_path(key) + query_string({**past, **_consistency(consistency)})
        return _parse_read(key, await self._dispatcher.send(Request("GET", target, is_read=True)))

    async def wait_for_change(
        self, key: bytes, known: Revision, wait_seconds: float, consistency: Consistency = Consistency.LINEARIZABLE
    ) -> Found | Missing | None:
        """Wait until a key is written or deleted behind a revision; return it as it is then.

        A caller that goes on with the ``revision`` of the result misses no change, but sees only the last of several
        that come together; ``watch`` yields them all.

        Args:
            key: The key.
            known: The revision, such as that of the read before.
            wait_seconds: Time after which there is no more waiting.
            consistency: What the read promises.

        Returns:
            The key, None when it did not change in that time.

        Raises:
            RevisionInFuture: The cluster has not reached the revision: it may be of another cluster.
            NotApplied: It was refused, or no node served it in time.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_seconds
        while True:
            left = max(0.0, deadline - loop.time())
            wait = min(left, _LONGEST_POLL_SECONDS)
            try:
                answer = await self._wait_for_change(key, known, wait, consistency)
            except Unreachable:
                # A node may have died late in its wait, and have left no other the time for one as long.
                answer = await self._wait_for_change(key, known, 0.0, consistency)
            if answer.headers.get("X-Raftkv-Changed") != "false":
                return _parse_read(key, answer)
            known = max(known, _parse_read(key, answer).revision)
            if loop.time() >= deadline:
                return None

    async def _wait_for_change(self, key: bytes, known: Revision, wait: float, consistency: Consistency) -> Answer:
        parameters = {"index": str(known), "wait": f"{wait:.3f}", **_consistency(consistency)}
        target = key_path(key) + query_string(parameters)
        return await self._dispatcher.send(Request("GET", target, is_read=True, wait_seconds=wait))

    async def list_page(
        self,
        prefix: bytes = b"",
        start: bytes = b"",
        limit: int = PAGE_KEYS,
        *,
        keys_only: bool = False,
        consistency: Consistency = Consistency.LINEARIZABLE,
    ) -> KeyRange:
        """Read one page of the keys with a prefix, in byte order.

        Args:
            prefix: What the keys begin with; empty for all keys.
            start: First key of the page: ``next_key`` of the page before, or empty.
            limit: Most keys on the page, 1 to 1000; there may be fewer although more follow.
            keys_only: Leave the values out.
            consistency: What the read promises.

        Raises:
            NotApplied: It was refused, or no node served it in time.
        """
        parameters = {
            "prefix": base64_text(prefix),
            "start": base64_text(start),
            "limit": str(limit),
            "keys_only": "true" if keys_only else "false",
            "encoding": "base64",
            **_consistency(consistency),
        }
        request = Request("GET", "/v1/kv" + query_string(parameters), is_read=True)
        return parse_page(await self._dispatcher.send(request))

    async def list(
        self,
        prefix: bytes = b"",
        *,
        keys_only: bool = False,
        consistency: Consistency = Consistency.LINEARIZABLE,
    ) -> AsyncIterator[KeyValue]:
        """Yield all keys with a prefix, in byte order, page by page.

        Each page is read at a revision of its own: a key that is written meanwhile may be seen as it was or as it is.

        Raises:
            NotApplied: A page was refused, or no node served it in time.
        """
        start: bytes | None = b""
        while start is not None:
            page = await self.list_page(prefix, start, keys_only=keys_only, consistency=consistency)
            for item in page.items:
                yield item
            start = page.next_key

    async def count(self, prefix: bytes = b"", consistency: Consistency = Consistency.LINEARIZABLE) -> Counted:
        """Count the keys with a prefix, without reading them.

        Args:
            prefix: What the keys begin with; empty for all keys.
            consistency: What the read promises.

        Raises:
            NotApplied: It was refused, or no node served it in time.
        """
        parameters = {
            "prefix": base64_text(prefix),
            "encoding": "base64",
            "count_only": "true",
            **_consistency(consistency),
        }
        request = Request("GET", "/v1/kv" + query_string(parameters), is_read=True)
        return parse_count(await self._dispatcher.send(request))

    async def watch(
        self,
        *,
        key: bytes | None = None,
        prefix: bytes | None = None,
        from_revision: Revision | None = None,
        wants_previous: bool = False,
        ignored: EventKind | None = None,
    ) -> AsyncIterator[Change]:
        """Yield every change of a key or of a prefix, each once and in order; it goes on at another node when one ends.

        Args:
            key: The key.
            prefix: Or what the keys begin with.
            from_revision: The first revision to see, None for what comes from now on.
            wants_previous: Whether each event comes with the key as it was before.
            ignored: A kind of events to leave out.

        Raises:
            RevisionCompacted: History below what comes next was compacted, or the cluster was restored from a backup.
            ClusterChanged: Another cluster answers than the one that the watch began with.
            EventTooLarge: A revision has more than ``max_event_bytes``.
            InvalidRequest: Not exactly one of key and prefix is given.
            NotApplied: No node could be reached in time.
        """
        selection = {name: url_text(given) for name, given in (("key", key), ("prefix", prefix)) if given is not None}
        if len(selection) != 1:
            raise InvalidRequest("exactly one of key and prefix must be given")
        if from_revision is not None:
            selection["from_revision"] = str(from_revision)
        parameters = watch_parameters(selection, wants_previous=wants_previous, ignored=ignored)
        async for change in watch_changes(self._dispatcher, parameters):
            yield change

    async def grant_lease(self, seconds: int, lease_id: int = 0) -> Lease:
        """Make a lease, which ends by itself unless it is kept alive.

        Args:
            seconds: Its time.
            lease_id: Its number, 0 for any.

        Raises:
            LeaseExists: There is one of this number.
            NotApplied: It was refused, or no node served it in time.
            UnknownOutcome: It may have been made, or may yet be.
        """
        document = {"ttl_seconds": seconds, **({"id": lease_id} if lease_id else {})}
        return parse_granted(await self._write("POST", "/v1/leases", orjson.dumps(document)))

    async def keep_lease_alive(self, lease_id: int, *, attempt_seconds: float | None = None) -> int:
        """Give a lease its full time again; return that time in seconds.

        Args:
            lease_id: Its number.
            attempt_seconds: Time after which one node's silence ends a try; None for the client's own.

        Raises:
            LeaseNotFound: There is none.
            NotApplied: No node served it in time.
        """
        path = f"/v1/leases/{lease_id}"
        request = Request("PUT", path, is_repeatable=True, attempt_seconds=attempt_seconds)
        return parse_granted(await self._dispatcher.send(request)).seconds

    async def revoke_lease(self, lease_id: int) -> None:
        """End a lease, and delete its keys.

        Raises:
            LeaseNotFound: There is none.
            NotApplied: It was refused, or no node served it in time.
            UnknownOutcome: It may have been ended, or may yet be.
        """
        await self._write("DELETE", f"/v1/leases/{lease_id}", None)

    async def lease_time(self, lease_id: int) -> LeaseTime:
        """Return what is left of a lease, and its keys.

        Raises:
            LeaseNotFound: There is none.
            NotApplied: No node served it in time.
        """
        target = f"/v1/leases/{lease_id}?keys=true&encoding=base64"
        return parse_lease_time(await self._dispatcher.send(Request("GET", target, is_read=True)))

    async def leases(self) -> Sequence[int]:
        """Return the numbers of all leases, the one that ends soonest first.

        Raises:
            NotApplied: No node served it in time.
        """
        return parse_lease_ids(await self._dispatcher.send(Request("GET", "/v1/leases", is_read=True)))

    @asynccontextmanager
    async def lease(self, seconds: int) -> AsyncIterator[HeldLease]:
        """Make a lease, keep it alive for as long as the context lasts, and end it then.

        Args:
            seconds: Its time: for so long it lives on when this process dies.

        Raises:
            NotApplied: It could not be made.
            UnknownOutcome: It may have been made, or may yet be.
        """
        began = time.monotonic()
        lease = HeldLease(await self.grant_lease(seconds), began)
        async with kept_alive(lease, self.keep_lease_alive):
            try:
                yield lease
            finally:
                await end_lease(lease, self.revoke_lease)

    @asynccontextmanager
    async def adopt_lease(self, lease_id: int) -> AsyncIterator[HeldLease]:
        """Keep a lease alive that exists, for as long as the context lasts; then it has its whole time left.

        Args:
            lease_id: Its number.

        Raises:
            LeaseNotFound: There is none.
            NotApplied: No node served it in time.
        """
        began = time.monotonic()
        lease = HeldLease(Lease(lease_id, await self.keep_lease_alive(lease_id)), began)
        async with kept_alive(lease, self.keep_lease_alive):
            yield lease

    @asynccontextmanager
    async def lock(
        self, name: bytes, *, seconds: int = DEFAULT_HOLD_SECONDS, wait_seconds: float | None = None
    ) -> AsyncIterator[HeldLock]:
        """Hold a lock for as long as the context lasts.

        Args:
            name: Its name.
            seconds: Time after which it is free when this process dies.
            wait_seconds: For how long to wait for it, None for as long as it takes.

        Raises:
            NotAcquired: Somebody else held it all the time.
            NotApplied: It was refused, or no node served it in time.
        """
        async with self.lease(seconds) as lease:
            token = await self._enter(lock_path(name), lease, wait_seconds, {})
            yield HeldLock(name, token, lease)

    @asynccontextmanager
    async def campaign(
        self, name: bytes, value: bytes, *, seconds: int = DEFAULT_HOLD_SECONDS, wait_seconds: float | None = None
    ) -> AsyncIterator[Leadership]:
        """Be elected, and lead for as long as the context lasts.

        Args:
            name: The election's name.
            value: What to proclaim.
            seconds: Time after which another may lead when this process dies.
            wait_seconds: For how long to wait to be elected, None for as long as it takes.

        Raises:
            NotAcquired: Somebody else led all the time.
            NotApplied: It was refused, or no node served it in time.
        """
        path = election_path(name)
        async with self.lease(seconds) as lease:

            async def proclaim(new_value: bytes) -> None:
                body = orjson.dumps({"value": base64_text(new_value), "encoding": "base64"})
                await self._write("PUT", f"{path}?lease={lease.id}", body)

            candidacy = {"value": base64_text(value), "encoding": "base64"}
            token = await self._enter(path, lease, wait_seconds, candidacy)
            yield Leadership(name, token, lease, proclaim)

    async def leader(self, name: bytes) -> Leader | None:
        """Return who leads an election, None when nobody does.

        Raises:
            NotApplied: No node served it in time.
        """
        request = Request("GET", election_path(name) + "?encoding=base64", is_read=True)
        answer = await self._dispatcher.send(request)
        return None if answer.status == 404 else parse_leader(document_of(answer))

    async def observe(self, name: bytes) -> AsyncIterator[Leader]:
        """Yield who leads an election, now and each time that another leads or the leader proclaims something new.

        Raises:
            NotApplied: No node could be reached in time.
        """
        async for leader in observe_leaders(self._dispatcher, election_path(name) + "?observe=true&encoding=base64"):
            yield leader

    @asynccontextmanager
    async def backup(
        self, consistency: Consistency = Consistency.LINEARIZABLE
    ) -> AsyncIterator[tuple[AsyncIterator[bytes], str]]:
        """Take a backup; yield its pieces, and the node that sends them.

        Args:
            consistency: ``STALE`` for what the node has, without a majority.

        Raises:
            NotApplied: It was refused, no node served it in time, or it broke off.
        """
        target = "/v1/snapshot" + query_string(_consistency(consistency))
        # Nothing is sent before the node has made its copy.
        request = Request("GET", target, is_read=True, wait_seconds=_LONGEST_COPY_SECONDS)
        async with self._dispatcher.download(request, _LONGEST_COPY_SECONDS) as download:
            yield download

    async def report_backup(self, report: BackupReport | None) -> None:
        """Report a stored backup, or a failed attempt, to the node that answers, for its metrics.

        Args:
            report: The stored backup, None when none could be stored.

        Raises:
            NotApplied: It was refused, or no node served it in time.
            UnknownOutcome: The node was lost while it noted it.
        """
        document: dict[str, object] = {"outcome": "failed"}
        if report is not None:
            document = {
                "outcome": "stored",
                "revision": report.revision,
                "bytes": report.size,
                "kept": report.kept,
                "volume_too_small": report.volume_too_small,
            }
        await self._dispatcher.send(Request("POST", "/v1/backups", orjson.dumps(document)))

    async def take_snapshot(self) -> TakenSnapshot:
        """Let the node that answers take a snapshot of itself, and compact its journal behind it.

        Raises:
            NotApplied: It was refused, or no node served it in time.
            UnknownOutcome: The node was lost while it took one.
        """
        request = Request("POST", "/v1/snapshot", is_repeatable=True, wait_seconds=_LONGEST_COPY_SECONDS)
        return parse_taken_snapshot(await self._dispatcher.send(request))

    async def cluster(self) -> ClusterView:
        """Describe the cluster as the node that answers sees it.

        Raises:
            NotApplied: No node answered in time.
        """
        return parse_cluster(await self._dispatcher.send(Request("GET", "/v1/cluster", is_read=True)))

    async def check_states(self) -> StateCheckView:
        """Let the leader compare the stores of all members at one index.

        Raises:
            NotApplied: It was refused, or no node served it in time.
            UnknownOutcome: The leader was lost meanwhile.
        """
        request = Request("POST", "/v1/cluster/check", is_repeatable=True, wait_seconds=_LONGEST_CHECK_SECONDS)
        return parse_state_check(await self._dispatcher.send(request))

    async def _write(
        self,
        method: str,
        target: str,
        body: bytes | None,
        headers: Mapping[str, str] | None = None,
        fence: Fence | None = None,
    ) -> Answer:
        every = {**(headers or {}), "Idempotency-Key": secrets.token_urlsafe(_IDEMPOTENCY_BYTES)}
        if fence is not None:
            every["X-Raftkv-Fence"] = fence.header
        return await self._dispatcher.send(Request(method, target, body, every, is_repeatable=True))

    async def _enter(self, path: str, lease: HeldLease, wait_seconds: float | None, members: Mapping[str, str]) -> int:
        """Return the token of a place in a queue when its turn has come."""
        loop = asyncio.get_running_loop()
        deadline = math.inf if wait_seconds is None else loop.time() + wait_seconds
        while True:
            lease.check()
            wait = min(_LONGEST_WAIT_SECONDS, max(0.0, deadline - loop.time()))
            body = orjson.dumps({"lease": lease.id, "wait_seconds": wait, **members})
            # The lease's place in the queue is the same however often it asks.
            request = Request("POST", path, body, is_repeatable=True, wait_seconds=wait)
            try:
                return parse_token(await self._dispatcher.send(request))
            except NotAcquired:
                if loop.time() >= deadline:
                    raise


def _condition_headers(condition: Condition | None) -> dict[str, str]:
    if condition is None:
        return {}
    if condition.mod_revision is None:
        return {"If-Match": "*"}
    if condition.mod_revision == 0:
        return {"If-None-Match": "*"}
    return {"If-Match": f'"{condition.mod_revision}"'}


def _parse_read(key: bytes, answer: Answer) -> Found | Missing:
    return parse_missing(answer) if answer.status == 404 else parse_found(key, answer)


def _consistency(consistency: Consistency) -> dict[str, str]:
    return {} if consistency is Consistency.LINEARIZABLE else {"consistency": consistency.value}
