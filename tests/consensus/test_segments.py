"""The journal at rest: recovery after crashes, damage and wrong directories."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftkv.consensus.journal import Journal
from raftkv.consensus.records import Promise
from raftkv.consensus.segments import SegmentedLog, recover
from raftkv.errors import CorruptData, ForeignData, InvariantViolated, StorageFailed
from raftkv.types import ClusterId, Index, Term
from raftkv.versions import FIRST_VERSION
from tests.consensus.harness import CLUSTER
from tests.simulation.disk import SimulatedCrash, VirtualDisk


class Log:
    """A journal with its disk, used as a node uses them."""

    def __init__(
        self,
        disk: VirtualDisk,
        snapshot=None,
        segment_bytes=1500,
        cluster_id=CLUSTER,
        cluster_version=lambda: FIRST_VERSION,
    ) -> None:
        self.disk = disk
        self.recovered = recover(disk.root, cluster_id, snapshot)
        self.journal = Journal(self.recovered)
        self.segments = SegmentedLog(disk.root, cluster_id, self.recovered, segment_bytes, cluster_version)

    def write(self) -> None:
        batch = self.journal.take_batch()
        if batch is not None:
            self.segments.write([batch])
            self.journal.mark_synced(batch.position)

    def add(self, count: int, term: int = 1, size: int = 20) -> None:
        for _ in range(count):
            self.journal.add(b"\0" + bytes(size), self.journal.last_index + 1, term)

    def state(self):
        return (
            list(self.journal[1:]),
            self.journal.getCurrentTerm(),
            self.journal.getVotedForNodeId(),
            self.journal.member_storage,
            self.journal.promise_of("b"),
        )


def filled_disk() -> VirtualDisk:
    disk = VirtualDisk()
    log = Log(disk)
    log.journal.setCurrentTerm(1, "a")
    log.add(12)
    log.write()
    log.journal.record_member_storage("b", "storage-of-b")
    log.journal.record_promise("b", Promise("life-of-b", 7))
    log.write()
    log.journal.deleteEntriesFrom(9)
    log.journal.setCurrentTerm(2, None)
    log.add(4, term=2)
    log.write()
    log.add(1, term=2)
    log.write()
    return disk


def test_everything_that_was_synced_is_recovered():
    disk = filled_disk()
    entries = [(b"\0" + bytes(20), i, 1 if i < 10 else 2) for i in range(2, 15)]
    expected = (entries, 2, None, {"b": "storage-of-b"}, Promise("life-of-b", 7))
    assert Log(disk).state() == expected
    assert len(disk.root.names()) > 1
    disk.crash(random.Random(0))
    assert Log(disk).state() == expected


def test_an_untouched_directory_is_an_empty_log():
    log = Log(VirtualDisk())
    assert log.state() == ([], 0, None, {}, None)
    assert (log.journal.base_index, log.journal.last_index) == (1, 1)


def test_every_flipped_bit_is_found_and_named():
    pristine = filled_disk()
    disk = filled_disk()
    for name in pristine.root.names():
        for bit in range(8 * len(pristine.root.read(name))):
            disk.root.flip_bit(name, bit)
            with pytest.raises((CorruptData, ForeignData)) as caught:
                recover(disk.root, CLUSTER, None)
            assert f"disk/{name}" in str(caught.value), (name, bit)
            disk.root.flip_bit(name, bit)
    assert Log(disk).state() == Log(pristine).state()


def test_a_cut_at_any_byte_of_the_last_segment_keeps_the_whole_frames_before_it():
    pristine = filled_disk()
    whole = Log(filled_disk()).state()[0]
    name = pristine.root.names()[-1]
    data = pristine.root.read(name)
    for length in range(len(data)):
        disk = filled_disk()
        del disk.root.files[name].data[length:]
        log = Log(disk)
        kept = log.state()[0]
        assert kept == whole[: len(kept)], length
        log.add(1, term=2)
        log.write()
        assert Log(disk).state()[0] == log.state()[0]


def test_a_cut_in_any_earlier_segment_is_an_error():
    pristine = filled_disk()
    for name in pristine.root.names()[:-1]:
        for length in range(len(pristine.root.read(name))):
            disk = filled_disk()
            del disk.root.files[name].data[length:]
            with pytest.raises(CorruptData):
                recover(disk.root, CLUSTER, None)


def test_zeros_behind_the_last_frame_are_cut_but_anything_else_there_is_an_error():
    disk = filled_disk()
    whole = Log(disk).state()
    name = disk.root.names()[-1]
    size = disk.root.size(name)
    for zeros in (1, 31, 100, 512, 4096):
        disk.root.files[name].data[size:] = bytes(zeros)
        assert recover(disk.root, CLUSTER, None).cut_bytes == zeros
    assert Log(disk).state() == whole
    disk.root.files[name].data[size:] = bytes(100) + b"\1" + bytes(500)
    with pytest.raises(CorruptData, match=f"{name}: corrupt at byte {size}.*does not match its checksum"):
        recover(disk.root, CLUSTER, None)


class TornWrite:
    """A journal of which the last write was not synced, and a copy of its disk with any part of that lost."""

    def __init__(self, commands: list[bytes], unsynced: list[bytes], cluster_id: ClusterId = CLUSTER) -> None:
        disk = VirtualDisk()
        log = Log(disk, segment_bytes=1 << 20, cluster_id=cluster_id)
        for command in commands:
            log.journal.add(b"\0" + command, log.journal.last_index + 1, 1)
            log.write()
        self.before = log.state()
        (self.name,) = disk.root.names()
        self.synced = disk.root.size(self.name)
        for command in unsynced:
            log.journal.add(b"\0" + command, log.journal.last_index + 1, 1)
        log.write()
        self.after = log.state()
        self.data = disk.root.read(self.name)

    def with_data(self, data: bytes) -> VirtualDisk:
        disk = VirtualDisk()
        file = disk.root.create(self.name)
        file.append(data)
        file.sync()
        disk.root.sync()
        return disk

    def recovered(self, data: bytes):
        """Recover, append to what is left, and recover again."""
        log = Log(self.with_data(data), segment_bytes=1 << 20)
        state = log.state()
        log.add(1)
        log.write()
        assert Log(log.disk, segment_bytes=1 << 20).state() == log.state()
        return state


TORN_WRITES = {
    "a frame of one sector": TornWrite([b"first", b"second"], [b"third"]),
    "values that are not zero": TornWrite([b"first", b"second"], [bytes(range(1, 256)) * 3, b"x" * 900, b"y"]),
    "values of zeros": TornWrite([b"first", bytes(700)], [bytes(1500), b"x" * 300, bytes(600)]),
}


@pytest.mark.parametrize("torn", TORN_WRITES.values(), ids=TORN_WRITES)
@pytest.mark.parametrize("page", [512, 4096])
def test_any_subset_of_lost_pages_of_an_unsynced_write_is_cut(torn: TornWrite, page: int):
    starts = range(torn.synced - torn.synced % page, len(torn.data), page)
    ends = {len(torn.data), *(start + 1 for start in starts), *starts, *(start + page - 1 for start in starts)}
    ends = sorted(end for end in ends if torn.synced <= end <= len(torn.data))
    for subset in range(1 << len(starts)):
        holed = bytearray(torn.data)
        for number, start in enumerate(starts):
            if subset >> number & 1:
                begin, end = max(start, torn.synced), min(start + page, len(holed))
                holed[begin:end] = bytes(end - begin)
        for end in ends:
            data = bytes(holed[:end])
            # A page of a value of zeros is not missed when it is lost.
            expected = torn.after if data == torn.data else torn.before
            assert torn.recovered(data) == expected, (subset, end)


@pytest.mark.parametrize("torn", TORN_WRITES.values(), ids=TORN_WRITES)
def test_every_flipped_bit_of_the_last_write_is_corruption_and_not_torn(torn: TornWrite):
    for bit in range(8 * len(torn.data)):
        data = bytearray(torn.data)
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptData, match=f"{torn.name}: corrupt at byte"):
            recover(torn.with_data(bytes(data)).root, CLUSTER, None)


@pytest.mark.parametrize("torn", TORN_WRITES.values(), ids=TORN_WRITES)
def test_a_lost_sector_before_the_last_write_is_corruption(torn: TornWrite):
    for start in range(0, torn.synced, 512):
        data = bytearray(torn.data)
        data[start : start + 512] = bytes(512)
        if bytes(data) == torn.data:
            continue
        with pytest.raises(CorruptData, match=f"{torn.name}: corrupt at byte"):
            recover(torn.with_data(bytes(data)).root, CLUSTER, None)


def test_a_hole_before_the_last_write_is_corruption_even_if_that_is_torn_too():
    torn = TORN_WRITES["values that are not zero"]
    data = bytearray(torn.data)
    data[1024:1536] = bytes(512)
    data[torn.synced + 512 : torn.synced + 1024] = bytes(512)
    with pytest.raises(CorruptData, match="and it is not the last"):
        recover(torn.with_data(bytes(data)).root, CLUSTER, None)


def test_a_frame_inside_a_value_does_not_hide_that_a_write_was_torn():
    """A client may put a copy of a journal into a value, which may come to lie where it was in the other journal."""
    other = TornWrite([b"other", b"values"], [b"x" * 2000], ClusterId("f" * 16))
    offset = other.synced
    value = b"v" * (512 - 32 - 16 - 17) + other.data[offset:]
    torn = TornWrite([b"first"], [value, value])
    assert torn.synced == offset - 512
    data = bytearray(torn.data)
    assert data[offset : offset + 32] == other.data[offset : offset + 32]
    data[torn.synced : torn.synced + 512] = bytes(512)
    assert torn.recovered(bytes(data)) == torn.before


@settings(max_examples=300, deadline=None)
@given(
    commands=st.lists(st.binary(max_size=1200), min_size=1, max_size=4),
    unsynced=st.lists(st.binary(max_size=1200), min_size=1, max_size=4),
    seed=st.integers(0, 2**32),
)
def test_whatever_is_lost_of_an_unsynced_write_the_node_starts_with_all_synced_ones(commands, unsynced, seed):
    torn = TornWrite(commands, unsynced)
    disk = torn.with_data(torn.data)
    disk.root.files[torn.name].synced = torn.synced
    disk.crash(random.Random(seed))
    data = disk.root.read(torn.name)
    assert torn.recovered(data) == (torn.after if data == torn.data else torn.before)


def test_a_missing_segment_is_an_error():
    disk = filled_disk()
    missing = disk.root.names()[1]
    disk.root.remove(missing)
    with pytest.raises(CorruptData, match=rf"{missing}.*the segment is missing"):
        recover(disk.root, CLUSTER, None)


def test_a_missing_first_segment_is_an_error_without_a_snapshot_that_covers_it():
    disk = filled_disk()
    disk.root.remove(disk.root.names()[0])
    with pytest.raises(CorruptData, match="the journal begins at entry"):
        recover(disk.root, CLUSTER, None)


def test_a_snapshot_without_a_journal_is_an_error():
    with pytest.raises(CorruptData, match="there is a snapshot but no journal"):
        recover(VirtualDisk().root, CLUSTER, (Index(5), Term(1)))


def test_the_journal_of_another_cluster_is_refused():
    disk = filled_disk()
    with pytest.raises(ForeignData, match=f"belongs to cluster {CLUSTER}, not to ffffffffffffffff"):
        recover(disk.root, ClusterId("f" * 16), None)


def test_a_segment_under_another_name_is_an_error():
    disk = filled_disk()
    names = disk.root.names()
    disk.root.rename(names[-1], names[0].replace("1", "9"))
    with pytest.raises(CorruptData):
        recover(disk.root, CLUSTER, None)


def test_compaction_removes_whole_segments_and_nothing_that_is_needed():
    disk = VirtualDisk()
    log = Log(disk)
    for _ in range(40):
        log.add(1)
        log.write()
    before = len(disk.root.names())
    log.journal.compact(Index(20))
    log.segments.remove_before(Index(20))
    assert len(disk.root.names()) < before
    again = Log(disk, snapshot=(Index(20), Term(1)))
    assert again.state()[0] == log.state()[0]
    assert again.journal.base_index == 20
    assert again.journal.term_at(Index(19)) is None
    assert again.journal.term_at(Index(20)) == 1


def test_a_snapshot_beyond_the_log_replaces_it_durably():
    disk = filled_disk()
    log = Log(disk, snapshot=(Index(50), Term(2)))
    assert (log.journal.base_index, log.journal.last_index, log.recovered.needs_reset) == (50, 50, True)
    log.write()
    again = Log(disk, snapshot=(Index(50), Term(2)))
    assert (again.journal.last_index, again.recovered.needs_reset) == (50, False)
    again.add(2, term=3)
    again.write()
    assert Log(disk, snapshot=(Index(50), Term(2))).journal.last_index == 52


def test_a_snapshot_that_contradicts_the_log_replaces_it():
    log = Log(filled_disk(), snapshot=(Index(5), Term(9)))
    assert (log.journal.base_index, log.journal.base_term, log.journal.last_index) == (5, 9, 5)


def test_durability_of_entries_follows_truncation_and_resets():
    log = Log(VirtualDisk())
    log.add(3)
    assert log.journal.durable_index == 1
    first = log.journal.take_batch()
    log.journal.deleteEntriesFrom(2)
    log.add(2, term=2)
    second = log.journal.take_batch()
    log.journal.mark_synced(first.position)
    assert log.journal.durable_index == 2
    log.journal.mark_synced(second.position)
    assert log.journal.durable_index == 4
    log.journal.reset(Index(30), Term(4))
    assert log.journal.durable_index == 30
    with pytest.raises(InvariantViolated):
        log.journal.compact(Index(31))
    with pytest.raises(InvariantViolated):
        log.journal.add(b"\0", 33, 4)


def test_a_failed_batch_of_one_commit_hint_never_causes_a_write():
    log = Log(VirtualDisk())
    log.add(1)
    log.write()
    log.journal.setRaftCommitIndex(2)
    assert log.journal.take_batch() is None
    log.add(1)
    log.write()
    assert Log(log.disk).journal.getRaftCommitIndex() == 2


def test_what_an_earlier_life_wrote_but_did_not_sync_is_durable_once_it_was_recovered():
    disk = filled_disk()
    log = Log(disk)
    log.add(1, term=2)
    batch = log.journal.take_batch()
    disk.crash_at = disk.operations + 1
    with pytest.raises(SimulatedCrash):
        log.segments.write([batch])
    disk.crash_at = None
    # The process was killed before its sync; the next one finds the record in the page cache, and believes it.
    recovered = Log(disk).state()
    assert recovered[0][-1][1] == 15
    disk.crash(random.Random(1))
    assert Log(disk).state() == recovered


def test_what_a_failed_sync_left_in_the_page_cache_is_written_anew():
    disk = filled_disk()
    log = Log(disk)
    log.add(1, term=2)
    disk.fail_syncs = True
    with pytest.raises(StorageFailed):
        log.write()
    disk.fail_syncs = False
    again = Log(disk)
    recovered = again.state()
    again.add(1, term=2)
    again.write()
    disk.crash(random.Random(1))
    assert Log(disk).state()[0][: len(recovered[0])] == recovered[0]


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 4)),
        st.tuples(st.just("truncate"), st.integers(1, 4)),
        st.tuples(st.just("vote"), st.integers(1, 3)),
        st.tuples(st.just("write"), st.just(0)),
        st.tuples(st.just("compact"), st.integers(1, 5)),
    ),
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(actions=ACTIONS, crash_at=st.integers(0, 60), seed=st.integers(0, 1000))
def test_after_any_crash_the_log_is_what_was_synced_or_some_of_what_was_being_written(actions, crash_at, seed):
    disk = VirtualDisk()
    snapshot = None
    possible = [([], 0, None, {}, None)]
    disk.crash_at = crash_at
    try:
        log = Log(disk, segment_bytes=1000)
        for action, number in actions:
            journal = log.journal
            if action == "add":
                log.add(number, term=max(1, journal.getCurrentTerm(), journal.last_term))
            elif action == "truncate" and journal.last_index - number > journal.base_index:
                journal.deleteEntriesFrom(len(journal) - number)
                journal.setCurrentTerm(journal.getCurrentTerm() + 1, None)
            elif action == "vote":
                journal.setCurrentTerm(journal.getCurrentTerm() + number, "abc"[number - 1])
            elif action == "compact" and journal.base_index + number <= journal.durable_index:
                # A snapshot at rest comes before every compaction.
                covered = Index(journal.base_index + number)
                snapshot = (covered, journal.term_at(covered))
                journal.compact(covered)
                possible = [([entry for entry in old[0] if entry[1] > covered], *old[1:]) for old in possible]
                log.segments.remove_before(covered)
            if action == "write":
                possible = [log.state()] if journal.position == journal.synced_position else [possible[-1], log.state()]
                log.write()
                possible = [log.state()]
    except SimulatedCrash:
        pass
    disk.crash_at = None
    disk.crash(random.Random(seed))
    recovered = Log(disk, snapshot=snapshot).state()
    before, after = possible[0], possible[-1]
    # A batch may be torn between two records, so that only its beginning is there.
    assert (
        recovered[0][: len(before[0])] == before[0]
        or recovered[0] == after[0][: len(recovered[0])]
        or (recovered[0] == before[0][: len(recovered[0])])
    )
    assert before[1] <= recovered[1] <= after[1]
    if len(possible) == 1:
        assert recovered == before


@pytest.mark.parametrize("snapshot", [(Index(64), Term(1)), (Index(64), Term(7))], ids=["its own term", "a newer term"])
@pytest.mark.parametrize("segment_bytes", [1, 1500])
def test_a_snapshot_that_supersedes_the_log_is_recorded_before_a_new_segment_begins(snapshot, segment_bytes):
    """A received snapshot was durable, and the power went before the journal knew; its last segment was full."""
    disk = filled_disk()
    for _life in range(3):
        log = Log(disk, snapshot, segment_bytes)
        assert log.recovered.base_index == 64
        assert log.journal.getCurrentTerm() == max(2, snapshot[1])
        log.write()
        log.add(1, term=7)
        log.journal.deleteEntriesFrom(1)
        log.write()
        log.segments.close()
    assert Log(disk, snapshot, segment_bytes).journal.last_index == 64


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.data())
def test_sizes_follow_additions_truncations_and_compactions(sizes, data):
    log = Log(VirtualDisk())
    for size in sizes:
        log.add(1, size=size)
    log.write()
    journal = log.journal
    journal.deleteEntriesFrom(data.draw(st.integers(1, len(sizes) + 1)))
    journal.compact(data.draw(st.integers(journal.base_index, journal.last_index)))
    log.add(1)
    entries = list(journal[1:])
    assert journal.entry_bytes == 1 + sum(len(command) for command, _index, _term in entries)
    tail_bytes = data.draw(st.integers(0, 500))
    behind = [sum(len(command) for command, _index, _term in entries[at:]) for at in range(len(entries) + 1)]
    enough = [at for at, size in enumerate(behind) if size >= tail_bytes]
    assert journal.index_for_tail(tail_bytes, journal.last_index) == journal.base_index + max(enough, default=0)
