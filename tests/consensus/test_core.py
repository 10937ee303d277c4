"""The core when nothing is wrong with it: elections, replication, reads, hand-over, restarts, snapshots."""

from __future__ import annotations

from dataclasses import replace

import pytest

import raftkv.consensus.core as core_module
from raftkv.consensus import engine
from raftkv.consensus.core import RaftCore
from raftkv.consensus.engine import Timing
from raftkv.consensus.entries import payload_of
from raftkv.consensus.guard import ALL_GUARDS
from raftkv.consensus.journal import MEMBERSHIP_MARK
from raftkv.consensus.messages import AppendEntries, LogMismatch, PreVote, PreVoteResult, RequestVote, StatusRequest
from raftkv.errors import ConfigurationError, CorruptData, InvariantViolated, UndecodableEntry
from raftkv.types import Index, NodeId, Role, Term
from tests.consensus.harness import TIMING, Harness, SeededRandomness


def leaders(cluster: Harness) -> list[str]:
    return [name for name, node in cluster.nodes.items() if node.core.role is Role.LEADER and name not in cluster.down]


def test_a_cluster_elects_one_leader_by_itself():
    cluster = Harness("abcde")
    cluster.advance(3)
    assert len(leaders(cluster)) == 1
    assert len({node.core.leader for node in cluster.nodes.values()}) == 1


def test_a_single_member_leads_at_once():
    cluster = Harness("a")
    cluster.settle()
    assert leaders(cluster) == ["a"]
    cluster.put("a", b"x")
    cluster.settle()
    assert cluster["a"].payloads() == [b"x"]


def test_a_single_member_applies_only_what_is_synced():
    cluster = Harness("a")
    cluster.settle()
    cluster["a"].auto_sync = False
    cluster.put("a", b"x")
    cluster.settle()
    assert cluster["a"].payloads() == []
    cluster["a"].sync()
    cluster.settle()
    assert cluster["a"].payloads() == [b"x"]


def test_entries_are_applied_everywhere_in_order():
    cluster = Harness()
    cluster.elect("b")
    for number in range(50):
        cluster.put("b", b"%d" % number)
        if number % 7 == 0:
            cluster.settle()
    cluster.settle()
    for node in cluster.nodes.values():
        assert node.payloads() == [b"%d" % number for number in range(50)]


@pytest.mark.parametrize(
    "saying",
    [
        lambda term, commit_index, commit_term: PreVoteResult(term, 1, False, commit_index, commit_term),
        lambda term, commit_index, commit_term: PreVote(term + 1, 1, 1, 1, commit_index, commit_term),
    ],
    ids=["answers", "asks"],
)
def test_what_is_committed_may_be_learned_from_whoever_answers_a_pre_vote_or_asks_for_one(saying):
    cluster = Harness()
    cluster.elect("a")
    cluster.isolate("c")
    cluster["b"].auto_sync = False
    index, term = cluster.put("a", b"x")
    cluster.settle()
    cluster.isolate("b")
    cluster["b"].auto_sync = True
    cluster["b"].sync()
    follower = cluster["b"].core
    assert follower.commit_index < index, "nobody has told it"
    now = follower.term
    follower.receive(NodeId("c"), saying(now, index, term + 1))
    follower.step()
    assert follower.commit_index < index, "another entry is at that index"
    follower.receive(NodeId("c"), saying(now, index + 1, term))
    follower.step()
    assert follower.commit_index < index, "the log does not have it"
    follower.receive(NodeId("c"), saying(now, index, term))
    follower.step()
    assert follower.commit_index == index


def test_only_a_leader_takes_proposals():
    cluster = Harness()
    assert cluster["a"].core.propose(b"x") is None
    cluster.elect("a")
    assert cluster["b"].core.propose(b"x") is None
    cluster.advance(1)
    assert cluster["a"].payloads() == []


def test_a_slot_names_the_place_of_the_entry():
    cluster = Harness()
    cluster.elect("a")
    index, term = cluster.put("a", b"x")
    cluster.settle()
    assert (index, b"x") in cluster["c"].applied
    assert cluster["c"].journal.term_at(Index(index)) == term


def test_a_lost_leader_is_replaced_within_two_election_timeouts():
    cluster = Harness()
    cluster.elect("a")
    cluster.put("a", b"x")
    cluster.settle()
    cluster.crash("a")
    cluster.advance(4, "b", "c")
    assert len(leaders(cluster)) == 1
    cluster.put(leaders(cluster)[0], b"y")
    cluster.restart("a")
    cluster.advance(1)
    assert cluster["a"].payloads() == [b"x", b"y"]
    cluster.assert_agreement()


def test_a_closed_connection_of_the_leader_is_noticed_long_before_the_timeout():
    cluster = Harness()
    cluster.elect("a")
    cluster.advance(1)
    cluster.crash("a")
    for name in "bc":
        cluster[name].core.disconnected(NodeId("a"))
    cluster.advance(0.5, "b", "c")
    assert len(leaders(cluster)) == 1


def test_a_node_that_only_lost_its_link_does_not_disturb_the_others():
    cluster = Harness()
    cluster.elect("a")
    cluster["c"].core.disconnected(NodeId("a"))
    cluster.cut |= {("a", "c"), ("c", "a")}
    cluster.advance(10)
    assert cluster["a"].core.role is Role.LEADER
    assert cluster["a"].core.term == 1
    assert cluster["c"].core.leader is None


def test_follower_in_a_minority_knows_no_leader_after_an_election_timeout():
    cluster = Harness("abcde")
    cluster.elect("a")
    cluster.advance(1)
    # Its connections stay up: nothing but the silence says that the leader is gone.
    cluster.isolate("d", "e")
    cluster.advance(0.8)
    assert cluster["d"].core.leader == "a"
    cluster.advance(0.4)
    assert cluster["d"].core.leader is cluster["e"].core.leader is None
    assert [cluster[name].core.leader for name in "abc"] == ["a"] * 3
    cluster.heal()
    cluster.advance(0.3)
    assert {node.core.leader for node in cluster.nodes.values()} == {"a"}
    assert {node.core.term for node in cluster.nodes.values()} == {1}


def test_a_leader_without_a_majority_steps_down():
    cluster = Harness()
    cluster.elect("a")
    cluster.advance(1)
    cluster.isolate("a")
    cluster.advance(1.5, "a")
    assert cluster["a"].core.role is not Role.LEADER
    assert cluster["a"].core.propose(b"x") is None


def test_a_majority_goes_on_and_a_minority_does_not():
    cluster = Harness("abcde")
    cluster.elect("a")
    cluster.isolate("a", "b")
    cluster.put("a", b"lost")
    cluster.advance(5)
    assert [name for name in leaders(cluster) if name in "cde"] == leaders(cluster)
    cluster.put(leaders(cluster)[0], b"kept")
    cluster.advance(1)
    assert cluster["a"].payloads() == cluster["b"].payloads() == []
    cluster.heal()
    cluster.advance(3)
    assert all(node.payloads() == [b"kept"] for node in cluster.nodes.values())
    cluster.assert_agreement()


def test_all_nodes_restart_with_everything_that_was_acknowledged():
    cluster = Harness()
    cluster.elect("a")
    for number in range(20):
        cluster.put("a", b"%d" % number)
        cluster.settle()
    for seed, name in enumerate("abc"):
        cluster.crash(name, seed=seed)
    for name in "abc":
        cluster.restart(name)
    cluster.advance(4)
    assert len(leaders(cluster)) == 1
    assert all(node.payloads() == [b"%d" % number for number in range(20)] for node in cluster.nodes.values())


def test_nothing_is_applied_twice_after_a_restart():
    cluster = Harness()
    cluster.elect("a")
    cluster.put("a", b"x")
    cluster.settle()
    for name in "abc":
        cluster.crash(name, power_loss=False)
        cluster.restart(name)
    cluster.advance(4)
    assert all(node.payloads() == [b"x"] for node in cluster.nodes.values())


def test_leadership_is_handed_over():
    cluster = Harness()
    cluster.elect("a")
    cluster.advance(0.3)
    cluster["a"].core.transfer_leadership()
    cluster.advance(0.1)
    assert leaders(cluster) in (["b"], ["c"])
    cluster.put(leaders(cluster)[0], b"x")
    cluster.advance(0.3)
    assert cluster["a"].payloads() == [b"x"]


@pytest.mark.parametrize("target", ["b", "c"])
def test_leadership_is_handed_over_to_whom_one_likes(target):
    cluster = Harness()
    cluster.elect("a")
    cluster.advance(0.3)
    cluster["a"].core.transfer_leadership(target)
    cluster.advance(0.1)
    assert leaders(cluster) == [target]


@pytest.mark.parametrize("at", ["a", "b", "c"])
def test_reads_are_confirmed_at_every_node(at):
    cluster = Harness()
    cluster.elect("a")
    index, _term = cluster.put("a", b"x")
    cluster.settle()
    cluster[at].core.request_read(1)
    cluster.advance(0.1)
    assert [token for token, _index in cluster[at].reads] == [1]
    assert cluster[at].reads[0][1] >= index


def test_a_read_at_a_new_leader_waits_for_its_first_commit():
    cluster = Harness()
    cluster.elect("a")
    cluster.put("a", b"x")
    cluster.settle()
    cluster.isolate("a")
    cluster["b"].auto_sync = cluster["c"].auto_sync = True
    cluster.elect("b", "b", "c")
    cluster["b"].core.request_read(1)
    cluster.settle("b", "c")
    assert cluster["b"].reads == [(1, cluster["b"].core.commit_index)]
    assert cluster["b"].journal.term_at(cluster["b"].core.commit_index) == 2


def test_a_read_waits_while_no_majority_answers_and_passes_when_it_does():
    cluster = Harness()
    cluster.elect("a")
    cluster.cut |= {("b", "a"), ("c", "a")}
    cluster["a"].core.request_read(1)
    cluster.advance(0.3)
    assert cluster["a"].reads == []
    cluster.heal()
    cluster.advance(0.3)
    assert [token for token, _index in cluster["a"].reads] == [1]


def test_a_read_that_is_forgotten_is_never_confirmed():
    cluster = Harness()
    cluster.elect("a")
    cluster.isolate("a")
    cluster["a"].core.request_read(1)
    cluster["a"].core.request_read(2)
    cluster.settle()
    cluster["a"].core.forget_reads([1])
    cluster.heal()
    cluster.advance(3)
    assert [token for token, _index in cluster["a"].reads] == [2]


def test_a_followers_read_survives_a_change_of_leader():
    cluster = Harness()
    cluster.elect("a")
    cluster.isolate("a")
    cluster["c"].core.request_read(1)
    cluster.settle()
    cluster.elect("b", "b", "c")
    cluster.put("b", b"x")
    cluster.advance(0.5, "b", "c")
    assert [token for token, _index in cluster["c"].reads] == [1]


def test_a_follower_goes_on_from_a_snapshot():
    cluster = Harness()
    cluster.elect("a")
    cluster.isolate("c")
    for number in range(10):
        cluster.put("a", b"%d" % number)
        cluster.settle("a", "b")
    cluster["a"].journal.compact(Index(8))
    cluster.heal()
    follower = cluster["c"]
    assert follower.core.install_snapshot(Index(8), Term(1))
    follower.applied = cluster["a"].applied[:8]
    cluster.advance(1)
    assert follower.payloads() == cluster["a"].payloads()
    assert cluster["a"].core.match_index(NodeId("c")) == cluster["a"].journal.last_index


def test_a_peer_whose_next_entry_is_gone_is_reported():
    cluster = Harness()
    cluster.elect("a")
    cluster.advance(0.3)
    cluster.isolate("c")
    for number in range(10):
        cluster.put("a", b"%d" % number)
        cluster.settle("a", "b")
    cluster["a"].journal.compact(Index(11))
    cluster.heal()
    cluster.advance(0.5)
    assert cluster["a"].core.take_peers_needing_snapshot() == {"c"}
    assert cluster["c"].payloads() == []
    assert cluster["a"].core.role is Role.LEADER


def test_a_congested_peer_gets_nothing_until_it_has_drained():
    cluster = Harness()
    cluster.elect("a")
    cluster["a"].core.congested(NodeId("b"))
    cluster.put("a", b"x")
    cluster.settle()
    assert cluster["b"].payloads() == []
    cluster["a"].core.drained(NodeId("b"))
    cluster.advance(0.3)
    assert cluster["b"].payloads() == [b"x"]


def test_append_that_contradicts_committed_entries_is_refused_and_reported():
    cluster = Harness()
    cluster.elect("a")
    cluster.put("a", b"x")
    cluster.advance(0.3)
    core, journal = cluster["b"].core, cluster["b"].journal
    core.receive(NodeId("c"), AppendEntries(5, 9, 2, 1, ((b"\0other", 3, 4),)))
    cluster["b"].sync()
    (report,) = [message for message in cluster.links[NodeId("b"), NodeId("c")] if isinstance(message, LogMismatch)]
    assert report == LogMismatch(5, 2, 3, journal.range_hash(2, 3), entry_term=1)
    assert journal.last_index == 3
    assert core.divergence == "the log of b contradicts that of c, the leader of term 5, up to index 3"


def test_without_the_comparison_a_contradiction_of_committed_entries_stops_the_node():
    cluster = Harness(guards=replace(ALL_GUARDS, compare_log_hash=False))
    cluster.elect("a")
    cluster.put("a", b"x")
    cluster.advance(0.3)
    with pytest.raises(InvariantViolated, match="is committed here"):
        cluster["b"].core.receive(NodeId("c"), AppendEntries(5, 9, 2, 1, ((b"\0other", 3, 4),)))


def test_two_leaders_of_one_term_stop_the_node():
    cluster = Harness()
    cluster.elect("a")
    with pytest.raises(InvariantViolated, match="b leads term 1"):
        cluster["a"].core.receive(NodeId("b"), AppendEntries(1, 1, 1, 0, ()))


def test_messages_of_others_are_not_for_the_core():
    cluster = Harness()
    with pytest.raises(InvariantViolated, match="StatusRequest is not for the Raft core"):
        cluster["a"].core.receive(NodeId("b"), StatusRequest(1))


def test_a_vote_is_refused_to_a_log_that_lags_behind():
    cluster = Harness()
    cluster.elect("a")
    cluster.put("a", b"x")
    cluster.settle()
    cluster["b"].core.receive(NodeId("c"), RequestVote(9, 1, 0))
    cluster["b"].turn()
    assert cluster["b"].core.term == 9
    assert cluster["b"].journal.getVotedForNodeId() is None


def test_a_store_ahead_of_its_journal_does_not_start():
    cluster = Harness("a")
    with pytest.raises(CorruptData, match="the store has applied entry 9"):
        RaftCore(
            NodeId("a"),
            cluster.names,
            cluster["a"].journal,
            Index(9),
            TIMING,
            cluster.clock,
            SeededRandomness(1),
        )


@pytest.mark.parametrize(("heartbeat", "election"), [(0.1, 0.3), (0.0, 1.0), (-0.1, 1.0)])
def test_impossible_timings_are_refused(heartbeat, election):
    with pytest.raises(ConfigurationError, match="election timeout"):
        Timing(heartbeat, election)


def test_what_a_replaced_member_had_does_not_count_for_its_successor():
    cluster = Harness()
    cluster.elect("a")
    cluster.put("a", b"x")
    cluster.settle()
    core = cluster["a"].core
    assert core.match_index(NodeId("c")) == cluster["a"].journal.last_index
    core.reconfigure([NodeId("a"), NodeId("b")], [NodeId("c")], Index(3), frozenset({NodeId("c")}))
    assert core.match_index(NodeId("c")) == 0
    # Also when a learner takes a learner's place, which changes neither set.
    cluster.advance(0.3)
    assert core.match_index(NodeId("c")) == cluster["a"].journal.last_index
    core.reconfigure([NodeId("a"), NodeId("b")], [NodeId("c")], Index(3), frozenset({NodeId("c")}))
    assert core.match_index(NodeId("c")) == 0


def test_who_has_a_later_change_is_certain_of_the_one_before_it_after_a_power_cut():
    """What the confirmation of a removal rests on: no word on what is committed needs to have been durable."""
    cluster = Harness()
    node = cluster["b"]
    for index, payload in ((2, MEMBERSHIP_MARK + b"removal"), (3, b"x"), (4, MEMBERSHIP_MARK + b"confirmation")):
        node.journal.add(b"\0" + payload, index, 1)
    node.sync()
    assert node.core.commit_index == 1
    cluster.crash("b")
    cluster.restart("b")
    assert node.core.commit_index == 2


def test_a_candidate_that_learns_of_its_removal_does_not_lead():
    cluster = Harness()
    candidate = cluster["b"]
    candidate.campaign()
    candidate.turn()
    assert candidate.core.role is Role.CANDIDATE
    candidate.core.reconfigure([NodeId("a"), NodeId("c")], [], Index(1))
    cluster.settle()
    assert cluster["a"].core.term == candidate.core.term, "it has asked for votes, and got them"
    assert leaders(cluster) == []


@pytest.mark.parametrize("command", [b"\x02rogue", b"", b"\xff"])
def test_a_committed_entry_of_an_unknown_type_is_fatal(command):
    with pytest.raises(UndecodableEntry, match="entry 7 of term 3 is of the unknown type"):
        payload_of(command, 7, 3)


def test_committed_backlog_is_delivered_over_several_steps_in_order(monkeypatch):
    monkeypatch.setattr(engine, "DELIVERED_AT_ONCE", 10)
    harness = Harness(["a"])
    node = harness["a"]
    node.campaign()
    node.turn()
    node.turn()
    for number in range(35):
        node.core.propose(b"%d" % number)
        node.turn()
    before = list(node.applied)
    assert node.payloads() == [b"%d" % number for number in range(35)]
    # A restart without its store: everything is to be applied again.
    node.applied = [(1, None)]
    node.start()
    delivered = []
    while node.core.has_more_committed or not delivered:
        node.core.step()
        node.sync()
        known = len(node.applied)
        node.take()
        delivered.append(len(node.applied) - known)
    assert max(delivered) <= 10
    assert node.applied[: len(before)] == before


def test_bytes_in_flight_to_a_peer_that_does_not_sync_are_bounded(monkeypatch):
    monkeypatch.setattr(core_module, "PEER_WINDOW_BYTES", 10_000)
    cluster = Harness()
    cluster.elect("a")
    follower = cluster["c"]
    follower.auto_sync = False
    began = follower.journal.last_index
    for number in range(100):
        cluster.put("a", b"%d" % number * 500)
        cluster.settle()
    core = cluster["a"].core
    assert core.commit_index == cluster["a"].journal.last_index, "the others go on"
    assert 10_000 <= core.in_flight_bytes(NodeId("c")) < 12_000
    kept = follower.journal.entry_bytes
    assert kept < 13_000
    # It hears its leader all the time, so it does not campaign.
    term = core.term
    before = len(cluster.delivered)
    cluster.advance(3.0)
    assert (core.role, core.term) == (Role.LEADER, term)
    heartbeats = [message for _a, target, message in cluster.delivered[before:] if target == "c"]
    assert 20 <= sum(isinstance(message, AppendEntries) for message in heartbeats) <= 35
    assert follower.journal.entry_bytes == kept
    assert follower.journal.last_index > began
    follower.auto_sync = True
    cluster.advance(0.5)
    assert follower.journal.last_index == cluster["a"].journal.last_index
    assert core.in_flight_bytes(NodeId("c")) == 0
    cluster.assert_agreement()


def test_peer_that_lost_what_is_in_flight_says_so_to_a_heartbeat(monkeypatch):
    monkeypatch.setattr(core_module, "PEER_WINDOW_BYTES", 10_000)
    cluster = Harness()
    cluster.elect("a")
    cluster.held.add((NodeId("a"), NodeId("c")))
    for number in range(40):
        cluster.put("a", b"%d" % number * 500)
        cluster.settle()
    assert cluster["a"].core.in_flight_bytes(NodeId("c")) >= 10_000
    cluster.links[NodeId("a"), NodeId("c")].clear()
    cluster.held.clear()
    cluster.advance(0.5)
    assert cluster["c"].journal.last_index == cluster["a"].journal.last_index
    assert cluster["a"].core.in_flight_bytes(NodeId("c")) == 0


def test_slow_follower_still_votes(monkeypatch):
    """Its window is full and its journal unsynced; its vote waits for its disk, and no longer."""
    monkeypatch.setattr(core_module, "PEER_WINDOW_BYTES", 10_000)
    cluster = Harness()
    cluster.elect("a")
    cluster["c"].auto_sync = False
    for number in range(40):
        cluster.put("a", b"%d" % number * 500)
        cluster.settle()
    cluster.crash("a", power_loss=False)
    cluster["b"].campaign()
    cluster.settle()
    assert cluster["b"].core.role is not Role.LEADER
    cluster["c"].auto_sync = True
    cluster.settle()
    assert cluster["b"].core.role is Role.LEADER
    cluster.advance(0.5)
    assert cluster["c"].journal.last_index == cluster["b"].journal.last_index
