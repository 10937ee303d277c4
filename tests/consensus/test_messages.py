"""The wire's schema: what may be said arrives as it was said, and nothing else gets in."""

from __future__ import annotations

import dataclasses

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftkv.consensus import messages
from raftkv.consensus.messages import (
    AppendEntries,
    AppendResult,
    LogDivergence,
    LogMismatch,
    MalformedMessage,
    PreVote,
    PreVoteResult,
    ReadIndexRequest,
    ReadIndexResult,
    ReadPing,
    ReadPong,
    RequestVote,
    SnapshotAck,
    SnapshotChunk,
    SnapshotHeartbeat,
    StateDivergence,
    StateHashRequest,
    StateHashResult,
    StatusRequest,
    StatusResult,
    TimeoutNow,
    UnknownMessage,
    Vote,
    decode,
    encode,
)

EXAMPLES = [
    RequestVote(3, 9, -1),
    Vote(3),
    AppendEntries(3, 8, 7, 2, ((b"\0x", 8, 2), (b"\1", 9, 3))),
    AppendEntries(3, 8, 7, 2, ()),
    AppendEntries(3, 8, 7, 2, (), 1, 2**63 - 1, 5),
    LogMismatch(3, 1, 7, 2**63 - 1),
    LogMismatch(3, 6, 7, 0, 2),
    LogDivergence(3, 1, 7, 9),
    LogDivergence(3, 1, 7, 9, 2, ("a", "b")),
    AppendResult(3, 10, reset=False, success=True),
    SnapshotHeartbeat(3, 9),
    TimeoutNow(3),
    PreVote(4, 9, 3, 1, 7, 2),
    PreVoteResult(3, 1, granted=True, commit_index=7, commit_term=2),
    ReadPing(3, 2**48),
    ReadPong(3, 2**48),
    ReadIndexRequest(2**63 - 1),
    ReadIndexResult(5, 9),
    ReadIndexResult(5, None),
    SnapshotChunk(3, 9, 2, b"{}", 0, b"data", last=True),
    SnapshotAck(3, 9, 4, failed=False),
    StatusRequest(1),
    StatusResult(1, "leader", 1, 1, 1, 1, None, 1, "0.1.0"),
    StatusResult(1, "follower", 1, 1, 1, 1, "a", 1, "0.1.0"),
    StateHashRequest(3, 7, 1),
    StateHashResult(3, 7, 1, "ab"),
    StateHashResult(3, 7, 1, ""),
    StateDivergence(3, 7, "ab"),
]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_every_message_survives_the_wire(message):
    assert decode(encode(message)) == message


def test_there_is_an_example_of_every_message():
    assert {type(example) for example in EXAMPLES} == set(messages.Message.__args__)


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_every_field_is_checked(message):
    fields = msgpack.unpackb(encode(message))
    for position in range(1, len(fields)):
        for wrong in (-2, 2**63, 1.5, "x" * 1025, b"x", [[]], {}, True, None, [1, 2]):
            changed = [*fields[:position], wrong, *fields[position + 1 :]]
            try:
                decoded = decode(msgpack.packb(changed))
            except MalformedMessage:
                continue
            # What is let through is a value of the field's own kind, so it comes back as it is.
            assert list(msgpack.unpackb(encode(decoded))) == changed
            assert type(wrong) in (bool, bytes, type(None), list)
    required = [field for field in dataclasses.fields(message) if field.default is dataclasses.MISSING]
    with pytest.raises(MalformedMessage):
        decode(msgpack.packb(fields[: len(required)]))


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_fields_that_a_later_release_added_are_ignored(message):
    fields = msgpack.unpackb(encode(message))
    assert decode(msgpack.packb([*fields, "a later field", {"of": [1]}])) == message


def test_a_field_that_an_earlier_release_does_not_send_has_its_default(monkeypatch):
    @dataclasses.dataclass(frozen=True, slots=True)
    class LaterVote:
        term: int
        reason: str = "none"

    number = next(number for number, (kind, _checks) in messages._SCHEMA.items() if kind is Vote)
    monkeypatch.setitem(messages._SCHEMA, number, (LaterVote, (messages._is_number, messages._is_text)))
    monkeypatch.setitem(messages._KINDS, LaterVote, number)
    monkeypatch.setitem(messages._REQUIRED, LaterVote, 1)
    assert decode(encode(Vote(3))) == LaterVote(3)
    assert decode(encode(LaterVote(3, "a reason"))) == LaterVote(3, "a reason")
    with pytest.raises(MalformedMessage, match="reason"):
        decode(msgpack.packb([number, 3, 5]))


@pytest.mark.parametrize("kind", [0, 99, 2**40])
def test_a_kind_that_a_later_release_sends_is_no_malformed_message(kind):
    with pytest.raises(UnknownMessage):
        decode(msgpack.packb([kind, 1, {"a": b"b"}]))


@pytest.mark.parametrize(
    "entries",
    [
        ((b"x", 9, 2),),  # a gap before it
        ((b"x", 8, 2), (b"x", 10, 2)),  # a gap within
        ((b"x", 8, 4),),  # of a later term than the leader's
        ((b"x", 8, 1),),  # of an earlier term than its predecessor
        ((b"x", 8, 3), (b"x", 9, 2)),  # terms that fall
        (("x", 8, 2),),
        ((b"x", True, 2),),
        ((b"x", 8),),
        (b"x",),
        5,
    ],
)
def test_entries_that_cannot_be_of_a_log_are_refused(entries):
    with pytest.raises(MalformedMessage):
        decode(msgpack.packb([3, 3, 8, 7, 2, entries]))


@pytest.mark.parametrize("frame", [b"", b"\xc1", b"\x00", b"\x90", b"\x92\xff\x01", b"\x92\xa11\x01", b"\x91" * 5000])
def test_what_is_no_message_is_refused(frame):
    with pytest.raises(MalformedMessage):
        decode(frame)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_make_the_decoder_fail_in_another_way(frame):
    try:
        decoded = decode(frame)
    except (MalformedMessage, UnknownMessage):
        return
    assert decode(encode(decoded)) == decoded


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(EXAMPLES), st.integers(0, 400), st.integers(0, 255))
def test_changed_frames_are_refused_or_valid(message, position, byte):
    frame = bytearray(encode(message))
    frame[position % len(frame)] = byte
    try:
        decoded = decode(frame)
    except (MalformedMessage, UnknownMessage):
        return
    assert decode(encode(decoded)) == decoded
