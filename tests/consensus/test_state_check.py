"""Who is right when the hashes of states differ."""

from __future__ import annotations

import pytest

from raftkv.consensus.state_check import CheckRound, MemberResult, Verdict, judge
from raftkv.types import Index, NodeId, Term

A, B, C, D, LEARNER = (NodeId(name) for name in ("a", "b", "c", "d", "learner"))
ONE, TWO, THREE = frozenset({A}), frozenset({A, B}), frozenset({A, B, C})
FOUR = frozenset({A, B, C, D})


def verdict(right: str | None, *wrong: NodeId, disputed: bool = False) -> Verdict:
    return Verdict(right, frozenset(wrong), disputed)


@pytest.mark.parametrize(
    ("voters", "hashes", "expected"),
    [
        (THREE, {A: "x", B: "x", C: "x"}, verdict("x")),
        (THREE, {A: "x", B: "x", C: "y"}, verdict("x", C)),
        (THREE, {A: "y", B: "x", C: "x"}, verdict("x", A)),
        (THREE, {A: "x", B: "x"}, verdict("x")),
        (THREE, {A: "x", B: "y"}, verdict(None, disputed=True)),
        (THREE, {A: "x", B: "y", C: "z"}, verdict(None, disputed=True)),
        (THREE, {A: "x"}, verdict(None)),
        (THREE, {}, verdict(None)),
        (TWO, {A: "x", B: "x"}, verdict("x")),
        (TWO, {A: "x", B: "y"}, verdict(None, disputed=True)),
        (FOUR, {A: "x", B: "x", C: "y", D: "y"}, verdict(None, disputed=True)),
        (FOUR, {A: "x", B: "x", C: "x", D: "y"}, verdict("x", D)),
        (ONE, {A: "x"}, verdict("x")),
        # A learner is compared, and counts for no majority.
        (THREE, {A: "x", B: "x", C: "x", LEARNER: "y"}, verdict("x", LEARNER)),
        (ONE, {A: "x", LEARNER: "y"}, verdict("x", LEARNER)),
        (THREE, {A: "x", B: "y", LEARNER: "y"}, verdict(None, disputed=True)),
        (THREE, {A: "x", LEARNER: "x"}, verdict(None)),
    ],
)
def test_majority_of_the_voters_is_right(voters, hashes, expected):
    assert judge(hashes, voters) == expected


def test_report_names_what_each_member_answered():
    check = CheckRound(Term(1), Index(7), (A, B, C))
    check.answer(A, "x")
    check.answer(C, None)
    assert check.waiting == {B}
    assert set(check.report(THREE).members.values()) == {MemberResult.UNKNOWN}
    check.answer(B, "x")
    # Only the first answer of a member counts.
    check.answer(C, "y")
    report = check.report(THREE)
    assert report.members == {A: MemberResult.AGREES, B: MemberResult.AGREES, C: MemberResult.UNKNOWN}
    assert not report.is_sound


def test_report_is_sound_when_all_members_agree():
    check = CheckRound(Term(1), Index(7), (A, B))
    for member in (A, B):
        check.answer(member, "x")
    assert check.report(TWO).is_sound


def test_members_without_a_majority_are_disputed():
    check = CheckRound(Term(1), Index(7), (A, B))
    check.answer(A, "x")
    check.answer(B, "y")
    assert check.report(TWO).members == {A: MemberResult.DISPUTED, B: MemberResult.DISPUTED}
