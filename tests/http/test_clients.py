"""What clients may take: connections, and memory for what they do not read."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from contextlib import AsyncExitStack

import pytest

from raftkv.errors import BuffersFull
from raftkv.http import ConnectionLimits, FrontEnd, FrontEndSettings, clients, connection, connections_within
from raftkv.http.clients import Admission, SendBudget
from raftkv.http.probes import PROBE_CONNECTIONS
from raftkv.runtime.metrics import Metrics
from raftkv.store.commands import Put
from tests.http.http_fakes import FakeClusterService
from tests.http.http_raw import Raw
from tests.http.http_store import InstantLog, services_of
from tests.http.native import until

LARGE = 1_000_000


class Served:
    """A front-end over a store, with settings of its own."""

    def __init__(self, settings: FrontEndSettings) -> None:
        self.log = InstantLog()
        self.front_end = FrontEnd(services_of(self.log.kv, FakeClusterService(), self.log), settings)

    async def __aenter__(self):
        self.address = await self.front_end.start("127.0.0.1", 0)
        return self

    async def __aexit__(self, *_error) -> None:
        await self.front_end.stop(1)

    @property
    def held_bytes(self) -> int:
        return self.front_end.unread_bytes

    async def fill(self, number: int) -> None:
        for at in range(number):
            await self.log.submit(Put(b"k%03d" % at, b"v" * LARGE))

    async def silent(self, request: bytes) -> socket.socket:
        """Send a request, and read nothing."""
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, self.address)
        await loop.sock_sendall(client, request)
        return client


def post(path: bytes, body: bytes) -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: n\r\nContent-Length: %d\r\n\r\n%b" % (path, len(body), body)


ALL = b'{"key": "aw==", "range_end": "bA=="}'
WATCH = b'{"create_request": {"key": "aw==", "range_end": "bA==", "start_revision": 1}}'


async def is_cut_off(client: socket.socket) -> bool:
    """Read until the end; return whether that came by a reset, or in the middle of what was announced."""
    loop = asyncio.get_running_loop()
    received = bytearray()
    try:
        async with asyncio.timeout(5):
            while piece := await loop.sock_recv(client, 1_048_576):
                received += piece
    except ConnectionError:
        return True
    return not received.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("limits", [ConnectionLimits(2, 9), ConnectionLimits(9, 2)], ids=["in all", "of one address"])
async def test_connections_beyond_the_limit_are_answered_with_503(limits):
    async with Served(FrontEndSettings(connections=limits)) as served:
        async with Raw(served.address) as first, Raw(served.address) as second:
            for raw in (first, second):
                assert (await raw.ask("GET", "/livez")).status == 200
            async with Raw(served.address) as third:
                answer = await third.ask("GET", "/v1/kv/a")
                assert (answer.status, answer.problem()) == (503, "too-many-connections")
                assert answer.headers["retry-after"] == "5"
                assert await third.is_closed()
            assert (await first.ask("GET", "/livez")).status == 200
            assert (served.front_end.connections, served.front_end.rejected_connections) == (2, 1)
        await until(lambda: not served.front_end.connections)
        async with Raw(served.address) as again:
            assert (await again.ask("GET", "/livez")).status == 200


FULL = FrontEndSettings(connections=ConnectionLimits(1, 1))


@pytest.mark.parametrize("target", ["/livez", "/readyz", "/readyz/quorum", "/livez?verbose", "/health", "/metrics"])
async def test_health_and_metrics_are_served_beyond_the_limit(target):
    async with Served(FULL) as served, Raw(served.address) as first:
        assert (await first.ask("GET", "/livez")).status == 200
        for method in ("GET", "HEAD"):
            within = await first.ask(method, target)
            async with Raw(served.address) as probe:
                answer = await probe.ask(method, target)
                assert (answer.status, answer.headers.get("content-type")) == (
                    within.status,
                    within.headers.get("content-type"),
                )
                assert answer.headers["connection"] == "close"
                assert await probe.is_closed()
        assert (served.front_end.connections, served.front_end.rejected_connections) == (1, 0)


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /v1/kv/a HTTP/1.1\r\nHost: n\r\n\r\n",
        b"GET /livezz HTTP/1.1\r\nHost: n\r\n\r\n",
        b"POST /livez HTTP/1.1\r\nHost: n\r\nContent-Length: 0\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: n\r\nX: " + b"x" * 9000,
        b"\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n",
        b"",
    ],
    ids=["other path", "other name", "other method", "long", "empty", "unfinished", "silent"],
)
async def test_other_requests_beyond_the_limit_are_refused(monkeypatch, request_):
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.05)
    async with Served(FULL) as served, Raw(served.address) as first:
        assert (await first.ask("GET", "/livez")).status == 200
        async with Raw(served.address) as other:
            await other.send(request_)
            answer = await other.read_answer()
            assert (answer.status, answer.problem()) == (503, "too-many-connections")
            assert await other.is_closed()
        assert served.front_end.rejected_connections == 1


async def test_only_the_first_request_beyond_the_limit_is_served():
    async with Served(FULL) as served, Raw(served.address) as first:
        assert (await first.ask("GET", "/livez")).status == 200
        async with Raw(served.address) as probe:
            await probe.send(
                b"GET /livez HTTP/1.1\r\nHost: n\r\n\r\nPUT /v1/kv/a HTTP/1.1\r\nContent-Length: 0\r\n\r\n"
            )
            assert (await probe.read_answer()).status == 200
            assert await probe.is_closed()
        assert (await first.ask("GET", "/v1/kv/a")).status == 404


async def test_head_that_arrives_in_pieces_beyond_the_limit_is_served():
    async with Served(FULL) as served, Raw(served.address) as first:
        assert (await first.ask("GET", "/livez")).status == 200
        async with Raw(served.address) as probe:
            for byte in b"GET /livez HTTP/1.1\r\nHost: n\r\n\r\n":
                await probe.send(bytes([byte]))
            assert (await probe.read_answer()).status == 200


async def test_silent_connections_beyond_the_limit_make_room_for_probes(monkeypatch):
    monkeypatch.setattr(connection, "HEAD_SECONDS", 60)
    async with Served(FULL) as served, Raw(served.address) as first, AsyncExitStack() as stack:
        assert (await first.ask("GET", "/livez")).status == 200
        silent = [await stack.enter_async_context(Raw(served.address)) for _ in range(PROBE_CONNECTIONS)]
        async with Raw(served.address) as probe:
            assert (await probe.ask("GET", "/livez")).status == 200
        assert (await silent[0].read_answer()).status == 503
        # A stop ends those that have not asked anything yet.
        await served.front_end.stop(1)
        assert (await silent[-1].read_answer()).status == 503


async def test_probe_that_does_not_read_its_answer_is_cut_off(monkeypatch):
    monkeypatch.setattr(connection, "SERVE_SECONDS", 0.05)
    async with Served(FULL) as served, Raw(served.address) as first:
        assert (await first.ask("GET", "/livez")).status == 200
        metrics = b"x" * 8 * LARGE
        monkeypatch.setattr(Metrics, "exposition", lambda *_arguments: (metrics, "text/plain"))
        client = await served.silent(b"GET /metrics HTTP/1.1\r\nHost: n\r\n\r\n")
        await until(lambda: served.held_bytes)
        await until(lambda: not served.held_bytes)
        assert await is_cut_off(client)
        client.close()


def test_addresses_are_counted_by_themselves():
    admission = Admission(ConnectionLimits(3, 2))
    assert [admission.refusal(address) is None for address in ("a", "a", "a", "b", "b")] == [
        *(True, True, False),
        *(True, False),
    ]
    admission.leave("a")
    assert admission.refusal("c") is None


@pytest.mark.parametrize("files", [64, 256, 1024, 4096, 65_536, 1_048_576])
def test_connections_leave_open_files_to_the_node(files):
    limits = ConnectionLimits(connections_within(files), 1)
    left = files - limits.total - limits.backlog
    assert left >= min(576, files // 4)


async def test_client_that_does_not_read_an_answer_is_cut_off():
    async with Served(FrontEndSettings(write_timeout_seconds=0.4)) as served:
        await served.fill(3)
        client = await served.silent(post(b"/v3/kv/range", ALL))
        await until(lambda: served.held_bytes > 3 * LARGE)
        await until(lambda: not served.held_bytes)
        assert await is_cut_off(client)
        client.close()


async def test_client_that_does_not_read_its_watch_is_cut_off():
    async with Served(FrontEndSettings(write_timeout_seconds=0.4)) as served:
        await served.fill(3)
        client = await served.silent(post(b"/v3/watch", WATCH))
        await until(lambda: served.held_bytes)
        await until(lambda: not served.held_bytes)
        assert await is_cut_off(client)
        client.close()


async def test_client_that_reads_slowly_is_served():
    async with Served(FrontEndSettings(write_timeout_seconds=0.4)) as served:
        await served.fill(3)
        client = await served.silent(post(b"/v3/kv/range", ALL))
        loop = asyncio.get_running_loop()
        received, began = 0, loop.time()
        while received < 4 * LARGE:
            piece = await loop.sock_recv(client, 300_000)
            assert piece
            received += len(piece)
            # Slower than the timeout allows for the whole, faster than it allows for nothing.
            while loop.time() - began < received / (4 * LARGE):  # noqa: ASYNC110 - it reads at a rate
                await asyncio.sleep(0.01)
        assert loop.time() - began >= 0.9
        client.close()


async def test_reads_without_room_for_their_answer_are_refused():
    async with Served(FrontEndSettings(unread_bytes=6 * LARGE)) as served:
        await served.fill(3)
        client = await served.silent(post(b"/v3/kv/range", ALL))
        await until(lambda: served.held_bytes > 3 * LARGE)
        async with Raw(served.address) as raw:
            answer = await raw.ask("POST", "/v3/kv/range", ALL)
            assert (answer.status, answer.json()["code"]) == (429, 8)
            # A value fits still, and so does everything small.
            assert (await raw.ask("GET", "/v1/kv/k000")).status == 200
            answer = await raw.ask("GET", "/v1/kv?prefix=k")
            assert (answer.status, answer.problem(), answer.headers["retry-after"]) == (503, "buffers-full", "1")
            assert (await raw.ask("POST", "/v3/kv/put", b'{"key": "YQ=="}')).status == 200
        client.close()
        await until(lambda: not served.held_bytes)
        async with Raw(served.address) as raw:
            assert (await raw.ask("POST", "/v3/kv/range", ALL)).status == 200


async def test_answer_larger_than_the_bound_is_sent_alone():
    async with Served(FrontEndSettings(unread_bytes=2 * LARGE)) as served:
        await served.fill(3)
        async with Raw(served.address) as raw:
            answer = await raw.ask("POST", "/v3/kv/range", ALL)
            assert (answer.status, len(answer.json()["kvs"])) == (200, 3)


LARGE_READS = [
    {"get": {"prefix": "k"}},
    {"get": {"from": "k", "limit": 1000}},
    {"txn": {"then": [{"get": {"from": ""}}]}},
    {"delete": {"prefix": "x", "previous": True}},
]
SMALL_READS = [
    {"get": {"key": "k000"}},
    {"get": {"prefix": "k", "limit": 2}},
    {"get": {"prefix": "k", "count_only": True}},
    {"delete": {"prefix": "x"}},
    {"put": {"key": "p", "value": "1", "previous": True}},
]


@pytest.mark.parametrize("operation", LARGE_READS)
async def test_transactions_with_large_reads_wait_for_the_others(operation):
    async with Served(FrontEndSettings()) as served:
        await served.fill(3)
        budget = served.front_end._budget
        async with Raw(served.address) as raw:
            async with AsyncExitStack() as stack:
                for _ in range(clients.HEAVY_AT_A_TIME):
                    await stack.enter_async_context(budget.heavy())
                asking = asyncio.create_task(raw.ask("POST", "/v1/txn", json.dumps({"then": [operation]}).encode()))
                async with Raw(served.address) as other:
                    for small in SMALL_READS:
                        assert (
                            await other.ask("POST", "/v1/txn", json.dumps({"then": [small]}).encode())
                        ).status == 200
                assert not asking.done()
            assert (await asking).status == 200


async def test_transactions_that_only_read_need_room_for_their_answer():
    async with Served(FrontEndSettings(unread_bytes=6 * LARGE)) as served:
        await served.fill(3)
        client = await served.silent(post(b"/v3/kv/range", ALL))
        await until(lambda: served.held_bytes > 3 * LARGE)
        async with Raw(served.address) as raw:
            answer = await raw.ask("POST", "/v1/txn", b'{"then": [{"get": {"prefix": "k"}}]}')
            assert (answer.status, answer.problem()) == (503, "buffers-full")
            written = b'{"then": [{"get": {"prefix": "k"}}, {"put": {"key": "a", "value": "1"}}]}'
            assert (await raw.ask("POST", "/v1/txn", written)).status == 200
            answer = await raw.ask("POST", "/v3/kv/txn", b'{"success": [{"request_range": %b}]}' % ALL)
            assert (answer.status, answer.json()["code"]) == (429, 8)
            written = b'{"success": [{"request_range": %b}, {"request_put": {"key": "YQ=="}}]}' % ALL
            assert (await raw.ask("POST", "/v3/kv/txn", written)).status == 200
        client.close()


async def test_transactions_that_only_read_are_bounded_whatever_the_room():
    ranges = {"get": {"prefix": "k"}}
    async with Served(FrontEndSettings(unread_bytes=2 * LARGE)) as served, Raw(served.address) as raw:
        await served.fill(12)
        for path, body in (
            ("/v1/txn", json.dumps({"then": [ranges] * 3}).encode()),
            ("/v3/kv/txn", json.dumps({"success": [{"request_range": json.loads(ALL)}] * 3}).encode()),
        ):
            answer = await raw.ask("POST", path, body)
            assert answer.status == 400
            assert b"reads more than 33554432 bytes of keys and values" in answer.body
        # One range alone is what it is outside of transactions.
        await served.fill(36)
        answer = await raw.ask("POST", "/v1/txn", json.dumps({"then": [ranges]}).encode())
        assert (answer.status, len(answer.json()["results"][0]["get"]["items"])) == (200, 36)


class Holder:
    def __init__(self) -> None:
        self.reasons: list[str] = []

    def cut_off(self, reason: str) -> None:
        self.reasons.append(reason)


async def test_stalled_stream_makes_room_for_others(monkeypatch):
    monkeypatch.setattr(clients, "STALLED_SECONDS", 0.0)
    budget, slow, other = SendBudget(3 * LARGE), Holder(), Holder()
    ended = asyncio.Event()

    async def stall() -> None:
        async with budget.streaming(2 * LARGE, slow):
            await ended.wait()

    async def wait() -> None:
        async with budget.streaming(2 * LARGE, other):
            pass

    stalling = asyncio.create_task(stall())
    await asyncio.sleep(0)
    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    assert slow.reasons
    assert not waiting.done()
    ended.set()
    await asyncio.gather(stalling, waiting)
    assert (other.reasons, budget.held_bytes) == ([], 0)


async def test_stream_that_finds_no_room_ends_with_an_error(monkeypatch):
    monkeypatch.setattr(clients, "WAIT_SECONDS", 0.01)
    budget = SendBudget(2 * LARGE)
    with budget.holding(2 * LARGE), pytest.raises(BuffersFull):
        async with budget.streaming(LARGE, Holder()):
            pytest.fail("there is no room")
    assert budget.held_bytes == 0


async def test_watch_that_finds_no_room_is_cancelled_with_the_reason(monkeypatch):
    monkeypatch.setattr(clients, "WAIT_SECONDS", 0.01)
    async with Served(FrontEndSettings(unread_bytes=5 * LARGE)) as served:
        await served.fill(3)
        client = await served.silent(post(b"/v3/kv/range", ALL))
        await until(lambda: served.held_bytes > 3 * LARGE)
        async with Raw(served.address) as raw:
            await raw.send(post(b"/v3/watch", WATCH))
            received = b""
            async with asyncio.timeout(5):
                while b"canceled" not in received:
                    received += await raw.reader.read(65_536)
            assert b'"cancel_reason":"raftkv: the node holds as many bytes as it may' in received
            assert base64.b64encode(b"k000") not in received
        async with Raw(served.address) as raw:
            await raw.send(b"GET /v1/watch?prefix=k&from_revision=1 HTTP/1.1\r\nHost: n\r\n\r\n")
            received = b""
            async with asyncio.timeout(5):
                while b"event: error" not in received:
                    received += await raw.reader.read(65_536)
                while b"buffers-full" not in received:
                    received += await raw.reader.read(65_536)
        client.close()


async def test_large_bodies_under_way_are_bounded(monkeypatch):
    monkeypatch.setattr(clients, "WAIT_SECONDS", 0.1)
    head = b"PUT /v1/kv/%b HTTP/1.1\r\nHost: n\r\nContent-Length: %d\r\n\r\n"
    async with Served(FrontEndSettings(unread_bytes=2 * LARGE)) as served, AsyncExitStack() as stack:
        first, second, third = [await stack.enter_async_context(Raw(served.address)) for _ in range(3)]
        for raw in (first, second):
            await raw.send(head % (b"large", LARGE) + b"v" * (LARGE - 1))
        await until(lambda: served.front_end.receiving_bytes == 2 * LARGE)
        await third.send(head % (b"third", LARGE))
        answer = await third.read_answer()
        assert (answer.status, answer.problem(), answer.json()["applied"]) == (503, "buffers-full", "no")
        async with Raw(served.address) as small:
            assert (await small.ask("PUT", "/v1/kv/small", b"v" * 1000)).status == 201
        await first.send(b"v")
        assert (await first.read_answer()).status == 201
        async with Raw(served.address) as again:
            assert (await again.ask("PUT", "/v1/kv/third", b"v" * LARGE)).status == 201
        await second.send(b"v")
        assert (await second.read_answer()).status in (200, 201)
        await until(lambda: served.front_end.receiving_bytes == 0)


async def test_large_body_waits_for_room():
    head = b"PUT /v1/kv/k HTTP/1.1\r\nHost: n\r\nContent-Length: %d\r\n\r\n" % LARGE
    async with Served(FrontEndSettings(unread_bytes=LARGE)) as served, AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(Raw(served.address)) for _ in range(2)]
        await first.send(head + b"v" * (LARGE - 1))
        await until(lambda: served.front_end.receiving_bytes == LARGE)
        await second.send(head + b"w" * LARGE)
        await first.send(b"v")
        assert (await first.read_answer()).status == 201
        assert (await second.read_answer()).status == 200
