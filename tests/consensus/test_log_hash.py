"""Nodes compare the content of their logs, and the minority stops."""

from __future__ import annotations

import pytest

from raftkv.consensus.journal import Journal, RecoveredLog, entry_hash
from raftkv.consensus.log_comparison import Divergence, DivergenceVote
from raftkv.consensus.messages import (
    AppendEntries,
    AppendResult,
    LogDivergence,
    LogMismatch,
    ReadIndexRequest,
    ReadIndexResult,
    SnapshotHeartbeat,
)
from raftkv.consensus.records import LogState
from raftkv.errors import LogDiverged
from raftkv.types import Index, NodeId, Role, Term
from tests.consensus.harness import Harness
from tests.consensus.rollback import diverge_by_an_older_disk


def journal_of(count: int) -> Journal:
    entries = [(b"\0%d" % index, index, 1) for index in range(2, count + 2)]
    return Journal(RecoveredLog(Index(1), Term(0), entries, LogState(1, None, 1, count + 1, 1), []))


def forge_last_entry(cluster: Harness, name: str) -> None:
    """Give a node another last entry than it received, at the same index and term."""
    journal = cluster[name].journal
    _command, index, term = journal._entries[-1]
    journal._entries[-1] = (b"\0forged", index, term)
    journal._hash_sums[-1] = journal._hash_sums[-2] + entry_hash(b"\0forged", index, term)


TERMS = pytest.mark.parametrize("later_terms", [0, 2], ids=["same term", "later term"])


def last_leader_report(cluster: Harness, name: str) -> Divergence:
    (report,) = cluster[name].core.take_divergences()
    return report


@TERMS
def test_follower_that_differs_from_majority_stops_and_names_who_agrees(later_terms: int):
    cluster = diverge_by_an_older_disk(later_terms=later_terms)
    cluster.heal()
    with pytest.raises(LogDiverged, match=r"this node has other entries than a majority \(b, c\) up to index") as e:
        cluster.advance(1)
    report = last_leader_report(cluster, "b")
    assert (report.peer, report.agreeing, report.contradicting) == ("a", ("b", "c"), ("a",))
    assert report.peer_is_wrong
    assert not report.leader_is_wrong
    for name in ("a", "b"):
        assert f"{cluster[name].journal.range_hash(report.after, report.index):016x}" in str(e.value)
    assert str(report).startswith(f"a has other entries than a majority (b, c) up to index {report.index}: ")
    cluster.crash("a")
    cluster.put("b", b"more")
    cluster.settle("b", "c")
    assert cluster["c"].payloads() == [b"other", b"more"]


def test_follower_that_differs_in_a_later_term_truncates_nothing():
    cluster = diverge_by_an_older_disk(later_terms=1)
    cluster.heal()
    before = list(cluster["a"].journal._entries)
    with pytest.raises(LogDiverged):
        cluster.advance(1)
    assert cluster["a"].journal._entries == before
    assert cluster["a"].payloads() == [b"precious"]


def test_leader_that_differs_from_majority_stops_and_the_majority_goes_on():
    cluster = diverge_by_an_older_disk()
    cluster.crash("b", power_loss=False)
    cluster.restart("b")
    cluster.heal()
    cluster["a"].campaign()
    with pytest.raises(
        LogDiverged, match=r"a majority of the voters \(b, c\) has other entries than the leader up to index 3"
    ):
        cluster.advance(1)
    assert b"more" not in cluster["a"].payloads()
    cluster.crash("a")
    cluster.elect("b", "b", "c")
    cluster.put("b", b"more")
    cluster.settle("b", "c")
    assert cluster["c"].payloads() == [b"other", b"more"]


def test_leader_of_a_later_term_stops_when_a_majority_has_committed_other_entries():
    cluster = Harness()
    cluster.elect("a")
    cluster.put("a", b"x")
    cluster.settle()
    cluster.put("a", b"precious")
    cluster.settle()
    # Older disks of b and c elect c, which reaches nobody before b has its own disk again.
    cluster.crash("c", power_loss=False)
    cluster.crash("a", power_loss=False)
    disk, applied = cluster["b"].disk, cluster["b"].applied
    older = Harness()
    older.elect("a")
    older.put("a", b"x")
    older.settle()
    for name in ("b", "c"):
        cluster[name].disk, cluster[name].applied = older[name].disk, older[name].applied
        cluster.crash(name, power_loss=False)
        cluster.restart(name)
    cluster.dropped_types = {AppendEntries}
    cluster.elect("c", "b", "c")
    cluster.crash("b", power_loss=False)
    cluster.dropped_types.clear()
    cluster["b"].disk, cluster["b"].applied = disk, applied
    cluster.restart("b")
    cluster.restart("a")
    assert cluster["c"].core.role is Role.LEADER
    with pytest.raises(LogDiverged, match=r"a majority of the voters \(a, b\) has other entries than the leader"):
        cluster.advance(1)
    cluster.crash("c")
    cluster.advance(5, "a", "b")
    assert Role.LEADER in {cluster[name].core.role for name in "ab"}
    assert cluster["a"].payloads() == cluster["b"].payloads() == [b"x", b"precious"]


def two_members_that_differ(later_term: bool = False) -> Harness:
    """Return a cluster of two in which ``b`` has committed another entry than the leader ``a`` has."""
    cluster = Harness(("a", "b"))
    cluster.elect("a")
    cluster.put("a", b"x")
    cluster.settle()
    forge_last_entry(cluster, "b")
    if later_term:
        cluster["a"].campaign()
        cluster.settle()
    cluster.put("a", b"y")
    cluster.advance(1)
    return cluster


@pytest.mark.parametrize("later_term", [False, True])
def test_without_majority_no_node_stops_and_nothing_is_acknowledged(later_term: bool):
    cluster = two_members_that_differ(later_term)
    assert cluster["a"].payloads() == [b"x"]
    assert cluster["b"].journal.last_index == 3
    report = last_leader_report(cluster, "a")
    assert (report.peer, report.agreeing, report.contradicting, report.is_decided) == ("b", ("a",), ("b",), False)
    assert "no majority decides which log is wrong" in str(report)


def test_neither_side_confirms_reads_without_a_majority():
    cluster = two_members_that_differ()
    for name in "ab":
        cluster[name].core.request_read(7)
    cluster.advance(2)
    assert cluster["a"].reads == cluster["b"].reads == []
    assert cluster["b"].core.divergence == "the log of b contradicts that of a, the leader of term 1, up to index 3"
    assert "b has other entries than the leader" in (cluster["a"].core.divergence or "")


def test_leader_gives_no_read_index_to_a_member_that_contradicts_it():
    """A restarted member could ask before it has compared its log again."""
    cluster = Harness()
    cluster.elect("a")
    cluster.put("a", b"x")
    cluster.settle()
    forge_last_entry(cluster, "c")
    cluster.dropped_types = {LogDivergence}
    cluster.put("a", b"y")
    cluster.settle()
    assert cluster["a"].core.contradicting == {"c"}
    for peer, number in (("b", 5), ("c", 6)):
        cluster["a"].core.receive(NodeId(peer), ReadIndexRequest(number))
    cluster.settle()
    answers = [message for _source, _target, message in cluster.delivered if isinstance(message, ReadIndexResult)]
    assert answers == [ReadIndexResult(5, 4)]


def test_refusal_is_an_answer_that_a_leader_with_a_shorter_log_takes():
    """A leader that drops the answer would count the follower as lost."""
    cluster = Harness()
    cluster.elect("a")
    cluster.put("a", b"x")
    cluster.advance(0.3)
    cluster["b"].core.receive(NodeId("c"), AppendEntries(5, 1, 1, 0, ((b"\1", 2, 4),)))
    cluster["b"].sync()
    (answer,) = [each for each in cluster.links[NodeId("b"), NodeId("c")] if isinstance(each, AppendResult)]
    assert answer == AppendResult(5, 3, reset=True, success=False)


def test_follower_asks_for_a_read_index_only_after_the_leader_has_compared_its_log():
    """A follower that was ahead of the leader could read entries that the leader contradicts."""
    cluster = Harness()
    cluster.elect("a")
    cluster.put("a", b"x")
    cluster.settle()
    cluster.crash("c", power_loss=False)
    cluster.restart("c")
    # It hears the leader, and has not been sent where their logs match.
    cluster["c"].core.receive(NodeId("a"), SnapshotHeartbeat(1, 3))
    cluster.dropped_types = {AppendEntries}
    cluster["c"].core.request_read(1)
    cluster.settle()
    assert cluster["c"].core.leader == "a"
    assert cluster["c"].reads == []
    cluster.dropped_types.clear()
    cluster.advance(1)
    assert cluster["c"].reads == [(1, 3)]


def test_contradiction_is_forgotten_when_the_member_has_its_entries_again():
    cluster = two_members_that_differ()
    journal = cluster["b"].journal
    journal._entries[-1] = cluster["a"].journal[2]
    journal._hash_sums[-1] = journal._hash_sums[-2] + entry_hash(*journal._entries[-1])
    cluster.advance(1)
    assert cluster["a"].core.divergence is cluster["b"].core.divergence is None
    assert cluster["a"].core.contradicting == set()
    assert cluster["a"].payloads() == [*cluster["b"].payloads()[:1], b"y"]


def test_difference_far_below_the_last_entry_is_found():
    cluster = Harness()
    cluster.elect("a")
    cluster.put("a", b"x")
    cluster.settle()
    forge_last_entry(cluster, "c")
    journal = cluster["c"].journal
    command, index, term = b"\0y", journal.last_index + 1, 1
    journal._entries.append((command, index, term))
    journal._hash_sums.append(journal._hash_sums[-1] + entry_hash(command, index, term))
    cluster.isolate("c")
    cluster.put("a", b"y")
    cluster.settle()
    cluster.heal()
    cluster.put("a", b"z")
    with pytest.raises(LogDiverged, match=r"this node has other entries than a majority \(a, b\)"):
        cluster.advance(1)


def test_hash_of_a_range_does_not_depend_on_where_the_log_begins():
    whole, compacted, reset = journal_of(20), journal_of(20), journal_of(3)
    compacted.compact(Index(9))
    reset.reset(Index(9), Term(1))
    for index in range(10, 22):
        reset.add(b"\0%d" % index, index, 1)
    assert whole.range_hash(9, 21) == compacted.range_hash(9, 21) == reset.range_hash(9, 21) is not None
    assert whole.range_hash(12, 13) == compacted.range_hash(12, 13) != whole.range_hash(13, 14)
    assert compacted.range_hash(8, 21) is None
    assert whole.range_hash(1, 22) is None


def test_hash_follows_truncation():
    journal, expected = journal_of(20), journal_of(10)
    journal.deleteEntriesFrom(11)
    assert journal.range_hash(1, 11) == expected.range_hash(1, 11)
    journal.add(b"\0other", 12, 2)
    assert journal.range_hash(1, 12) != journal_of(11).range_hash(1, 12)


class LogOfTerm4:
    """A leader's log in which each entry has the hash 1."""

    def range_hash(self, after, to):
        return to - after

    def known_term_at(self, _index):
        return Term(4)


def test_member_that_accepts_what_is_before_the_difference_still_contradicts_the_leader():
    # Found by the simulation (5 nodes, seed 9100190): the report came and went for ever, and nobody learned of it.
    vote, voters = DivergenceVote(NodeId("a")), [NodeId(name) for name in "abcde"]
    assert (
        vote.count(NodeId("b"), LogMismatch(Term(9), 61, 62, 77, 4), LogOfTerm4(), voters, lambda _peer: 0) is not None
    )
    vote.accepted(NodeId("b"), Index(60))
    assert vote.contradicting(Term(9)) == {"b"}
    vote.accepted(NodeId("b"), Index(62))
    assert vote.contradicting(Term(9)) == set()
