"""Changes of a membership: what they lead to, what is refused, and that majorities of neighbours always overlap."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftkv.membership import (
    MAX_MEMBERS,
    AddMember,
    ChangeRefused,
    ConfirmRemovals,
    MemberId,
    MemberTaken,
    MemberUnknown,
    PromoteMember,
    RemoveMember,
    ReplaceMember,
    UpdateMember,
    changed,
    initial_member_id,
    initial_membership,
    later_member_id,
)
from raftkv.types import ClusterId, Member, NodeId

CLUSTER = ClusterId("0123456789abcdef")
N1, N2, N3, N4 = (NodeId(f"n{number}") for number in range(1, 5))
FIRST = initial_membership(CLUSTER, [Member(name, f"{name}:1") for name in (N3, N1, N2)])


def id_of(name: NodeId, membership=FIRST) -> MemberId:
    return membership.named(name).id


def test_the_first_members_all_vote_and_are_sorted():
    assert [member.name for member in FIRST.members] == [N1, N2, N3]
    assert FIRST.voters == {N1, N2, N3}
    assert (FIRST.learners, FIRST.removed, FIRST.version) == (frozenset(), frozenset(), 0)
    assert id_of(N1) == initial_member_id(CLUSTER, N1) != initial_member_id(ClusterId("f" * 16), N1)
    assert later_member_id(CLUSTER, N1, "x") != later_member_id(CLUSTER, N1, "y")


def test_a_member_is_added_without_a_vote_and_promoted():
    added = changed(FIRST, AddMember(MemberId(7), N4, "n4:1"))
    assert (added.voters, added.learners, added.version) == (FIRST.voters, {N4}, 1)
    assert added.with_id(MemberId(7)).name == N4
    promoted = changed(added, PromoteMember(MemberId(7)))
    assert (promoted.voters, promoted.learners, promoted.version) == ({N1, N2, N3, N4}, frozenset(), 2)


def test_who_is_removed_stays_removed():
    without = changed(FIRST, RemoveMember(id_of(N2)))
    assert without.voters == {N1, N3}
    assert without.removed == {id_of(N2)}
    with pytest.raises(MemberUnknown):
        changed(without, RemoveMember(id_of(N2)))
    with pytest.raises(MemberTaken, match="belonged"):
        changed(without, AddMember(id_of(N2), N2, "n2:1"))
    again = changed(without, AddMember(MemberId(9), N2, "n2:1"))
    assert again.named(N2).id == 9


@pytest.mark.parametrize(
    "confirms",
    [
        ConfirmRemovals(),
        AddMember(MemberId(7), N4, "n4:1"),
        UpdateMember(FIRST.named(N1).id, "n1:2"),
        RemoveMember(FIRST.named(N1).id),
    ],
)
def test_who_is_removed_is_turned_away_when_a_later_change_confirms_it(confirms):
    gone = id_of(N2)
    without = changed(FIRST, RemoveMember(gone))
    assert (without.unconfirmed, without.turns_away(gone)) == ({gone}, False)
    confirmed = changed(without, confirms)
    assert confirmed.turns_away(gone)
    assert confirmed.unconfirmed == confirmed.removed - {gone}
    assert not any(confirmed.turns_away(member.id) for member in FIRST.members if member.id != gone)


def test_a_confirmation_changes_no_member_and_is_made_once():
    without = changed(FIRST, RemoveMember(id_of(N2)))
    confirmed = changed(without, ConfirmRemovals())
    assert (confirmed.members, confirmed.removed, confirmed.version) == (without.members, without.removed, 2)
    for membership in (FIRST, confirmed):
        with pytest.raises(ChangeRefused, match="no removal waits"):
            changed(membership, ConfirmRemovals())


def test_a_replacement_has_the_name_and_neither_the_id_nor_the_vote():
    replaced = changed(FIRST, ReplaceMember(id_of(N2), MemberId(9), "elsewhere:1"))
    member = replaced.named(N2)
    assert (member.id, member.peer_address, member.is_voter) == (9, "elsewhere:1", False)
    assert replaced.removed == {id_of(N2)}
    assert replaced.version == 1


def test_a_member_moves():
    moved = changed(FIRST, UpdateMember(id_of(N2), "elsewhere:1"))
    assert moved.named(N2).peer_address == "elsewhere:1"
    assert moved.voters == FIRST.voters
    assert not moved.removed


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (AddMember(MemberId(9), N1, "x:1"), MemberTaken, "n1 already"),
        (AddMember(MemberId(9), N4, "n2:1"), MemberTaken, "n2 is at n2:1"),
        (AddMember(id_of(N1), N4, "n4:1"), MemberTaken, "belongs"),
        (UpdateMember(id_of(N1), "n2:1"), MemberTaken, "n2 is at n2:1"),
        (ReplaceMember(id_of(N1), MemberId(9), "n2:1"), MemberTaken, "n2 is at n2:1"),
        (ReplaceMember(id_of(N1), id_of(N1), "n1:1"), MemberTaken, "belong"),
        (PromoteMember(MemberId(9)), MemberUnknown, "no member with the id 9"),
        (PromoteMember(id_of(N1)), ChangeRefused, "voter already"),
    ],
)
def test_what_cannot_be_is_refused(change, kind, words):
    with pytest.raises(kind, match=words):
        changed(FIRST, change)


def test_the_last_voter_stays():
    one = initial_membership(CLUSTER, [Member(N1, "n1:1")])
    two = changed(one, AddMember(MemberId(9), N2, "n2:1"))
    for change in (RemoveMember(id_of(N1)), ReplaceMember(id_of(N1), MemberId(8), "n1:1")):
        with pytest.raises(ChangeRefused, match="only voter"):
            changed(two, change)
    assert changed(two, RemoveMember(MemberId(9))).voters == {N1}


def test_members_are_bounded():
    membership = FIRST
    for number in range(3, MAX_MEMBERS):
        membership = changed(membership, AddMember(MemberId(100 + number), NodeId(f"x{number}"), f"x{number}:1"))
    with pytest.raises(ChangeRefused, match="15 members"):
        changed(membership, AddMember(MemberId(99), NodeId("one-more"), "y:1"))


names = st.sampled_from([NodeId(f"n{number}") for number in range(1, 7)])
changes = st.lists(st.tuples(st.sampled_from(["add", "promote", "remove", "replace"]), names), max_size=20)


def test_a_node_that_took_the_place_of_another_has_not_its_vote():
    name, old_id = FIRST.members[0].name, FIRST.members[0].id
    assert FIRST.voters_seen_by(name, old_id) == FIRST.voters
    assert FIRST.voters_seen_by(name, MemberId(old_id + 1)) == FIRST.voters - {name}
    assert FIRST.voters_seen_by(NodeId("another"), MemberId(1)) == FIRST.voters


@settings(max_examples=200, deadline=None)
@given(changes)
def test_majorities_before_and_after_a_change_overlap(steps):
    """What makes one change at a time safe (Ongaro's dissertation, figure 4.3)."""
    membership = FIRST
    for number, (action, name) in enumerate(steps):
        member = membership.named(name)
        new_id = MemberId(1000 + number)
        if action == "add":
            change = AddMember(new_id, name, f"{name}:1")
        elif member is None:
            continue
        elif action == "promote":
            change = PromoteMember(member.id)
        elif action == "remove":
            change = RemoveMember(member.id)
        else:
            change = ReplaceMember(member.id, new_id, member.peer_address)
        try:
            after = changed(membership, change)
        except ChangeRefused:
            continue
        assert len(membership.voters ^ after.voters) <= 1
        for first in combinations(sorted(membership.voters), len(membership.voters) // 2 + 1):
            for second in combinations(sorted(after.voters), len(after.voters) // 2 + 1):
                assert set(first) & set(second)
        assert not {member.id for member in after.members} & after.removed
        membership = after
