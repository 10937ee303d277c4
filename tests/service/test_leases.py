"""Leases: the leader's time, and the service around it."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.config import Retention
from raftkv.errors import InvalidRequest, LeaseExists, LeaseNotFound, NotLeader
from raftkv.operations import MAX_LEASE_SECONDS, Lease, RefusalKind, Refused
from raftkv.service import duties
from raftkv.service.alarms import Quota
from raftkv.service.compactor import Compactor
from raftkv.service.duties import LeaderDuties
from raftkv.service.leases import EXPIRED_AT_ONCE, LeaseClock, Leases, SteadyClock
from raftkv.service.slices import SlicePolicy, Slices
from raftkv.service.writes import ClusterTime, Writes
from raftkv.store.commands import Compact, GrantLease, RevokeLease
from raftkv.store.lease import LeaseChange
from raftkv.store.results import Granted
from raftkv.types import NodeId, Revision, Term, Written


class Clock:
    time = 100.0

    def now(self) -> float:
        return self.time


class Randomness:
    def token(self) -> str:
        return "8000000000000005"


class Store:
    """The store and the log in one: what is proposed is applied at once, unless it is held back."""

    def __init__(self) -> None:
        self.kept: dict[int, Lease] = {}
        self.changes: list[LeaseChange] = []
        self.revision, self.compacted_revision = Revision(1), Revision(0)
        self.proposed: list[object] = []
        self.holds_back = False
        self.refusal: Exception | None = None
        self.confirmed = 0
        self.time = self.used_bytes = 0

    def alarms(self):
        return []

    def lease(self, lease_id):
        return self.kept.get(lease_id)

    def leases_steps(self):
        yield
        return list(self.kept.values())

    def lease_page(self, start, limit):
        found = sorted((lease for lease in self.kept.values() if lease.id >= start), key=lambda lease: lease.id)
        return found[:limit], found[limit].id if len(found) > limit else None

    def attached_keys_steps(self, lease_id):
        yield
        return [b"k%d" % lease_id]

    def take_lease_changes(self):
        changes, self.changes = self.changes, []
        return changes

    async def wait(self):
        self.confirmed += 1

    def submit(self, command):
        if self.refusal is not None:
            raise self.refusal
        self.proposed.append(command)
        future = asyncio.get_running_loop().create_future()
        if not self.holds_back:
            future.set_result(self.apply(command))
        return future

    def apply(self, command):
        if isinstance(command, GrantLease):
            if command.lease_id in self.kept:
                return Refused(RefusalKind.LEASE_EXISTS, "exists")
            self.kept[command.lease_id] = Lease(command.lease_id, command.seconds)
            self.changes.append(LeaseChange(command.lease_id, command.seconds))
            return Granted(self.revision, Lease(command.lease_id, command.seconds))
        if isinstance(command, RevokeLease):
            if self.kept.pop(command.lease_id, None) is None:
                return Refused(RefusalKind.LEASE_NOT_FOUND, "missing")
            self.changes.append(LeaseChange(command.lease_id, None))
        return Written(self.revision, None)


class NoPromotion:
    def due(self):
        return None


class Node:
    def __init__(self) -> None:
        self.clock, self.store, self.timer = Clock(), Store(), LeaseClock(1.0)
        self.term: Term | None = Term(1)
        retention = Compactor(Retention(compact_keep_revisions=10))
        self.duties = LeaderDuties(
            self.store,
            self.store,
            self.clock,
            self.timer,
            retention,
            Quota(0, "n1"),
            NoPromotion(),
            NoPromotion(),
            NoPromotion(),
            lambda: self.term,
        )
        writes = Writes(self.store, ClusterTime(self.store, self.clock, lambda: self.term), 60)
        self.leases = Leases(
            self.store,
            writes,
            self.store,
            self.timer,
            self.clock,
            Randomness(),
            2,
            self.require_leader,
            Slices(self.clock, SlicePolicy()),
        )
        self.duties.tick()

    def require_leader(self) -> None:
        if self.term is None:
            raise NotLeader(NodeId("other"), None)

    def after(self, seconds: float) -> None:
        self.clock.time += seconds
        self.duties.tick()


async def test_a_lease_lives_as_long_as_it_was_granted_for_and_not_less():
    node = Node()
    assert (await node.leases.grant(7, 10)).result == Lease(7, 10)
    node.duties.tick()
    node.after(9.9)
    assert (await node.leases.time_to_live(7, wants_keys=True)).result.remaining_seconds == 0
    assert node.store.lease(7) is not None
    node.after(0.2)
    assert node.store.proposed[-1] == RevokeLease(7)
    assert node.store.lease(7) is None
    node.duties.tick()
    with pytest.raises(LeaseNotFound):
        await node.leases.time_to_live(7)


async def test_a_keep_alive_gives_the_full_time_again_and_asks_a_majority():
    node = Node()
    await node.leases.grant(7, 10)
    node.duties.tick()
    for _ in range(5):
        node.after(9)
        before = node.store.confirmed
        assert (await node.leases.keep_alive(7)).result == 10
        assert node.store.confirmed == before + 1
    node.after(9.9)
    assert node.store.lease(7) is not None
    node.after(0.2)
    assert node.store.lease(7) is None


async def test_a_new_leader_gives_every_lease_its_full_time_and_more():
    node = Node()
    await node.leases.grant(7, 10)
    node.duties.tick()
    node.after(9)
    node.term = None
    node.after(0.5)
    for question in (node.leases.keep_alive(7), node.leases.time_to_live(7), node.leases.all()):
        with pytest.raises(NotLeader):
            await question
    node.term = Term(3)
    node.after(100)
    assert node.store.lease(7) is not None
    node.after(10.9)
    assert node.store.lease(7) is not None
    node.after(0.2)
    assert node.store.lease(7) is None


async def test_a_lease_whose_end_is_proposed_and_not_yet_decided_cannot_be_kept_alive():
    node = Node()
    await node.leases.grant(7, 10)
    node.duties.tick()
    node.store.holds_back = True
    node.after(11)
    keeping = asyncio.create_task(node.leases.keep_alive(7))
    await asyncio.sleep(0)
    assert not keeping.done()
    node.after(1)
    assert node.store.proposed.count(RevokeLease(7)) == 1, "proposed again only after a while"
    node.after(2)
    assert node.store.proposed.count(RevokeLease(7)) == 2
    node.store.apply(RevokeLease(7))
    with pytest.raises(LeaseNotFound):
        await asyncio.wait_for(keeping, 5)


async def test_a_lease_that_ends_while_its_keep_alive_is_confirmed_is_not_said_to_live():
    node = Node()
    await node.leases.grant(7, 10)
    node.duties.tick()
    node.after(9.9)
    node.store.holds_back = True
    confirmed = asyncio.Event()
    node.store.wait = confirmed.wait
    keeping = asyncio.create_task(node.leases.keep_alive(7))
    await asyncio.sleep(0)
    node.after(0.2)
    assert node.store.proposed[-1] == RevokeLease(7)
    confirmed.set()
    await asyncio.sleep(0)
    node.store.apply(RevokeLease(7))
    with pytest.raises(LeaseNotFound):
        await asyncio.wait_for(keeping, 5)


async def test_a_keep_alive_that_outlasts_a_leadership_is_confirmed_again_in_the_next():
    node = Node()
    await node.leases.grant(7, 10)
    node.duties.tick()
    node.after(9.9)
    node.store.holds_back = True
    confirmations: list[asyncio.Event] = []

    async def wait() -> None:
        confirmations.append(asyncio.Event())
        await confirmations[-1].wait()

    node.store.wait = wait
    keeping = asyncio.create_task(node.leases.keep_alive(7))
    await asyncio.sleep(0)
    node.after(0.2)
    assert node.store.proposed[-1] == RevokeLease(7)
    node.term = None
    node.after(0.1)
    node.term = Term(5)
    node.after(0.1)
    confirmations[0].set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    # What was proposed in the earlier leadership is decided before the first confirmation of the next.
    node.store.apply(RevokeLease(7))
    confirmations[1].set()
    with pytest.raises(LeaseNotFound):
        await asyncio.wait_for(keeping, 5)


def test_steady_time_stands_still_while_the_process_does():
    clock = Clock()
    steady = SteadyClock(clock)
    for _ in range(10):
        clock.time += 0.25
        steady.now()
    assert steady.now() == 2.5
    clock.time += 3600
    assert steady.now() == 3.0
    clock.time -= 50
    assert steady.now() == 3.0
    clock.time += 0.25
    assert steady.now() == 3.25


async def test_a_removed_lease_is_gone_before_the_clock_knows():
    node = Node()
    await node.leases.grant(7, 10)
    node.duties.tick()
    node.store.apply(RevokeLease(7))
    with pytest.raises(LeaseNotFound):
        await node.leases.keep_alive(7)


async def test_ids_and_times_are_checked():
    node = Node()
    assert (await node.leases.grant(0, 1)).result == Lease(5, 2), "a random id, and at least the shortest time"
    with pytest.raises(LeaseExists):
        await node.leases.grant(5, 60)
    for lease_id, seconds in ((-1, 60), (2**63, 60), (1, MAX_LEASE_SECONDS + 1)):
        with pytest.raises(InvalidRequest):
            await node.leases.grant(lease_id, seconds)
    for lease_id in (0, -3, 2**63, 99):
        for question in (node.leases.revoke(lease_id), node.leases.time_to_live(lease_id)):
            with pytest.raises(LeaseNotFound):
                await question
    await node.leases.revoke(5)
    assert (await node.leases.all()).result == []


async def test_leases_are_listed_by_their_end():
    node = Node()
    for lease_id, seconds in ((1, 30), (2, 10), (3, 20)):
        await node.leases.grant(lease_id, seconds)
    node.duties.tick()
    assert (await node.leases.all()).result == [2, 3, 1]


async def test_the_leader_compacts_and_does_not_insist():
    node = Node()
    node.store.revision = Revision(50)
    node.after(0)
    assert node.store.proposed == [Compact(Revision(40))]
    node.after(1)
    assert len(node.store.proposed) == 1
    node.store.refusal = NotLeader(NodeId("other"), None)
    node.after(3)
    node.store.refusal = None
    node.after(3)
    assert len(node.store.proposed) == 2
    node.term = None
    node.after(10)
    assert len(node.store.proposed) == 2


@given(st.lists(st.tuples(st.sampled_from(["grant", "renew", "remove", "wait"]), st.integers(1, 4), st.integers(1, 9))))
def test_no_lease_is_ever_taken_for_expired_before_its_time(steps):
    timer, now = LeaseClock(0.0), 0.0
    timer.begin([], now)
    seconds: dict[int, int] = {}
    ends: dict[int, float] = {}
    for step, lease_id, number in steps:
        if step == "grant" and lease_id not in seconds:
            timer.change(LeaseChange(lease_id, number), now)
            seconds[lease_id], ends[lease_id] = number, now + number
        elif step == "renew" and timer.renew(lease_id, now, now) is not None:
            ends[lease_id] = now + seconds[lease_id]
        elif step == "remove":
            timer.change(LeaseChange(lease_id, None), now)
            seconds.pop(lease_id, None)
            ends.pop(lease_id, None)
        elif step == "wait":
            now += number / 2
        for expired in timer.take_expired(now, 0.1):
            assert ends[expired] <= now
    now += 100
    assert set(timer.take_expired(now, 0.1)) == set(ends)


async def test_new_leader_finds_many_leases_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(duties, "LEASES_AT_ONCE", 10)
    node = Node()
    for number in range(1, 36):
        await node.leases.grant(number, 10)
    node.term = None
    node.after(0.1)
    node.term = Term(2)
    node.duties.tick()
    known = [node.timer.remaining(number, node.clock.now()) is not None for number in range(1, 36)]
    assert 0 < sum(known) <= 20
    # One that is not found yet is as alive as the others, and its time counts from the beginning too.
    assert (await node.leases.keep_alive(35)).result == 10
    node.after(5)
    assert (await node.leases.time_to_live(34)).result.remaining_seconds == 6
    node.after(0.1)
    node.after(0.1)
    assert all(node.timer.remaining(number, node.clock.now()) is not None for number in range(1, 36))


async def test_many_leases_that_end_at_once_are_removed_some_at_a_time():
    node = Node()
    for number in range(1, 501):
        await node.leases.grant(number, 10)
    node.duties.tick()
    node.store.proposed.clear()
    node.clock.time += 11
    node.duties.tick()
    first = len(node.store.proposed)
    assert first == EXPIRED_AT_ONCE
    node.duties.tick()
    node.duties.tick()
    assert sorted(command.lease_id for command in node.store.proposed) == list(range(1, 501))


async def test_lease_granted_while_others_are_found_keeps_its_own_time(monkeypatch):
    monkeypatch.setattr(duties, "LEASES_AT_ONCE", 1)
    node = Node()
    for number in range(1, 6):
        await node.leases.grant(number, 10)
    node.term = None
    node.after(0.1)
    node.term = Term(2)
    node.duties.tick()
    node.clock.time += 3
    await node.leases.grant(9, 10)
    await node.leases.revoke(5)
    for _ in range(8):
        node.duties.tick()
    assert node.timer.remaining(9, node.clock.now()) == 10
    assert node.timer.remaining(5, node.clock.now()) is None
    assert node.timer.remaining(4, node.clock.now()) == pytest.approx(8)
