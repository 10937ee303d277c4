"""A snapshot's manifest has the history of the log, and a follower compares it with what the snapshot would replace."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raftkv.consensus.history import KEPT_HASHES, KEPT_TERMS, LogHistory, beginning_at, thinned
from raftkv.consensus.journal import Journal, RecoveredLog
from raftkv.consensus.log_comparison import find_snapshot_contradiction
from raftkv.consensus.messages import SnapshotHeartbeat
from raftkv.consensus.records import LogState
from raftkv.consensus.snapshot import SnapshotManifest
from raftkv.errors import LogDiverged
from raftkv.types import ClusterId, Index, NodeId, Revision, Term
from tests.consensus.harness import Harness
from tests.consensus.rollback import diverge_by_an_older_disk
from tests.consensus.test_log_hash import TERMS, forge_last_entry


def term_of(index: int) -> int:
    return 1 + index // 50


def journal_of(last: int, *, forged: int | None = None) -> Journal:
    """Return a log that never was compacted; one entry may be another one of the same term."""
    entries = [(b"\0%d" % index if index != forged else b"\0x", index, term_of(index)) for index in range(2, last + 1)]
    return Journal(RecoveredLog(Index(1), Term(0), entries, LogState(), []))


def following(history: LogHistory, base: int, last: int) -> Journal:
    """Return the log of a node that installed a snapshot, and has the entries after it."""
    entries = [(b"\0%d" % index, index, term_of(index)) for index in range(base + 1, last + 1)]
    return Journal(RecoveredLog(Index(base), Term(term_of(base)), entries, LogState(), []), history)


def test_hash_of_the_whole_log_outlives_compaction_restart_and_installation():
    whole, compacted = journal_of(300), journal_of(300)
    history = compacted.note_history(Index(200))
    compacted.mark_synced(compacted.position)
    compacted.compact(Index(200))
    restarted = following(history, 200, 300)
    installed = journal_of(9)
    installed.reset(Index(200), Term(term_of(200)), history)
    for index in range(201, 301):
        installed.add(b"\0%d" % index, index, term_of(index))
    expected = whole.range_hash(0, 300)
    assert expected is not None
    assert compacted.range_hash(0, 300) == restarted.range_hash(0, 300) == installed.range_hash(0, 300) == expected
    for journal in (compacted, restarted, installed):
        assert [journal.known_term_at(index) for index in (1, 49, 50, 199, 200, 300)] == [0, 1, 2, 4, 5, 7]
        assert journal.known_term_at(301) is None
        assert all(journal.range_hash(0, index) == whole.range_hash(0, index) for index, _hash in history.hashes)
        assert journal.note_history(Index(300)).log_hash == expected


def test_log_of_which_the_beginning_is_not_known_has_no_whole_hash():
    journal = following(LogHistory(), 200, 300)
    assert journal.range_hash(0, 300) is None
    assert journal.range_hash(200, 300) == journal_of(300).range_hash(200, 300)
    assert journal.known_term_at(199) is None
    assert journal.note_history(Index(300)) == LogHistory(None, ((5, 200), (6, 250), (7, 300)), ())


def test_truncation_takes_back_terms():
    journal = journal_of(120)
    journal.deleteEntriesFrom(98)
    assert journal.known_term_at(120) is None
    journal.add(b"\0other", 99, 9)
    assert [journal.known_term_at(index) for index in (98, 99)] == [2, 9]


def test_history_is_bounded_and_reaches_far_back():
    journal = Journal(RecoveredLog(Index(1), Term(0), [], LogState(), []))
    for term in range(1, 200):
        for _ in range(20):
            index = journal.last_index + 1
            journal.add(b"\0x", index, term)
        if term % 10 == 0:
            history = journal.note_history(journal.last_index)
    assert len(history.terms) == KEPT_TERMS
    assert len(history.hashes) <= KEPT_HASHES
    assert history.hashes[-1] == (index - 9 * 20, journal.range_hash(0, index - 9 * 20))
    assert history.hashes[0][0] < 500
    assert len(thinned((index, 0) for index in range(1, 1000))) == KEPT_HASHES


def test_manifest_keeps_the_history_and_one_without_is_read():
    history = journal_of(120).note_history(Index(120))
    cluster = ClusterId("0123456789abcdef")
    manifest = SnapshotManifest(
        2, cluster, Index(120), Term(3), Revision(5), (NodeId("a"),), 4, "ab" * 32, 6, "0.1", history
    )
    assert SnapshotManifest.decode(manifest.encode(), "test") == manifest
    assert SnapshotManifest.decode(replace(manifest, history=LogHistory()).encode(), "test").history == LogHistory()


@pytest.mark.parametrize(
    ("own", "commit_index", "contradiction"),
    [
        (journal_of(150), 150, None),
        (journal_of(150, forged=20), 150, (0, 40)),
        (journal_of(150, forged=20), 30, (0, 40)),
        (journal_of(10), 10, None),
    ],
    ids=["equal", "other committed entry", "other entry of the same term", "behind every hash"],
)
def test_snapshot_is_compared_by_hash(own: Journal, commit_index: int, contradiction: tuple[int, int] | None):
    leader = journal_of(200)
    for index in (40, 80, 120, 160, 200):
        leader._noted_hashes.append((index, leader.range_hash(0, index)))
    history = leader.note_history(Index(200))
    assert find_snapshot_contradiction(history, Index(200), own, Index(commit_index)) == contradiction


def test_snapshot_is_compared_by_term_at_the_commit_index():
    history = journal_of(200).note_history(Index(200))
    own = journal_of(60)
    own.deleteEntriesFrom(49)
    own.add(b"\0other", 50, 1)
    assert find_snapshot_contradiction(history, Index(200), own, Index(50)) == (49, 50)
    assert find_snapshot_contradiction(history, Index(200), own, Index(49)) is None, "an uncommitted entry may go"


def test_restored_members_begin_alike():
    first, second = (following(beginning_at(200, 5), 200, 300) for _ in range(2))
    assert first.range_hash(0, 300) == second.range_hash(0, 300) is not None


def compacted_leader(cluster: Harness, name: str) -> tuple[Index, LogHistory]:
    """Compact a leader's whole log behind a snapshot; return what the manifest says."""
    journal = cluster[name].journal
    index = journal.last_index
    history = journal.note_history(index)
    journal.compact(index)
    return index, history


@TERMS
def test_follower_with_other_committed_entries_refuses_the_snapshot_and_stops(later_terms: int):
    cluster = diverge_by_an_older_disk(later_terms=later_terms)
    cluster.put("b", b"more")
    cluster.settle("b", "c")
    index, history = compacted_leader(cluster, "b")
    # Only snapshots reach a: the leader has none of the entries that it needs.
    cluster.heal()
    cluster["a"].core.receive(NodeId("b"), SnapshotHeartbeat(cluster["b"].core.term, 1))
    before = list(cluster["a"].journal._entries)
    assert cluster["a"].core.contradicts_snapshot(NodeId("b"), index, history)
    with pytest.raises(LogDiverged, match=r"this node has other entries than a majority \(b, c\) up to index 3"):
        cluster.settle()
    assert cluster["a"].journal._entries == before


def test_without_a_majority_the_snapshot_is_refused_and_nobody_stops():
    cluster = Harness(("a", "b"))
    cluster.elect("a")
    cluster.put("a", b"x")
    cluster.settle()
    forge_last_entry(cluster, "b")
    cluster["b"].auto_sync = False
    cluster.put("a", b"y")
    cluster.isolate("b")
    journal = cluster["a"].journal
    history = journal.note_history(Index(3))
    journal.compact(Index(3))
    cluster.heal()
    cluster["b"].auto_sync = True
    assert cluster["b"].core.contradicts_snapshot(NodeId("a"), Index(3), history)
    cluster.settle()
    (report,) = cluster["a"].core.take_divergences()
    assert (report.peer, report.is_decided) == ("b", False)
    assert cluster["b"].core.divergence is not None


def test_equal_log_takes_the_snapshot():
    cluster = Harness()
    cluster.elect("a")
    for number in range(20):
        cluster.put("a", b"%d" % number)
    cluster.settle()
    index, history = compacted_leader(cluster, "a")
    assert not cluster["b"].core.contradicts_snapshot(NodeId("a"), index, history)
    assert cluster["b"].core.divergence is None
