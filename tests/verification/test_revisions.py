"""The check of revisions against histories that are known to be good or bad."""

from __future__ import annotations

import pytest

from raftkv.verification.history import Kind, Operation, Outcome
from raftkv.verification.revisions import check_revisions

FOREVER = float("inf")


def put(value, start, end, revision, outcome=Outcome.DONE, key=b"k", mod_revision=None):
    return Operation("c", key, Kind.PUT, value, start, end, outcome, None, revision, mod_revision)


def get(value, start, end, revision, mod_revision, key=b"k"):
    return Operation("c", key, Kind.GET, value, start, end, Outcome.DONE, None, revision, mod_revision)


def delete(start, end, revision, has_changed=True, outcome=Outcome.DONE):
    return Operation("c", b"k", Kind.DELETE, None, start, end, outcome, None, revision, None, has_changed)


def lost_swap(start, end, revision, mod_revision):
    return Operation("c", b"k", Kind.SWAP, b"s", start, end, Outcome.CONDITION_FAILED, b"x", revision, mod_revision)


GOOD = {
    "empty": [],
    "answers without revisions": [put(b"1", 0, 1, None), get(b"1", 2, 3, None, None)],
    "writes and reads one after the other": [
        put(b"1", 0, 1, 2, mod_revision=2),
        get(b"1", 2, 3, 2, 2),
        delete(4, 5, 3),
        get(None, 6, 7, 3, 0),
        delete(8, 9, 3, has_changed=False),
        lost_swap(10, 11, 3, 0),
    ],
    "concurrent writes in either order": [put(b"1", 0, 9, 3), put(b"2", 0, 9, 2), get(b"1", 10, 11, 3, 3)],
    "a concurrent read of the state before a write": [put(b"1", 0, 9, 2), get(None, 0, 9, 1, 0)],
    "a read while other keys change": [put(b"1", 0, 1, 2), put(b"2", 2, 3, 3, key=b"x"), get(b"1", 4, 5, 3, 2)],
    "a read of a write of unknown outcome": [
        put(b"1", 0, 1, 2),
        put(b"2", 2, FOREVER, None, Outcome.UNKNOWN),
        get(b"2", 5, 6, 3, 3),
        get(b"2", 7, 8, 4, 3),
    ],
    "a delete of unknown outcome": [
        put(b"1", 0, 1, 2),
        delete(2, FOREVER, None, outcome=Outcome.UNKNOWN),
        get(None, 5, 6, 3, 0),
    ],
}

BAD = {
    "two writes of one revision": ([put(b"1", 0, 9, 3), put(b"2", 0, 9, 3, key=b"x")], "two writes have revision 3"),
    "a later write of a lower revision": (
        [put(b"1", 0, 1, 3), put(b"2", 2, 3, 2, key=b"x")],
        "revision 2 should be at least 4",
    ),
    "a later write of the same revision as a read": (
        [get(None, 0, 1, 3, 0), put(b"2", 2, 3, 3, key=b"x")],
        "revision 3 should be at least 4",
    ),
    "a later read of a lower revision": (
        [put(b"1", 0, 1, 3), get(None, 2, 3, 2, 0, key=b"x")],
        "revision 2 should be at least 3",
    ),
    "a put that names another revision than the read of its value": (
        [put(b"1", 0, 9, 4), get(b"1", 0, 9, 5, 3)],
        "a value of mod revision 4 is read with the mod revision 3",
    ),
    "reads of one value that name different revisions": (
        [get(b"1", 0, 9, 5, 4), get(b"1", 0, 9, 5, 3)],
        "a value of mod revision 4 is read with the mod revision 3",
    ),
    "a read that misses a write up to its revision": (
        [put(b"1", 0, 9, 2), put(b"2", 0, 9, 3), get(b"1", 0, 9, 3, 2)],
        "has the mod revision 2 and misses",
    ),
    "a read that finds nothing although there was a write": (
        [put(b"1", 0, 9, 2), get(None, 0, 9, 2, 0)],
        "has the mod revision 0 and misses",
    ),
    "a read of what was deleted": (
        [put(b"1", 0, 9, 2), delete(0, 9, 3), get(b"1", 0, 9, 3, 2)],
        "has the mod revision 2 and misses",
    ),
    "a swap that lost to a state before its revision": (
        [put(b"1", 0, 9, 2), put(b"2", 0, 9, 3), lost_swap(0, 9, 3, 2)],
        "has the mod revision 2 and misses",
    ),
    "a read of the future": ([get(b"1", 0, 9, 2, 3)], "a read at revision 2 has the mod revision 3"),
    "a write whose answer has two revisions": (
        [put(b"1", 0, 9, 4, mod_revision=3)],
        "a write of revision 4 has the mod revision 3",
    ),
}


@pytest.mark.parametrize("history", GOOD.values(), ids=GOOD.keys())
def test_possible_history_has_no_findings(history):
    assert check_revisions(history) == []


@pytest.mark.parametrize(("history", "finding"), BAD.values(), ids=BAD.keys())
def test_impossible_history_has_one_finding(history, finding):
    (found,) = check_revisions(history)
    assert finding in found
