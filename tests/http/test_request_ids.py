"""Request ids: every answer has one, the client's own if it is valid, streams and errors too."""

from __future__ import annotations

import re

import pytest

from raftkv.errors import NotLeader
from raftkv.http import FrontEnd, FrontEndSettings
from raftkv.types import NodeId
from tests.http.http_fakes import FakeClusterService
from tests.http.http_raw import Raw
from tests.http.http_store import InstantLog, services_of

GENERATED = re.compile(r"[0-9a-f]{8}")


async def test_each_answer_has_an_id_of_its_own(client):
    answers = [await client.ask("GET", "/v1/kv/none"), await client.ask("PUT", "/v1/kv/a", b"x")]
    answers += [await client.ask("POST", "/v3/kv/range", b'{"key": "YQ=="}'), await client.ask("GET", "/metrics")]
    answers += [await client.ask("POST", "/v3/kv/range", b"{"), await client.ask("OPTIONS", "/v1/kv/a")]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert all(GENERATED.fullmatch(each) for each in ids)
    assert len(set(ids)) == len(ids)


async def test_requests_at_both_ports_have_different_ids():
    front_end = FrontEnd(services_of(InstantLog().kv, FakeClusterService()))
    addresses = [await front_end.start("127.0.0.1", 0), await front_end.start_metrics("127.0.0.1", 0)]
    try:
        ids = []
        for address in addresses:
            async with Raw(address) as client:
                ids.append((await client.ask("GET", "/livez")).headers["x-request-id"])
    finally:
        await front_end.stop(1)
    assert len(set(ids)) == 2


@pytest.mark.parametrize("given", ["7", "trace-1/span:2@host+a=b~", "x" * 128])
async def test_a_clients_id_is_kept(client, given):
    answer = await client.ask("PUT", "/v1/kv/a", b"x", X_Request_Id=given)
    assert answer.headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", " ", "a b", 'a"b', "a\tb", "ü", "x" * 129, "a,b", "\x1b[31m"])
async def test_an_id_that_could_disturb_a_log_is_replaced(client, given):
    answer = await client.ask("GET", "/v1/kv/none", X_Request_Id=given)
    if answer.status == 400:
        assert answer.problem() == "malformed-request", "control characters are not HTTP"
    assert GENERATED.fullmatch(answer.headers["x-request-id"])


async def test_errors_name_their_request(client, kv):
    missing = await client.ask("GET", "/v1/nothing", X_Request_Id="mine")
    assert missing.problem() == "no-such-resource"
    assert missing.json()["request_id"] == missing.headers["x-request-id"] == "mine"
    kv.failure = NotLeader(NodeId("n2"), "http://n2")
    redirect = await client.ask("PUT", "/v1/kv/a", b"x", X_Request_Id="mine")
    assert (redirect.status, redirect.json()["request_id"]) == (307, "mine")


async def test_an_unexpected_error_is_logged_with_its_request(client, kv, caplog):
    kv.failure = ZeroDivisionError()
    answer = await client.ask("PUT", "/v1/kv/a", b"x", X_Request_Id="mine")
    assert answer.problem() == "internal-error"
    assert "request mine to /v1/kv/a failed unexpectedly" in caplog.text


async def test_what_cannot_be_parsed_is_answered_with_an_id(client):
    await client.send(b"BROKEN\r\n\r\n")
    answer = await client.read_answer()
    assert answer.problem() == "malformed-request"
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("target", ["/v1/watch?key=a", "/v3/watch"])
async def test_streams_begin_with_the_id(target):
    log = InstantLog()
    front_end = FrontEnd(services_of(log.kv, FakeClusterService(), log))
    address = await front_end.start("127.0.0.1", 0)
    try:
        async with Raw(address) as client:
            body = b'{"create_request": {"key": "YQ=="}}'
            method = b"GET" if target.startswith("/v1") else b"POST"
            head = b"%s %s HTTP/1.1\r\nHost: t\r\nX-Request-Id: mine\r\n" % (method, target.encode())
            await client.send(head + (b"\r\n" if method == b"GET" else b"Content-Length: 35\r\n\r\n" + body))
            assert b"x-request-id: mine\r\n" in (await client.reader.readuntil(b"\r\n\r\n")).lower()
    finally:
        await front_end.stop(0)


async def test_a_follower_sends_a_request_on_under_its_id(caplog):
    leading, following = InstantLog(), InstantLog()
    leader = FrontEnd(services_of(leading.kv, FakeClusterService(), leading), FrontEndSettings(access_log=True))
    follower = FrontEnd(services_of(following.kv, FakeClusterService(), following))
    host, port = await leader.start("127.0.0.1", 0)
    following.refusal = NotLeader(NodeId("n2"), f"http://{host}:{port}")
    try:
        async with Raw(await follower.start("127.0.0.1", 0)) as client:
            granted = await client.ask("POST", "/v3/lease/grant", b'{"TTL": "60"}', X_Request_Id="mine")
        assert (granted.status, granted.headers["x-request-id"]) == (200, "mine")
    finally:
        await follower.stop(1)
        await leader.stop(1)
    assert "(lease_grant) 200" in caplog.text
    assert "request mine" in caplog.text


async def test_an_unexpected_error_of_the_gateway_is_logged_with_its_request(caplog, monkeypatch):
    log = InstantLog()
    front_end = FrontEnd(services_of(log.kv, FakeClusterService(), log))

    async def fail(_query, *, is_stale=False):
        raise ZeroDivisionError

    monkeypatch.setattr(log.store, "range", fail)
    try:
        async with Raw(await front_end.start("127.0.0.1", 0)) as client:
            failed = await client.ask("POST", "/v3/kv/range", b'{"key": "YQ=="}', X_Request_Id="mine")
        assert (failed.status, failed.headers["x-request-id"]) == (500, "mine")
    finally:
        await front_end.stop(1)
    assert "request mine to /v3/kv/range failed unexpectedly" in caplog.text
