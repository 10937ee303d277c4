"""A three-node cluster behind etcd's API: a client that others wrote, and watches across the death of the leader."""

from __future__ import annotations

import asyncio
import base64
import json

import aiohttp
import pytest

from raftkv.client import Client
from tests.process.cluster import ProcessCluster

etcd3gw = pytest.importorskip("etcd3gw")

pytestmark = [
    pytest.mark.process,
    # The client leaves its sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
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
    # A write that was sent again after the leader's death may have happened twice; every acknowledged one is there.
    assert set(written) <= set(seen)
    assert len(seen) - len(written) <= 1
