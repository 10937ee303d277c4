"""A three-node cluster behind etcd's API: clients that others wrote, and watches across the death of the leader."""

from __future__ import annotations

import asyncio
import base64
import json
import time

import aiohttp
import pytest

from raftkv.client import Client
from tests.process.cluster import ProcessCluster

etcd3gw = pytest.importorskip("etcd3gw")
etcd3 = pytest.importorskip("etcd3", reason="etcd3-py is not installed")

pytestmark = [
    pytest.mark.process,
    # The clients leave their sockets to the garbage collector, and etcd3-py ends its threads with errors of its own.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:etcd3"),
]


@pytest.fixture
def cluster(tmp_path):
    with ProcessCluster(tmp_path) as running:
        yield running


def client_of(node):
    host, _, port = node.url.removeprefix("http://").partition(":")
    return etcd3gw.client(host=host, port=int(port), api_path="/v3/")


def use(client, name: str) -> None:
    """What a program does with etcd3gw."""
    assert client.put(name, "1")
    assert client.get(name) == [b"1"]
    assert client.replace(name, "1", "2")
    assert not client.replace(name, "1", "3")
    assert not client.create(name, "4")
    assert [value for value, _meta in client.get_prefix(name)] == [b"2"]
    lease = client.lease(ttl=60)
    assert client.put(f"{name}/leased", "x", lease=lease)
    assert 0 < lease.ttl() <= 60
    assert lease.refresh() == 60
    assert lease.keys() == [f"{name}/leased".encode()]
    assert lease.revoke()
    assert client.get(f"{name}/leased") == []
    assert client.delete(name)
    assert client.get(name) == []


def etcd3_client_of(node):
    host, _, port = node.url.removeprefix("http://").partition(":")
    return etcd3.Client(host, int(port), timeout=10)


def use_etcd3(client, name: str) -> None:
    """What a program does with etcd3-py, of which each answer is checked against etcd's own description of it."""
    assert client.version().etcdserver == client.server_version
    put = client.put(name, "1", prev_kv=True)
    found = client.range(name)
    assert (found.kvs[0].value, found.kvs[0].mod_revision) == (b"1", put.header.revision)
    txn = client.Txn()
    txn.compare(txn.key(name).value == "1")
    txn.success(txn.put(name, "2"))
    txn.failure(txn.range(name))
    assert txn.commit().succeeded
    assert client.range(name).kvs[0].version == 2
    with client.Lease(ttl=60) as lease:
        client.put(f"{name}/leased", "x", lease=lease.ID)
        left = lease.time_to_live(keys=True)
        assert (left.grantedTTL, left.keys) == (60, [f"{name}/leased".encode()])
    assert not client.range(f"{name}/leased").kvs
    events: list[tuple[bytes, bytes]] = []
    watcher = client.Watcher(key=name, start_revision=put.header.revision)
    watcher.onEvent(lambda event: events.append((event.type.value, event.value)))
    watcher.runDaemon()
    client.delete_range(name)
    deadline = time.monotonic() + 20
    while len(events) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    watcher.stop()
    assert [event[:2] for event in events] == [("PUT", b"1"), ("PUT", b"2"), ("DELETE", None)]
    with client.Lock(name, lock_ttl=20) as lock:
        assert lock.is_acquired
    assert client.status().leader
    assert len(client.member_list().members) == 3
    assert client.hash().hash


def test_etcd3_py_works_at_the_leader_and_at_followers_and_after_the_leader_has_died(cluster):
    for node in cluster.nodes:
        use_etcd3(etcd3_client_of(node), f"before/{node.name}")
    dead = cluster.leader()
    dead.kill()
    rest = [node for node in cluster.nodes if node is not dead]
    cluster.wait_ready(*(node.name for node in rest))
    for node in rest:
        use_etcd3(etcd3_client_of(node), f"after/{node.name}")


def test_a_client_works_at_the_leader_and_at_followers_and_after_the_leader_has_died(cluster):
    for node in cluster.nodes:
        use(client_of(node), f"before/{node.name}")
    assert {member["name"] for member in client_of(cluster.nodes[0]).members()} == {"n1", "n2", "n3"}
    dead = cluster.leader()
    dead.kill()
    rest = [node for node in cluster.nodes if node is not dead]
    cluster.wait_ready(*(node.name for node in rest))
    for node in rest:
        use(client_of(node), f"after/{node.name}")


def test_a_watch_at_a_follower_misses_nothing_when_the_leader_dies(cluster):
    watched = cluster.followers()[0]

    async def run() -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
        seen: list[tuple[str, int]] = []
        written: list[tuple[str, int]] = []
        begun = asyncio.Event()

        async def watch() -> None:
            body = json.dumps({"create_request": {"key": base64.b64encode(b"w/").decode(), "range_end": "dzA="}})
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session,
                session.post(f"{watched.url}/v3/watch", data=body) as answer,
            ):
                async for line in answer.content:
                    begun.set()
                    for event in json.loads(line)["result"].get("events", []):
                        key = base64.b64decode(event["kv"]["key"]).decode()
                        seen.append((key, int(event["kv"]["mod_revision"])))
                    if seen and seen[-1][0] == "w/last":
                        return

        async def write() -> None:
            async with Client([node.url for node in cluster.nodes], timeout_seconds=30) as client:
                for number in range(300):
                    if number == 100:
                        await asyncio.to_thread(cluster.leader().kill)
                    stored = await client.put(b"w/%d" % (number % 7), b"%d" % number)
                    written.append((f"w/{number % 7}", stored.mod_revision))
                stored = await client.put(b"w/last", b"")
                written.append(("w/last", stored.mod_revision))

        watching = asyncio.create_task(watch())
        await asyncio.wait_for(begun.wait(), 30)
        await asyncio.wait_for(write(), 120)
        await asyncio.wait_for(watching, 30)
        return seen, written

    seen, written = asyncio.run(run())
    revisions = [revision for _key, revision in seen]
    assert revisions == sorted(set(revisions)), "each event once and in order"
    assert seen == written, "a write that was sent again after the leader's death happened once"
