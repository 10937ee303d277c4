"""The gateway beyond keys and leases: locks, elections, maintenance, health, WebSockets; over a real store."""

from __future__ import annotations

import asyncio
import base64
import json

import aiohttp
import pytest

from raftkv.errors import NotLeader
from raftkv.http.etcd import watch
from raftkv.types import NodeId
from tests.etcd.test_gateway import Server, b64, frame, until
from tests.http.http_store import QUOTA_BYTES


@pytest.fixture
async def server():
    async with Server() as running:
        yield running


async def held(server: Server, prefix: bytes) -> int:
    end = prefix[:-1] + bytes([prefix[-1] + 1])
    _, document = await server.ask("/v3/kv/range", {"key": b64(prefix), "range_end": b64(end), "count_only": True})
    return int(document.get("count", 0))


async def in_queue(server: Server, prefix: bytes, number: int) -> None:
    async with asyncio.timeout(5):
        while await held(server, prefix) != number:
            pass


async def test_a_lock_waits_for_its_holder(server):
    await server.ask("/v3/lease/grant", {"ID": 0x1F, "TTL": 60})
    status, first = await server.ask("/v3/lock/lock", {"name": b64(b"l"), "lease": 0x1F})
    assert (status, base64.b64decode(first["key"])) == (200, b"l/1f")
    assert (await server.ask("/v3/lock/lock", {"name": b64(b"l"), "lease": "31"}))[1]["key"] == first["key"]
    waiting = asyncio.create_task(server.ask("/v3/lock/lock", {"name": b64(b"l")}))
    await in_queue(server, b"l/", 2)
    assert (await server.ask("/v3/lock/unlock", {"key": first["key"]}))[0] == 200
    status, second = await waiting
    assert status == 200
    assert base64.b64decode(second["key"]) != b"l/1f"
    lease = int(base64.b64decode(second["key"]).decode().split("/")[1], 16)
    _, ttl = await server.ask("/v3/lease/timetolive", {"ID": lease})
    assert ttl["grantedTTL"] == "60"
    assert (await server.ask("/v3/lock/unlock", {"key": first["key"]}))[0] == 200
    status, error = await server.ask("/v3/lock/lock", {"name": b64(b"l"), "lease": 99})
    assert (status, error["message"]) == (500, "etcdserver: requested lease not found")


async def test_whoever_leaves_while_waiting_for_a_lock_leaves_the_queue(server):
    await server.ask("/v3/lock/lock", {"name": b64(b"l")})
    waiting = asyncio.create_task(server.ask("/v3/lock/lock", {"name": b64(b"l")}))
    await in_queue(server, b"l/", 2)
    waiting.cancel()
    await in_queue(server, b"l/", 1)


async def test_a_lock_is_waited_for_at_the_leader_through_a_follower(server):
    async with Server() as leader:
        server.log.refusal = NotLeader(NodeId("n2"), leader.url)
        _, first = await server.ask("/v3/lock/lock", {"name": b64(b"l")})
        waiting = asyncio.create_task(server.ask("/v3/lock/lock", {"name": b64(b"l")}))
        await in_queue(leader, b"l/", 2)
        await server.ask("/v3/lock/unlock", {"key": first["key"]})
        assert (await waiting)[0] == 200
        gone = asyncio.create_task(server.ask("/v3/lock/lock", {"name": b64(b"l")}))
        await in_queue(leader, b"l/", 2)
        gone.cancel()
        await in_queue(leader, b"l/", 1)


async def test_an_election(server):
    name = b64(b"e")
    status, error = await server.ask("/v3/election/leader", {"name": name})
    assert (status, error["code"], error["message"]) == (500, 2, "election: no leader")
    async with server.stream("/v3/election/observe", {"name": name}) as observed:
        _, first = await server.ask("/v3/election/campaign", {"name": name, "value": b64(b"one")})
        leader = first["leader"]
        assert leader["name"] == name
        assert (await frame(observed))["result"]["kv"]["value"] == b64(b"one")
        _, found = await server.ask("/v3/election/leader", {"name": name})
        assert (found["kv"]["key"], found["kv"]["create_revision"]) == (leader["key"], leader["rev"])
        proclamation = {"leader": leader, "value": b64(b"two")}
        assert (await server.ask("/v3/election/proclaim", proclamation))[0] == 200
        assert (await frame(observed))["result"]["kv"]["value"] == b64(b"two")
        wrong = {"leader": {**leader, "rev": "1"}, "value": b64(b"three")}
        status, error = await server.ask("/v3/election/proclaim", wrong)
        assert (status, error["message"]) == (500, "election: not leader")
        waiting = asyncio.create_task(server.ask("/v3/election/campaign", {"name": name, "value": b64(b"next")}))
        await in_queue(server, b"e/", 2)
        for _ in range(2):
            assert (await server.ask("/v3/election/resign", {"leader": leader}))[0] == 200
        assert (await waiting)[0] == 200
        assert (await frame(observed))["result"]["kv"]["value"] == b64(b"next")
    status, error = await server.ask("/v3/election/proclaim", {})
    assert (status, error["message"]) == (500, '"leader" field must be provided')


async def test_alarms_are_raised_listed_and_cleared(server):
    everything = {"action": "GET", "alarm": "NONE"}
    assert "alarms" not in (await server.ask("/v3/maintenance/alarm", everything))[1]
    _, raised = await server.ask("/v3/maintenance/alarm", {"action": "ACTIVATE", "alarm": "NOSPACE"})
    (alarm,) = raised["alarms"]
    assert alarm["alarm"] == "NOSPACE"
    assert (await server.ask("/v3/maintenance/alarm", everything))[1]["alarms"] == [alarm]
    status, error = await server.ask("/v3/kv/put", {"key": b64(b"a")})
    assert (status, error["code"], error["message"]) == (429, 8, "etcdserver: mvcc: database space exceeded")
    _, node = await server.ask("/v3/maintenance/status", {})
    assert node["errors"] == [f"memberID:{alarm['memberID']} alarm:NOSPACE "]
    assert node["dbSizeQuota"] == str(QUOTA_BYTES)
    async with server.session.get(server.url + "/health") as answer:
        assert (answer.status, await answer.json()) == (503, {"health": "false", "reason": "ALARM NOSPACE"})
    async with server.session.get(server.url + "/health?exclude=NOSPACE") as answer:
        assert (answer.status, await answer.json()) == (200, {"health": "true"})
    _, cleared = await server.ask("/v3/maintenance/alarm", {"action": 2, "alarm": 1, "memberID": alarm["memberID"]})
    assert cleared["alarms"] == [alarm]
    assert (await server.ask("/v3/kv/put", {"key": b64(b"a")}))[0] == 200
    status, error = await server.ask("/v3/maintenance/alarm", {"action": 1, "alarm": 1, "memberID": 5})
    assert (status, error["message"]) == (400, "etcdserver: member not found")
    status, error = await server.ask("/v3/maintenance/alarm", {"action": 1, "alarm": "CORRUPT"})
    assert (status, error["code"]) == (501, 12)


async def test_hashes_are_of_the_content_up_to_a_revision(server):
    async with Server() as other:
        for each in (server, other):
            await each.ask("/v3/kv/put", {"key": b64(b"a"), "value": b64(b"1")})
        at_two = (await server.ask("/v3/maintenance/hashkv", {"revision": 2}))[1]["hash"]
        assert isinstance(at_two, int)
        await server.ask("/v3/kv/put", {"key": b64(b"a"), "value": b64(b"2")})
        await other.ask("/v3/kv/put", {"key": b64(b"a"), "value": b64(b"3")})
        hashes = [(await each.ask("/v3/maintenance/hashkv", {}))[1]["hash"] for each in (server, other)]
        assert hashes[0] != hashes[1]
        assert (await server.ask("/v3/maintenance/hash", {}))[1]["hash"] == hashes[0]
        for each in (server, other):
            assert (await each.ask("/v3/maintenance/hashkv", {"revision": "2"}))[1]["hash"] == at_two
        status, error = await server.ask("/v3/maintenance/hashkv", {"revision": 9})
        assert (status, error["message"]) == (400, "etcdserver: mvcc: required revision is a future revision")
        await server.ask("/v3/kv/compaction", {"revision": 3})
        _, found = await server.ask("/v3/maintenance/hashkv", {})
        assert found["compact_revision"] == "3"
        assert (await server.ask("/v3/maintenance/hashkv", {"revision": 2}))[0] == 400


async def test_pages_of_any_origin_may_ask(server):
    async with server.session.options(server.url + "/v3/kv/range") as answer:
        assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, "*")
    for path in ("/v3/kv/range", "/v3/nothing"):
        async with server.session.post(server.url + path, data=b"{}") as answer:
            assert answer.headers["Access-Control-Allow-Origin"] == "*"
    async with server.session.get(server.url + "/v3/kv/range") as answer:
        assert answer.status == 405


async def test_a_watch_over_a_websocket(server):
    async with server.session.ws_connect(server.url + "/v3/watch") as socket:
        for number in (5, 6):
            create = {"create_request": {"key": b64(b"k%d" % number), "watch_id": number}}
            await socket.send_str(json.dumps(create))
            created = (await socket.receive_json())["result"]
            assert (created["watch_id"], created["created"]) == (str(number), True)
        await server.ask("/v3/kv/put", {"key": b64(b"k6"), "value": b64(b"1")})
        told = (await socket.receive_json())["result"]
        assert (told["watch_id"], told["events"][0]["kv"]["value"]) == ("6", b64(b"1"))
        await socket.send_str(json.dumps({"progress_request": {}}))
        assert (await socket.receive_json())["result"]["watch_id"] == "-1"
        await socket.send_str(json.dumps({"cancel_request": {"watch_id": 5}}))
        assert (await socket.receive_json())["result"] | {"header": None} == {
            "header": None,
            "watch_id": "5",
            "canceled": True,
        }
    await until(lambda: not server.log.watches.number_waiting)


async def test_what_is_no_message_ends_a_websocket_with_an_error(server):
    async with server.session.ws_connect(server.url + "/v3/watch") as socket:
        await socket.send_str("{")
        assert (await socket.receive_json())["error"]["grpc_code"] == 2
        assert (await socket.receive()).type == aiohttp.WSMsgType.CLOSE
    headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "5"}
    async with server.session.get(server.url + "/v3/watch", headers=headers) as answer:
        assert answer.status == 400


async def test_a_websocket_ends_with_its_node(server):
    async with server.session.ws_connect(server.url + "/v3/watch") as socket:
        await socket.send_str(json.dumps({"create_request": {"key": b64(b"k")}}))
        await socket.receive_json()
        stopping = asyncio.create_task(server.front_end.stop(5))
        assert (await socket.receive_json())["error"]["grpc_code"] == 14
        await asyncio.wait_for(stopping, 5)


async def test_a_silent_watch_is_told_how_far_it_is(server, monkeypatch):
    monkeypatch.setattr(watch, "PROGRESS_SECONDS", 0.05)
    create = {"create_request": {"key": b64(b"k"), "progress_notify": True}}
    async with server.stream("/v3/watch", create) as answer:
        assert (await frame(answer))["result"]["created"]
        await server.ask("/v3/kv/put", {"key": b64(b"other")})
        async with asyncio.timeout(5):
            async for line in answer.content:
                progress = json.loads(line)["result"]
                assert progress.keys() == {"header"}
                if progress["header"]["revision"] == "2":
                    return
        pytest.fail("the stream ended")
