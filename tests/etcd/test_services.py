"""The gateway beyond keys and leases: locks, elections, maintenance, health, WebSockets; over a real store."""

from __future__ import annotations

import asyncio
import base64
import json

import aiohttp
import pytest

from raftkv.errors import InvalidRequest, NotLeader
from raftkv.http.etcd import watch
from raftkv.http.etcd.errors import REQUEST_TOO_LARGE as TOO_LARGE
from raftkv.operations import (
    Alarm,
    AlarmKind,
    Compare,
    CompareTarget,
    DeleteOperation,
    KeySpan,
    PutOperation,
    Relation,
    Transaction,
)
from raftkv.store.commands import SetAlarm
from raftkv.types import MAX_KEY_BYTES, NodeId
from tests.etcd.requests import b64
from tests.etcd.test_gateway import Server, frame
from tests.http.http_store import QUOTA_BYTES
from tests.http.native import until


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


QUEUES = [
    ("/v3/lock/lock", "mutex: session is expired"),
    ("/v3/election/campaign", "election: not leader"),
]


@pytest.mark.parametrize(("path", "message"), QUEUES)
@pytest.mark.parametrize("gone", ["lease", "key"])
async def test_waiter_whose_lease_or_key_is_gone_ends_with_an_error(server, path, message, gone):
    for lease in (1, 2):
        await server.ask("/v3/lease/grant", {"ID": lease, "TTL": 60})
    await server.ask(path, {"name": b64(b"l"), "lease": 1})
    waiting = asyncio.create_task(server.ask(path, {"name": b64(b"l"), "lease": 2}))
    await in_queue(server, b"l/", 2)
    if gone == "lease":
        await server.ask("/v3/lease/revoke", {"ID": 2})
    else:
        await server.ask("/v3/kv/deleterange", {"key": b64(b"l/2")})
    status, error = await asyncio.wait_for(waiting, 5)
    assert (status, error["code"], error["message"]) == (500, 2, message)


NO_LEASE = "etcdserver: requested lease not found"
NO_KEY = "etcdserver: key is not provided"


@pytest.mark.parametrize(
    ("path", "document", "answer"),
    [
        *(
            (f"/v3/{path}", {"name": b64(b"l"), "lease": -1}, (500, NO_LEASE))
            for path in ("lock/lock", "election/campaign")
        ),
        *((f"/v3/election/{path}", {"leader": {}}, (500, NO_KEY)) for path in ("proclaim", "resign")),
        *((f"/v3/{path}", {"name": b64(bytes(5000))}, (400, TOO_LARGE)) for path in ("lock/lock", "election/campaign")),
        ("/v3/lock/unlock", {"key": b64(bytes(5000))}, (400, TOO_LARGE)),
        ("/v3/election/proclaim", {"leader": {"key": b64(bytes(5000))}}, (400, TOO_LARGE)),
        ("/v3/election/proclaim", {"leader": {"key": b64(b"new"), "lease": -1}}, (500, NO_LEASE)),
        ("/v3/kv/put", {"key": b64(b"new"), "lease": -1}, (404, NO_LEASE)),
        ("/v3/kv/txn", {"success": [{"request_put": {"key": b64(b"new"), "lease": "-5"}}]}, (404, NO_LEASE)),
        ("/v3/lease/grant", {"ID": -1, "TTL": 5}, (400, "raftkv: the id of a lease is a positive number, not -1")),
    ],
)
async def test_what_the_store_cannot_look_up_does_not_reach_it(server, path, document, answer):
    """As a committed entry, each would end all members."""
    status, error = await server.ask(path, document)
    assert (status, error["message"]) == answer
    assert server.log.machine.revision == 1
    untaken = {"failure": [{"request_put": {"key": b64(b"new"), "lease": -1}}]}
    assert (await server.ask("/v3/kv/txn", untaken))[1]["succeeded"]


@pytest.mark.parametrize(
    "operation",
    [
        PutOperation(b"", b"", 0),
        PutOperation(b"k", b"", -1),
        PutOperation(b"k", b"", 2**64),
        PutOperation(bytes(MAX_KEY_BYTES + 1), b"", 0),
        DeleteOperation(KeySpan.single(b"")),
        Transaction((Compare(KeySpan.single(b""), CompareTarget.CREATE, Relation.EQUAL, 0),), (), ()),
    ],
)
async def test_service_of_the_store_refuses_what_no_store_can_look_up(server, operation):
    nested = Transaction((), (), (Transaction((), (PutOperation(b"k", b"", 0), operation), ()),))
    with pytest.raises(InvalidRequest):
        await server.log.store.transact(nested)
    assert server.log.machine.revision == 1


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


async def test_alarm_of_a_removed_member_can_be_cleared(server):
    gone = Alarm(AlarmKind.CORRUPT, NodeId("gone"))
    await server.log.submit(SetAlarm(gone, is_active=True))
    _, found = await server.ask("/v3/maintenance/alarm", {"action": "GET"})
    assert found["alarms"] == [{"memberID": "0", "alarm": "CORRUPT"}]
    _, cleared = await server.ask("/v3/maintenance/alarm", {"action": "DEACTIVATE", **found["alarms"][0]})
    assert cleared["alarms"] == found["alarms"]
    assert "alarms" not in (await server.ask("/v3/maintenance/alarm", {"action": "GET"}))[1]


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


@pytest.mark.parametrize("compacted", range(2, 12))
async def test_hashes_do_not_depend_on_what_is_purged(server, compacted):
    """Two members, of which one has purged what was compacted and the other has not."""
    async with Server() as other:
        for each in (server, other):
            for number, key in enumerate((b"a", b"b", b"a", b"c", b"b")):
                await each.ask("/v3/kv/put", {"key": b64(key), "value": b64(b"%d" % number)})
            await each.ask("/v3/kv/deleterange", {"key": b64(b"c")})
            # One key twice at one revision.
            delete, put = ({"key": b64(b"a")}, {"key": b64(b"a"), "value": b64(b"again")})
            operations = [{"request_put": put}, {"request_delete_range": delete}]
            nested = [{"request_txn": {"success": [operation]}} for operation in operations]
            assert (await each.ask("/v3/kv/txn", {"success": nested}))[0] == 200
            await each.ask("/v3/kv/deleterange", {"key": b64(b"b")})
            await each.ask("/v3/kv/put", {"key": b64(b"b"), "value": b64(b"new")})
            await each.ask("/v3/kv/put", {"key": b64(b"a"), "value": b64(b"newer")})
            assert (await each.ask("/v3/kv/compaction", {"revision": compacted}))[0] == 200
        while server.log.machine.purge():
            pass
        for revision in (0, *range(compacted, 12)):
            (_, one), (_, two) = [
                await each.ask("/v3/maintenance/hashkv", {"revision": revision}) for each in (server, other)
            ]
            assert one == two
        await other.ask("/v3/kv/put", {"key": b64(b"a"), "value": b64(b"different")})
        await server.ask("/v3/kv/put", {"key": b64(b"a"), "value": b64(b"else")})
        one, two = [(await each.ask("/v3/maintenance/hashkv", {}))[1]["hash"] for each in (server, other)]
        assert one != two


async def test_hash_covers_what_the_keys_were_at_the_compacted_revision(server):
    async with Server() as other:
        for each, value in ((server, b"1"), (other, b"2")):
            await each.ask("/v3/kv/put", {"key": b64(b"a"), "value": b64(value)})
            await each.ask("/v3/kv/put", {"key": b64(b"b"), "value": b64(b"x")})
            await each.ask("/v3/kv/compaction", {"revision": 3})
        one, two = [(await each.ask("/v3/maintenance/hashkv", {}))[1]["hash"] for each in (server, other)]
        assert one != two


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


async def test_error_over_a_websocket_has_shape_of_unary_one_until_there_was_a_result(server):
    async with server.session.ws_connect(server.url + "/v3/watch") as socket:
        await socket.send_str('{"create_request": {"key": "%"}}')
        assert await socket.receive_json(timeout=5) == {"error": "key: illegal base64 data"} | {
            "message": "key: illegal base64 data",
            "code": 2,
        }
    async with server.session.ws_connect(server.url + "/v3/watch") as socket:
        await socket.send_str('{"create_request": {}}[]')
        assert (await socket.receive_json(timeout=5))["result"]["created"]
        assert (await socket.receive_json(timeout=5))["error"]["grpc_code"] == 2


async def test_messages_and_frames_of_a_websocket_need_not_agree(server):
    async with server.session.ws_connect(server.url + "/v3/watch") as socket:
        for piece in (
            '{"create_request": {',
            '"key": "YQ=="}} {"create_request": null}null',
            '{"progress_request": {}}{',
        ):
            await socket.send_str(piece)
        await socket.send_bytes(b'"create_request": {"watch_id": "9"}}')
        told = [(await socket.receive_json(timeout=5))["result"] for _ in range(3)]
        assert [one.get("watch_id") for one in told] == [None, "-1", "9"]


async def test_what_is_no_message_ends_a_websocket_with_an_error(server):
    async with server.session.ws_connect(server.url + "/v3/watch") as socket:
        await socket.send_str("x")
        assert (await socket.receive_json(timeout=5))["code"] == 2
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
