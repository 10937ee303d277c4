"""Group commit, and the three ways in which a proposal ends (H10)."""

from __future__ import annotations

import asyncio

import pytest

from raftkv.consensus.entries import Slot
from raftkv.errors import (
    ClusterVersionTooLow,
    InvalidRequest,
    LeadershipLost,
    NoLeader,
    Overloaded,
    ShuttingDown,
    StorageLow,
    Superseded,
    Timeout,
)
from raftkv.service.proposer import Proposer, ProposerLimits
from raftkv.store import commands
from raftkv.store.commands import Put, decode_commands
from raftkv.types import MAX_ENTRY_BYTES, Index, Revision, Term, Written
from raftkv.versions import ClusterVersion
from tests.consensus.harness import ManualClock


class FakeLog:
    def __init__(self) -> None:
        self.entries: list[list[Put]] = []
        self.leads = True

    def propose(self, payload: bytes) -> Slot | None:
        if not self.leads:
            return None
        self.entries.append(decode_commands(payload))
        return Slot(Index(len(self.entries)), Term(1))


class Fixture:
    def __init__(self, **limits) -> None:
        self.log = FakeLog()
        self.clock = ManualClock()
        self.refusal = None
        self.wakes = 0
        self.proposer = Proposer(
            self.log, self.clock, ProposerLimits(**limits), lambda _command: self.refusal, self._wake
        )

    def _wake(self) -> None:
        self.wakes += 1

    def put(self, key: bytes = b"k", size: int = 1) -> asyncio.Future:
        return self.proposer.submit(Put(key, bytes(size)))


def written(count: int) -> list[Written]:
    return [Written(Revision(number), None) for number in range(count)]


async def test_what_waits_travels_together():
    fixture = Fixture(entries_in_flight=1)
    first = fixture.put(b"first")
    fixture.proposer.flush()
    others = [fixture.put(b"%d" % number) for number in range(10)]
    fixture.proposer.flush()
    assert [len(entry) for entry in fixture.log.entries] == [1]
    assert not fixture.proposer.can_flush
    fixture.proposer.applied(Index(1), Term(1), written(1))
    assert (await first).revision == 0
    assert fixture.proposer.can_flush
    fixture.proposer.flush()
    fixture.proposer.applied(Index(2), Term(1), written(10))
    assert [(await future).revision for future in others] == list(range(10))
    assert fixture.proposer.pending_commands == 0


async def test_a_command_above_the_cluster_version_is_refused_and_names_both(monkeypatch):
    fixture = Fixture()
    version = ClusterVersion(0, 1)
    fixture.proposer._cluster_version = lambda: version
    monkeypatch.setitem(commands.REQUIRED_VERSIONS, Put, ClusterVersion(0, 2))
    with pytest.raises(ClusterVersionTooLow, match=r"needs cluster version 0\.2, and the cluster is at version 0\.1"):
        fixture.put()
    version = ClusterVersion(0, 2)
    fixture.put()
    fixture.proposer.flush()
    assert [len(entry) for entry in fixture.log.entries] == [1]


async def test_a_group_is_bounded_in_count_and_bytes():
    fixture = Fixture(entries_in_flight=100, commands_per_entry=3)
    for _ in range(7):
        fixture.put()
    fixture.put(size=400_000)
    fixture.put(size=400_000)
    fixture.put(size=1_500_000)
    fixture.proposer.flush()
    assert [len(entry) for entry in fixture.log.entries] == [3, 3, 2, 1, 1]


async def test_a_command_that_fits_into_no_entry_is_refused():
    with pytest.raises(InvalidRequest):
        Fixture().put(size=MAX_ENTRY_BYTES)


@pytest.mark.parametrize("refusal", [NoLeader("none"), StorageLow("full"), ShuttingDown("stopping")])
async def test_a_node_that_cannot_propose_refuses_at_once(refusal):
    fixture = Fixture()
    fixture.refusal = refusal
    with pytest.raises(type(refusal)):
        fixture.put()


async def test_too_many_or_too_large_commands_are_refused():
    fixture = Fixture(pending_commands=2, pending_bytes=10_000)
    fixture.put()
    fixture.put()
    with pytest.raises(Overloaded):
        fixture.put()
    fixture = Fixture(pending_bytes=10_000)
    fixture.put(size=9000)
    with pytest.raises(Overloaded):
        fixture.put(size=9000)


async def test_what_was_not_proposed_is_refused_when_leadership_is_lost():
    fixture = Fixture()
    future = fixture.put()
    fixture.refusal = NoLeader("gone")
    fixture.proposer.flush()
    with pytest.raises(NoLeader):
        await future
    fixture.refusal = None
    future = fixture.put()
    fixture.log.leads = False
    fixture.proposer.flush()
    with pytest.raises(NoLeader):
        await future


async def test_an_entry_of_another_term_at_the_index_is_superseded():
    fixture = Fixture()
    future = fixture.put()
    fixture.proposer.flush()
    fixture.proposer.applied(Index(1), Term(2), [])
    with pytest.raises(Superseded):
        await future


async def test_deadlines_end_what_waits_and_what_is_in_flight_differently():
    fixture = Fixture(entries_in_flight=1, timeout_seconds=5)
    in_flight = fixture.put()
    fixture.proposer.flush()
    waiting = fixture.put()
    fixture.clock.time += 4.9
    fixture.proposer.expire()
    assert not in_flight.done()
    fixture.clock.time += 0.2
    fixture.proposer.expire()
    with pytest.raises(Timeout):
        await in_flight
    with pytest.raises(Overloaded):
        await waiting
    assert fixture.proposer.pending_commands == 0
    fixture.proposer.applied(Index(1), Term(1), written(1))


async def test_what_will_be_applied_is_waited_for():
    fixture = Fixture(entries_in_flight=3, commands_per_entry=1, timeout_seconds=5)
    first, second, third = (fixture.put() for _ in range(3))
    fixture.proposer._will_be_applied = lambda index: index <= 2
    fixture.proposer.flush()
    fixture.clock.time += 60
    fixture.proposer.expire()
    with pytest.raises(Timeout):
        await third
    fixture.proposer.applied(Index(1), Term(1), written(1))
    assert (await first).revision == 0
    # The entry at the index may turn out to be another one.
    fixture.proposer.applied(Index(2), Term(2), written(1))
    with pytest.raises(Superseded):
        await second
    assert fixture.proposer.pending_commands == 0


async def test_a_stop_ends_everything():
    fixture = Fixture(entries_in_flight=1)
    in_flight = fixture.put()
    fixture.proposer.flush()
    waiting = fixture.put()
    fixture.proposer.stop()
    with pytest.raises(LeadershipLost):
        await in_flight
    with pytest.raises(ShuttingDown):
        await waiting


async def test_a_snapshot_over_what_is_in_flight_leaves_it_unknown():
    fixture = Fixture(entries_in_flight=2, commands_per_entry=1)
    covered, beyond = fixture.put(), fixture.put()
    fixture.proposer.flush()
    fixture.proposer.skipped_to(Index(1))
    with pytest.raises(LeadershipLost):
        await covered
    assert not beyond.done()
    fixture.proposer.stop()
    with pytest.raises(LeadershipLost):
        await beyond


async def test_a_caller_that_is_gone_before_the_proposal_costs_nothing():
    fixture = Fixture()
    future = fixture.put()
    future.cancel()
    fixture.proposer.flush()
    assert fixture.log.entries == []
    assert fixture.proposer.pending_commands == 0
    gone, there = fixture.put(), fixture.put()
    fixture.proposer.flush()
    gone.cancel()
    fixture.proposer.applied(Index(1), Term(1), written(2))
    assert (await there).revision == 1


async def test_what_waits_behind_a_full_log_does_not_outlive_the_leadership():
    fixture = Fixture(entries_in_flight=1)
    fixture.put()
    fixture.proposer.flush()
    waiting = fixture.put(b"decided in this leadership")
    fixture.proposer.flush()
    assert not waiting.done()
    fixture.refusal = NoLeader("it ended")
    fixture.proposer.flush()
    with pytest.raises(NoLeader):
        await waiting
    fixture.refusal = None
    fixture.proposer.flush()
    assert len(fixture.log.entries) == 1


async def test_abandoned_proposals_are_unknown_and_those_that_wait_are_not():
    fixture = Fixture(entries_in_flight=1)
    in_flight = fixture.put()
    fixture.proposer.flush()
    waiting = fixture.put()
    fixture.proposer.abandon("the disk does not answer")
    with pytest.raises(LeadershipLost, match="the disk does not answer"):
        await in_flight
    assert not waiting.done()
    fixture.proposer.applied(Index(1), Term(1), written(1))
    fixture.proposer.flush()
    fixture.proposer.applied(Index(2), Term(1), written(1))
    assert (await waiting).revision == 0


async def test_outcomes_of_a_large_entry_are_handed_out_over_several_iterations():
    fixture = Fixture(entries_in_flight=1)
    futures = [fixture.put(b"%d" % number) for number in range(300)]
    fixture.proposer.flush()
    fixture.proposer.applied(Index(1), Term(1), written(300))
    done = [sum(future.done() for future in futures)]
    while fixture.proposer.can_flush:
        fixture.proposer.flush()
        done.append(sum(future.done() for future in futures))
    assert done[-1] == 300
    assert max(b - a for a, b in zip([0, *done], done, strict=False)) <= 128
    assert [future.result().revision for future in futures] == list(range(300))


async def test_refusals_of_a_long_queue_are_handed_out_over_several_iterations():
    fixture = Fixture(entries_in_flight=1)
    futures = [fixture.put(b"%d" % number) for number in range(300)]
    fixture.refusal = NoLeader("gone")
    fixture.proposer.flush()
    assert 0 < sum(future.done() for future in futures) <= 128
    assert fixture.proposer.pending_commands == 0
    while fixture.proposer.can_flush:
        fixture.proposer.flush()
    assert all(isinstance(future.exception(), NoLeader) for future in futures)


async def test_stop_hands_out_everything_at_once():
    fixture = Fixture(entries_in_flight=1)
    applied = [fixture.put(b"%d" % number) for number in range(300)]
    fixture.proposer.flush()
    fixture.proposer.applied(Index(1), Term(1), written(300))
    waiting = [fixture.put(b"%d" % number) for number in range(300)]
    fixture.proposer.stop()
    assert [future.result().revision for future in applied] == list(range(300))
    assert all(isinstance(future.exception(), ShuttingDown) for future in waiting)
