"""The records of the journal and their codec.

A record is a header of 16 bytes and a body::

    u32 body length | u8 type | 3 bytes zero | u32 CRC-32 of the body | u32 CRC-32 of the 12 bytes before

All numbers are little endian. The header has a checksum of its own, so that a flipped length is found to be
corruption and is not mistaken for a record that a crash cut short.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any
from zlib import crc32

import msgpack

from raftkv.formats import Format, Formats
from raftkv.versions import ClusterVersion

MAGIC = "raftkv journal"

_HEADER = struct.Struct("<IB3xI")
_CHECKSUM = struct.Struct("<I")
_INDEX = struct.Struct("<Q")
_INDEX_TERM = struct.Struct("<QQ")

HEADER_BYTES = _HEADER.size + _CHECKSUM.size
assert HEADER_BYTES == 16


class RecordType(IntEnum):
    """What a record says."""

    SEGMENT = 1
    ENTRY = 2
    HARD_STATE = 3
    TRUNCATE = 4
    COMMIT = 5
    RESET = 6
    MEMBER_STORAGE = 7
    PROMISE = 8


@dataclass(frozen=True, slots=True)
class Promise:
    """What another member has acknowledged to this node.

    Attributes:
        life: Token of the process of that member that acknowledged it.
        index: A committed entry, durable at that member with everything before it.
    """

    life: str
    index: int


@dataclass(slots=True)
class LogState:
    """Everything that a reader of later segments must know of earlier ones.

    Attributes:
        term: The current term.
        vote: Who got this node's vote in it, None for nobody.
        commit: The commit index, as a hint.
        last_index: Last index of the log.
        last_term: Term of that entry.
        member_storage: Storage ids of the other members, by their ids as members.
        promises: What the other members have acknowledged, by their ids as members.
    """

    term: int = 0
    vote: str | None = None
    commit: int = 1
    last_index: int = 1
    last_term: int = 0
    member_storage: dict[str, str] = field(default_factory=dict)
    promises: dict[str, Promise] = field(default_factory=dict)

    def copy(self) -> LogState:
        """Return a copy that changes on its own."""
        return replace(self, member_storage=dict(self.member_storage), promises=dict(self.promises))


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """The first record of a segment.

    Attributes:
        cluster_id: The cluster it belongs to.
        number: Its number, one more than its predecessor's.
        state: The state before its second record.
    """

    cluster_id: str
    number: int
    state: LogState


class BadRecord(ValueError):
    """A record's body is not what its type demands."""


def encode_record(record_type: RecordType, body: bytes) -> bytes:
    """Return a whole record."""
    return _header(record_type, len(body), crc32(body)) + body


def encode_entry_head(command: bytes, index: int, term: int) -> bytes:
    """Return an ENTRY record up to its command, which follows it; so the command need not be copied."""
    fixed = _INDEX_TERM.pack(index, term)
    checksum = crc32(command, crc32(fixed))
    return _header(RecordType.ENTRY, len(fixed) + len(command), checksum) + fixed


def encode_segment_header(header: SegmentHeader, cluster_version: ClusterVersion) -> bytes:
    """Return the first record of a segment, which names the format that is written at a cluster version."""
    state = header.state
    fields = [
        MAGIC,
        JOURNAL_FORMATS.written_at(cluster_version),
        header.cluster_id,
        header.number,
        state.term,
        state.vote,
        state.commit,
        state.last_index,
        state.last_term,
        state.member_storage,
        {member_id: [promise.life, promise.index] for member_id, promise in state.promises.items()},
    ]
    return encode_record(RecordType.SEGMENT, msgpack.packb(fields))


def encode_hard_state(term: int, vote: str | None) -> bytes:
    """Return a record of term and vote."""
    return encode_record(RecordType.HARD_STATE, msgpack.packb([term, vote]))


def encode_truncate(from_index: int) -> bytes:
    """Return a record that removes the entries from an index on."""
    return encode_record(RecordType.TRUNCATE, _INDEX.pack(from_index))


def encode_commit(index: int) -> bytes:
    """Return a hint of the commit index."""
    return encode_record(RecordType.COMMIT, _INDEX.pack(index))


def encode_reset(index: int, term: int) -> bytes:
    """Return a record that replaces the whole log by a snapshot's last entry."""
    return encode_record(RecordType.RESET, _INDEX_TERM.pack(index, term))


def encode_member_storage(name: str, storage_id: str) -> bytes:
    """Return a record of another member's storage id."""
    return encode_record(RecordType.MEMBER_STORAGE, msgpack.packb([name, storage_id]))


def encode_promise(member_id: str, promise: Promise) -> bytes:
    """Return a record of what another member has acknowledged."""
    return encode_record(RecordType.PROMISE, msgpack.packb([member_id, promise.life, promise.index]))


def parse_header(data: bytes, offset: int) -> tuple[int, int, int] | None:
    """Read a record's header.

    Returns:
        Type, body length and body checksum; None when the header does not match its own checksum.
    """
    length, record_type, checksum = _HEADER.unpack_from(data, offset)
    (own_checksum,) = _CHECKSUM.unpack_from(data, offset + _HEADER.size)
    if crc32(data[offset : offset + _HEADER.size]) != own_checksum:
        return None
    return record_type, length, checksum


def parse_segment_header(body: bytes) -> SegmentHeader:
    """Read the body of a SEGMENT record.

    Raises:
        BadRecord: It is none.
        UnknownFormat: The segment is of a format that this release does not read.
    """
    fields = _unpack(body)
    if len(fields) < 2 or fields[0] != MAGIC:
        raise BadRecord("it does not begin with the journal's magic")
    return JOURNAL_FORMATS.read(fields[1], fields)


def _read_1(fields: list[Any]) -> SegmentHeader:
    if len(fields) != 11:
        raise BadRecord(f"not an array of 11, but of {len(fields)}")
    state = LogState(*fields[4:10])
    state.promises = {member_id: Promise(*promise) for member_id, promise in fields[10].items()}
    return SegmentHeader(fields[2], fields[3], state)


JOURNAL_FORMATS: Formats[list[Any], SegmentHeader] = Formats("journal", {1: Format(_read_1)})
"""Formats of segments: the number stands for the header and for all records that follow it."""


def parse_pair(body: bytes) -> list[Any]:
    """Read the body of a HARD_STATE or MEMBER_STORAGE record."""
    fields = _unpack(body)
    if len(fields) != 2:
        raise BadRecord("not an array of 2")
    return fields


def parse_promise(body: bytes) -> tuple[str, Promise]:
    """Read the body of a PROMISE record."""
    fields = _unpack(body)
    if len(fields) != 3:
        raise BadRecord("not an array of 3")
    return fields[0], Promise(fields[1], fields[2])


def parse_index(body: bytes) -> int:
    """Read the body of a TRUNCATE or COMMIT record."""
    if len(body) != _INDEX.size:
        raise BadRecord(f"{len(body)} bytes instead of {_INDEX.size}")
    index: int = _INDEX.unpack(body)[0]
    return index


def parse_index_term(body: bytes) -> tuple[int, int]:
    """Read the body of a RESET record, or the beginning of an ENTRY's."""
    if len(body) < _INDEX_TERM.size:
        raise BadRecord(f"{len(body)} bytes are too few")
    index, term = _INDEX_TERM.unpack_from(body)
    return index, term


def parse_command(body: bytes) -> bytes:
    """Return the command of an ENTRY record's body."""
    return body[_INDEX_TERM.size :]


def _header(record_type: RecordType, length: int, checksum: int) -> bytes:
    head = _HEADER.pack(length, record_type, checksum)
    return head + _CHECKSUM.pack(crc32(head))


def _unpack(body: bytes) -> list[Any]:
    try:
        fields = msgpack.unpackb(body)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise BadRecord(f"not msgpack: {error}") from error
    if not isinstance(fields, list):
        raise BadRecord("not an array")
    return fields
