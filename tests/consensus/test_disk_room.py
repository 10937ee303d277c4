"""Voters whose disks are nearly full: nothing is lost over them, and no write depends on them."""

from __future__ import annotations

import pytest

from raftkv.consensus import core as core_module
from raftkv.consensus.disk_room import DiskRoom, PeerRoom
from raftkv.consensus.messages import AppendEntries, encode
from raftkv.types import NodeId, Role
from tests.consensus.harness import Harness

A, B, C, D, E = (NodeId(name) for name in "abcde")


@pytest.mark.parametrize(
    ("low", "reachable", "expected"),
    [
        ([], "abc", []),
        ([C], "abc", []),
        ([B, C], "abc", [B, C]),
        ([C], "ac", [C]),
        ([A], "abc", []),
    ],
)
def test_writes_depend_on_a_voter_without_room(low, reachable, expected):
    room = PeerRoom()
    for voter in low:
        room.report(voter, DiskRoom.LOW)
    assert room.lacking([A, B, C], [NodeId(name) for name in reachable], DiskRoom.ENOUGH) == expected
    assert room.lacking([A, B, C], [NodeId(name) for name in reachable], DiskRoom.LOW) == []


def test_unreachable_voter_alone_is_no_lack_of_room():
    assert PeerRoom().lacking([A, B, C], [A], DiskRoom.ENOUGH) == []


def test_follower_with_an_exhausted_disk_takes_no_entries_and_catches_up_later():
    harness = Harness()
    harness.elect("a")
    harness["c"].core.disk_room = DiskRoom.EXHAUSTED
    before = harness["c"].journal.last_index
    for number in range(5):
        harness.put("a", b"%d" % number)
        harness.advance(0.1)
    assert harness["a"].payloads() == harness["b"].payloads() == [b"0", b"1", b"2", b"3", b"4"]
    assert harness["c"].journal.last_index == before
    assert harness["c"].core.leader == A, "heartbeats still arrive"
    term = harness["a"].core.term
    harness.advance(3.0)
    assert harness["a"].core.term == harness["c"].core.term == term
    harness["c"].core.disk_room = DiskRoom.ENOUGH
    harness.advance(1.0)
    assert harness["c"].payloads() == harness["a"].payloads()
    assert harness["a"].core.term == term


def test_entries_on_their_way_to_a_disk_that_fills_are_not_acknowledged():
    harness = Harness()
    harness.elect("a")
    harness.put("a", b"x")
    harness["a"].turn()
    for name in ("b", "c"):
        harness[name].core.disk_room = DiskRoom.EXHAUSTED
    harness.advance(0.5)
    assert harness["a"].payloads() == []
    harness["b"].core.disk_room = DiskRoom.ENOUGH
    harness.advance(1.0)
    assert harness["a"].payloads() == harness["b"].payloads() == [b"x"]


def test_exhausted_follower_still_votes():
    harness = Harness()
    harness.elect("a")
    harness["c"].core.disk_room = DiskRoom.EXHAUSTED
    harness.isolate("a")
    harness.elect("b", "b", "c")
    assert harness["c"].core.term == harness["b"].core.term


def test_leader_knows_who_can_follow_it_with_room():
    harness = Harness()
    harness.elect("a")
    core = harness["a"].core
    core.disk_room = DiskRoom.LOW
    harness["b"].core.disk_room = DiskRoom.LOW
    harness.advance(0.5)
    assert core.voters_without_room(DiskRoom.ENOUGH) == [A, B]
    assert core.voters_without_room(DiskRoom.LOW) == []
    assert core.successor_with_room() == C


def test_window_of_a_follower_without_room_does_not_stay_full(monkeypatch):
    """The entries of a full window are dropped; heartbeats go on, and the follower catches up when it has room."""
    monkeypatch.setattr(core_module, "PEER_WINDOW_BYTES", 10_000)
    harness = Harness()
    harness.elect("a")
    core, term = harness["a"].core, harness["a"].core.term
    harness.held.add((A, C))
    for number in range(50):
        harness.put("a", b"%02d" % number * 250)
        harness.settle()
    assert core.in_flight_bytes(C) >= 10_000
    harness["c"].core.disk_room = DiskRoom.EXHAUSTED
    harness.held.clear()
    before, last = len(harness.delivered), harness["c"].journal.last_index
    harness.advance(3.0)
    assert (core.role, core.term, harness["c"].core.leader) == (Role.LEADER, term, A)
    sent = [m for _a, target, m in harness.delivered[before:] if target == "c" and isinstance(m, AppendEntries)]
    assert len([message for message in sent if not message.entries]) >= 25
    assert harness["c"].journal.last_index == last
    harness["c"].core.disk_room = DiskRoom.ENOUGH
    harness.advance(0.4)
    assert harness["c"].payloads() == harness["a"].payloads()
    assert (core.in_flight_bytes(C), core.term) == (0, term)


@pytest.mark.parametrize("dropped", [1, 5])
def test_refusals_do_not_send_the_log_once_for_each_append_in_flight(monkeypatch, dropped):
    """A follower drops an append for want of room, has room again, and lacks the entry before each one that follows."""
    monkeypatch.setattr(core_module, "PEER_WINDOW_BYTES", 10_000)
    harness = Harness()
    harness.elect("a")
    harness.held |= {(A, C), (C, A)}
    queue = harness.links[A, C]
    for number in range(50):
        harness.put("a", b"%02d" % number * 250)
        harness.settle()

    def deliver_one() -> None:
        harness.deliver("a", "c")
        harness["c"].turn()
        while harness.links[C, A]:
            harness.deliver("c", "a")
        harness.settle()

    harness["c"].core.disk_room = DiskRoom.EXHAUSTED
    for _ in range(dropped):
        deliver_one()
    harness["c"].core.disk_room = DiskRoom.ENOUGH
    longest = 0
    for number in range(200):
        harness.clock.time += 0.005
        harness.put("a", b"%02d" % number * 50)
        harness.settle()
        longest = max(longest, sum(len(encode(message)) for message in queue))
        if queue:
            deliver_one()
    assert longest < 40_000
    harness.held.clear()
    harness.advance(0.5)
    assert harness["c"].payloads() == harness["a"].payloads()
    assert harness["a"].core.in_flight_bytes(C) == 0


def test_follower_that_needs_a_snapshot_reports_its_room():
    harness = Harness()
    harness.elect("a")
    harness.isolate("c")
    for number in range(5):
        harness.put("a", b"%d" % number)
        harness.advance(0.1)
    harness["a"].journal.compact(harness["a"].core.commit_index)
    for name in ("b", "c"):
        harness[name].core.disk_room = DiskRoom.EXHAUSTED
    harness.heal()
    harness.advance(0.5)
    assert harness["a"].core.take_peers_needing_snapshot() == {C}
    assert harness["a"].core.voters_without_room(DiskRoom.LOW) == [B, C]
