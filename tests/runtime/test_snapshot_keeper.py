"""The keeper of snapshots around a core that only plays its part: who sends, who is silent, what a bad disk does."""

from __future__ import annotations

import asyncio
import itertools
import threading
from dataclasses import dataclass, field, replace

import pytest

from raftkv.consensus.disk_room import DiskRoom
from raftkv.consensus.history import LogHistory
from raftkv.consensus.journal import Journal
from raftkv.consensus.messages import SnapshotAck, SnapshotChunk
from raftkv.consensus.segments import recover
from raftkv.consensus.snapshot import CHUNK_BYTES, SnapshotCatalog, SnapshotManifest
from raftkv.errors import BackupFailed, StorageFailed, UnsupportedVersion
from raftkv.membership import initial_membership
from raftkv.runtime.copy_room import CopyRoom
from raftkv.runtime.snapshots import SnapshotKeeper, SnapshotPolicy
from raftkv.store.commands import Put, encode_commands
from raftkv.store.machine import CommittedEntry, Machine
from raftkv.store.memory_backend import MemoryBackend
from raftkv.types import Index, Member, NodeId, Role, Term
from tests.consensus.harness import CLUSTER
from tests.runtime.held_worker import HeldWorker
from tests.simulation.disk import VirtualDisk

A, B = NodeId("a"), NodeId("b")


@dataclass
class Core:
    role: Role = Role.LEADER
    term: int = 1
    commit_index: int = 1
    disk_room: DiskRoom = DiskRoom.ENOUGH
    needing: set[NodeId] = field(default_factory=set)
    matches: dict[NodeId, Index] = field(default_factory=dict)
    reachable: list[NodeId] = field(default_factory=list)
    contradicts_at: int = 1000
    asked: int = 0

    @property
    def configuration(self) -> Core:
        return self

    def tracks(self, _peer: NodeId) -> bool:
        return True

    def reachable_members(self) -> list[NodeId]:
        return self.reachable

    def match_index(self, peer: NodeId) -> Index:
        return self.matches.get(peer, Index(0))

    def peer_installed(self, peer: NodeId, index: Index) -> None:
        self.matches[peer] = index

    def take_peers_needing_snapshot(self) -> set[NodeId]:
        needing, self.needing = self.needing, set()
        return needing

    def install_snapshot(self, index: Index, _term: Term, _history: LogHistory) -> bool:
        return index > self.commit_index

    def contradicts_snapshot(self, _peer: NodeId, index: Index, _history: LogHistory) -> bool:
        self.asked += 1
        return self.asked >= self.contradicts_at


@dataclass
class Clock:
    time: float = 0.0

    def now(self) -> float:
        return self.time


class Node(HeldWorker):
    """A keeper with everything around it."""

    def __init__(self, entries: int = 40) -> None:
        super().__init__()
        self.orders = None
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
            SnapshotPolicy(journal_bytes=1000, journal_entries=30, tail_bytes=200, catch_up_bytes=20_000),
            self.clock,
            self.send,
            self.compacted.append,
            self.installed.append,
            self.failures.append,
            self,
            CopyRoom(snapshots.free_bytes, 0),
        )

    def send(self, peer: NodeId, message: object) -> bool:
        if self.can_send:
            self.sent.append((peer, message))
        return self.can_send

    async def poll(self) -> None:
        self.keeper.poll()
        await self.keeper.stop()

    def answer_disk(self) -> None:
        """Let the disk do what was ordered by now."""
        assert self.orders is not None
        orders, self.orders[:] = list(self.orders), []
        for order in orders:
            order()

    def acknowledged(self) -> list[int]:
        return [message.next_offset for _peer, message in self.sent if isinstance(message, SnapshotAck)]

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


async def test_no_snapshot_is_taken_or_received_while_the_disk_is_nearly_full():
    node = Node()
    node.core.disk_room = DiskRoom.LOW
    await node.poll()
    assert node.keeper.newest is None
    sender = await sending_node()
    receiver = Node(entries=0)
    receiver.core.disk_room = DiskRoom.LOW
    receiver.keeper.receive_chunk(A, sender.chunks()[0])
    assert receiver.sent == [], "the leader repeats what is not acknowledged"
    receiver.core.disk_room = DiskRoom.ENOUGH
    receiver.keeper.receive_chunk(A, sender.chunks()[0])
    assert len(receiver.sent) == 1


async def test_size_of_the_store_is_asked_for_in_the_thread_of_its_transactions(monkeypatch):
    """In another one it would end the node when the map grows meanwhile, or is replaced."""
    node, threads = Node(entries=5), set[int]()
    monkeypatch.setattr(Machine, "used_bytes", property(lambda _machine: threads.add(threading.get_ident()) or 1))
    await node.keeper.take_now()
    assert threads == {threading.get_ident()}


async def test_snapshot_that_would_take_the_reserve_is_refused(monkeypatch):
    node = Node(entries=5)
    monkeypatch.setattr(node.keeper._room, "_reserved_bytes", 2**41)
    with pytest.raises(BackupFailed, match="are needed"):
        await node.keeper.take_now()
    assert node.failures == []


async def test_snapshot_that_the_disk_has_no_room_for_is_not_received(caplog):
    sender = await sending_node()
    receiver = Node(entries=0)
    chunk = sender.chunks()[0]
    size = sender.keeper.newest.size
    receiver.disk.capacity = receiver.disk.used() + 2 * size - 1
    for _ in range(3):
        receiver.keeper.receive_chunk(A, chunk)
    assert receiver.sent == [], "the leader repeats what is not acknowledged"
    assert receiver.failures == []
    (warning,) = [record.getMessage() for record in caplog.records if "cannot be received" in record.message]
    assert f"about {2 * size} bytes and a reserve of 0 are needed, {2 * size - 1} are free" in warning
    receiver.disk.capacity += 1
    receiver.keeper.receive_chunk(A, chunk)
    assert len(receiver.sent) == 1
    await receiver.keeper.stop()
    assert receiver.keeper._room._under_way == 0


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


def ack_of(chunk: SnapshotChunk, next_offset: int | None = None, *, failed: bool = False) -> SnapshotAck:
    end = chunk.offset + len(chunk.data) if next_offset is None else next_offset
    return SnapshotAck(1, chunk.index, end, failed=failed, number=chunk.number)


async def test_chunks_follow_acknowledgements_and_are_repeated_after_a_timeout():
    node = await sending_node()
    node.clock.time += 2
    await node.poll()
    (first,) = node.chunks()
    node.clock.time += 1.1
    await node.poll()
    _first, again = node.chunks()
    assert (again.offset, again.data) == (0, first.data)
    node.keeper.receive_ack(B, ack_of(again))
    assert node.chunks()[-1].offset == len(first.data)
    number = len(node.chunks())
    for _ in range(10):
        node.keeper.receive_ack(B, ack_of(again))
        node.keeper.receive_ack(B, ack_of(first))
        await node.poll()
    assert len(node.chunks()) == number


def write(node: Node, count: int, size: int = 100) -> None:
    for _ in range(count):
        index = node.journal.last_index + 1
        payload = encode_commands([Put(b"key", bytes(size))])
        node.journal.add(b"\0" + payload, index, 1)
        node.machine.apply([CommittedEntry(Index(index), Term(1), payload)])
        node.core.commit_index = Index(index)
    batch = node.journal.take_batch()
    assert batch is not None
    node.journal.mark_synced(batch.position)


async def test_chunk_is_sent_when_a_slow_disk_has_returned_it():
    node = Node()
    await node.poll()
    node.orders = []
    node.core.needing = {B}
    node.keeper.poll()
    node.keeper.poll()
    assert node.chunks() == [], "the disk has not returned it, and nothing waits for that"
    node.orders.pop(0)()
    assert len(node.chunks()) == 1


async def test_leader_that_is_deposed_while_its_disk_reads_falls_silent():
    node = Node()
    await node.poll()
    node.orders = []
    node.core.needing = {B}
    node.keeper.poll()
    node.core.role, node.core.term = Role.FOLLOWER, Term(2)
    node.orders.pop(0)()
    assert node.chunks() == []


async def test_snapshot_being_sent_is_pinned_with_the_log_behind_it():
    node = await sending_node()
    pinned = node.keeper.newest
    write(node, 20)
    newer = await node.keeper.take_now()
    assert newer.index > pinned.index
    assert node.journal.base_index <= pinned.index
    node.keeper._catalog.verify(pinned)
    node.keeper.receive_ack(B, ack_of(node.chunks()[-1], pinned.size))
    # The member has the snapshot, and gets the log behind it; that is kept until it has caught up.
    write(node, 20)
    node.clock.time += 5
    await node.poll()
    assert (await node.keeper.take_now()).index > newer.index
    assert node.journal.base_index <= pinned.index
    assert node.keeper.transfers.held_indexes() == [pinned.index]
    node.core.matches[B] = node.core.commit_index
    await node.poll()
    await node.poll()
    assert node.keeper.transfers.held_indexes() == []
    write(node, 20)
    await node.keeper.take_now()
    assert node.journal.base_index > newer.index
    assert [name for name in node.disk.directory("snapshots").names() if name.endswith(".json")] == [
        node.keeper.newest.manifest_name
    ]


async def test_log_kept_for_a_member_beyond_the_bound_begins_a_newer_snapshot(caplog):
    node = await sending_node()
    pinned = node.keeper.newest
    write(node, 100)
    await node.poll()
    assert node.keeper.newest == pinned, "within the bound"
    write(node, 200)
    await node.poll()
    assert node.keeper.newest.index > pinned.index
    assert "b did not catch up while" in caplog.text
    assert node.journal.base_index > pinned.index
    node.core.needing = {B}
    await node.poll()
    assert node.chunks()[-1].index == node.keeper.newest.index


async def lagging_node(match: int) -> Node:
    """Return a leader whose other member has no more than the entries up to an index, with a snapshot due."""
    node = Node()
    await node.poll()
    assert node.keeper.newest.index == 41
    assert node.journal.base_index < 41
    node.core.reachable = [B]
    node.core.matches[B] = Index(match)
    write(node, 40)
    await node.poll()
    return node


async def test_log_is_compacted_up_to_what_an_advancing_member_has():
    node = await lagging_node(41)
    assert node.keeper.newest.index == 41, "the log could not be compacted behind it"
    node.core.matches[B] = Index(60)
    await node.poll()
    assert (node.keeper.newest.index, node.journal.base_index) == (81, 60)


async def test_log_is_not_compacted_before_a_new_leader_knows_what_a_member_has():
    node = await lagging_node(0)
    assert node.journal.base_index < 41
    node.core.matches[B] = node.core.commit_index
    await node.poll()
    assert node.journal.base_index > 60


async def test_no_log_is_kept_for_a_member_that_does_not_advance():
    node = await lagging_node(41)
    node.clock.time += 59
    await node.poll()
    assert node.journal.base_index < 41
    node.clock.time += 2
    await node.poll()
    assert node.journal.base_index > 60


async def test_no_log_is_kept_for_a_member_that_is_away():
    node = await lagging_node(41)
    node.core.reachable = []
    await node.poll()
    assert node.journal.base_index > 60


async def test_no_log_is_kept_for_a_member_that_lacks_more_than_the_bound():
    node = await lagging_node(41)
    write(node, 100)
    await node.poll()
    assert node.journal.base_index < 41
    write(node, 50)
    await node.poll()
    assert (node.keeper.newest.index, node.core.needing) == (231, set())
    assert node.journal.entry_bytes < 500


async def test_transfer_without_a_sign_of_life_is_given_up():
    node = await sending_node()
    for _ in range(130):
        node.clock.time += 0.5
        await node.poll()
    assert node.keeper.transfers.held_indexes() == []
    assert len(node.chunks()) < 12


async def test_intact_snapshot_that_is_refused_is_sent_again_with_growing_pauses():
    node = await sending_node()
    began = []
    for _ in range(4):
        chunk = node.chunks()[-1]
        assert chunk.offset == 0
        began.append(node.clock.time)
        node.keeper.receive_ack(B, ack_of(chunk, 0, failed=True))
        sent = len(node.chunks())
        while len(node.chunks()) == sent:
            node.clock.time += 0.1
            await node.poll()
    assert [round(later - earlier) for earlier, later in itertools.pairwise(began)] == [1, 2, 4]
    assert node.keeper.damaged == 0


@pytest.mark.parametrize("newer_entries", [0, 5])
async def test_damaged_snapshot_is_replaced_after_a_refusal(newer_entries, caplog):
    node = await sending_node()
    damaged = node.keeper.newest
    node.disk.directory("snapshots").flip_bit(damaged.data_name, 1000)
    if newer_entries:
        write(node, newer_entries)
    node.keeper.receive_ack(B, ack_of(node.chunks()[-1], 0, failed=True))
    await node.poll()
    assert node.keeper.damaged == 1
    assert damaged.data_name in caplog.text
    node.keeper._catalog.verify(node.keeper.newest)
    assert node.keeper.newest.index == damaged.index + newer_entries
    sent = len(node.chunks())
    await node.poll()
    assert len(node.chunks()) == sent, "the damaged one is not sent any more"
    node.core.needing = {B}
    await node.poll()
    assert node.chunks()[-1].index == node.keeper.newest.index
    await node.keeper.take_now()
    node.keeper._catalog.verify(node.keeper.newest)


async def test_damaged_snapshot_is_never_sent_again_although_the_disk_refuses_a_new_one():
    node = await sending_node()
    damaged = node.keeper.newest
    node.disk.directory("snapshots").flip_bit(damaged.data_name, 1000)
    node.disk.fail_syncs = True
    node.keeper.receive_ack(B, ack_of(node.chunks()[-1], 0, failed=True))
    for _ in range(5):
        node.core.needing = {B}
        node.clock.time += 1
        await node.poll()
    assert len(node.chunks()) == 1
    node.disk.fail_syncs = False
    node.clock.time += 10
    await node.poll()
    await node.poll()
    node.keeper._catalog.verify(node.keeper.newest)


async def test_snapshot_that_contradicts_committed_entries_is_not_received(caplog):
    leader, follower = await sending_node(), Node(entries=0)
    follower.core.contradicts_at = 1
    for _ in range(2):
        follower.keeper.receive_chunk(A, leader.chunks()[0])
    assert follower.sent == []
    assert follower.disk.directory("snapshots").names() == []
    assert [record.message for record in caplog.records] == [
        "the snapshot at index 41 of a covers other entries than are committed here; it is not installed"
    ]


async def test_snapshot_that_contradicts_what_was_committed_meanwhile_is_removed():
    leader, follower = await sending_node(), Node(entries=0)
    # After each chunk, when the last is written, and then before the installation.
    follower.core.contradicts_at = leader.keeper.newest.size // CHUNK_BYTES + 3
    while follower.core.asked < follower.core.contradicts_at:
        follower.keeper.receive_chunk(A, leader.chunks()[-1])
        if follower.keeper._work is not None:
            await follower.keeper._work
        if follower.sent:
            leader.keeper.receive_ack(B, follower.sent.pop()[1])
    assert follower.installed == []
    assert follower.keeper.newest is None
    assert follower.disk.directory("snapshots").names() == []


async def test_a_whole_transfer_installs_the_snapshot_once():
    leader, follower = await sending_node(), Node(entries=0)
    size = leader.keeper.newest.size
    while (chunk := leader.chunks()[-1]) and follower.core.commit_index < chunk.index:
        follower.keeper.receive_chunk(A, chunk)
        assert follower.keeper._room._under_way == 2 * size, "for the copy, and for the store that it becomes"
        if follower.keeper._work is not None:
            await follower.keeper._work
        _peer, acknowledgement = follower.sent.pop()
        leader.keeper.receive_ack(B, acknowledgement)
        if acknowledgement.next_offset == leader.keeper.newest.size:
            break
    assert follower.installed == [41]
    assert follower.keeper._room._under_way == 0
    assert follower.machine.state_hash() == leader.machine.state_hash()
    follower.core.commit_index = Index(41)
    follower.keeper.receive_chunk(A, leader.chunks()[0])
    assert follower.installed == [41], "an old chunk is acknowledged and otherwise ignored"


@pytest.mark.parametrize("term", [1, 2])
async def test_chunk_that_comes_during_a_copy_is_taken_after_it(term):
    """Unless another node may lead by then. The leader would send it again only after its timeout, which doubles."""
    leader, follower = await sending_node(), Node(entries=20)
    taken = asyncio.create_task(follower.keeper.take_now())
    await asyncio.sleep(0)
    follower.keeper.receive_chunk(A, leader.chunks()[0])
    assert follower.sent == []
    follower.core.term = term
    await taken
    await asyncio.sleep(0)
    assert len(follower.sent) == (1 if term == 1 else 0)
    assert follower.failures == []


@pytest.mark.parametrize("change", [{"format": 9}, {"store_format": 9}, {"cluster_version": "0.9"}])
async def test_a_snapshot_of_a_later_release_is_refused_before_anything_of_it_is_kept(change):
    """An older node used to install such a snapshot, and could never be started again."""
    leader, follower = await sending_node(), Node(entries=0)
    (chunk,) = leader.chunks()
    manifest = replace(SnapshotManifest.decode(chunk.manifest, "the leader"), **change)
    before = follower.machine.state_hash()
    with pytest.raises(UnsupportedVersion) as refused:
        follower.keeper.receive_chunk(A, replace(chunk, manifest=manifest.encode()))
    assert str(next(iter(change.values()))) in str(refused.value)
    assert follower.disk.directory("snapshots").names() == []
    assert follower.machine.state_hash() == before
    assert follower.sent == []


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
    answered = 0
    while not (chunk := leader.chunks()[answered]).last:
        follower.keeper.receive_chunk(A, chunk)
        leader.keeper.receive_ack(B, ack_of(chunk))
        answered += 1
    follower.disk.fail_syncs = True
    follower.keeper.receive_chunk(A, leader.chunks()[-1])
    await follower.keeper.stop()
    assert [type(error).__name__ for error in follower.failures] == ["StorageFailed"]
    assert follower.installed == []


async def chunks_of_a_snapshot(entries: int = 40) -> list[SnapshotChunk]:
    """Return all chunks of a snapshot, as a leader sends them to a member whose disk is fast."""
    leader = Node(entries)
    await leader.keeper.take_now()
    leader.core.needing = {B}
    leader.keeper.poll()
    answered = 0
    while not leader.chunks()[-1].last:
        leader.keeper.receive_ack(B, ack_of(leader.chunks()[answered]))
        answered += 1
    assert len(leader.chunks()) > 1
    return leader.chunks()


def receiving_node(entries: int = 0) -> Node:
    """Return a follower whose disk does something only when a test says so."""
    follower = Node(entries)
    follower.orders = []
    return follower


def received_bytes(node: Node) -> int:
    directory = node.disk.directory("snapshots")
    return directory.size("incoming.partial") if "incoming.partial" in directory.names() else 0


async def test_chunk_is_acknowledged_once_the_disk_has_it():
    first, *_ = await chunks_of_a_snapshot()
    follower = receiving_node()
    follower.keeper.receive_chunk(A, first)
    assert follower.disk.directory("snapshots").names() == [], "the event loop touches no file"
    follower.answer_disk()
    assert (received_bytes(follower), follower.sent) == (0, []), "the file is open, and nothing is in it"
    follower.answer_disk()
    assert received_bytes(follower) == len(first.data)
    assert follower.acknowledged() == [len(first.data)]


async def test_snapshot_is_installed_after_the_last_write():
    chunks = await chunks_of_a_snapshot()
    follower = receiving_node()
    follower.keeper.receive_chunk(A, chunks[0])
    follower.answer_disk()
    follower.answer_disk()
    for chunk in chunks[1:]:
        follower.keeper.receive_chunk(A, chunk)
    await asyncio.sleep(0)
    assert (follower.acknowledged(), follower.keeper._work) == ([len(chunks[0].data)], None)
    while follower.orders:
        follower.answer_disk()
    await follower.keeper.stop()
    ends = [chunk.offset + len(chunk.data) for chunk in chunks]
    assert (follower.acknowledged(), follower.installed, follower.failures) == (ends, [41], [])
    assert follower.orders == []


async def test_snapshot_that_is_written_during_a_copy_is_installed_after_it():
    chunks = await chunks_of_a_snapshot()
    follower = receiving_node(entries=20)
    follower.keeper.receive_chunk(A, chunks[0])
    follower.answer_disk()
    for chunk in chunks[1:]:
        follower.keeper.receive_chunk(A, chunk)
    copied = asyncio.create_task(follower.keeper.take_now())
    await asyncio.sleep(0)
    while follower.orders:
        follower.answer_disk()
    assert follower.keeper._installing is None
    assert (await copied).index == 21
    await asyncio.sleep(0)
    await follower.keeper.stop()
    assert (follower.installed, follower.failures) == ([41], [])


async def test_snapshot_whose_entries_were_committed_while_the_disk_wrote_is_not_installed():
    """The node may have a snapshot of its own at the same index by then, under the same name."""
    chunks = await chunks_of_a_snapshot()
    follower = receiving_node()
    for chunk in chunks:
        follower.keeper.receive_chunk(A, chunk)
        follower.answer_disk()
    follower.core.commit_index = Index(41)
    while follower.orders:
        follower.answer_disk()
    follower.orders = None
    await follower.keeper.stop()
    assert follower.installed == []
    assert follower.keeper.newest is None
    assert follower.acknowledged()[-1] == chunks[-1].offset + len(chunks[-1].data)


async def test_leader_of_an_earlier_term_gets_no_acknowledgement_from_a_slow_disk():
    first, *_ = await chunks_of_a_snapshot()
    follower = receiving_node()
    follower.keeper.receive_chunk(A, first)
    follower.answer_disk()
    follower.core.term = 2
    follower.answer_disk()
    assert (received_bytes(follower), follower.sent) == (len(first.data), [])


async def test_chunk_that_is_sent_again_while_the_disk_writes_is_answered_instead():
    """The leader ignores an answer to an earlier chunk than the last that was answered."""
    first, *_ = await chunks_of_a_snapshot()
    follower = receiving_node()
    follower.keeper.receive_chunk(A, first)
    follower.answer_disk()
    follower.keeper.receive_chunk(A, replace(first, number=7))
    assert follower.sent == []
    follower.answer_disk()
    ((_peer, acknowledgement),) = follower.sent
    assert (acknowledgement.number, acknowledgement.next_offset) == (7, len(first.data))
    assert received_bytes(follower) == len(first.data)


@pytest.mark.parametrize("orders", [0, 1, 2])
async def test_newer_snapshot_waits_for_the_write_under_way_and_takes_no_file_that_is_open(orders):
    """The first snapshot's file is being opened, written, or neither when the second arrives."""
    first, second = await chunks_of_a_snapshot(40), await chunks_of_a_snapshot(60)
    follower = receiving_node()
    follower.keeper.receive_chunk(A, first[0])
    for _ in range(orders):
        follower.answer_disk()
    acknowledged = follower.acknowledged()
    follower.keeper.receive_chunk(A, second[0])
    assert len(follower.orders) == 1, "one order at a time"
    while follower.orders:
        follower.answer_disk()
    assert follower.acknowledged() == [*acknowledged, len(second[0].data)]
    for chunk in second[1:]:
        follower.keeper.receive_chunk(A, chunk)
        while follower.orders:
            follower.answer_disk()
    await follower.keeper.stop()
    assert (follower.installed, follower.failures) == ([61], [])


async def test_nothing_is_written_after_the_order_under_way_when_a_node_stops():
    chunks = await chunks_of_a_snapshot()
    follower = receiving_node()
    follower.keeper.receive_chunk(A, chunks[0])
    follower.answer_disk()
    follower.keeper.receive_chunk(A, chunks[1])
    stopping = asyncio.create_task(follower.keeper.stop())
    await asyncio.sleep(0)
    assert not stopping.done()
    follower.answer_disk()
    follower.answer_disk()
    await stopping
    assert (received_bytes(follower), follower.orders) == (len(chunks[0].data), [])
    assert follower.sent == []
    follower.keeper.receive_chunk(A, chunks[1])
    assert follower.orders == []


@pytest.mark.parametrize(("orders", "text"), [(0, "receiving a snapshot failed"), (1, "writing a received snapshot")])
async def test_disk_that_refuses_a_chunk_ends_the_node_and_gets_no_other(orders, text):
    chunks = await chunks_of_a_snapshot()
    follower = receiving_node()
    follower.keeper.receive_chunk(A, chunks[0])
    for _ in range(orders):
        follower.answer_disk()
    follower.disk.fail_writes = True
    follower.keeper.receive_chunk(A, chunks[1])
    follower.answer_disk()
    follower.disk.fail_writes = False
    follower.keeper.receive_chunk(A, chunks[0])
    while follower.orders:
        follower.answer_disk()
    (error,) = follower.failures
    assert isinstance(error, StorageFailed)
    assert text in str(error)
    assert (received_bytes(follower), follower.sent) == (0, [])
    await follower.keeper.stop()
