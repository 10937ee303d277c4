"""A three-node cluster behind etcd's API: clients that others wrote, and watches across the death of the leader."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from pathlib import Path

import aiohttp
import pytest

from raftkv.client import Client, TlsFiles
from tests.process.cluster import ProcessCluster
from tests.process.tls_nodes import TlsNode, encrypted
from tests.tls_files import TestAuthority

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


@pytest.fixture(params=["plain", "tls"])
def cluster(tmp_path, request, monkeypatch):
    """Three nodes; with TLS, members and clients have certificates of different authorities."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        # Both clients use requests, where these take the place of the authority that the client was given.
        monkeypatch.delenv(name, raising=False)
    cluster = ProcessCluster(tmp_path)
    if request.param == "tls":
        members, clients = TestAuthority.create(tmp_path / "members"), TestAuthority.create(tmp_path / "clients")
        for node in cluster.nodes:
            encrypted(node, members, f"--tls-client-ca={clients.bundle(members)}", clients=clients)
    with cluster as running:
        yield running


def files_of(node):
    """The authority, and a client's certificate and key; None of nodes without TLS."""
    if not isinstance(node, TlsNode):
        return None, None, None
    directory = node.data_dir.parent
    pair = directory / "clients" / "client.crt", directory / "clients" / "client.key"
    return tuple(str(file) for file in (directory / "members" / "ca.crt", *pair))


def address_of(node):
    protocol, _, address = node.url.partition("://")
    host, _, port = address.partition(":")
    return protocol, host, int(port)


def client_of(node):
    protocol, host, port = address_of(node)
    ca, cert, key = files_of(node)
    return etcd3gw.client(
        host=host, port=port, api_path="/v3/", protocol=protocol, ca_cert=ca, cert_cert=cert, cert_key=key
    )


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
    protocol, host, port = address_of(node)
    ca, cert, key = files_of(node)
    return etcd3.Client(host, port, protocol, cert=(cert, key) if cert else (), verify=ca, timeout=10)


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
                session.post(f"{watched.url}/v3/watch", data=body, ssl=getattr(watched, "context", True)) as answer,
            ):
                async for line in answer.content:
                    begun.set()
                    for event in json.loads(line)["result"].get("events", []):
                        key = base64.b64decode(event["kv"]["key"]).decode()
                        seen.append((key, int(event["kv"]["mod_revision"])))
                    if seen and seen[-1][0] == "w/last":
                        return

        async def write() -> None:
            files = [None if name is None else Path(name) for name in files_of(watched)]
            tls = None if files[0] is None else TlsFiles(*files)
            async with Client([node.url for node in cluster.nodes], timeout_seconds=30, tls=tls) as client:
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
