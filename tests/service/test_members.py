"""The membership service: what is refused before it is proposed, and who is promoted."""

from __future__ import annotations

import asyncio

import pytest

from raftkv.errors import (
    MemberChangeRefused,
    MemberExists,
    MemberMissing,
    MembersUnsettled,
    MemberUnreachable,
    NotLeader,
)
from raftkv.membership import ConfirmRemovals, MemberId, PromoteMember, RemoveMember
from raftkv.service.members import Autopilot, AutopilotPolicy, MemberAtAddress, Progress, Upkeep
from raftkv.store.commands import ChangeMembers
from raftkv.types import Index, NodeId
from tests.http.http_store import InstantLog

N1, N2, N3, N4 = (NodeId(f"n{number}") for number in range(1, 5))


@pytest.fixture
def log() -> InstantLog:
    return InstantLog()


def id_of(log: InstantLog, name: NodeId) -> MemberId:
    return log.membership.named(name).id


async def test_a_member_is_added_promoted_and_removed(log):
    added = await log.members.add(N4, "10.0.0.4:2380")
    assert (added.name, added.is_voter) == (N4, False)
    assert log.members.current.learners == {N4}
    await log.members.promote(added.id)
    assert N4 in log.members.current.voters
    await log.members.remove(added.id)
    assert log.members.current.named(N4) is None


async def test_adding_again_what_never_came_gives_the_same_member(log):
    log.unreachable.add(N4)
    added = await log.members.add(N4, "10.0.0.4:2380")
    assert await log.members.add(N4, "10.0.0.4:2380") == added
    with pytest.raises(MemberExists):
        await log.members.add(N4, "10.0.0.5:2380")
    log.unreachable.clear()
    with pytest.raises(MemberExists, match="replaced"):
        await log.members.add(N4, "10.0.0.4:2380")
    with pytest.raises(MemberExists, match="n4 is at"):
        await log.members.add(NodeId("n5"), "10.0.0.4:2380")


async def test_a_member_without_a_name_is_called_by_its_id(log):
    added = await log.members.add(None, "10.0.0.4:2380")
    assert added.name == f"member-{added.id:016x}"


async def test_what_would_leave_no_majority_that_can_be_reached_is_refused(log):
    log.unreachable.add(N3)
    for change in (log.members.remove(id_of(log, N2)), log.members.replace(id_of(log, N2), None)):
        with pytest.raises(MemberChangeRefused, match="only 1 of 2"):
            await change
    # Who is dead may go: the others are a majority of themselves.
    replaced = await log.members.replace(id_of(log, N3), None)
    assert (replaced.name, replaced.peer_address, replaced.is_voter) == (N3, "10.0.0.3:2380", False)


async def test_the_leader_hands_over_before_it_is_removed(log):
    with pytest.raises(NotLeader):
        await log.members.remove(id_of(log, N1))
    assert log.transfers == [None]
    assert N1 in log.members.current.voters


async def test_one_change_at_a_time(log):
    log.is_settled = False
    calls = (
        log.members.add(N4, "10.0.0.4:2380"),
        log.members.promote(id_of(log, N2)),
        log.members.remove(id_of(log, N2)),
        log.members.replace(id_of(log, N2), None),
        log.members.update(id_of(log, N2), "10.0.0.9:2380"),
    )
    for call in calls:
        with pytest.raises(MembersUnsettled):
            await call
    assert log.members.current.version == 0


async def test_only_the_leader_changes_anything(log):
    log.refusal = NotLeader(N2, "http://n2")
    for call in (log.members.add(N4, "10.0.0.4:2380"), log.members.remove(id_of(log, N2))):
        with pytest.raises(NotLeader):
            await call


async def test_nobody_and_nothing_twice(log):
    for call in (
        log.members.remove(MemberId(5)),
        log.members.promote(MemberId(5)),
        log.members.replace(MemberId(5), None),
    ):
        with pytest.raises(MemberMissing):
            await call
    await log.members.update(id_of(log, N2), "10.0.0.9:2380", is_forced=True)
    assert log.members.current.named(N2).peer_address == "10.0.0.9:2380"
    with pytest.raises(MemberExists):
        await log.members.update(id_of(log, N2), "10.0.0.3:2380")
    with pytest.raises(MemberChangeRefused, match="voter already"):
        await log.members.promote(id_of(log, N2))


async def test_member_moves_only_to_an_address_where_it_answers(log):
    def found(name: NodeId, member_id: int, storage_id: str) -> str | MemberAtAddress:
        return MemberAtAddress(name, member_id, storage_id)

    own = id_of(log, N2)
    for answer, fault in (
        ("Connection refused", "n2 does not answer at new:1 .Connection refused."),
        (found(N3, id_of(log, N3), "storage-of-n3"), "n3 .id [0-9a-f]{16}. answers there"),
        (found(N2, own + 1, "storage-of-n2"), "n2 .id [0-9a-f]{16}. answers there"),
        (found(N2, own, "empty"), "other storage"),
    ):
        log.at_address["new:1"] = answer
        with pytest.raises(MemberUnreachable, match=fault):
            await log.members.update(own, "new:1")
    assert log.members.current.version == 0
    log.at_address["new:1"] = found(N2, own, "storage-of-n2")
    await log.members.update(own, "new:1")
    assert log.members.current.named(N2).peer_address == "new:1"


async def test_leadership_that_is_lost_during_the_probe_of_a_move_ends_it(log):
    class Deposing:
        async def member_at(self, _address):
            log.refusal = NotLeader(N3, None)
            return MemberAtAddress(N2, id_of(log, N2), "storage-of-n2")

    log.members._addresses = Deposing()
    with pytest.raises(NotLeader):
        await log.members.update(id_of(log, N2), "new:1")


class Behind(InstantLog):
    """A log whose learners are where they are put."""

    behind: int | None = 0

    def progress_of(self, member):
        if self.behind is None:
            return None
        return Progress(Index(1000 - self.behind), Index(1000))


@pytest.mark.parametrize(("behind", "is_promoted"), [(0, True), (50, True), (51, False), (1000, False), (None, False)])
async def test_a_member_votes_when_it_has_caught_up(behind, is_promoted):
    log = Behind()
    added = await log.members.add(N4, "10.0.0.4:2380")
    log.behind = behind
    upkeep = Upkeep(log)
    assert upkeep.due() == (PromoteMember(added.id) if is_promoted else None)
    log.is_settled = False
    assert upkeep.due() is None
    log.is_settled = True
    if not is_promoted:
        with pytest.raises(MemberChangeRefused, match="too far behind"):
            await log.members.promote(added.id)
    log.clock.time += 1.0
    log.duties.tick()
    await asyncio.sleep(0)
    assert (N4 in log.members.current.voters) is is_promoted


async def test_a_removal_is_confirmed_once_nothing_is_under_way(log):
    upkeep = Upkeep(log)
    assert upkeep.due() is None
    await log.members.remove(id_of(log, N3))
    log.is_settled = False
    assert upkeep.due() is None
    log.is_settled = True
    assert upkeep.due() == ConfirmRemovals()
    log.clock.time += 1.0
    log.duties.tick()
    await asyncio.sleep(0)
    assert not log.members.current.unconfirmed
    assert upkeep.due() is None


class Pilot:
    """Three voters and one that waits, under an autopilot that wants three."""

    def __init__(self, dead_after: float = 10.0) -> None:
        self.log = InstantLog()
        self.autopilot = Autopilot(self.log, AutopilotPolicy(3, dead_after), self.log.clock)

    async def begin(self) -> None:
        await self.log.members.add(N4, "10.0.0.4:2380")

    def later(self, seconds: float):
        self.log.clock.time += seconds
        return self.autopilot.due()


async def test_a_member_beyond_the_wanted_voters_waits():
    pilot = Pilot()
    await pilot.begin()
    assert [pilot.later(5.0) for _ in range(10)] == [None] * 10


async def test_a_voter_that_stays_away_gives_its_place_to_one_that_waits():
    pilot = Pilot()
    await pilot.begin()
    pilot.log.unreachable.add(N2)
    assert pilot.later(1.0) is None
    assert pilot.later(9.9) is None
    removal = pilot.later(0.1)
    assert removal == RemoveMember(id_of(pilot.log, N2))
    pilot.log.submit(ChangeMembers(removal))
    promotion = pilot.later(0.1)
    assert promotion == PromoteMember(id_of(pilot.log, N4))
    pilot.log.submit(ChangeMembers(promotion))
    assert pilot.log.membership.voters == {N1, N3, N4}
    assert pilot.later(60.0) is None


async def test_the_autopilot_confirms_removals_that_nobody_waits_for():
    pilot = Pilot()
    await pilot.log.members.remove(id_of(pilot.log, N3))
    assert pilot.later(1.0) == ConfirmRemovals()


async def test_who_comes_back_in_time_stays():
    pilot = Pilot()
    await pilot.begin()
    pilot.log.unreachable.add(N2)
    pilot.later(1.0)
    pilot.log.unreachable.clear()
    pilot.later(5.0)
    pilot.log.unreachable.add(N2)
    assert pilot.later(6.0) is None
    assert pilot.later(9.0) is None


async def test_a_new_leader_begins_to_count_anew():
    pilot = Pilot()
    await pilot.begin()
    pilot.log.unreachable.add(N2)
    pilot.later(1.0)
    pilot.log.is_settled = False
    assert pilot.later(60.0) is None
    pilot.log.is_settled = True
    assert pilot.later(1.0) is None
    assert pilot.later(10.0) == RemoveMember(id_of(pilot.log, N2))


async def test_nobody_goes_when_nobody_waits_or_no_majority_would_be_left():
    pilot = Pilot()
    pilot.log.unreachable.add(N2)
    pilot.later(1.0)
    assert pilot.later(60.0) is None, "nobody waits"
    await pilot.begin()
    pilot.log.unreachable.add(N3)
    pilot.later(1.0)
    assert pilot.later(60.0) is None, "one of two would be left"
    pilot.log.unreachable.discard(N3)
    pilot.log.unreachable.add(N4)
    assert pilot.later(60.0) is None, "who waits is away too"
