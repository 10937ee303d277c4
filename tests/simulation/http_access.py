"""Transactions, leases, locks and watches of a simulated cluster over HTTP: the native API, and etcd's gateway.

Each operation chooses one of the two APIs. The native requests and answers are made and read by the code of the real
client. An error becomes what a client can conclude from the answer: refused, or of unknown outcome.
"""

from __future__ import annotations

import asyncio
import random
from base64 import b64decode, b64encode
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_from_bytes

import orjson

from raftkv.client import watch as client_watch
from raftkv.client.answers import Answer, parse_granted, parse_token
from raftkv.client.failures import NotAcquired, error_of_problem
from raftkv.client.targets import key_path, lock_path
from raftkv.client.transaction_json import parse_transaction_answer, render_transaction
from raftkv.client.turns import Fence
from raftkv.errors import LeaseNotFound, NotApplied, RevisionCompacted, UnknownOutcome
from raftkv.http import server_sent_events
from raftkv.http.etcd import watch as gateway_watch
from raftkv.http.etcd.errors import NO_LEADER
from raftkv.http.safeguards import FENCE, IDEMPOTENCY_KEY, lock_prefix
from raftkv.operations import (
    NO_SAFEGUARDS,
    Compare,
    DeleteOperation,
    DeleteResult,
    Event,
    EventKind,
    KeySpan,
    Lease,
    Operation,
    OperationResult,
    PutOperation,
    PutResult,
    RangeQuery,
    RangeResult,
    Safeguards,
    Transaction,
    TransactionResult,
    Watch,
)
from raftkv.service.turns import turn_key
from raftkv.types import KeyValue, Revision
from tests.simulation.access import HeldLock, WatchHandle
from tests.simulation.http_client import Exchange, exchange, request

if TYPE_CHECKING:
    from tests.simulation.node import SimulatedNode
    from tests.simulation.world import World

HEARTBEAT_SECONDS = 2.0
"""Between signs of life of a watch in wired runs; a watch that is silent for much longer is begun again."""

ANSWER_SECONDS = 8.0

_LOCK = b"lock"
_SILENCE_SECONDS = 5 * HEARTBEAT_SECONDS
_NO_SUCH_LEASE = "etcdserver: requested lease not found"
_READS_TOO_MUCH = "the transaction visits more than"
_LOST = (OSError, TimeoutError, asyncio.IncompleteReadError)


def note_answer(world: World, api: str, status: int, body: bytes, *, may_fail: bool = False) -> None:
    """Count an answer; a valid request is never answered as invalid, nor by a failure of the server.

    Some transactions read too much, which shows when they are carried out.
    """
    world.counts[f"{api}: {status}"] += 1
    if status in (400, 500) and not may_fail and _READS_TOO_MUCH.encode() not in body:
        world.violate(f"a valid {api} request is answered with {status}: {body[:300].decode()}")


class HttpAccess:
    """Sends HTTP requests to nodes.

    Args:
        world: The cluster.
        seed: Fixes which API each operation uses.
    """

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._rng = random.Random(f"APIs of {seed}")

    async def transact(
        self, node: SimulatedNode, transaction: Transaction, safeguards: Safeguards = NO_SAFEGUARDS
    ) -> TransactionResult:
        """Carry out a transaction; one under an idempotency key natively, since etcd has none."""
        is_read = not transaction.failure and all(isinstance(part, RangeQuery) for part in transaction.success)
        # Errors of the gateway leave outcomes open, and too many open outcomes are more than the checker can search.
        use_gateway = safeguards == NO_SAFEGUARDS and self._rng.random() < (0.5 if is_read else 0.25)
        with _read_only() if is_read else nullcontext():
            if use_gateway:
                document = await self._ask_gateway(node, "kv/txn", _gateway_transaction(transaction))
                return _read_gateway_transaction(document)
            body = orjson.dumps({"encoding": "base64", **render_transaction(transaction)})
            headers = _safeguard_headers(safeguards)
            answer = await self._ask_natively(node, "POST", "/v1/txn", headers, body)
            if IDEMPOTENCY_KEY in headers and self._rng.random() < 0.2:
                # As a client does that was cut off before it had the answer.
                with suppress(NotApplied, UnknownOutcome):
                    answer = await self._ask_natively(node, "POST", "/v1/txn", headers, body)
            return parse_transaction_answer(answer)

    async def put_leased(self, node: SimulatedNode, key: bytes, lease: int) -> None:
        """Put an empty value that is attached to a lease."""
        if self._is_gateway():
            await self._ask_gateway(node, "kv/put", {"key": _base64(key), "lease": str(lease)})
        else:
            await self._ask_natively(node, "PUT", f"{key_path(key)}?lease={lease}", {}, b"")

    async def put_fenced(self, node: SimulatedNode, key: bytes, value: bytes, token: int) -> None:
        """Put a value under the fencing token of the lock; natively, since etcd has no such header."""
        await self._ask_natively(node, "PUT", key_path(key), {FENCE: Fence(_LOCK, token).header}, value)

    async def grant(self, node: SimulatedNode, seconds: int) -> Lease:
        """Make a lease."""
        if self._is_gateway():
            document = await self._ask_gateway(node, "lease/grant", {"TTL": str(seconds)})
            return Lease(int(document["ID"]), int(document["TTL"]))
        body = orjson.dumps({"ttl_seconds": seconds})
        return parse_granted(await self._ask_natively(node, "POST", "/v1/leases", {}, body))

    async def keep_alive(self, node: SimulatedNode, lease: int) -> None:
        """Give a lease its full time again."""
        with _read_only():
            if self._is_gateway():
                await self._keep_alive_by_stream(node, lease)
            else:
                await self._ask_natively(node, "PUT", f"/v1/leases/{lease}", {}, None)

    async def acquire(self, node: SimulatedNode, lease: int, client: bytes, seconds: float) -> HeldLock | None:
        """Acquire the lock; by the gateway as an election in the same queue, whose answers carry the token."""
        if not self._is_gateway():
            body = orjson.dumps({"lease": lease, "wait_seconds": seconds})
            try:
                answer = await self._ask_natively(node, "POST", lock_path(_LOCK), {}, body)
            except NotAcquired:
                return None
            return HeldLock(lease, parse_token(answer))
        name = lock_prefix(_LOCK).removesuffix(b"/")
        message = {"name": _base64(name), "value": _base64(client), "lease": str(lease)}
        # A client that waits no longer goes away, and its place in the queue with it.
        document = await self._ask_gateway(node, "election/campaign", message, seconds)
        return HeldLock(lease, int(document["leader"]["rev"]))

    async def release(self, node: SimulatedNode, lock: HeldLock) -> None:
        """Release the lock."""
        if self._is_gateway():
            key = turn_key(lock_prefix(_LOCK), lock.lease)
            await self._ask_gateway(node, "lock/unlock", {"key": _base64(key)})
        else:
            await self._ask_natively(node, "DELETE", f"{lock_path(_LOCK)}?lease={lock.lease}", {}, None)

    def watch(self, node: SimulatedNode, watch: Watch) -> WatchHandle:
        """Begin to watch."""
        kind = _GatewayWatch if self._is_gateway() else _NativeWatch
        return kind(self._world, node, watch, has_progress_requests=self._rng.random() < 0.5)

    def visible(self, event: Event) -> Event:
        """Return an event as it travels: a deleted key has no value, and its place in the revision is not told."""
        item = event.item
        if event.kind is EventKind.DELETE:
            item = KeyValue(item.key, b"", Revision(0), item.mod_revision, 0)
        return Event(event.kind, item)

    def _is_gateway(self) -> bool:
        return self._rng.random() < 0.5

    async def _ask_natively(
        self, node: SimulatedNode, method: str, path: str, headers: Mapping[str, str], body: bytes | None
    ) -> Answer:
        with _connection_errors():
            async with asyncio.timeout(ANSWER_SECONDS):
                status, answered, text = await request(self._world.loop, node.name, method, path, headers, body)
        note_answer(self._world, "native", status, text)
        if status >= 300:
            raise _native_error(text)
        return Answer(status, answered, text, node.name)

    async def _ask_gateway(
        self, node: SimulatedNode, path: str, message: Mapping[str, Any], seconds: float = ANSWER_SECONDS
    ) -> dict[str, Any]:
        with _connection_errors():
            async with asyncio.timeout(seconds):
                status, _, text = await request(
                    self._world.loop, node.name, "POST", f"/v3/{path}", {}, orjson.dumps(message)
                )
        document: dict[str, Any] = orjson.loads(text)
        # etcd's service for elections answers 500 where there is no such lease.
        is_missing = status != 200 and document["message"] == _NO_SUCH_LEASE
        note_answer(self._world, "gateway", status, text, may_fail=is_missing)
        if status != 200:
            raise _gateway_error(document["message"])
        return document

    async def _keep_alive_by_stream(self, node: SimulatedNode, lease: int) -> None:
        body = orjson.dumps({"ID": str(lease)})
        with _connection_errors():
            async with asyncio.timeout(ANSWER_SECONDS):
                status, _, text = await request(self._world.loop, node.name, "POST", "/v3/lease/keepalive", {}, body)
        note_answer(self._world, "gateway", status, text)
        document = orjson.loads(text)
        if "error" in document:
            raise _gateway_error(document["error"]["message"])
        if "TTL" not in document["result"]:
            raise LeaseNotFound(f"there is no lease {lease}")


def _safeguard_headers(safeguards: Safeguards) -> dict[str, str]:
    idempotency = safeguards.idempotency
    return {} if idempotency is None else {IDEMPOTENCY_KEY: idempotency.key.decode()}


@contextmanager
def _read_only() -> Iterator[None]:
    """Take an unknown outcome for a refusal, where the request has no effect that a client relies on."""
    try:
        yield
    except UnknownOutcome as error:
        raise NotApplied(str(error)) from None


@contextmanager
def _connection_errors() -> Iterator[None]:
    try:
        yield
    except ConnectionRefusedError as error:
        raise NotApplied(str(error)) from None
    except _LOST as error:
        raise UnknownOutcome(repr(error)) from None


def _native_error(body: bytes) -> Exception:
    document = orjson.loads(body)
    known = error_of_problem(document["type"], document["detail"])
    if known is not None:
        return known
    return (NotApplied if document["applied"] == "no" else UnknownOutcome)(document["detail"])


def _gateway_error(message: str) -> Exception:
    if message == _NO_SUCH_LEASE:
        return LeaseNotFound(message)
    # Of all errors only these say that nothing was applied.
    is_refused = message == NO_LEADER or _READS_TOO_MUCH in message
    return (NotApplied if is_refused else UnknownOutcome)(message)


_Told = tuple[list[tuple[int, Event]], int]
"""Events with their revisions, and the first revision that the watch has not seen after them."""


class _HttpWatch:
    """A watch on a stream of its own, which begins with the first call of ``next``.

    Args:
        world: The cluster.
        node: The node.
        watch: What to watch.
        has_progress_requests: Whether the client asks for progress on the stream.

    Attributes:
        position: The first revision that it has not seen.
    """

    def __init__(self, world: World, node: SimulatedNode, watch: Watch, *, has_progress_requests: bool) -> None:
        self._world = world
        self._node = node
        self._watch = watch
        self._has_progress_requests = has_progress_requests
        self.position = watch.start
        self._stream: AsyncGenerator[_Told] | None = None

    async def next(self) -> list[tuple[int, Event]]:
        """Return the next events."""
        if self._stream is None:
            self._stream = self._follow()
        try:
            while True:
                async with asyncio.timeout(_SILENCE_SECONDS):
                    events, position = await anext(self._stream)
                if position < self.position:
                    self._world.violate(f"a watch at {self._node.name} goes back from {self.position} to {position}")
                self.position = position
                if events:
                    return events
        except RevisionCompacted:
            raise
        except (*_LOST, StopAsyncIteration, UnknownOutcome, client_watch._Interrupted) as error:
            raise NotApplied(repr(error)) from None

    async def close(self) -> None:
        """Close the stream."""
        if self._stream is not None:
            await self._stream.aclose()

    def _follow(self) -> AsyncGenerator[_Told]:
        raise NotImplementedError


class _NativeWatch(_HttpWatch):
    """``GET /v1/watch``: server-sent events, read by the code of the real client."""

    async def _follow(self) -> AsyncGenerator[_Told]:
        span, position = self._watch.span, self.position
        selection = {"key" if span.is_single else "prefix": quote_from_bytes(span.start, safe="")}
        (ignored,) = self._watch.ignored or (None,)
        path = "/v1/watch" + client_watch.watch_parameters(
            {**selection, "from_revision": str(position)}, wants_previous=False, ignored=ignored
        )
        async with exchange(self._world.loop, self._node.name, "GET", path, {}) as sent:
            if sent.status != 200:
                body = await sent.read()
                note_answer(self._world, "native watch", sent.status, body)
                raise _native_error(body)
            self._world.counts["native watch: 200"] += 1
            async for message in client_watch.server_sent_events(sent.lines()):
                events: list[tuple[int, Event]] = []
                if message.data is not None:
                    document = client_watch._document(message, self._node.name)
                    revision = document.revision()
                    events = [(revision, client_watch._event(event).event) for event in document.nested("events")]
                position = position if message.id is None else message.id + 1
                yield events, position


class _GatewayWatch(_HttpWatch):
    """``/v3/watch``: JSON objects in chunks, with progress asked for on the stream or sent by itself."""

    async def _follow(self) -> AsyncGenerator[_Told]:
        create = {
            **_gateway_span(self._watch.span, first=b"\0"),
            "start_revision": str(self.position),
            "filters": [f"NO{kind.name}" for kind in self._watch.ignored],
            "progress_notify": not self._has_progress_requests,
        }
        body = orjson.dumps({"create_request": create})
        sending = exchange(
            self._world.loop, self._node.name, "POST", "/v3/watch", {}, body, goes_on=self._has_progress_requests
        )
        async with sending as sent:
            self._world.counts[f"gateway watch: {sent.status}"] += 1
            asking = self._world.loop.create_task(self._ask_for_progress(sent))
            try:
                async for line in sent.lines():
                    yield self._read(orjson.loads(line))
            finally:
                asking.cancel()

    async def _ask_for_progress(self, sent: Exchange) -> None:
        while self._has_progress_requests:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            sent.send(b'{"progress_request": {}}')

    def _read(self, document: dict[str, Any]) -> _Told:
        if "error" in document:
            raise NotApplied(document["error"]["message"])
        result = document["result"]
        if "compact_revision" in result:
            raise RevisionCompacted(f"compacted up to {result['compact_revision']}")
        if result.get("canceled"):
            raise NotApplied(result["cancel_reason"])
        if result.get("created"):
            return [], self.position
        if events := [_gateway_event(event) for event in result.get("events", [])]:
            return events, events[-1][0] + 1
        # Progress, taken as etcd's client does: a member that lags may be behind the start of the watch.
        return [], max(self.position, int(result["header"]["revision"]) + 1)


def _gateway_event(document: dict[str, Any]) -> tuple[int, Event]:
    kind = EventKind.DELETE if document.get("type") == "DELETE" else EventKind.PUT
    item = _gateway_item(document["kv"])
    return item.mod_revision, Event(kind, item)


def _gateway_item(document: dict[str, str]) -> KeyValue:
    return KeyValue(
        b64decode(document["key"]),
        b64decode(document.get("value", "")),
        Revision(int(document.get("create_revision", "0"))),
        Revision(int(document["mod_revision"])),
        int(document.get("version", "0")),
        int(document.get("lease", "0")),
    )


def _gateway_span(span: KeySpan, first: bytes = b"") -> dict[str, str]:
    document = {"key": _base64(span.start or first)}
    if not span.is_single:
        document["range_end"] = _base64(b"\0" if span.end is None else span.end)
    return document


def _gateway_transaction(transaction: Transaction) -> dict[str, Any]:
    return {
        "compare": [_gateway_compare(compare) for compare in transaction.compares],
        "success": [_gateway_operation(operation) for operation in transaction.success],
        "failure": [_gateway_operation(operation) for operation in transaction.failure],
    }


def _gateway_compare(compare: Compare) -> dict[str, Any]:
    operand = {f"{compare.target.name.lower()}_revision": str(compare.operand)}
    return {**_gateway_span(compare.span), "target": compare.target.name, "result": compare.relation.name, **operand}


def _gateway_operation(operation: Operation) -> dict[str, Any]:
    if isinstance(operation, Transaction):
        return {"request_txn": _gateway_transaction(operation)}
    if isinstance(operation, DeleteOperation):
        return {"request_delete_range": _gateway_span(operation.span)}
    if isinstance(operation, PutOperation):
        return {"request_put": {"key": _base64(operation.key), "value": _base64(operation.value or b"")}}
    return {"request_range": _gateway_span(operation.span)}


def _read_gateway_transaction(document: dict[str, Any]) -> TransactionResult:
    parts = tuple(_gateway_part(part) for part in document.get("responses", []))
    revision = Revision(int(document["header"]["revision"]))
    return TransactionResult(document.get("succeeded", False), parts, revision)


def _gateway_part(part: dict[str, Any]) -> OperationResult:
    if "response_range" in part:
        found = part["response_range"]
        items = tuple(_gateway_item(item) for item in found.get("kvs", []))
        return RangeResult(items, int(found.get("count", "0")), more=found.get("more", False))
    if "response_delete_range" in part:
        return DeleteResult(int(part["response_delete_range"].get("deleted", "0")), ())
    # Results of nested transactions are not looked at.
    return PutResult(None)


def _base64(data: bytes) -> str:
    return b64encode(data).decode()


@contextmanager
def fast_heartbeats() -> Iterator[None]:
    """Let watches send signs of life so often that they move forward within a run."""
    before = server_sent_events.HEARTBEAT_SECONDS, gateway_watch.PROGRESS_SECONDS
    server_sent_events.HEARTBEAT_SECONDS = gateway_watch.PROGRESS_SECONDS = HEARTBEAT_SECONDS
    try:
        yield
    finally:
        server_sent_events.HEARTBEAT_SECONDS, gateway_watch.PROGRESS_SECONDS = before
