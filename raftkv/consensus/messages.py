"""What peers say to each other after the handshake: the schema and the codec.

A message is one msgpack array, ``[kind, ...fields]``. A field of a wrong type or out of its range refuses the whole
message, and nothing in a frame can name code to run (H11).

Releases add fields and kinds under two rules. A new field goes to the end of its message and has a default: receivers
that do not know it ignore what is behind the fields that they know, receivers that miss it take the default. A new kind
is a number that was never used: receivers that do not know it ignore and count the message (``UnknownMessage``). Both
are safe because Raft messages may be lost at any time, so an ignored one changes nothing; and a release whose new kind
or field has to be obeyed sends it only when the cluster version (``raftkv.versions``) says that every member knows it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import Any

import msgpack

from raftkv.consensus.disk_room import DiskRoom
from raftkv.versions import FIRST_VERSION

MAX_NUMBER = 2**63 - 1
MAX_TEXT = 1024

Entry = tuple[bytes, int, int]
"""A log entry as the engine holds it: command, index, term."""


class MalformedMessage(ValueError):
    """A frame is no message of this schema."""


class UnknownMessage(ValueError):
    """A message is of a kind that a later release may send; it is to be ignored."""


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
    """A leader's entries, or its heartbeat when there are none; indexes follow ``prev_log_index`` without a gap.

    ``log_hash`` is the hash of the leader's entries after ``hash_after`` and up to ``prev_log_index``, and
    ``prev_log_hash`` that of the last of them; 0 says that it is not known.
    """

    term: int
    commit_index: int
    prev_log_index: int
    prev_log_term: int
    entries: tuple[Entry, ...]
    hash_after: int = 0
    log_hash: int = 0
    prev_log_hash: int = 0


@dataclass(frozen=True, slots=True)
class AppendResult:
    """The answer to an append: success claims entries up to ``next_index - 1``; reset asks to go on from there.

    ``room`` is one of ``DiskRoom``: how much room the sender's disk has.
    """

    term: int
    next_index: int
    reset: bool
    success: bool
    room: int = 0


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
    """A piece of a snapshot's data, with the manifest of the whole and the number of this transmission."""

    term: int
    index: int
    snapshot_term: int
    manifest: bytes
    offset: int
    data: bytes
    last: bool
    number: int = 0


@dataclass(frozen=True, slots=True)
class SnapshotAck:
    """How far a receiver of a snapshot is, in answer to one transmission; failed asks to start over."""

    term: int
    index: int
    next_offset: int
    failed: bool
    number: int = 0


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
    cluster_version: str = str(FIRST_VERSION)
    lowest_version: str = str(FIRST_VERSION)
    highest_version: str = str(FIRST_VERSION)


@dataclass(frozen=True, slots=True)
class LogMismatch:
    """A follower refuses an append: its entries after ``hash_after`` and up to ``index`` are others.

    ``log_hash`` is their hash and ``entry_term`` the term of the last of them; 0 says that it is not known.
    """

    term: int
    hash_after: int
    index: int
    log_hash: int
    entry_term: int = 0


@dataclass(frozen=True, slots=True)
class LogDivergence:
    """A leader that a majority agrees with orders a member with other entries to stop.

    Hash and term are the leader's, and ``agreeing`` names the voters that have its entries.
    """

    term: int
    hash_after: int
    index: int
    log_hash: int
    entry_term: int = 0
    agreeing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StateHashRequest:
    """A leader asks for the hash of the store's state at an index; ``hash_version`` says what is hashed and how."""

    term: int
    index: int
    hash_version: int


@dataclass(frozen=True, slots=True)
class StateHashResult:
    """That hash in hexadecimal; empty when the sender cannot take it."""

    term: int
    index: int
    hash_version: int
    state_hash: str


@dataclass(frozen=True, slots=True)
class StateDivergence:
    """A leader orders a member to stop whose state differs from a majority's; the hash is the majority's."""

    term: int
    index: int
    state_hash: str


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
    | LogMismatch
    | LogDivergence
    | StateHashRequest
    | StateHashResult
    | StateDivergence
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


def _is_array(value: Any) -> bool:
    return type(value) is tuple


def _are_names(value: Any) -> bool:
    return type(value) is tuple and all(_is_text(each) for each in value)


def _is_room(value: Any) -> bool:
    return type(value) is int and 0 <= value <= max(DiskRoom)


_N, _F, _B, _T = _is_number, _is_flag, _is_bytes, _is_text

_SCHEMA: dict[int, tuple[type[Any], tuple[Check, ...]]] = {
    1: (RequestVote, (_N, _N, _is_term_or_never)),
    2: (Vote, (_N,)),
    3: (AppendEntries, (_N, _N, _N, _N, _is_array, _N, _N, _N)),
    4: (AppendResult, (_N, _N, _F, _F, _is_room)),
    5: (SnapshotHeartbeat, (_N, _N)),
    6: (TimeoutNow, (_N,)),
    7: (PreVote, (_N, _N, _N, _N, _N, _N)),
    8: (PreVoteResult, (_N, _N, _F, _N, _N)),
    9: (ReadPing, (_N, _N)),
    10: (ReadPong, (_N, _N)),
    11: (ReadIndexRequest, (_N,)),
    12: (ReadIndexResult, (_N, _optional(_N))),
    13: (SnapshotChunk, (_N, _N, _N, _B, _N, _B, _F, _N)),
    14: (SnapshotAck, (_N, _N, _N, _F, _N)),
    15: (StatusRequest, (_N,)),
    16: (StatusResult, (_N, _T, _N, _N, _N, _N, _optional(_T), _N, _T, _T, _T, _T)),
    17: (LogMismatch, (_N, _N, _N, _N, _N)),
    18: (LogDivergence, (_N, _N, _N, _N, _N, _are_names)),
    19: (StateHashRequest, (_N, _N, _N)),
    20: (StateHashResult, (_N, _N, _N, _T)),
    21: (StateDivergence, (_N, _N, _T)),
}
_KINDS: dict[type[Any], int] = {message: kind for kind, (message, _checks) in _SCHEMA.items()}
_REQUIRED: dict[type[Any], int] = {
    message: sum(field.default is MISSING for field in fields(message)) for message in _KINDS
}
assert all(len(checks) == len(fields(message)) for message, checks in _SCHEMA.values())

_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack


def encode(message: Message) -> bytes:
    """Return a message as a frame's payload."""
    kind = _KINDS[type(message)]
    return bytes(_pack([kind, *[getattr(message, name) for name in message.__slots__]]))


def decode(frame: bytes | bytearray | memoryview) -> Message:
    """Read one message.

    Args:
        frame: A frame's payload; its size bounds the memory that decoding takes.

    Raises:
        MalformedMessage: It is no message of this schema.
        UnknownMessage: It is of a kind that this release does not know.
    """
    try:
        received = msgpack.unpackb(frame, use_list=False, raw=False, strict_map_key=True)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise MalformedMessage(f"not msgpack: {error}") from error
    if type(received) is not tuple or not received or not _is_number(received[0]):
        raise MalformedMessage("not an array that begins with a kind")
    schema = _SCHEMA.get(received[0])
    if schema is None:
        raise UnknownMessage(f"unknown kind {received[0]}")
    message, checks = schema
    values = received[1 : len(checks) + 1]
    if len(values) < _REQUIRED[message]:
        raise MalformedMessage(f"{message.__name__} has {len(values)} fields instead of {len(checks)}")
    for position, (value, check) in enumerate(zip(values, checks, strict=False)):
        if not check(value):
            raise MalformedMessage(f"{message.__name__}.{message.__slots__[position]} is out of its domain")
    decoded: Message = message(*values)
    if type(decoded) is AppendEntries:
        _check_entries(decoded)
    return decoded


def _check_entries(message: AppendEntries) -> None:
    previous_term = message.prev_log_term
    for expected_index, entry in enumerate(message.entries, start=message.prev_log_index + 1):
        if type(entry) is not tuple or len(entry) != 3 or type(entry[0]) is not bytes:
            raise MalformedMessage("AppendEntries.entries holds something else than (command, index, term)")
        if entry[1] != expected_index or type(entry[1]) is not int:
            raise MalformedMessage(f"AppendEntries.entries jumps at index {expected_index}")
        if type(entry[2]) is not int or not previous_term <= entry[2] <= message.term:
            raise MalformedMessage(f"AppendEntries.entries has an impossible term at index {expected_index}")
        previous_term = entry[2]
