"""The checker against histories that are known to be good or bad, and against trying every order."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftkv.verification.history import Kind, Operation, Outcome
from raftkv.verification.linearizability import Verdict, check_history, check_key

FOREVER = float("inf")


def put(value, start, end, outcome=Outcome.DONE, key=b"k"):
    return Operation("c", key, Kind.PUT, value, start, end, outcome)


def get(value, start, end, key=b"k"):
    return Operation("c", key, Kind.GET, value, start, end, Outcome.DONE)


def delete(start, end, outcome=Outcome.DONE):
    return Operation("c", b"k", Kind.DELETE, None, start, end, outcome)


def swap(expected, value, start, end, outcome=Outcome.DONE):
    return Operation("c", b"k", Kind.SWAP, value, start, end, outcome, expected)


GOOD = {
    "empty": [],
    "reads what was written": [put(b"1", 0, 1), get(b"1", 2, 3)],
    "overlapping reads see old and new": [put(b"1", 0, 9), get(None, 1, 2), get(b"1", 3, 4)],
    "overlapping writes in either order": [put(b"1", 0, 9), put(b"2", 0, 9), get(b"2", 10, 11), get(b"2", 12, 13)],
    "an unknown write that never happened": [put(b"1", 0, FOREVER, Outcome.UNKNOWN), get(None, 5, 6)],
    "an unknown write that happened late": [
        put(b"1", 0, 2, Outcome.UNKNOWN),
        get(None, 5, 6),
        get(b"1", 7, 8),
    ],
    "a swap that won": [put(b"1", 0, 1), swap(b"1", b"2", 2, 3), get(b"2", 4, 5)],
    "a swap that lost to another": [
        put(b"1", 0, 1),
        swap(b"1", b"2", 2, 9),
        swap(b"1", b"3", 2, 9, Outcome.CONDITION_FAILED),
    ],
    "a delete": [put(b"1", 0, 1), delete(2, 3), get(None, 4, 5)],
    "a swap of what does not exist": [swap(None, b"1", 0, 1), swap(None, b"2", 2, 3, Outcome.CONDITION_FAILED)],
    "operations that touch at one moment overlap": [put(b"1", 0, 1), get(None, 1, 2)],
}

BAD = {
    "a stale read": [put(b"1", 0, 1), put(b"2", 2, 3), get(b"1", 4, 5)],
    "a lost write": [put(b"1", 0, 1), get(None, 2, 3)],
    "a value from nowhere": [get(b"1", 0, 1)],
    "reads that go back": [put(b"1", 0, 9), get(b"1", 1, 2), get(None, 3, 4)],
    "two winners": [put(b"1", 0, 1), swap(b"1", b"2", 2, 9), swap(b"1", b"3", 2, 9)],
    "a swap that had to win": [put(b"1", 0, 1), swap(b"1", b"2", 2, 3, Outcome.CONDITION_FAILED)],
    "a deleted value": [put(b"1", 0, 1), delete(2, 3), get(b"1", 4, 5)],
    "an unknown write that is seen and then not": [
        put(b"1", 0, 1),
        put(b"2", 2, FOREVER, Outcome.UNKNOWN),
        get(b"2", 3, 4),
        get(b"1", 5, 6),
    ],
    "a write seen before it began": [get(b"1", 0, 1), put(b"1", 2, 3)],
}


@pytest.mark.parametrize("history", GOOD.values(), ids=GOOD)
def test_good_histories_pass(history):
    assert check_history(history).verdict is Verdict.LINEARIZABLE


@pytest.mark.parametrize("history", BAD.values(), ids=BAD)
def test_bad_histories_are_found(history):
    report = check_history([put(b"x", 0, 1, key=b"other"), *history])
    assert (report.verdict, report.key) == (Verdict.VIOLATION, b"k")
    assert report.operations


def test_refused_operations_never_happened():
    refused = put(b"1", 0, 1, Outcome.REFUSED)
    assert check_history([refused, get(None, 2, 3)]).verdict is Verdict.LINEARIZABLE
    assert check_history([refused, get(b"1", 2, 3)]).verdict is Verdict.VIOLATION


def test_the_report_ends_where_the_violation_shows():
    history = [put(b"%d" % n, 2 * n, 2 * n + 1) for n in range(50)]
    history.insert(25, get(b"3", 41.2, 41.5))
    report = check_history(history)
    assert report.verdict is Verdict.VIOLATION
    assert max(operation.started for operation in report.operations) == 41.2


def test_what_cannot_be_decided_within_the_bound_is_unknown():
    history = [put(b"%d" % n, 0, 100) for n in range(12)] + [get(b"x", 101, 102)]
    assert check_history(history, max_configurations=500).verdict is Verdict.UNKNOWN
    violation_elsewhere = [*history, put(b"1", 0, 1, key=b"z"), get(None, 2, 3, key=b"z")]
    assert check_history(violation_elsewhere, max_configurations=500).verdict is Verdict.VIOLATION


def test_a_long_history_takes_linear_time():
    history = []
    for number in range(5000):
        value, start = b"%d" % number, 3 * number
        history += [put(value, start, start + 2), get(value, start + 1, start + 2.5)]
    assert check_history(history).verdict is Verdict.LINEARIZABLE


def brute_force(operations: list[Operation]) -> bool:
    """Try every order of every choice of the operations that may not have happened."""
    certain = [op for op in operations if op.outcome is not Outcome.UNKNOWN]
    maybe = [op for op in operations if op.outcome is Outcome.UNKNOWN and op.kind is not Kind.GET]
    for count in range(len(maybe) + 1):
        for chosen in itertools.combinations(maybe, count):
            if any(_legal(order) for order in itertools.permutations([*certain, *chosen])):
                return True
    return False


def _legal(order) -> bool:
    value = None
    for at, operation in enumerate(order):
        for later in order[at + 1 :]:
            later_end = FOREVER if later.outcome is Outcome.UNKNOWN else later.ended
            if later_end < operation.started:
                return False
        if operation.kind is Kind.GET:
            if operation.value != value:
                return False
        elif operation.kind is Kind.SWAP:
            matches = operation.expected == value
            if matches != (operation.outcome is not Outcome.CONDITION_FAILED):
                return False
            if matches:
                value = operation.value
        else:
            value = operation.value
    return True


@st.composite
def histories(draw):
    operations = []
    for number in range(draw(st.integers(0, 6))):
        start = draw(st.integers(0, 12))
        end = start + draw(st.integers(1, 6))
        kind = draw(st.sampled_from(list(Kind)))
        value = draw(st.sampled_from([b"0", b"1", b"2"]))
        outcome = Outcome.DONE
        if kind is Kind.SWAP and draw(st.booleans()):
            outcome = Outcome.CONDITION_FAILED
        if draw(st.integers(0, 3)) == 0:
            outcome = Outcome.UNKNOWN
        if kind is Kind.GET and draw(st.booleans()):
            value = None
        expected = draw(st.sampled_from([None, b"0", b"1"])) if kind is Kind.SWAP else None
        stored = None if kind is Kind.DELETE else value
        operations.append(Operation(f"c{number}", b"k", kind, stored, start, end, outcome, expected))
    return operations


@settings(max_examples=600, deadline=None)
@given(histories())
def test_the_search_agrees_with_trying_every_order(operations):
    verdict = check_key(operations)
    assert verdict is not Verdict.UNKNOWN
    assert (verdict is Verdict.LINEARIZABLE) == brute_force(operations)
