"""The keeper of snapshots around a core that only plays its part: who sends, who is silent, what a bad disk does."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from raftkv.consensus.journal import Journal
from raftkv.consensus.messages import SnapshotAck, SnapshotChunk
from raftkv.consensus.segments import recover
from raftkv.consensus.snapshot import CHUNK_BYTES, SnapshotCatalog
from raftkv.errors import BackupFailed
from raftkv.membership import initial_membership
from raftkv.runtime.snapshots import SnapshotKeeper, SnapshotPolicy
from raftkv.store.commands import Put, encode_commands
from raftkv.store.machine import CommittedEntry, Machine
from raftkv.store.memory_backend import MemoryBackend
from raftkv.types import Index, Member, NodeId, Role, Term
from tests.consensus.harness import CLUSTER
from tests.simulation.disk import VirtualDisk

A, B = NodeId("a"), NodeId("b")


@dataclass
class Core:
    role: Role = Role.LEADER
    term: int = 1
    commit_index: int = 1
    needing: set[NodeId] = field(default_factory=set)

    def take_peers_needing_snapshot(self) -> set[NodeId]:
        needing, self.needing = self.needing, set()
        return needing

    def install_snapshot(self, index: Index, _term: Term) -> bool:
        return index > self.commit_index


@dataclass
class Clock:
    time: float = 0.0

    def now(self) -> float:
        return self.time


class Node:
    """A keeper with everything around it."""

    def __init__(self, entries: int = 40) -> None:
        self.disk = VirtualDisk()
        self.core = Core()
        self.clock = Clock()
        self.can_send = True
        self.sent: list[tuple[NodeId, object]] = []
        self.compacted: list[Index] = []
        self.installed: list[Index] = []
        self.failures: list[BaseException] = []
        self.journal = Journal(recover(self.disk.directory("journal"), CLUSTER, None))
        snapshots = self.disk.directory("snapshots")
        self.machine = Machine(MemoryBackend(snapshots), CLUSTER)
        self.machine.bootstrap(initial_membership(CLUSTER, (Member(A, "a:1"), Member(B, "b:1"))))
        for index in range(2, entries + 2):
            # The first is larger than a chunk, so that a transfer takes several.
            payload = encode_commands([Put(b"key-%d" % index, bytes(CHUNK_BYTES if index == 2 else 100))])
            self.journal.add(b"\0" + payload, index, 1)
            self.machine.apply([CommittedEntry(Index(index), Term(1), payload)])
        self.journal.setRaftCommitIndex(entries + 1)
        self.journal.mark_synced(self.journal.take_batch().position if entries else 0)
        self.core.commit_index = Index(entries + 1)
        self.keeper = SnapshotKeeper(
            self.core,
            self.journal,
            self.machine,
            SnapshotCatalog(snapshots, CLUSTER),
            SnapshotPolicy(journal_bytes=1000, journal_entries=30, tail_bytes=200),
            self.clock,
            self.send,
            self.compacted.append,
            self.installed.append,
            self.failures.append,
        )

    def send(self, peer: NodeId, message: object) -> bool:
        if self.can_send:
            self.sent.append((peer, message))
        return self.can_send

    async def poll(self) -> None:
        self.keeper.poll()
        await self.keeper.stop()

    def chunks(self) -> list[SnapshotChunk]:
        return [message for _peer, message in self.sent if isinstance(message, SnapshotChunk)]


async def sending_node() -> Node:
    node = Node()
    await node.poll()
    node.core.needing = {B}
    node.keeper.poll()
    assert len(node.chunks()) == 1
    return node


async def test_a_due_snapshot_is_taken_and_the_journal_compacted_behind_it():
    node = Node()
    await node.poll()
    assert node.keeper.newest.index == 41
    (base,) = node.compacted
    assert 1 < base < 41, "a tail is kept for followers that were away for a moment"
    node.sent.clear()
    await node.poll()
    assert node.keeper.newest.index == 41
    assert len(node.compacted) == 1, "nothing new, so nothing is due"


async def test_a_snapshot_that_is_asked_for_is_taken_though_none_is_due():
    node = Node(entries=5)
    assert node.keeper.newest is None
    taken = await node.keeper.take_now()
    assert (taken.index, taken) == (6, node.keeper.newest)
    node.keeper._catalog.verify(taken)
    assert await node.keeper.take_now() is taken, "nothing was applied since"


async def test_two_who_ask_at_once_get_one_snapshot():
    node = Node(entries=5)
    first, second = await asyncio.gather(node.keeper.take_now(), node.keeper.take_now())
    assert first is second


async def test_who_does_not_wait_for_a_snapshot_does_not_end_it():
    node = Node(entries=5)
    asking = asyncio.ensure_future(node.keeper.take_now())
    await asyncio.sleep(0)
    asking.cancel()
    await node.keeper.stop()
    assert (node.keeper.newest.index, node.failures) == (6, [])


async def test_a_disk_that_refuses_a_snapshot_that_is_asked_for_is_said_to():
    node = Node(entries=5)
    node.disk.fail_syncs = True
    with pytest.raises(BackupFailed, match="taking a snapshot failed"):
        await node.keeper.take_now()
    node.disk.fail_syncs = False
    assert (await node.keeper.take_now()).index == 6
    assert node.failures == []


async def test_a_leader_that_is_deposed_falls_silent():
    """A chunk carries the sender's term: of a node that leads no more it would claim that this term has two leaders."""
    node = await sending_node()
    node.core.role, node.core.term = Role.FOLLOWER, Term(2)
    node.clock.time += 10
    await node.poll()
    node.keeper.receive_ack(B, SnapshotAck(2, node.keeper.newest.index, 0, failed=False))
    assert len(node.chunks()) == 1
    # What was begun in the old term does not go on in a later one either.
    node.core.role, node.core.term = Role.LEADER, Term(3)
    await node.poll()
    assert len(node.chunks()) == 1


async def test_a_chunk_that_cannot_be_sent_yet_is_sent_as_soon_as_it_can():
    node = Node()
    await node.poll()
    node.core.needing, node.can_send = {B}, False
    await node.poll()
    assert node.chunks() == []
    node.core.needing, node.can_send = set(), True
    await node.poll()
    assert len(node.chunks()) == 1


async def test_an_interrupted_transfer_goes_on_where_it_was():
    leader, follower = await sending_node(), Node(entries=0)
    follower.keeper.receive_chunk(A, leader.chunks()[-1])
    _peer, acknowledgement = follower.sent.pop()
    # The connection is lost with the acknowledgement, and the peer asks again over the next one.
    leader.keeper.peer_lost(B)
    leader.core.needing = {B}
    leader.keeper.poll()
    assert leader.chunks()[-1].offset == 0
    follower.keeper.receive_chunk(A, leader.chunks()[-1])
    _peer, again = follower.sent.pop()
    assert again.next_offset == acknowledgement.next_offset > 0
    leader.keeper.receive_ack(B, again)
    assert leader.chunks()[-1].offset == acknowledgement.next_offset


async def test_a_follower_never_begins_to_send():
    node = Node()
    await node.poll()
    node.core.role, node.core.needing = Role.FOLLOWER, {B}
    await node.poll()
    assert node.chunks() == []


async def test_chunks_follow_acknowledgements_and_are_repeated_without_them():
    node = await sending_node()
    await node.poll()
    assert len(node.chunks()) == 1
    node.clock.time += 2
    await node.poll()
    first, again = node.chunks()
    assert first == again
    node.keeper.receive_ack(B, SnapshotAck(1, first.index, len(first.data), failed=False))
    assert node.chunks()[-1].offset == len(first.data)
    node.keeper.peer_lost(B)
    node.clock.time += 2
    await node.poll()
    assert len(node.chunks()) == 3


async def test_a_whole_transfer_installs_the_snapshot_once():
    leader, follower = await sending_node(), Node(entries=0)
    while (chunk := leader.chunks()[-1]) and follower.core.commit_index < chunk.index:
        follower.keeper.receive_chunk(A, chunk)
        if follower.keeper._work is not None:
            await follower.keeper._work
        _peer, acknowledgement = follower.sent.pop()
        leader.keeper.receive_ack(B, acknowledgement)
        if acknowledgement.next_offset == leader.keeper.newest.size:
            break
    assert follower.installed == [41]
    assert follower.machine.state_hash() == leader.machine.state_hash()
    follower.core.commit_index = Index(41)
    follower.keeper.receive_chunk(A, leader.chunks()[0])
    assert follower.installed == [41], "an old chunk is acknowledged and otherwise ignored"


@pytest.mark.parametrize("fault", ["fail_writes", "fail_syncs"])
async def test_a_snapshot_that_cannot_be_written_is_tried_again_later(fault):
    node = Node()
    setattr(node.disk, fault, True)
    await node.poll()
    assert (node.keeper.newest, node.compacted, node.failures) == (None, [], [])
    setattr(node.disk, fault, False)
    await node.poll()
    assert node.keeper.newest is None, "not at once"
    node.clock.time += 11
    await node.poll()
    assert node.keeper.newest.index == 41


async def test_a_received_snapshot_that_cannot_be_kept_ends_the_node():
    leader, follower = await sending_node(), Node(entries=0)
    newest = leader.keeper.newest
    while (received := sum(len(chunk.data) for chunk in leader.chunks())) < newest.size:
        follower.keeper.receive_chunk(A, leader.chunks()[-1])
        leader.keeper.receive_ack(B, SnapshotAck(1, newest.index, received, failed=False))
    follower.disk.fail_syncs = True
    follower.keeper.receive_chunk(A, leader.chunks()[-1])
    await follower.keeper.stop()
    assert [type(error).__name__ for error in follower.failures] == ["StorageFailed"]
    assert follower.installed == []
