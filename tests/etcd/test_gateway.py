"""Streams of the gateway: watches and keep-alives, frame by frame, over a real store behind a front-end."""

from __future__ import annotations

import asyncio
import io
import json

import aiohttp
import pytest

from raftkv.errors import NoLeader, NotLeader
from raftkv.http import FrontEnd
from raftkv.store.commands import Compact, Delete, Put
from raftkv.types import NodeId, Revision
from tests.etcd.requests import b64
from tests.http.http_fakes import FakeClusterService, FakeKeyValueService
from tests.http.http_store import InstantLog, services_of
from tests.http.native import until


class Server:
    def __init__(self) -> None:
        self.log = InstantLog()
        self.front_end = FrontEnd(services_of(FakeKeyValueService(), FakeClusterService(), self.log))

    async def __aenter__(self):
        host, port = await self.front_end.start("127.0.0.1", 0)
        self.url = f"http://{host}:{port}"
        self.session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10))
        return self

    async def __aexit__(self, *_error) -> None:
        await self.session.close()
        await self.front_end.stop(1)

    async def write(self, *commands):
        for command in commands:
            await self.log.submit(command)

    async def ask(self, path: str, document) -> tuple[int, dict]:
        body = io.BytesIO(document if isinstance(document, bytes) else json.dumps(document).encode())
        async with self.session.post(self.url + path, data=body) as answer:
            return answer.status, await answer.json()

    def stream(self, path: str, *documents):
        body = b"".join(item if isinstance(item, bytes) else json.dumps(item).encode() for item in documents)
        return self.session.post(self.url + path, data=body)


@pytest.fixture
async def server():
    async with Server() as running:
        yield running


async def frame(answer) -> dict:
    """The next chunk, which must be exactly one document with its line end."""
    data, ends = await asyncio.wait_for(answer.content.readchunk(), 5)
    assert ends
    assert data.endswith(b"\n")
    document = json.loads(data)
    document.get("result", {}).pop("header", None)
    return document


async def test_a_watch_is_answered_at_once_and_told_what_happens(server):
    async with server.stream("/v3/watch", {"create_request": {"key": b64(b"k"), "prev_kv": True}}) as answer:
        assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
        assert await frame(answer) == {"result": {"created": True}}
        await server.write(Put(b"k", b"1"), Put(b"other", b"1"), Delete(b"k"))
        put = {"key": b64(b"k"), "create_revision": "2", "mod_revision": "2", "version": "1", "value": b64(b"1")}
        frames = [await frame(answer)]
        events = frames[0]["result"]["events"]
        while len(events) < 2:
            events += (await frame(answer))["result"]["events"]
        assert events == [
            {"kv": put},
            {"type": "DELETE", "kv": {"key": b64(b"k"), "mod_revision": "4"}, "prev_kv": put},
        ]


async def test_several_watches_share_a_stream_and_end_one_by_one(server):
    messages = [
        {"create_request": {"key": b64(b"a")}},
        {"createRequest": {"key": b64(b"a"), "rangeEnd": b64(b"b"), "watchId": "7", "filters": ["NOPUT"]}},
        {"create_request": {"key": b64(b"b"), "watch_id": 7}},
        {"create_request": {"key": b64(b"b"), "range_end": b64(b"a")}},
        {"cancel_request": {"watch_id": 99}},
        {"progress_request": {}},
        {"cancel_request": {}},
    ]
    async with server.stream("/v3/watch", *messages) as answer:
        frames = [await frame(answer) for _ in range(5)]
        assert frames[:4] == [
            {"result": {"created": True}},
            {"result": {"watch_id": "7", "created": True}},
            {
                "result": {
                    "watch_id": "-1",
                    "created": True,
                    "canceled": True,
                    "cancel_reason": "mvcc: duplicate watch ID provided on the WatchStream",
                }
            },
            {
                "result": {
                    "watch_id": "-1",
                    "created": True,
                    "canceled": True,
                    "cancel_reason": "mvcc: watcher range is empty",
                }
            },
        ]
        assert frames[4] == {"result": {"watch_id": "-1"}}
        assert await frame(answer) == {"result": {"canceled": True}}
        await server.write(Put(b"a", b"1"), Delete(b"a"))
        assert (await frame(answer))["result"]["events"][0]["type"] == "DELETE"


async def test_a_watch_below_compaction_is_created_and_cancelled(server):
    await server.write(*(Put(b"a", b"%d" % number) for number in range(6)), Compact(Revision(5)))
    message = {"create_request": {"key": b64(b"a"), "start_revision": 3}}
    async with server.stream("/v3/watch", message) as answer:
        assert await frame(answer) == {"result": {"created": True}}
        assert await frame(answer) == {"result": {"canceled": True, "compact_revision": "5"}}


async def test_fragments_carry_a_large_revision_in_pieces(server):
    await server.write(*(Put(b"k%d" % number, bytes(400_000)) for number in range(5)))
    message = {"create_request": {"key": b64(b"k"), "range_end": b64(b"l"), "start_revision": 1, "fragment": True}}
    async with server.stream("/v3/watch", message) as answer:
        assert await frame(answer) == {"result": {"created": True}}
        data = b""
        while data.count(b"\n") < 3:
            data += await asyncio.wait_for(answer.content.readany(), 5)
        results = [json.loads(line)["result"] for line in data.splitlines()]
        assert [len(result["events"]) for result in results] == [2, 2, 1]
        assert [result.get("fragment", False) for result in results] == [True, True, False]


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"create_request":5}', b"x", b'{"create_request":{"key":"%"}}'])
async def test_a_wrong_message_ends_the_stream_with_an_error(server, body):
    async with server.stream("/v3/watch", body) as answer:
        error = (await frame(answer))["error"]
        assert error["http_code"] in (400, 500)
        assert error.keys() == {"grpc_code", "http_code", "message", "http_status", "code"}


async def test_a_stopping_node_ends_streams_so_that_clients_go_elsewhere(server):
    async with server.stream("/v3/watch", {"create_request": {"key": b64(b"a")}}) as answer:
        await frame(answer)
        stopping = asyncio.create_task(server.front_end.stop(5))
        error = (await frame(answer))["error"]
        assert (error["grpc_code"], error["http_code"]) == (14, 503)
        await asyncio.wait_for(stopping, 5)


async def test_a_client_that_leaves_is_noticed(server):
    async with server.stream("/v3/watch", {"create_request": {"key": b64(b"a")}}) as answer:
        await frame(answer)
        await until(lambda: server.log.watches.number_waiting)
        answer.close()
        await until(lambda: not server.log.watches.number_waiting)


async def test_keep_alives_are_answered_one_by_one(server):
    assert (await server.ask("/v3/lease/grant", {"ID": 9, "TTL": 60}))[1]["TTL"] == "60"
    async with server.stream("/v3/lease/keepalive", {"ID": "9"}, {"ID": 10}) as answer:
        assert await frame(answer) == {"result": {"ID": "9", "TTL": "60"}}
        assert await frame(answer) == {"result": {"ID": "10"}}
        assert await answer.content.read() == b""


async def test_what_only_the_leader_can_answer_is_sent_on_once(server):
    async with Server() as leader:
        await leader.ask("/v3/lease/grant", {"ID": 9, "TTL": 60})
        server.log.refusal = NotLeader(NodeId("n2"), leader.url)
        status, document = await server.ask("/v3/kv/put", {"key": b64(b"a"), "value": b64(b"1")})
        assert (status, document["header"]["revision"]) == (200, "2")
        assert leader.log.machine.get(b"a").value == b"1"
        async with server.stream("/v3/lease/keepalive", {"ID": "9"}) as answer:
            assert await frame(answer) == {"result": {"ID": "9", "TTL": "60"}}
        leader.log.refusal = NotLeader(NodeId("n1"), server.url)
        status, document = await server.ask("/v3/kv/put", {"key": b64(b"a")})
        assert (status, document["code"], document["message"]) == (503, 14, "etcdserver: leader changed")
    status, document = await server.ask("/v3/kv/put", {"key": b64(b"a")})
    assert (status, document["code"]) == (503, 14)
    server.log.refusal = NoLeader("none")
    status, document = await server.ask("/v3/kv/put", {"key": b64(b"a")})
    assert (status, document["message"]) == (503, "etcdserver: no leader")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{" * 100_000, 400, 3),
        (b'{"success":[' + b'{"request_txn":{"success":[' * 80 + b"]}}" * 80 + b"]}", 400, 3),
        (b'{"key":"YQ==","limit":' + b"9" * 5000 + b"}", 400, 3),
        (b'{"key":"YQ==","key":"YQ=="}', 200, None),
        (b'{"key":"YQ=="} trailing', 200, None),
        (b'{"key":"' + b"YWFh" * 1_500_000 + b'"}', 400, 3),
        (b"\xff\xfe", 400, 3),
        (b"null", 400, 3),
    ],
    ids=["open braces", "deep", "huge number", "duplicate field", "trailing data", "huge body", "not text", "null"],
)
async def test_hostile_bodies_are_refused_as_the_contract_says(server, body, status, code):
    path = "/v3/kv/txn" if b"success" in body else "/v3/kv/range"
    answered, document = await server.ask(path, body)
    assert (answered, document.get("code")) == (status, code)


async def test_put_and_delete_of_one_transaction_are_two_events(server):
    parts = [{"request_put": {"key": b64(b"k")}}, {"request_delete_range": {"key": b64(b"k")}}]
    nested = [{"request_txn": {"success": [part]}} for part in parts]
    async with server.stream("/v3/watch", {"create_request": {"key": b64(b"k")}}) as answer:
        await frame(answer)
        assert (await server.ask("/v3/kv/txn", {"success": nested}))[0] == 200
        events = (await frame(answer))["result"]["events"]
        assert [event.get("type", "PUT") for event in events] == ["PUT", "DELETE"]
