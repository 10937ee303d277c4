"""Connections at their worst: cut, slow, malformed, half closed, pipelined, and in the way of a stop."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck as Check
from hypothesis import given, settings
from hypothesis import strategies as st

from raftkv.errors import ConfigurationError
from raftkv.http import FrontEnd, FrontEndSettings
from raftkv.types import MAX_VALUE_BYTES
from tests.http.http_fakes import FakeClusterService, FakeKeyValueService
from tests.http.http_raw import Raw
from tests.http.http_store import services_of


async def test_the_largest_value_arrives_whole_and_one_byte_more_is_refused(client, kv):
    value = bytes(range(256)) * (MAX_VALUE_BYTES // 256)
    assert (await client.ask("PUT", "/v1/kv/large", value)).status == 201
    assert kv.keys[b"large"].value == value
    assert (await client.ask("GET", "/v1/kv/large")).body == value
    refused = await client.ask("PUT", "/v1/kv/larger", value + b"x")
    assert (refused.status, refused.problem()) == (413, "value-too-large")
    assert list(kv.keys) == [b"large"]


async def test_a_large_value_in_small_pieces_arrives_whole(client, kv):
    value = bytes(600_000)
    await client.send(b"PUT /v1/kv/a HTTP/1.1\r\nHost: t\r\nContent-Length: 600000\r\n\r\n")
    for at in range(0, len(value), 50_000):
        await client.send(value[at : at + 50_000])
    assert (await client.read_answer()).status == 201
    assert kv.keys[b"a"].value == value


async def test_a_chunked_body_is_a_body(client, kv):
    await client.send(b"PUT /v1/kv/a HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n")
    await client.send(b"3\r\nabc\r\n")
    await client.send(b"2;ignored=1\r\nde\r\n0\r\n\r\n")
    assert (await client.read_answer()).status == 201
    assert kv.keys[b"a"].value == b"abcde"


async def test_an_endless_chunked_body_is_refused_at_the_limit(client, kv):
    await client.send(b"PUT /v1/kv/a HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n")
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    for _ in range(25):
        await client.send(chunk)
    answer = await client.read_answer()
    assert (answer.status, answer.problem()) == (413, "value-too-large")
    assert answer.headers["connection"] == "close"
    assert kv.keys == {}


@pytest.mark.parametrize("body", [b"x\r\n", b"3\r\nabcdef\r\n", b"-1\r\n", b"fffffffffffffffffffff\r\n"])
async def test_a_malformed_chunk_is_told_and_nothing_is_written(client, kv, body):
    await client.send(b"PUT /v1/kv/a HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
    answer = await client.read_answer()
    assert (answer.status, answer.problem()) in ((400, "malformed-body"), (400, "malformed-request"))
    assert await client.is_closed()
    assert kv.keys == {}


async def test_a_truncated_body_is_told_and_nothing_is_written(client, kv):
    await client.send(b"PUT /v1/kv/a HTTP/1.1\r\nHost: t\r\nContent-Length: 10\r\n\r\nabc")
    client.writer.write_eof()
    answer = await client.read_answer()
    assert (answer.status, answer.problem()) == (400, "truncated-body")
    assert await client.is_closed()
    assert kv.keys == {}


async def test_a_client_that_disappears_writes_nothing(address, client, kv):
    async with Raw(address) as gone:
        await gone.send(b"PUT /v1/kv/a HTTP/1.1\r\nHost: t\r\nContent-Length: 10\r\n\r\nabc")
        gone.writer.transport.abort()
    assert (await client.ask("GET", "/v1/kv/a")).status == 404
    assert kv.keys == {}


async def test_a_client_that_closes_its_sending_side_still_gets_its_answer(client):
    await client.send(b"PUT /v1/kv/a HTTP/1.1\r\nHost: t\r\nContent-Length: 1\r\n\r\nx")
    client.writer.write_eof()
    answer = await client.read_answer()
    assert (answer.status, answer.headers["connection"]) == (201, "close")
    assert await client.is_closed()


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET /v1/kv/a HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /v1/kv/a b HTTP/1.1\r\n\r\n",
        b"GET /v1/kv/a HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /v1/kv/a HTTP/1.1\r\nA: \0\r\n\r\n",
        b"PUT /v1/kv/a HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"PUT /v1/kv/a HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"PUT /v1/kv/a HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"PUT /v1/kv/a HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /v1/kv/a HTTP/1.1\r\nX: " + b"a" * 40_000 + b"\r\n\r\n",
    ],
)
async def test_what_is_no_http_gets_a_problem_document(client, kv, request_line):
    await client.send(request_line)
    answer = await client.read_answer()
    assert answer.status == 400
    assert answer.problem() in ("malformed-request", "malformed-body")
    assert b"Traceback" not in answer.body
    assert await client.is_closed()
    assert kv.keys == {}


async def test_requests_in_one_packet_are_answered_in_order(client, kv):
    one = b"PUT /v1/kv/%d HTTP/1.1\r\nHost: t\r\nContent-Length: 1\r\n\r\n%d"
    await client.send(b"".join(one % (number, number) for number in range(5)))
    for _ in range(5):
        assert (await client.read_answer()).status == 201
    assert sorted(kv.keys) == [b"%d" % number for number in range(5)]


@pytest.mark.parametrize("rest", ["", "zz\r\n"], ids=["truncated", "malformed"])
async def test_body_that_ends_badly_behind_its_answer_is_no_error_of_the_server(address, caplog, rest):
    async with Raw(address) as client:
        await client.send(b"POST /nowhere HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel")
        assert (await client.read_answer()).status == 404
        await client.send(rest.encode())
        client.writer.write_eof()
        assert await client.is_closed()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("version", ["0.9", "1.0", "2.0"])
async def test_request_of_another_version_gets_an_answer_of_http_1(address, version):
    reader, writer = await asyncio.open_connection(*address)
    writer.write(f"GET /livez HTTP/{version}\r\nHost: a\r\n\r\n".encode())
    answer = await asyncio.wait_for(reader.read(), 8)
    assert answer.startswith(b"HTTP/1.0 200 OK\r\n")
    writer.close()
    await writer.wait_closed()


async def test_a_client_that_waits_for_an_invitation_gets_it(client, kv):
    await client.send(b"PUT /v1/kv/a HTTP/1.1\r\nHost: t\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    assert (await client.read_answer()).status == 100
    await client.send(b"abc")
    assert (await client.read_answer()).status == 201
    refused = b"PUT /v1/kv/b HTTP/1.1\r\nHost: t\r\nContent-Length: 9999999\r\nExpect: 100-continue\r\n\r\n"
    await client.send(refused)
    assert (await client.read_answer()).problem() == "value-too-large"


async def test_an_unknown_expectation_is_refused(client):
    answer = await client.ask("PUT", "/v1/kv/a", b"x", Expect="a-miracle")
    assert (answer.status, answer.problem()) == (417, "expectation-failed")


@pytest.fixture
async def impatient():
    """A front-end that waits a tenth of a second for a header or a body."""
    kv = FakeKeyValueService()
    front_end = FrontEnd(services_of(kv, FakeClusterService()), FrontEndSettings(request_timeout_seconds=0.1))
    yield kv, await front_end.start("127.0.0.1", 0)
    await front_end.stop(1)


async def test_a_header_that_does_not_end_is_given_up(impatient):
    _kv, address = impatient
    async with Raw(address) as client:
        await client.send(b"GET /v1/kv/a HTT")
        answer = await client.read_answer()
        assert (answer.status, answer.problem()) == (408, "request-timeout")
        assert await client.is_closed()


async def test_a_body_that_does_not_come_is_given_up(impatient):
    kv, address = impatient
    async with Raw(address) as client:
        await client.send(b"PUT /v1/kv/a HTTP/1.1\r\nHost: t\r\nContent-Length: 10\r\n\r\nabc")
        answer = await client.read_answer()
        assert (answer.status, answer.problem()) == (408, "request-timeout")
    assert kv.keys == {}


async def test_a_stop_finishes_what_is_under_way_and_closes_what_is_idle():
    kv = FakeKeyValueService()
    front_end = FrontEnd(services_of(kv, FakeClusterService()))
    address = await front_end.start("127.0.0.1", 0)
    async with Raw(address) as idle, Raw(address) as busy:
        assert (await idle.ask("GET", "/livez")).status == 200
        kv.gate.clear()
        await busy.send(b"PUT /v1/kv/a HTTP/1.1\r\nHost: t\r\nContent-Length: 1\r\n\r\nx")
        await kv.entered.wait()
        stopping = asyncio.ensure_future(front_end.stop(5))
        assert await idle.is_closed()
        assert not stopping.done()
        kv.gate.set()
        answer = await busy.read_answer()
        assert (answer.status, answer.headers["connection"]) == (201, "close")
        await stopping
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*address)


async def test_a_stop_cuts_what_takes_too_long():
    kv = FakeKeyValueService()
    front_end = FrontEnd(services_of(kv, FakeClusterService()))
    async with Raw(await front_end.start("127.0.0.1", 0)) as busy:
        kv.gate.clear()
        await busy.send(b"PUT /v1/kv/a HTTP/1.1\r\nHost: t\r\nContent-Length: 1\r\n\r\nx")
        await kv.entered.wait()
        async with asyncio.timeout(5):
            await front_end.stop(0.05)
        assert await busy.is_closed()
        kv.gate.set()


async def test_an_address_in_use_is_named(address):
    with pytest.raises(ConfigurationError, match=f"127.0.0.1:{address[1]}"):
        await FrontEnd(services_of(FakeKeyValueService(), FakeClusterService())).start("127.0.0.1", address[1])


def test_times_must_be_positive():
    with pytest.raises(ConfigurationError, match="keepalive_seconds must be positive"):
        FrontEndSettings(keepalive_seconds=0)


REQUESTS = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda method, path, body: (
            method + b" /v1/kv" + path + b" HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        ),
        st.sampled_from([b"GET", b"PUT", b"DELETE", b"HEAD", b"POST", b"OPTIONS", b"X"]),
        st.binary(max_size=30).map(lambda raw: bytes(byte for byte in raw if byte > 32)),
        st.binary(max_size=30),
    ),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[Check.function_scoped_fixture])
@given(data=REQUESTS)
def test_no_bytes_get_a_traceback_or_a_server_error(data):
    async def run() -> None:
        front_end = FrontEnd(services_of(FakeKeyValueService(), FakeClusterService()))
        async with Raw(await front_end.start("127.0.0.1", 0)) as client:
            await client.send(data)
            client.writer.write_eof()
            async with asyncio.timeout(8):
                answer = await client.reader.read()
            assert b" 500 " not in answer.split(b"\r\n", 1)[0]
            assert b"Traceback" not in answer
        await front_end.stop(1)

    asyncio.run(run())


async def test_port_for_metrics_serves_health_and_metrics_and_nothing_else(kv):
    front_end = FrontEnd(services_of(kv, FakeClusterService()))
    await front_end.start("127.0.0.1", 0)
    host, port = await front_end.start_metrics("127.0.0.1", 0)
    async with Raw((host, port)) as prober:
        for path in ("/livez", "/readyz?verbose", "/readyz/leader?exclude=x", "/health", "/metrics"):
            assert (await prober.ask("GET", path)).status == 200, path
        for method, path in (
            ("GET", "/v1/kv"),
            ("PUT", "/v1/kv/a"),
            ("GET", "/v1/cluster"),
            ("POST", "/v3/kv/range"),
            ("GET", "/metricsx"),
            ("GET", "//metrics/../v1/kv"),
        ):
            refused = await prober.ask(method, path)
            assert (refused.status, refused.problem()) == (404, "no-such-resource"), path
        assert (await prober.ask("POST", "/livez")).status == 405
    assert kv.keys == {}
    assert front_end.connections == 0, "only clients count"
    with pytest.raises(ConfigurationError, match=f"cannot listen for metrics on 127.0.0.1:{port}"):
        await front_end.start_metrics("127.0.0.1", port)
    await front_end.stop(0.0)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(host, port)
