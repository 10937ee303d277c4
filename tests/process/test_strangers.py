"""Strangers at the peer port of real nodes, who know the protocol, the cluster and its members' names and ids."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
from pathlib import Path

import msgpack
import pytest

from raftkv.consensus.messages import AppendEntries, RequestVote, TimeoutNow, encode
from raftkv.runtime.framing import (
    PROTOCOL_VERSION,
    Channel,
    Hello,
    Rejected,
    decode_handshake,
    encode_frame,
    encode_handshake,
)
from tests.process.cluster import NodeProcess, ProcessCluster

pytestmark = pytest.mark.process

ANSWER_SECONDS = 10


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with ProcessCluster(tmp_path_factory.mktemp("strangers")) as cluster:
        yield cluster


def peer_port(node: NodeProcess) -> int:
    (flag,) = [flag for flag in node.command if flag.startswith("--listen-peer=")]
    return int(flag.rpartition(":")[2])


def greeting(cluster: ProcessCluster, target: NodeProcess, **changes) -> bytes:
    _status, document = target.ask("/v1/cluster/members")
    fields = {
        "cluster_id": document["cluster_id"],
        "name": "stranger",
        "member_id": 4711,
        "storage_id": "0123456789abcdef",
        "target": target.name,
        "client_url": "http://127.0.0.1:1",
        "peer_address": "127.0.0.1:1",
        **changes,
    }
    return encode_handshake(Hello(PROTOCOL_VERSION, channel=Channel.MESSAGES, **fields))


def as_member(cluster: ProcessCluster, target: NodeProcess, name: str, **changes) -> bytes:
    """Return what a member says, as far as it can be known without seeing its connections."""
    _status, document = target.ask("/v1/cluster/members")
    (known,) = [member for member in document["members"] if member["name"] == name]
    return greeting(
        cluster,
        target,
        name=name,
        member_id=int(known["id"], 16),
        storage_id=known["storage_id"],
        peer_address=known["peer_address"],
        **changes,
    )


def say(target: NodeProcess, hello: bytes, *messages) -> object:
    """Say hello, then send messages; return the answer to the hello."""
    with socket.create_connection(("127.0.0.1", peer_port(target)), timeout=ANSWER_SECONDS) as stranger:
        stranger.sendall(hello)
        head = stranger.recv(4, socket.MSG_WAITALL)
        answer = decode_handshake(stranger.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL))
        with contextlib.suppress(OSError):
            for message in messages:
                stranger.sendall(encode_frame(encode(message)))
            while stranger.recv(4096):
                pass
        return answer


def journal_bytes(node: NodeProcess) -> int:
    return sum(file.stat().st_size for file in Path(node.data_dir / "journal").iterdir())


def attack(cluster: ProcessCluster, target: NodeProcess, hello: bytes) -> object:
    """Send what a leader would, and what ends one, after a hello."""
    status = target.status()
    term, last = status["term"], status["last_index"]
    entry = (b"\x00stranger", last + 1, term)
    return say(
        target,
        hello,
        AppendEntries(term, last, last, term, (entry,)),
        RequestVote(term + 100, last + 100, term + 100),
        TimeoutNow(term + 100),
    )


def check(cluster: ProcessCluster, terms: dict[str, int]) -> None:
    """Check that nothing has happened to the cluster."""
    for node in cluster.nodes:
        assert node.is_running, node.log()
        assert node.status()["term"] == terms[node.name], node.log()
        assert "Traceback" not in node.log()
    assert cluster.leader().ask("/v1/kv/a", method="PUT", body=b"x")[0] in (200, 201)


def terms_of(cluster: ProcessCluster) -> dict[str, int]:
    return {node.name: node.status()["term"] for node in cluster.nodes}


def test_unverified_peer_is_not_obeyed_under_any_name(cluster):
    leader, follower = cluster.leader(), cluster.followers()[0]
    terms = terms_of(cluster)
    for target in (leader, follower):
        other = follower if target is leader else leader
        for hello in (
            greeting(cluster, target),
            as_member(cluster, target, other.name),
            greeting(cluster, target, name=other.name),
        ):
            answer = attack(cluster, target, hello)
            assert isinstance(answer, Rejected)
            assert answer.code == "unproven"
    check(cluster, terms)


def test_refusal_of_a_stranger_ends_no_node(cluster):
    """A node that dialled what a stranger says of itself would be told there that it was removed."""
    target = cluster.leader()
    terms = terms_of(cluster)
    dialled = threading.Event()

    async def answer(_reader, writer):
        dialled.set()
        writer.write(encode_handshake(Rejected("removed", "you were removed")))
        await writer.drain()
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for name in ("stranger", cluster.followers()[0].name):
            hello = greeting(cluster, target, name=name, peer_address=address)
            _reader, writer = await asyncio.open_connection("127.0.0.1", peer_port(target))
            writer.write(hello)
            await asyncio.sleep(1.0)
            writer.close()
        server.close()

    asyncio.run(run())
    check(cluster, terms)
    assert not dialled.is_set()


def test_strangers_leave_nothing_in_the_journal_and_little_in_the_log(cluster):
    target = cluster.leader()
    terms = terms_of(cluster)
    before, log_before = journal_bytes(target), len(target.log().splitlines())
    rng = random.Random(1)
    connections = []
    for number in range(300):
        member_id, storage = rng.getrandbits(64) >> 1, f"{rng.getrandbits(64):016x}"
        stranger = socket.create_connection(("127.0.0.1", peer_port(target)), timeout=ANSWER_SECONDS)
        hello = greeting(cluster, target, name=f"s{number}", member_id=member_id, storage_id=storage)
        stranger.sendall(hello)
        connections.append(stranger)
    for stranger in connections:
        with contextlib.suppress(ConnectionError):
            stranger.recv(1)
        stranger.close()
    # The leader's own records of what followers have acknowledged are a few frames of 512 bytes.
    assert journal_bytes(target) - before < 20_000
    assert len(target.log().splitlines()) - log_before < 40
    check(cluster, terms)


def test_names_with_control_characters_forge_no_lines_of_the_log(cluster):
    target = cluster.leader()
    forged = "x\n2026-01-01T00:00:00.000+00:00 ERROR    raftkv: forged"
    named = msgpack.unpackb(greeting(cluster, target)[4:])
    for field in ("name", "target", "cluster_id", "storage_id", "client_url", "peer_address", "lowest_version"):
        with socket.create_connection(("127.0.0.1", peer_port(target)), timeout=ANSWER_SECONDS) as stranger:
            stranger.sendall(encode_frame(msgpack.packb({**named, field: forged})))
            with contextlib.suppress(ConnectionError):
                while stranger.recv(4096):
                    pass
    assert not [line for line in target.log().splitlines() if line.startswith("2026-01-01")]
    assert target.is_running
