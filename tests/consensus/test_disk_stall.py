"""A disk that answers nothing: its node gives leadership away, and takes no part in elections until it answers."""

from __future__ import annotations

from raftkv.consensus.disk_stall import DiskStall
from raftkv.consensus.guard import Guards
from raftkv.consensus.messages import PreVote, PreVoteResult, TimeoutNow
from raftkv.types import NodeId, Role
from tests.consensus.harness import TIMING, Harness, ManualClock

TIMEOUT = TIMING.election_timeout_seconds


def stalled_leader(names=("a", "b", "c"), guards=None) -> Harness:
    """Return a cluster whose leader a has appended an entry that its disk does not take."""
    harness = Harness(names, *([] if guards is None else [guards]))
    harness.elect("a")
    harness.put("a", b"before")
    harness.settle()
    harness["a"].auto_sync = False
    harness.put("a", b"during")
    harness.settle()
    return harness


def test_leader_with_stalled_disk_hands_over_and_its_entry_commits():
    harness = stalled_leader()
    harness.advance(TIMEOUT + 0.1)
    assert harness["a"].core.disk_is_stalled
    assert harness["a"].core.role is Role.FOLLOWER
    leaders = [name for name in "bc" if harness[name].core.role is Role.LEADER]
    assert len(leaders) == 1
    assert harness[leaders[0]].payloads() == [b"before", b"during"]
    assert harness["a"].payloads() == [b"before"]
    harness["a"].auto_sync = True
    harness.advance(0.5)
    assert harness["a"].payloads() == [b"before", b"during"]
    assert [name for name in "abc" if harness[name].core.role is Role.LEADER] == leaders
    harness.assert_agreement()


def test_leader_with_busy_disk_keeps_its_leadership():
    harness = stalled_leader()
    for number in range(20):
        harness.advance(0.9 * TIMEOUT)
        assert not harness["a"].core.disk_is_stalled
        assert harness["a"].core.role is Role.LEADER
        harness["a"].sync()
        harness.put("a", b"%d" % number)


def test_without_the_rule_the_leader_stays_and_nothing_is_committed():
    harness = stalled_leader(guards=Guards(answering_disk=False))
    harness.advance(20 * TIMEOUT)
    assert harness["a"].core.role is Role.LEADER
    assert all(node.payloads() == [b"before"] for node in harness.nodes.values())


def test_leader_hands_over_to_the_follower_that_has_most():
    harness = stalled_leader()
    harness.advance(0.95 * TIMEOUT)
    harness.cut |= {("a", "c")}
    harness.put("a", b"only b has this")
    harness.settle()
    harness.cut.clear()
    harness.clock.time += 0.1 * TIMEOUT
    harness["a"].turn()
    assert [(message, target) for _source, target, message in posted(harness, TimeoutNow)] == [(TimeoutNow(1), "b")]


def posted(harness: Harness, kind: type):
    return [
        (source, target, message)
        for (source, target), queue in harness.links.items()
        for message in queue
        if isinstance(message, kind)
    ]


def test_leader_stays_when_the_others_have_no_majority_without_it():
    harness = stalled_leader()
    harness.isolate("c")
    harness.advance(3 * TIMEOUT, "a", "b")
    assert harness["a"].core.disk_is_stalled
    assert harness["a"].core.role is Role.LEADER
    harness.heal()
    harness.advance(TIMEOUT)
    assert harness["a"].core.role is Role.FOLLOWER
    assert any(harness[name].core.role is Role.LEADER for name in "bc")


def test_only_voter_stays_leader_with_a_stalled_disk():
    harness = stalled_leader(["a"])
    harness.advance(5 * TIMEOUT)
    assert harness["a"].core.role is Role.LEADER
    harness["a"].auto_sync = True
    harness.advance(0.1)
    assert harness["a"].payloads() == [b"before", b"during"]


def stalled_follower() -> Harness:
    harness = Harness()
    harness.elect("a")
    harness["b"].auto_sync = False
    harness.put("a", b"x")
    harness.settle()
    harness.advance(TIMEOUT + 0.1)
    assert harness["b"].core.disk_is_stalled
    assert harness["a"].core.role is Role.LEADER
    assert harness["c"].payloads() == [b"x"]
    return harness


def test_node_with_stalled_disk_does_not_campaign_until_it_answers():
    harness = stalled_follower()
    term = harness["b"].core.term
    harness.isolate("a")
    harness.held = {("b", "c"), ("c", "b")}
    harness.advance(10 * TIMEOUT, "b")
    assert not posted(harness, PreVote)
    harness["b"].core.receive(NodeId("c"), TimeoutNow(term))
    harness.advance(0.1, "b")
    assert (harness["b"].core.role, harness["b"].core.term) == (Role.FOLLOWER, term)
    harness["b"].auto_sync = True
    harness.advance(2 * TIMEOUT, "b")
    assert posted(harness, PreVote)


def test_node_with_stalled_disk_grants_no_pre_vote():
    harness = stalled_follower()
    harness.isolate("a")
    harness.advance(10 * TIMEOUT, "b", "c")
    answers = [message for source, _target, message in harness.delivered if isinstance(message, PreVoteResult)]
    assert answers
    assert not any(answer.granted for answer in answers)
    term = harness["c"].core.term
    assert term == 1, "without the vote of b, c cannot win, so it does not raise its term"
    harness["b"].auto_sync = True
    harness.advance(3 * TIMEOUT, "b", "c")
    assert any(harness[name].core.role is Role.LEADER for name in "bc")


def test_oldest_record_counts_however_many_follow():
    clock = ManualClock()
    stall = DiskStall(1.0, clock)
    stall.observe(0, 0)
    assert stall.unsynced_seconds == 0.0
    for position in range(1, 1001):
        stall.observe(position, 0)
        clock.time += 0.01
    assert round(stall.unsynced_seconds, 6) == 10.0
    assert len(stall._marks) < 200, "what it remembers is bounded by time, not by records"
    stall.observe(1000, 1)
    assert stall.is_stalled
    stall.observe(1000, 950)
    assert not stall.is_stalled
    assert 0.45 < stall.unsynced_seconds < 0.6
    stall.observe(1000, 1000)
    assert stall.unsynced_seconds == 0.0
