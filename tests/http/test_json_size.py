"""The count of values that decides whether a JSON text is parsed at all."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.http import json_size
from raftkv.http.json_body import parse_members
from raftkv.http.json_size import MAX_VALUES, has_too_many_values

VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(alphabet='a,:[{"\\\n')),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(alphabet=',[{"\\'), inner)),
)


def delimiters(value: object) -> int:
    """The commas and opening brackets of a value's JSON text outside of strings."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return 1 + max(0, len(value) - 1) + sum(map(delimiters, inner))
    return 0


def run(coroutine) -> bool:
    """Run what only ever lets others go first."""
    try:
        while True:
            coroutine.send(None)
    except StopIteration as ended:
        return ended.value


@given(VALUES, st.integers(-1, 1))
def test_delimiters_inside_strings_do_not_count(value, distance):
    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.setattr(json_size, "MAX_VALUES", delimiters(value) + distance)
        assert run(has_too_many_values(json.dumps(value).encode())) == (distance < 0)


@pytest.mark.parametrize(
    ("text", "is_refused"),
    [
        (b"[" + b",".join([b"1"] * MAX_VALUES) + b"]", False),
        (b"[" + b",".join([b"1"] * (MAX_VALUES + 1)) + b"]", True),
        (b"[" + b",".join([b"[]"] * MAX_VALUES) + b"]", True),
        (b'["' + b"," * 4_000_000 + b'"]', False),
        (b'["' + b'\\",' * 1_000_000 + b'"]', False),
        (b'["' + b"," * MAX_VALUES + b"\\" * 3_000_000 + b'"]', False),
        (b'["' + b"[" * 4_000_000, False),
        (b"," * 4_000_000, True),
    ],
    ids=["most", "one more", "lists", "commas", "escaped quotes", "backslashes", "no end", "no JSON"],
)
def test_values_are_counted_whatever_strings_hold(text, is_refused):
    assert run(has_too_many_values(text)) == is_refused


def test_doubled_name_among_twenty_thousand_is_named():
    names = b",".join(b'"n%d":0' % number for number in range(20_000))
    with pytest.raises(Exception, match="'n19999' is there twice"):
        parse_members(b"{" + names + b',"n19999":1}', ())
