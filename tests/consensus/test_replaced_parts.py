"""The holes that no rule could close, so that a part of the engine was replaced: the engine's own part shows the
fault, ours does not.

docs/consensus.md lists them. What only a socket or a process can show is tested in ``tests/runtime`` and
``tests/process``: H11 (strangers), H12k (lost disks), H12q (superseded connections).
"""

from __future__ import annotations

import builtins
import hashlib
import os
import random
import re
from itertools import permutations
from pathlib import Path

import pysyncobj.syncobj as engine_module
import pytest
from pysyncobj import SyncObj, SyncObjConf
from pysyncobj.journal import FileJournal
from pysyncobj.node import Node
from pysyncobj.transport import Transport

import raftkv
from raftkv.consensus import engine, journal
from raftkv.consensus.engine import Engine
from raftkv.consensus.journal import Batch, Journal, RecoveredLog
from raftkv.consensus.records import LogState
from raftkv.consensus.segments import SegmentedLog, recover
from raftkv.consensus.snapshot import SnapshotCatalog, SnapshotManifest
from raftkv.errors import ConfigurationError, CorruptData, InvariantViolated, StorageFailed
from raftkv.types import MAX_ENTRY_BYTES, Index, NodeId, Revision, Role, Term
from tests.consensus.harness import CLUSTER, TIMING, Harness, ManualClock, SeededRandomness
from tests.simulation.disk import SimulatedCrash, VirtualDisk


class _Alone(Transport):
    """The engine's transport without anybody to talk to."""

    def __init__(self):
        super().__init__(None, None, [])

    def send(self, node, message):
        return False


@pytest.fixture
def raw_engine(monkeypatch):
    """Build the unmodified engine, as it is without raftkv's replacements."""
    clock = ManualClock()
    monkeypatch.setattr(engine_module, "monotonicTime", clock.now)
    monkeypatch.setattr(engine_module, "random", random.Random(1))
    built = []

    def build(**settings):
        raft = SyncObj(
            Node("self"),
            [Node("other")],
            conf=SyncObjConf(autoTick=False, dynamicMembershipChange=False, **settings),
            transport=_Alone(),
        )
        built.append(raft)
        return raft

    yield build
    for raft in built:
        raft.destroy()


def _recovered_journal(entries: int) -> tuple[VirtualDisk, Journal, SegmentedLog]:
    disk = VirtualDisk()
    recovered = recover(disk.root, CLUSTER, None)
    log, kept = SegmentedLog(disk.root, CLUSTER, recovered), Journal(recovered)
    for index in range(2, entries + 2):
        kept.add(b"\0x%d" % index, index, 1)
    _write(kept, log)
    return disk, kept, log


def _write(kept: Journal, log: SegmentedLog) -> None:
    batch = kept.take_batch()
    assert isinstance(batch, Batch)
    log.write([batch])
    kept.mark_synced(batch.position)


def test_only_the_pinned_engine_is_accepted(monkeypatch):
    engine.check_engine_version()
    monkeypatch.setattr(engine, "ENGINE_VERSION", "0.3.18")
    with pytest.raises(ConfigurationError, match=r"0\.3\.17 is required, 0\.3\.18 is installed"):
        engine.check_engine_version()


# The engine's journal leaves its file to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_h2_the_engines_journal_loses_entries_when_it_dies_in_a_compaction(tmp_path, monkeypatch):
    theirs = FileJournal(str(tmp_path / "journal"))
    for index in range(1, 101):
        theirs.add(b"x", index, 1)

    def die(*_):
        raise SimulatedCrash

    monkeypatch.setattr(theirs, "add", die)
    with pytest.raises(SimulatedCrash):
        theirs.deleteEntriesTo(10)
    monkeypatch.undo()
    theirs._destroy()
    reopened = FileJournal(str(tmp_path / "journal"))
    left = len(reopened)
    reopened._destroy()
    assert left < 90


def test_h2_ours_keeps_every_entry_wherever_it_dies_in_a_truncation_or_compaction():
    crash_at = 0
    while True:
        disk, kept, log = _recovered_journal(100)
        synced = list(kept[1:])
        disk.crash_at = disk.operations + crash_at
        try:
            kept.deleteEntriesFrom(95)
            _write(kept, log)
            kept.add(b"\0new", 96, 2)
            _write(kept, log)
            log.remove_before(Index(50))
            finished = True
        except SimulatedCrash:
            finished = False
        disk.crash_at = None
        disk.crash(random.Random(crash_at))
        found = recover(disk.root, CLUSTER, None).entries
        assert found[:94] == synced[:94]
        if finished:
            assert crash_at > 2
            return
        crash_at += 1


def test_h2_an_entry_that_is_there_already_is_not_written_again():
    cluster = Harness()
    cluster.elect("a")
    cluster.put("a", b"x")
    cluster.settle()
    repeated = next(
        message for _, target, message in cluster.delivered if target == "b" and b"x" in repr(message).encode()
    )
    position = cluster["b"].journal.position
    cluster["b"].core.receive(NodeId("a"), repeated)
    assert cluster["b"].journal.position == position


def test_h8_the_engine_swallows_a_damaged_snapshot(tmp_path, raw_engine):
    dump = tmp_path / "dump"
    dump.write_bytes(b"damaged")
    raft = raw_engine(fullDumpFile=str(dump), journalFile=str(tmp_path / "journal"))
    raft.doTick(0)  # no error: an empty state machine from here on


def test_h8_ours_refuses_it():
    disk = VirtualDisk()
    catalog = SnapshotCatalog(disk.root, CLUSTER)
    file = disk.root.create("copy.partial")
    data = b"the store's content" * 100
    file.append(data)
    digest = hashlib.sha256(data).hexdigest()
    manifest = SnapshotManifest(2, CLUSTER, Index(9), Term(2), Revision(5), (NodeId("a"),), len(data), digest, 6, "0.1")
    catalog.adopt_copy(manifest)
    catalog.verify(manifest)
    disk.root.flip_bit(manifest.data_name, 77)
    with pytest.raises(CorruptData, match=r"do not match the manifest"):
        catalog.verify(manifest)
    disk.root.flip_bit(manifest.manifest_name, 555)
    with pytest.raises(CorruptData):
        catalog.newest()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_h9_the_engine_clears_its_journal_when_a_dump_is_not_of_its_first_entries(tmp_path, raw_engine):
    path = str(tmp_path / "journal")
    before = FileJournal(path)
    for index in range(1, 101):
        before.add(b"\x01", index, 1)
    before._destroy()
    dump = tmp_path / "dump"
    dump.write_bytes(b"present")
    raft = raw_engine(
        fullDumpFile=str(dump),
        journalFile=path,
        serializer=lambda *_: None,
        # A dump that was taken at entry 50, when the journal had not been compacted yet.
        deserializer=lambda _: ((b"\x01", 50, 1), (b"\x01", 49, 1), {Node("other")}),
    )
    raft.doTick(0)
    assert raft._SyncObj__raftLog[-1][1] == 50


def test_h9_ours_keeps_everything_behind_the_snapshot():
    disk, _kept, _log = _recovered_journal(100)
    recovered = recover(disk.root, CLUSTER, (Index(50), Term(1)))
    assert (recovered.base_index, recovered.entries[0][1], recovered.entries[-1][1]) == (50, 51, 101)
    assert not recovered.needs_reset


def test_h11_nothing_in_the_package_unpickles_and_the_engine_is_never_asked_to(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("the engine pickled or unpickled something")

    for name in ("loads", "dumps"):
        monkeypatch.setattr(engine_module.pickle, name, refuse, raising=False)
    cluster = Harness()
    cluster.elect("a")
    cluster.put("a", b"x")
    cluster.advance(1)
    assert cluster["b"].payloads() == [b"x"]
    sources = [path.read_text() for path in Path(raftkv.__file__).parent.rglob("*.py")]
    assert not any(re.search(r"^\s*(import|from) (pickle|shelve|marshal|dill)", text, re.MULTILINE) for text in sources)


def test_h12e_an_entry_of_the_batch_size_is_never_sent_in_pieces():
    assert MAX_ENTRY_BYTES + 1 < engine._BATCH_BYTES
    cluster = Harness()
    cluster.elect("a")
    cluster.put("a", bytes(MAX_ENTRY_BYTES))
    cluster.settle()
    assert cluster["b"].payloads() == [bytes(MAX_ENTRY_BYTES)]
    with pytest.raises(InvariantViolated, match="in pieces"):
        cluster["a"].core.propose(bytes(engine._BATCH_BYTES))


def test_peers_are_spoken_to_in_an_order_that_members_alone_decide():
    # The engine keeps sets of nodes. The hashes of these collide in the table of a small one.
    orders = set()
    for names in permutations(["n1", "n4", "n5", "m2", "m3"]):
        told: list[NodeId] = []
        empty = Journal(RecoveredLog(Index(1), Term(0), [(b"\0x", 1, 0)], LogState(1, None, 1, 1, 1, {}), []))
        raft = Engine(
            NodeId("n1"),
            [NodeId(name) for name in names[:3]],
            [NodeId(name) for name in names[3:]],
            empty,
            Index(1),
            TIMING,
            ManualClock(),
            SeededRandomness(1),
            lambda peer, _message, told=told: told.append(peer) or True,
            lambda _index, _command: None,
        )
        raft.reconfigure([NodeId(name) for name in names], [])
        for peer in sorted(names):
            if peer != "n1":
                raft.connect(NodeId(peer))
        raft.election_deadline = 0.0
        raft.tick()
        assert sorted(told) == ["m2", "m3", "n4", "n5"]
        orders.add(tuple(told))
    assert len(orders) == 1


def _leader_with_a_commit_hint_beyond_its_log() -> Engine:
    kept = Journal(RecoveredLog(Index(1), Term(0), [(b"\0x", 2, 1)], LogState(1, None, 9, 2, 1, {}), []))
    raft = Engine(
        NodeId("a"),
        [NodeId("a"), NodeId("b"), NodeId("c")],
        [],
        kept,
        Index(2),
        TIMING,
        ManualClock(),
        SeededRandomness(1),
        lambda _peer, _message: True,
        lambda _index, _command: None,
    )
    for index in range(3, 8):
        kept.add(b"\0y", index, 1)
    raft.tick()
    return raft


def test_h12f_a_commit_hint_beyond_the_log_would_commit_what_nobody_has(monkeypatch):
    assert _leader_with_a_commit_hint_beyond_its_log().commit_index == 2
    monkeypatch.setattr(journal, "clamp_recovered_commit", lambda commit, _base, _last: Index(commit))
    assert _leader_with_a_commit_hint_beyond_its_log().commit_index == 9


@pytest.mark.parametrize("fault", ["fail_writes", "fail_syncs", "capacity"])
def test_h12n_a_disk_that_refuses_is_an_error_that_stays(fault):
    disk, kept, log = _recovered_journal(3)
    setattr(disk, fault, disk.used() + 10 if fault == "capacity" else True)
    kept.add(b"\0more", 5, 1)
    batch = kept.take_batch()
    with pytest.raises(StorageFailed, match="writing the journal in disk failed"):
        log.write([batch])
    setattr(disk, fault, None if fault == "capacity" else False)
    with pytest.raises(StorageFailed):
        log.write([batch])


def test_h12p_a_log_is_never_emptied_below_what_is_committed():
    _disk, kept, _log = _recovered_journal(5)
    kept.setRaftCommitIndex(4)
    with pytest.raises(InvariantViolated, match="committed is 4"):
        kept.deleteEntriesFrom(2)
    with pytest.raises(InvariantViolated):
        kept.clear()
    with pytest.raises(InvariantViolated):
        kept.deleteEntriesTo(3)
    assert len(kept) == 6


def test_h10_the_engine_forgets_callbacks_of_a_lost_leader_and_ours_are_not_given_to_it():
    """Every waiter of ``raftkv.service.proposer`` ends; tests/service/test_proposer.py shows how."""
    cluster = Harness()
    cluster.elect("a")
    fired = []
    raft = cluster["a"].core._engine._raft
    cluster.isolate("a")
    raft._applyCommand(b"\0lost", lambda result, reason: fired.append(reason))
    cluster.settle("a")
    cluster.elect("b", "b", "c")
    cluster.put("b", b"kept")
    cluster.settle("b", "c")
    cluster.heal()
    cluster["a"].core.install_snapshot(Index(cluster["b"].journal.last_index), Term(2))
    cluster.advance(30)
    assert cluster["a"].core.role is Role.FOLLOWER
    assert fired == []


def test_the_engine_opens_no_file_and_no_socket(monkeypatch):
    def refuse(*args, **_kwargs):
        raise AssertionError(f"the engine touched {args}")

    monkeypatch.setattr(builtins, "open", refuse)
    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr("socket.socket", refuse)
    cluster = Harness()
    cluster.elect("a")
    cluster.put("a", b"x")
    cluster.advance(2)
    assert cluster["b"].payloads() == [b"x"]
