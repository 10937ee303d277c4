"""Snapshots at rest and on their way: nothing half done is ever believed (H8, H12g)."""

from __future__ import annotations

import hashlib
import random

import orjson
import pytest

from raftkv.consensus.messages import SnapshotAck, SnapshotChunk
from raftkv.consensus.snapshot import (
    CHUNK_BYTES,
    SnapshotCatalog,
    SnapshotManifest,
    SnapshotReceiver,
    manifest_of,
)
from raftkv.consensus.snapshot_sender import SnapshotSender
from raftkv.errors import CorruptData, UnsupportedVersion
from raftkv.types import ClusterId, Index, NodeId, Revision, Term
from tests.consensus.harness import CLUSTER
from tests.simulation.disk import SimulatedCrash, VirtualDisk

MEMBERS = (NodeId("a"), NodeId("b"))


def content(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def put_copy(disk: VirtualDisk, data: bytes) -> None:
    file = disk.root.create("copy.partial")
    file.append(data)
    file.close()


def taken(disk: VirtualDisk, index: int = 9, data: bytes = b"") -> tuple[SnapshotCatalog, SnapshotManifest]:
    catalog = SnapshotCatalog(disk.root, CLUSTER)
    return catalog, adopt(catalog, disk, index, 5, data or content(3 * CHUNK_BYTES // 2))


def adopt(catalog: SnapshotCatalog, disk: VirtualDisk, index: int, revision: int, data: bytes) -> SnapshotManifest:
    put_copy(disk, data)
    manifest = manifest_for(index, revision, data)
    catalog.adopt_copy(manifest)
    return manifest


def manifest_for(index: int, revision: int, data: bytes) -> SnapshotManifest:
    digest = hashlib.sha256(data).hexdigest()
    return SnapshotManifest(2, CLUSTER, Index(index), Term(2), Revision(revision), MEMBERS, len(data), digest, 6, "0.1")


def transfer(sender: SnapshotSender, receiver: SnapshotReceiver) -> None:
    now = 0.0
    while not sender.is_complete:
        now += 0.1
        chunk = sender.next_chunk(Term(3), now)
        assert chunk is not None
        if receiver.accept(chunk):
            receiver.write([chunk.data])
        sender.acknowledge(SnapshotAck(3, chunk.index, receiver.next_offset, failed=False, number=chunk.number), now)


def sender_of(catalog: SnapshotCatalog, manifest: SnapshotManifest) -> SnapshotSender:
    return SnapshotSender(manifest, lambda offset, size: catalog.read(manifest, offset, size), 1e9)


def test_a_snapshot_is_what_its_manifest_says():
    disk = VirtualDisk()
    catalog, manifest = taken(disk)
    assert catalog.newest() == manifest
    catalog.verify(manifest)
    assert (manifest.index, manifest.members, manifest.size) == (9, MEMBERS, 3 * CHUNK_BYTES // 2)
    disk.crash(random.Random(1))
    catalog.verify(manifest)


def test_the_newest_is_by_index_and_older_ones_go():
    disk = VirtualDisk()
    _catalog, older = taken(disk, 9)
    catalog, newer = taken(disk, 10)
    assert catalog.newest() == newer
    catalog.remove_older_than(newer, [older])
    catalog.verify(older)
    catalog.remove_older_than(newer)
    assert disk.root.names() == [newer.data_name, newer.manifest_name]
    with pytest.raises(CorruptData, match="is missing"):
        catalog.verify(older)


def test_damage_is_found_wherever_it_is():
    disk = VirtualDisk()
    catalog, manifest = taken(disk, data=content(500))
    for bit in range(0, 8 * 500, 13):
        disk.root.flip_bit(manifest.data_name, bit)
        with pytest.raises(CorruptData, match=f"disk/{manifest.data_name}"):
            catalog.verify(manifest)
        disk.root.flip_bit(manifest.data_name, bit)
    for bit in range(8 * len(disk.root.read(manifest.manifest_name))):
        disk.root.flip_bit(manifest.manifest_name, bit)
        with pytest.raises(CorruptData, match=f"disk/{manifest.manifest_name}"):
            catalog.newest()
        disk.root.flip_bit(manifest.manifest_name, bit)
    catalog.verify(manifest)
    del disk.root.files[manifest.data_name].data[100:]
    with pytest.raises(CorruptData):
        catalog.verify(manifest)


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{}", b'{"manifest": 1, "sha256": 2}', b'{"manifest": {}, "sha256": "x"}'],
)
def test_what_is_no_manifest_is_refused(data):
    with pytest.raises(CorruptData, match="somewhere"):
        SnapshotManifest.decode(data, "somewhere")


def test_a_manifest_of_another_format_cluster_or_name_is_refused():
    disk = VirtualDisk()
    _catalog, manifest = taken(disk)
    with pytest.raises(CorruptData, match="it is of cluster"):
        SnapshotCatalog(disk.root, ClusterId("f" * 16)).newest()
    disk.root.rename(manifest.manifest_name, "9" * 16 + "-" + "1" * 16 + ".json")
    with pytest.raises(CorruptData, match="it describes"):
        SnapshotCatalog(disk.root, CLUSTER).newest()
    future = SnapshotManifest(99, CLUSTER, Index(1), Term(1), Revision(1), MEMBERS, 0, "", 6, "0.1")
    with pytest.raises(UnsupportedVersion, match="snapshot format 99 is newer than this release"):
        SnapshotManifest.decode(future.encode(), "somewhere")


def test_a_crash_at_any_step_leaves_the_old_snapshot_or_the_new_one():
    for seed in range(3):
        crash_at = 0
        while True:
            disk = VirtualDisk()
            catalog, old = taken(disk, 9, content(300))
            put_copy(disk, content(400, 2))
            new = manifest_for(10, 6, content(400, 2))
            disk.crash_at = disk.operations + crash_at
            try:
                catalog.adopt_copy(new)
                catalog.remove_older_than(new)
                finished = True
            except SimulatedCrash:
                finished = False
            disk.crash_at = None
            disk.crash(random.Random(100 * crash_at + seed))
            again = SnapshotCatalog(disk.root, CLUSTER)
            again.discard_partial()
            newest = again.newest()
            assert newest is not None
            assert newest.index in (9, 10)
            again.verify(newest)
            assert not finished or newest.index == 10
            assert "copy.partial" not in disk.root.names()
            del old
            if finished:
                break
            crash_at += 1
        assert crash_at > 5


def test_a_snapshot_travels_in_acknowledged_pieces():
    source, target = VirtualDisk(), VirtualDisk()
    catalog, manifest = taken(source)
    receiving = SnapshotCatalog(target.root, CLUSTER)
    receiver = receiving.start_receiving(manifest)
    transfer(sender_of(catalog, manifest), receiver)
    assert receiver.next_offset == manifest.size
    receiving.adopt_received(receiver)
    assert receiving.newest() == manifest
    receiving.verify(manifest)


def test_pieces_out_of_order_or_beyond_the_end_change_nothing():
    catalog, manifest = taken(VirtualDisk())
    receiver = SnapshotCatalog(VirtualDisk().root, CLUSTER).start_receiving(manifest)
    first = sender_of(catalog, manifest).next_chunk(Term(3), 0.0)
    for offset, data in ((1, b"x"), (CHUNK_BYTES, b"x"), (0, bytes(manifest.size + 1))):
        assert not receiver.accept(SnapshotChunk(3, 9, 2, first.manifest, offset, data, last=False))
        assert receiver.next_offset == 0
    assert receiver.accept(first)
    assert not receiver.accept(first)
    assert receiver.next_offset == CHUNK_BYTES


def test_what_arrived_damaged_is_thrown_away_and_can_be_received_again():
    source, target = VirtualDisk(), VirtualDisk()
    catalog, manifest = taken(source)
    receiving = SnapshotCatalog(target.root, CLUSTER)
    receiver = receiving.start_receiving(manifest)
    transfer(sender_of(catalog, manifest), receiver)
    target.root.flip_bit("incoming.partial", 77)
    with pytest.raises(CorruptData, match="does not match its manifest"):
        receiving.adopt_received(receiver)
    assert target.root.names() == []
    receiver = receiving.start_receiving(manifest)
    assert receiver.next_offset == 0
    transfer(sender_of(catalog, manifest), receiver)
    receiving.adopt_received(receiver)
    receiving.verify(manifest)
    assert target.root.names() == [manifest.data_name, manifest.manifest_name]


def received_in_part(catalog: SnapshotCatalog, manifest: SnapshotManifest, disk: VirtualDisk) -> None:
    receiver = SnapshotCatalog(disk.root, CLUSTER).start_receiving(manifest)
    chunk = sender_of(catalog, manifest).next_chunk(Term(3), 0.0)
    assert chunk is not None
    assert receiver.accept(chunk)
    receiver.write([chunk.data])
    assert receiver.next_offset == CHUNK_BYTES
    receiver.close()


def test_what_arrived_before_a_restart_need_not_arrive_again():
    catalog, manifest = taken(VirtualDisk())
    target = VirtualDisk()
    received_in_part(catalog, manifest, target)
    again = SnapshotCatalog(target.root, CLUSTER)
    again.discard_partial()
    receiver = again.start_receiving(manifest)
    assert receiver.next_offset == CHUNK_BYTES
    transfer(sender_of(catalog, manifest), receiver)
    again.adopt_received(receiver)
    again.verify(manifest)
    assert target.root.names() == [manifest.data_name, manifest.manifest_name]


def test_what_could_not_be_synced_is_not_gone_on_with_after_a_restart():
    catalog, manifest = taken(VirtualDisk())
    target = VirtualDisk()
    receiving = SnapshotCatalog(target.root, CLUSTER)
    receiver = receiving.start_receiving(manifest)
    transfer(sender_of(catalog, manifest), receiver)
    target.fail_syncs = True
    with pytest.raises(OSError, match="Input/output error"):
        receiving.adopt_received(receiver)
    target.fail_syncs = False
    again = SnapshotCatalog(target.root, CLUSTER)
    receiver = again.start_receiving(manifest)
    assert receiver.next_offset == 0
    transfer(sender_of(catalog, manifest), receiver)
    again.adopt_received(receiver)
    target.crash(random.Random(1))
    again.verify(manifest)


@pytest.mark.parametrize("seed", range(30))
def test_what_a_power_loss_leaves_of_a_transfer_ends_in_the_whole_snapshot(seed):
    catalog, manifest = taken(VirtualDisk())
    target = VirtualDisk()
    received_in_part(catalog, manifest, target)
    rng = random.Random(seed)
    target.crash(rng)
    if "incoming.partial" in target.root.names() and target.root.size("incoming.partial") and seed % 2:
        target.root.flip_bit("incoming.partial", rng.randrange(8 * target.root.size("incoming.partial")))
    again = SnapshotCatalog(target.root, CLUSTER)
    again.discard_partial()
    for _ in range(2):
        receiver = again.start_receiving(manifest)
        transfer(sender_of(catalog, manifest), receiver)
        try:
            again.adopt_received(receiver)
            break
        except CorruptData:
            assert again.newest() is None
    again.verify(manifest)


def test_what_arrived_of_another_snapshot_is_given_up():
    catalog, manifest = taken(VirtualDisk())
    _newer_catalog, newer = taken(VirtualDisk(), 10, content(100, 3))
    target = VirtualDisk()
    received_in_part(catalog, manifest, target)
    assert SnapshotCatalog(target.root, CLUSTER).start_receiving(newer).next_offset == 0
    # The node caught up in another way: what arrived only takes up room.
    received_in_part(catalog, manifest, target := VirtualDisk())
    own, ours = taken(target, 9, content(50, 4))
    own.remove_older_than(ours)
    assert target.root.names() == [ours.data_name, ours.manifest_name]


def test_a_full_disk_while_receiving_is_told():
    catalog, manifest = taken(VirtualDisk())
    target = VirtualDisk()
    receiver = SnapshotCatalog(target.root, CLUSTER).start_receiving(manifest)
    target.capacity = 100
    with pytest.raises(OSError, match="No space left"):
        receiver.write([sender_of(catalog, manifest).next_chunk(Term(3), 0.0).data])


def test_a_chunk_must_belong_to_its_manifest():
    catalog, manifest = taken(VirtualDisk())
    chunk = sender_of(catalog, manifest).next_chunk(Term(3), 0.0)
    assert manifest_of(chunk, NodeId("a")) == manifest
    other = SnapshotChunk(3, 10, 2, chunk.manifest, 0, b"", last=False)
    with pytest.raises(CorruptData, match="the chunk belongs to another snapshot"):
        manifest_of(other, NodeId("a"))
    document = orjson.loads(chunk.manifest)
    document["manifest"]["size"] = 1
    forged = SnapshotChunk(3, 9, 2, orjson.dumps(document), 0, b"", last=False)
    with pytest.raises(CorruptData, match="does not match its digest"):
        manifest_of(forged, NodeId("a"))
