"""What peers say to each other after the handshake: the schema and the codec.

A message is one msgpack array, ``[kind, ...fields]``. The schema is fixed: an unknown kind, a missing or surplus
field, a wrong type or a number out of range is refused as a whole, and nothing in a frame can name code to run (H11).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

MAX_NUMBER = 2**63 - 1
MAX_TEXT = 1024

Entry = tuple[bytes, int, int]
"""A log entry as the engine holds it: command, index, term."""


class MalformedMessage(ValueError):
    """A frame is no message of this schema."""


@dataclass(frozen=True, slots=True)
class RequestVote:
    """A candidate asks for a vote; ``last_log_term`` -1 marks one that only teaches the term and is never granted."""

    term: int
    last_log_index: int
    last_log_term: int


@dataclass(frozen=True, slots=True)
class Vote:
    """A granted vote."""

    term: int


@dataclass(frozen=True, slots=True)
class AppendEntries:
    """A leader's entries, or its heartbeat when there are none; indexes follow ``prev_log_index`` without a gap."""

    term: int
    commit_index: int
    prev_log_index: int
    prev_log_term: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class AppendResult:
    """The answer to an append: success claims entries up to ``next_index - 1``; reset asks to go on from there."""

    term: int
    next_index: int
    reset: bool
    success: bool


@dataclass(frozen=True, slots=True)
class SnapshotHeartbeat:
    """A leader's heartbeat to a peer whose next entry is compacted away."""

    term: int
    commit_index: int


@dataclass(frozen=True, slots=True)
class TimeoutNow:
    """A leader asks a follower to campaign at once (leadership transfer)."""

    term: int


@dataclass(frozen=True, slots=True)
class PreVote:
    """A node asks whether it would be voted for in ``term``, and says what it knows to be committed."""

    term: int
    last_log_index: int
    last_log_term: int
    round: int
    commit_index: int
    commit_term: int


@dataclass(frozen=True, slots=True)
class PreVoteResult:
    """The answer to a pre-vote, with what the sender knows to be committed."""

    term: int
    round: int
    granted: bool
    commit_index: int
    commit_term: int


@dataclass(frozen=True, slots=True)
class ReadPing:
    """A leader asks whether it still leads ``term``."""

    term: int
    round: int


@dataclass(frozen=True, slots=True)
class ReadPong:
    """It does, as far as the sender knows."""

    term: int
    round: int


@dataclass(frozen=True, slots=True)
class ReadIndexRequest:
    """A follower asks for an index at which its reads are linearizable."""

    request_id: int


@dataclass(frozen=True, slots=True)
class ReadIndexResult:
    """That index, or None when the receiver of the request does not lead."""

    request_id: int
    read_index: int | None


@dataclass(frozen=True, slots=True)
class SnapshotChunk:
    """A piece of a snapshot's data, with the manifest of the whole."""

    term: int
    index: int
    snapshot_term: int
    manifest: bytes
    offset: int
    data: bytes
    last: bool


@dataclass(frozen=True, slots=True)
class SnapshotAck:
    """How far a receiver of a snapshot is; failed asks to start over."""

    term: int
    index: int
    next_offset: int
    failed: bool


@dataclass(frozen=True, slots=True)
class StatusRequest:
    """Asks a member to describe itself."""

    request_id: int


@dataclass(frozen=True, slots=True)
class StatusResult:
    """A member's description of itself."""

    request_id: int
    role: str
    commit_index: int
    applied_index: int
    last_index: int
    term: int
    leader: str | None
    revision: int
    version: str


Message = (
    RequestVote
    | Vote
    | AppendEntries
    | AppendResult
    | SnapshotHeartbeat
    | TimeoutNow
    | PreVote
    | PreVoteResult
    | ReadPing
    | ReadPong
    | ReadIndexRequest
    | ReadIndexResult
    | SnapshotChunk
    | SnapshotAck
    | StatusRequest
    | StatusResult
)

Check = Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    # An exact type: True is an int to isinstance, but not in this schema.
    return type(value) is int and 0 <= value <= MAX_NUMBER


def _is_term_or_never(value: Any) -> bool:
    return type(value) is int and -1 <= value <= MAX_NUMBER


def _is_flag(value: Any) -> bool:
    return type(value) is bool


def _is_bytes(value: Any) -> bool:
    return type(value) is bytes


def _is_text(value: Any) -> bool:
    return type(value) is str and len(value) <= MAX_TEXT


def _optional(check: Check) -> Check:
    return lambda value: value is None or check(value)


_N, _F, _B, _T = _is_number, _is_flag, _is_bytes, _is_text

_SCHEMA: dict[int, tuple[type[Any], tuple[Check, ...]]] = {
    1: (RequestVote, (_N, _N, _is_term_or_never)),
    2: (Vote, (_N,)),
    # 3 is AppendEntries, whose entries need a check of their own.
    4: (AppendResult, (_N, _N, _F, _F)),
    5: (SnapshotHeartbeat, (_N, _N)),
    6: (TimeoutNow, (_N,)),
    7: (PreVote, (_N, _N, _N, _N, _N, _N)),
    8: (PreVoteResult, (_N, _N, _F, _N, _N)),
    9: (ReadPing, (_N, _N)),
    10: (ReadPong, (_N, _N)),
    11: (ReadIndexRequest, (_N,)),
    12: (ReadIndexResult, (_N, _optional(_N))),
    13: (SnapshotChunk, (_N, _N, _N, _B, _N, _B, _F)),
    14: (SnapshotAck, (_N, _N, _N, _F)),
    15: (StatusRequest, (_N,)),
    16: (StatusResult, (_N, _T, _N, _N, _N, _N, _optional(_T), _N, _T)),
}
_APPEND_ENTRIES_KIND = 3
_KINDS: dict[type[Any], int] = {message: kind for kind, (message, _checks) in _SCHEMA.items()}

_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack


def encode(message: Message) -> bytes:
    """Return a message as a frame's payload."""
    if type(message) is AppendEntries:
        fields = (
            _APPEND_ENTRIES_KIND,
            message.term,
            message.commit_index,
            message.prev_log_index,
            message.prev_log_term,
            message.entries,
        )
        return bytes(_pack(fields))
    kind = _KINDS[type(message)]
    return bytes(_pack((kind, *(getattr(message, name) for name in message.__slots__))))


def decode(frame: bytes | bytearray | memoryview) -> Message:
    """Read one message.

    Args:
        frame: A frame's payload; its size bounds the memory that decoding takes.

    Raises:
        MalformedMessage: It is no message of this schema.
    """
    try:
        fields = msgpack.unpackb(frame, use_list=False, raw=False, strict_map_key=True)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise MalformedMessage(f"not msgpack: {error}") from error
    if type(fields) is not tuple or not fields or type(fields[0]) is not int:
        raise MalformedMessage("not an array that begins with a kind")
    if fields[0] == _APPEND_ENTRIES_KIND:
        return _decode_append_entries(fields)
    schema = _SCHEMA.get(fields[0])
    if schema is None:
        raise MalformedMessage(f"unknown kind {fields[0]}")
    message, checks = schema
    if len(fields) != len(checks) + 1:
        raise MalformedMessage(f"{message.__name__} has {len(fields) - 1} fields instead of {len(checks)}")
    for position, check in enumerate(checks, start=1):
        if not check(fields[position]):
            raise MalformedMessage(f"{message.__name__}.{message.__slots__[position - 1]} is out of its domain")
    decoded: Message = message(*fields[1:])
    return decoded


def _decode_append_entries(fields: Sequence[Any]) -> AppendEntries:
    if len(fields) != 6 or not all(_is_number(field) for field in fields[1:5]):
        raise MalformedMessage("AppendEntries has a field out of its domain")
    _kind, term, commit_index, prev_log_index, prev_log_term, entries = fields
    if type(entries) is not tuple:
        raise MalformedMessage("AppendEntries.entries is not an array")
    previous_term = prev_log_term
    for expected_index, entry in enumerate(entries, start=prev_log_index + 1):
        if type(entry) is not tuple or len(entry) != 3 or type(entry[0]) is not bytes:
            raise MalformedMessage("AppendEntries.entries holds something else than (command, index, term)")
        if entry[1] != expected_index or type(entry[1]) is not int:
            raise MalformedMessage(f"AppendEntries.entries jumps at index {expected_index}")
        if type(entry[2]) is not int or not previous_term <= entry[2] <= term:
            raise MalformedMessage(f"AppendEntries.entries has an impossible term at index {expected_index}")
        previous_term = entry[2]
    return AppendEntries(term, commit_index, prev_log_index, prev_log_term, entries)
