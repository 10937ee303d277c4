"""The cluster that the fuzzers attack, and what they know of it."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.process.cluster import ProcessCluster

HOST = "127.0.0.1"
LATEST_TERM = 1_000_000
"""Strangers speak of terms from here on, so that a term of theirs that a node has adopted is seen."""


class Finding(AssertionError):
    """A node did what it must not do."""


@dataclass(frozen=True)
class Target:
    """One node.

    Attributes:
        name: Its name.
        client_port: Where it serves clients.
        peer_port: Where members reach it.
        member_id: Its id as a member.
        storage_id: Id of its data directory.
    """

    name: str
    client_port: int
    peer_port: int
    member_id: int
    storage_id: str


@dataclass
class Knowledge:
    """What an attacker may know: everything that nodes say to clients, and nothing that members say to each other.

    Attributes:
        cluster_id: The cluster.
        targets: Its nodes.
        term: About its term.
        last_index: About the last index of its log.
        counts: What was met, for the report.
        kills: How often each node was killed so far: its connections end without an answer then.
    """

    cluster_id: str
    targets: list[Target]
    term: int = 1
    last_index: int = 1
    counts: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)


def look_at(cluster: ProcessCluster) -> Knowledge:
    """Ask the nodes what they say to clients."""
    node = cluster.leader()
    _status, document = node.ask("/v1/cluster/members")
    known = {member["name"]: member for member in document["members"]}
    targets = [
        Target(
            each.name,
            int(each.url.rpartition(":")[2]),
            int(known[each.name]["peer_address"].rpartition(":")[2]),
            int(known[each.name]["id"], 16),
            known[each.name]["storage_id"] or "0",
        )
        for each in cluster.nodes
    ]
    status = node.status()
    return Knowledge(document["cluster_id"], targets, status["term"], status["last_index"])


async def converse(
    rng: random.Random,
    knowledge: Knowledge,
    kind: str,
    port: int,
    speak: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> None:
    """Open a connection, let a session speak on it, and end it in good order or not.

    Args:
        rng: Where chance comes from.
        knowledge: Counts connections that could not be opened, or that the node ended.
        kind: Of the session, for the report.
        port: The node's.
        speak: The session.
    """
    try:
        reader, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        knowledge.counts[f"{kind}: not up"] += 1
        return
    try:
        await speak(reader, writer)
    except (ConnectionError, asyncio.IncompleteReadError):
        knowledge.counts[f"{kind}: closed"] += 1
    finally:
        writer.transport.abort() if rng.random() < 0.5 else writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def send_in_pieces(rng: random.Random, writer: asyncio.StreamWriter, data: bytes) -> None:
    """Write bytes whole, or in some pieces with pauses."""
    pieces = rng.choice((1, 1, 1, 2, 3, 10))
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(pieces - 1))
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        writer.write(data[start:end])
        await writer.drain()
        if end < len(data):
            await asyncio.sleep(rng.choice((0.0, 0.001, 0.05)))
