"""Bodies that nobody should send: whatever they are, the answer is one of the contract's, and the node goes on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import socket

import pytest

from raftkv.http import FrontEnd, FrontEndSettings, open_ended
from tests.fuzz.bodies import Bodies, Made
from tests.http.http_fakes import FakeClusterService
from tests.http.http_store import InstantLog, services_of
from tests.http.native import SECONDS, Node, until

REQUESTS = int(os.environ.get("TEST_REQUESTS", "3000"))

NATIVE = ["/v1/txn", "/v1/compaction", "/v1/leases", "/v1/locks/l", "/v1/elections/e"]
GATEWAY = [
    *("kv/range", "kv/put", "kv/deleterange", "kv/txn", "kv/compaction", "watch"),
    *("lease/grant", "lease/revoke", "lease/keepalive", "lease/timetolive", "lease/leases"),
    *("cluster/member/list", "maintenance/status", "maintenance/alarm", "maintenance/hashkv", "auth/user/add"),
    *("lock/lock", "lock/unlock", "election/campaign", "election/proclaim", "election/leader", "election/resign"),
]
WAITING = ("/v3/lock/lock", "/v3/election/campaign")
NAMES = [
    *("key", "range_end", "rangeEnd", "value", "lease", "limit", "revision", "compare", "success", "failure", "target"),
    *("result", "request_put", "requestRange", "request_txn", "request_delete_range", "ID", "TTL", "keys", "name"),
    *("create_request", "cancel_request", "watch_id", "filters", "leader", "rev", "action", "alarm", "memberID"),
    *("if", "then", "else", "put", "get", "delete", "txn", "prefix", "from", "to", "equal", "mod_revision", "encoding"),
    *("ttl_seconds", "id", "wait_seconds", "version", "previous", "keep_value", "sort_by", "order", "perm"),
]
STATUSES = {200, 201, 400, 404, 409, 410, 412, 413, 422, 429, 501}


async def test_random_bodies_are_answered_and_never_with_a_traceback(caplog):
    seed = int(os.environ.get("TEST_SEED", str(random.SystemRandom().randrange(10**6))))
    print(f"TEST_SEED={seed}")
    rng = random.Random(seed)
    bodies = Bodies(rng, NAMES, Made())
    async with Node() as node:
        for _ in range(REQUESTS):
            path = rng.choice([*NATIVE, *(f"/v3/{name}" for name in GATEWAY)])
            body = bodies.draw()
            try:
                # A lock that is held is waited for, and who goes away leaves its queue.
                async with (
                    asyncio.timeout(0.05 if path in WAITING else SECONDS),
                    node.session.post(node.url + path, data=body) as answer,
                ):
                    if path in ("/v3/watch", "/v3/lease/keepalive"):
                        # A stream: its frames are the answer, and a watch that was created goes on.
                        assert answer.status == 200
                        answer.close()
                        continue
                    content = await answer.read()
            except TimeoutError:
                assert path in WAITING
                continue
            sentences = (
                "election: no leader",
                "election: not leader",
                "mutex: session is expired",
                '"leader" field must be provided',
                "etcdserver: ",
            )
            is_of_etcd = answer.status == 500 and json.loads(content)["message"].startswith(sentences)
            assert answer.status in STATUSES or is_of_etcd, (path, body[:500], answer.status, content[:500])
        assert (await node.ask("PUT", "/v1/kv/a", b"x"))[0] in (200, 201, 507)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("path", ["/v3/kv/put", "/v1/txn", "/v1/kv/a"])
async def test_a_body_that_does_not_come_is_not_waited_for(path):
    log = InstantLog()
    front_end = FrontEnd(services_of(log.kv, FakeClusterService(), log), FrontEndSettings(request_timeout_seconds=0.2))
    host, port = await front_end.start("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(host, port)
    method = "PUT" if path == "/v1/kv/a" else "POST"
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode())
    line = await asyncio.wait_for(reader.readline(), SECONDS)
    assert line.split()[1] in (b"400", b"408")
    writer.close()
    await front_end.stop(1)


@pytest.mark.parametrize(
    ("path", "create"),
    [
        ("GET /v1/watch?prefix=k", ""),
        ("POST /v3/watch", json.dumps({"create_request": {"key": "aw==", "range_end": "bA=="}})),
    ],
)
async def test_a_watcher_that_does_not_read_is_cut_off_and_slows_nobody(monkeypatch, path, create):
    monkeypatch.setattr(open_ended, "WRITE_SECONDS", 0.3)
    async with Node() as node:
        loop = asyncio.get_running_loop()
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.setblocking(False)
        await loop.sock_connect(deaf, (node.url.split("/")[2].split(":")[0], int(node.url.rsplit(":", 1)[1])))
        request = f"{path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(create)}\r\n\r\n{create}"
        await loop.sock_sendall(deaf, request.encode())
        await until(lambda: node.log.watches.number_waiting == 1)
        async with node.session.get(node.url + "/v1/watch?prefix=k") as answer:
            await until(lambda: node.log.watches.number_waiting == 2)
            await node.put("k", "the first")
            open_connections = len(node.front_end._server.connections)
            for number in range(20):
                assert (await node.ask("PUT", f"/v1/kv/k{number}", b"v" * 200_000))[0] in (200, 201, 507)
            told = 0
            async for line in answer.content:
                told += line.startswith(b"data: ")
                if told == node.log.machine.revision - 1:
                    break
            await until(lambda: len(node.front_end._server.connections) < open_connections)
        received = 0
        async with asyncio.timeout(SECONDS):
            with contextlib.suppress(ConnectionResetError):
                while data := await loop.sock_recv(deaf, 1 << 20):
                    received += len(data)
        deaf.close()
        assert received < 4_000_000
        await until(lambda: node.log.watches.number_waiting == 0)
