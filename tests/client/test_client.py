"""The client against real front-ends whose services are told what to answer."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from raftkv import errors
from raftkv.client import Client, ConditionNotMet, Found, Missing, TlsFiles, UnexpectedAnswer, Unreachable
from raftkv.client.dispatch import Dispatcher, _OutOfTime
from raftkv.client.targets import key_path, parse_endpoints
from raftkv.http import FrontEnd
from raftkv.tls import listening_context
from raftkv.types import Condition, Consistency, NodeId, Revision
from tests.http.http_fakes import FakeClusterService, FakeKeyValueService
from tests.http.http_store import services_of
from tests.tls_files import TestAuthority


class Server:
    """One front-end over fakes."""

    def __init__(self) -> None:
        self.kv = FakeKeyValueService()
        self.cluster = FakeClusterService()
        self.front_end = FrontEnd(services_of(self.kv, self.cluster))

    async def start(self) -> str:
        host, port = await self.front_end.start("127.0.0.1", 0)
        self.url = f"http://{host}:{port}"
        return self.url


@pytest.fixture
async def servers():
    both = [Server(), Server()]
    for server in both:
        await server.start()
    yield both
    for server in both:
        server.kv.gate.set()
        await server.front_end.stop(1)


@pytest.fixture
async def scripted():
    """A server that answers each connection with the next of some raw answers, then closes it."""
    answers: list[bytes] = []

    async def serve(reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            if answers:
                writer.write(answers.pop(0))
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", answers
    server.close()
    await server.wait_closed()


def raw(status: str, body: bytes = b"{}", *headers: str) -> bytes:
    head = "".join(f"{header}\r\n" for header in headers)
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{head}\r\n".encode() + body


async def test_a_key_is_written_read_listed_and_deleted(servers):
    async with Client([servers[0].url]) as client:
        key = b"a/\x00\xff%/../.."
        stored = await client.put(key, b"\x00value")
        assert (stored.version, stored.mod_revision) == (1, stored.revision)
        found = await client.get(key)
        assert isinstance(found, Found)
        assert (found.item.key, found.item.value, found.item.mod_revision) == (key, b"\x00value", stored.revision)
        assert isinstance(await client.get(b"none", Consistency.STALE), Missing)
        assert servers[0].kv.reads[-1] is Consistency.STALE
        assert [item.key async for item in client.list(b"a/")] == [key]
        page = await client.list_page(keys_only=True)
        assert (page.items[0].value, page.next_key) == (b"", None)
        assert (await client.delete(key)).deleted == 1
        assert (await client.delete(key)).deleted == 0


async def test_conditions_travel_and_fail_with_what_was_found(servers):
    async with Client([servers[0].url]) as client:
        first = await client.put(b"a", b"1", Condition(Revision(0)))
        with pytest.raises(ConditionNotMet) as failed:
            await client.put(b"a", b"2", Condition(Revision(0)))
        assert failed.value.mod_revision == first.mod_revision
        await client.put(b"a", b"2", Condition(first.mod_revision))
        await client.put(b"a", b"3", Condition(None))
        with pytest.raises(ConditionNotMet):
            await client.delete(b"a", Condition(Revision(first.mod_revision)))


async def test_writes_follow_the_redirect_and_then_go_to_the_leader(servers):
    follower, leader = servers
    follower.kv.failure = errors.NotLeader(NodeId("n2"), leader.url)
    async with Client([follower.url]) as client:
        await client.put(b"a", b"1")
        follower.kv.failure = RuntimeError("it must not be asked")
        await client.put(b"b", b"2")
        assert set(leader.kv.keys) == {b"a", b"b"}


async def test_a_dead_endpoint_is_passed_over(servers):
    async with Client(["http://127.0.0.1:9", servers[0].url]) as client:
        await client.put(b"a", b"1")
        assert isinstance(await client.get(b"a"), Found)


async def test_an_election_is_waited_out(servers):
    servers[0].kv.failure = errors.Superseded("an election")

    async def elect() -> None:
        await asyncio.sleep(0.1)
        servers[0].kv.failure = None

    async with Client([servers[0].url], timeout_seconds=8) as client:
        election = asyncio.ensure_future(elect())
        assert (await client.put(b"a", b"1")).version == 1
        await election


async def test_nobody_in_time_is_not_applied(servers, monkeypatch):
    # Each try has seconds, which a busy machine cannot use up; what ends them is that the next pause is too long.
    monkeypatch.setattr(Dispatcher, "_backoff", lambda _: iter([0.01, 0.01, 60.0]))
    servers[0].kv.failure = errors.NoLeader("none")
    async with Client([servers[0].url], timeout_seconds=8) as client:
        with pytest.raises(Unreachable, match=r"within 8 s: .*none"):
            await client.put(b"a", b"1")
    assert len(servers[0].kv.safeguards) == 3


async def test_no_further_try_begins_without_time_for_its_answer(servers, monkeypatch):
    monkeypatch.setattr(Dispatcher, "_backoff", lambda _: iter([1.97, 60.0]))
    servers[0].kv.failure = errors.NoLeader("none")
    async with Client([servers[0].url], timeout_seconds=2) as client:
        with pytest.raises(Unreachable, match=r"within 2 s: .*none"):
            await client.put(b"a", b"1")
    assert len(servers[0].kv.safeguards) == 1


async def test_reason_of_last_refusal_survives_deadline(servers, monkeypatch):
    async def late(*_arguments):
        if servers[0].kv.safeguards:
            raise _OutOfTime("the deadline passed")
        return await exchange(*_arguments)

    exchange = Dispatcher._exchange
    monkeypatch.setattr(Dispatcher, "_exchange", late)
    monkeypatch.setattr(Dispatcher, "_backoff", lambda _: iter([0.01, 60.0]))
    servers[0].kv.failure = errors.NoLeader("none")
    async with Client([servers[0].url], timeout_seconds=8) as client:
        with pytest.raises(Unreachable, match=r"s: .*none"):
            await client.put(b"a", b"1")


@pytest.mark.parametrize("failure", [errors.Timeout("late"), errors.LeadershipLost("gone"), RuntimeError("a bug")])
async def test_a_write_of_unknown_outcome_is_tried_again_under_the_same_idempotency_key(servers, failure):
    servers[0].kv.failure = failure
    async with Client([server.url for server in servers]) as client:
        await client.put(b"a", b"1")
        assert set(servers[1].kv.keys) == {b"a"}
    first, second = (server.kv.safeguards[-1].idempotency for server in servers)
    assert first == second
    servers[1].kv.failure = failure
    async with Client([server.url for server in servers], timeout_seconds=0.3) as client:
        with pytest.raises(errors.UnknownOutcome, match="no endpoint served"):
            await client.put(b"b", b"1")
    assert servers[1].kv.safeguards[-1].idempotency.key != first.key


async def test_a_full_store_leaves_an_earlier_try_unknown(servers):
    servers[0].kv.failure = errors.Timeout("late")
    servers[1].kv.failure = errors.SpaceExceeded("full")
    async with Client([server.url for server in servers]) as client:
        with pytest.raises(errors.UnknownOutcome, match="full"):
            await client.put(b"a", b"1")
    async with Client([servers[1].url]) as client:
        with pytest.raises(errors.SpaceExceeded, match="full"):
            await client.put(b"a", b"1")


async def test_a_read_is_tried_elsewhere_whatever_happens(servers):
    servers[0].kv.failure = errors.Timeout("late")
    async with Client([server.url for server in servers]) as client:
        assert isinstance(await client.get(b"a"), Missing)


async def test_what_is_wrong_with_the_request_is_not_tried_again(servers):
    servers[0].kv.failure = errors.InvalidRequest("because")
    async with Client([server.url for server in servers]) as client:
        with pytest.raises(errors.InvalidRequest, match="because"):
            await client.put(b"a", b"1")
        for key, value in ((b"", b""), (b"k" * 4097, b""), (b"k", bytes(1_572_865))):
            with pytest.raises(errors.InvalidRequest):
                await client.put(key, value)
    assert servers[1].kv.keys == {}


async def test_a_full_disk_is_told_as_such(servers):
    servers[0].kv.failure = errors.StorageLow("full")
    async with Client([servers[0].url]) as client:
        with pytest.raises(errors.StorageLow, match="full"):
            await client.put(b"a", b"1")


async def test_a_connection_that_breaks_after_the_request_is_unknown(scripted):
    url, _answers = scripted
    async with Client([url], timeout_seconds=0.3) as client:
        with pytest.raises(errors.UnknownOutcome, match="the connection broke"):
            await client.put(b"a", b"1")


async def test_silence_is_unknown(servers):
    servers[0].kv.gate.clear()
    async with Client([servers[0].url], timeout_seconds=0.5, attempt_timeout_seconds=0.1) as client:
        with pytest.raises(errors.UnknownOutcome, match="no answer in time"):
            await client.put(b"a", b"1")


@pytest.mark.parametrize(
    "answer",
    [
        raw("200 OK", b"hello"),
        raw("200 OK", b"[]"),
        raw("200 OK", b'{"revision": "x"}'),
        raw("307 Temporary Redirect", b"", "Location: nowhere"),
        raw("412 Precondition Failed", b"{}"),
        raw("418 I'm a teapot", b"tea"),
    ],
)
async def test_an_answer_of_another_service_is_never_taken_for_a_result(scripted, answer):
    url, answers = scripted
    answers.append(answer)
    async with Client([url]) as client:
        with pytest.raises(UnexpectedAnswer):
            await client.put(b"a", b"1")


@pytest.mark.parametrize("headers", [(), ('ETag: "1"',), ('ETag: "1"', "X-Raftkv-Create-Revision: -1")])
async def test_an_answer_without_revisions_is_not_a_value(scripted, headers):
    url, answers = scripted
    answers.append(raw("200 OK", b"value", *headers))
    async with Client([url]) as client:
        with pytest.raises(UnexpectedAnswer, match="header is missing or not valid"):
            await client.get(b"a")


async def test_redirects_in_a_circle_end(servers, monkeypatch):
    monkeypatch.setattr(Dispatcher, "_backoff", lambda _: iter([60.0]))
    for server in servers:
        server.kv.failure = errors.NotLeader(NodeId("n2"), servers[0].url)
    async with Client([servers[1].url], timeout_seconds=8) as client:
        with pytest.raises(Unreachable, match="redirects"):
            await client.put(b"a", b"1")


async def test_the_cluster_is_described(servers):
    async with Client([servers[0].url]) as client:
        view = await client.cluster()
    assert view.leader is not None
    assert {member.name for member in view.members} >= {view.answered_by}


@pytest.mark.parametrize("endpoint", ["", "localhost:1", "ftp://a", "http://a/b", "http://u@a", "http://[::1"])
def test_wrong_endpoints_are_refused(endpoint):
    with pytest.raises(errors.InvalidRequest, match="the endpoint"):
        Client([endpoint])
    with pytest.raises(errors.InvalidRequest, match="there is no endpoint"):
        parse_endpoints([])


def test_keys_become_paths_that_nothing_normalises():
    assert key_path(b"..") == "/v1/kv/%2E%2E"
    assert key_path(b"a/b c\xff") == "/v1/kv/a%2Fb%20c%FF"


async def test_every_endpoint_is_named_with_its_cause(servers, monkeypatch):
    monkeypatch.setattr(Dispatcher, "_backoff", lambda _: iter([60.0]))
    servers[0].kv.failure = errors.Overloaded("too many writes wait")
    servers[1].kv.failure = errors.NotLeader(NodeId("n9"), "http://127.0.0.1:9")
    endpoints = ["http://127.0.0.1:9", servers[0].url, "http://no.such.host.invalid:1", servers[1].url]
    async with Client(endpoints, timeout_seconds=8) as client:
        with pytest.raises(Unreachable) as failed:
            await client.put(b"a", b"1")
    assert str(failed.value) == "no endpoint served the request within 8 s: " + "; ".join(
        (
            "http://127.0.0.1:9: Connection refused",
            f"{servers[0].url}: too many writes wait",
            "http://no.such.host.invalid:1: the host name no.such.host.invalid cannot be resolved",
            f"{servers[1].url}: sent on to http://127.0.0.1:9: Connection refused",
        )
    )


async def test_stream_names_every_endpoint_with_its_cause(servers, monkeypatch):
    monkeypatch.setattr(Dispatcher, "_backoff", lambda _: iter([60.0]))
    async with Client(["http://127.0.0.1:9", "http://127.0.0.1:10"], timeout_seconds=8) as client:
        with pytest.raises(Unreachable, match=r"127.0.0.1:9: Connection refused; .*127.0.0.1:10: Connection refused"):
            await anext(client.watch(key=b"a"))


async def test_a_client_without_the_certificate_that_is_asked_for_is_told_what_to_give(tmp_path):
    authority = TestAuthority.create(tmp_path)
    files = authority.certify("n1", "127.0.0.1")
    context = listening_context(*files, authority.certificate)
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    async with Client(
        [f"https://127.0.0.1:{port}"], timeout_seconds=0.5, tls=TlsFiles(authority.certificate)
    ) as client:
        with pytest.raises(
            Unreachable, match="--tls-client-ca asks clients for certificates, give one that it accepts"
        ):
            await client.get(b"a")
    server.close()


def test_ipv6_address_of_an_endpoint_without_brackets_is_explained():
    with pytest.raises(errors.InvalidRequest, match=r"must stand in brackets, such as http://\[::1\]:2379"):
        Client(["http://::1:2379"])


async def test_tls_to_a_plain_port_and_the_reverse_are_explained(servers, tmp_path):
    async with Client([servers[0].url.replace("http:", "https:")], timeout_seconds=0.5) as client:
        with pytest.raises(Unreachable, match="does not speak TLS; for plain HTTP the URL begins with http://"):
            await client.get(b"a")
    files = TestAuthority.create(tmp_path).certify("n1", "127.0.0.1")
    server = await asyncio.start_server(
        lambda _reader, writer: writer.close(), "127.0.0.1", 0, ssl=listening_context(*files, None)
    )
    port = server.sockets[0].getsockname()[1]
    async with Client([f"http://127.0.0.1:{port}"], timeout_seconds=0.5) as client:
        with pytest.raises(Unreachable, match="if it speaks TLS, its URL begins with https://"):
            await client.get(b"a")
    async with Client([f"https://127.0.0.1:{port}"], timeout_seconds=0.5) as client:
        with pytest.raises(Unreachable, match=r"its certificate is not accepted: .*self-signed|unable to get local"):
            await client.get(b"a")
    server.close()
