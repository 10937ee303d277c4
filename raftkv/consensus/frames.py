"""Frames: what the journal writes with one sync, and how a torn one is told from a damaged one.

Each write to a segment is one frame, and each is synced before the next is written. So only the last frame of the last
segment can be incomplete after a power loss. Of that one, any subset of sectors may be on the disk: file systems write
the pages of a file in any order, and extend the file before its pages are written. A lost sector reads as zeros, or
lies behind the end of the file.

A frame begins and ends at a sector's border, so no sector holds parts of two frames::

    "RKVB" | u32 body bytes | u32 CRC-32 of body and padding | u32 sectors of zeros in the frame
    u64 offset of the frame in the segment | u32 zero | u32 CRC-32 of the 28 bytes before, seeded
    body | padding to the next border, bytes of 0xff

All numbers are little endian. The seed is 0 in the first frame of a segment, and the CRC-32 of that one in
all others.
A frame of another segment, or of another offset, so does not pass for a frame here when a value has a copy of it.

A frame that does not check is torn if a write that a power loss cut short explains it: it is the last one, and either
the file ends before it does, or more of its sectors are zero than were written as zeros. Anything else is damage.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from zlib import crc32

SECTOR_BYTES = 512
"""The unit that a disk writes whole or not at all."""

FRAME_HEADER_BYTES = 32

_MAGIC = b"RKVB"
_HEADER = struct.Struct("<4sIIIQI")
_CHECKSUM = struct.Struct("<I")
_PADDING = b"\xff"

assert _HEADER.size + _CHECKSUM.size == FRAME_HEADER_BYTES


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame that checks.

    Attributes:
        offset: Where it begins in the segment.
        body_end: Where its body ends; the body begins ``FRAME_HEADER_BYTES`` after ``offset``.
        end: Where the next frame begins.
    """

    offset: int
    body_end: int
    end: int


class TornFrame(Exception):
    """The last frame is incomplete in a way that a power loss explains.

    Attributes:
        offset: Where it begins.
    """

    def __init__(self, offset: int) -> None:
        super().__init__(f"a torn frame at offset {offset}")
        self.offset = offset


class DamagedFrame(Exception):
    """A frame does not check, and no power loss explains it.

    Attributes:
        offset: Where it begins.
        reason: What does not check.
    """

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(f"{reason} at offset {offset}")
        self.offset = offset
        self.reason = reason


def encode_frame(parts: Iterable[bytes], offset: int, seed: int) -> bytes:
    """Return a frame.

    Args:
        parts: The body, in pieces.
        offset: Where the frame begins in its segment, a multiple of ``SECTOR_BYTES``.
        seed: 0 for the first frame of a segment, ``seed_of`` the first one for all others.
    """
    body = b"".join(parts)
    padded = body + _PADDING * (-(FRAME_HEADER_BYTES + len(body)) % SECTOR_BYTES)
    header = _HEADER.pack(_MAGIC, len(body), crc32(padded), _zero_sectors_of_body(padded), offset, 0)
    return header + _CHECKSUM.pack(crc32(header, seed)) + padded


def seed_of(first_frame: bytes) -> int:
    """Return the seed of the frames that follow a segment's first one."""
    return crc32(first_frame)


def read_frames(data: bytes) -> Iterator[Frame]:
    """Yield the frames of a segment, in order.

    Raises:
        TornFrame: The last frame is one that a power loss cut short.
        DamagedFrame: A frame does not check for any other reason.
    """
    seed = offset = 0
    while offset < len(data):
        frame = _read_frame(data, offset, seed)
        if offset == 0:
            seed = seed_of(data[: frame.end])
        yield frame
        offset = frame.end


def _read_frame(data: bytes, offset: int, seed: int) -> Frame:
    if len(data) - offset < FRAME_HEADER_BYTES:
        raise TornFrame(offset)
    if not any(data[offset : offset + SECTOR_BYTES]):
        # The header is lost, and with it where the frame ends: it was the last one if no frame follows.
        if _has_frame_behind(data, offset, seed):
            raise DamagedFrame(offset, "the header of a frame is missing, and it is not the last frame")
        raise TornFrame(offset)
    header = _parse_header(data, offset, seed)
    if header is None:
        raise DamagedFrame(offset, "the header of a frame does not match its checksum")
    body_bytes, checksum, zero_sectors = header
    body_end = offset + FRAME_HEADER_BYTES + body_bytes
    end = -(-body_end // SECTOR_BYTES) * SECTOR_BYTES
    if end > len(data):
        raise TornFrame(offset)
    padded = memoryview(data)[offset + FRAME_HEADER_BYTES : end]
    if crc32(padded) == checksum:
        return Frame(offset, body_end, end)
    if end < len(data):
        raise DamagedFrame(offset, "the body of a frame does not match its checksum, and it is not the last frame")
    if _zero_sectors_of_body(bytes(padded)) > zero_sectors:
        raise TornFrame(offset)
    raise DamagedFrame(offset, "the body of a frame does not match its checksum, and none of its sectors is missing")


def _parse_header(data: bytes, offset: int, seed: int) -> tuple[int, int, int] | None:
    magic, body_bytes, checksum, zero_sectors, own_offset, _reserved = _HEADER.unpack_from(data, offset)
    (own_checksum,) = _CHECKSUM.unpack_from(data, offset + _HEADER.size)
    if crc32(data[offset : offset + _HEADER.size], seed) != own_checksum:
        return None
    return (body_bytes, checksum, zero_sectors) if (magic, own_offset) == (_MAGIC, offset) else None


def _has_frame_behind(data: bytes, offset: int, seed: int) -> bool:
    borders = range(offset + SECTOR_BYTES, len(data) - FRAME_HEADER_BYTES + 1, SECTOR_BYTES)
    candidates = (border for border in borders if data.startswith(_MAGIC, border))
    if offset == 0:
        # With the first frame the seed is lost. Nothing in a first frame comes from clients, so nothing there looks so.
        return any(_HEADER.unpack_from(data, border)[4] == border for border in candidates)
    return any(_parse_header(data, border, seed) is not None for border in candidates)


def _zero_sectors_of_body(padded: bytes) -> int:
    """Count the sectors of zeros in what follows a frame's header; the header's own sector is never one."""
    zeros = bytes(SECTOR_BYTES)
    if zeros not in padded:
        return 0
    borders = range(SECTOR_BYTES - FRAME_HEADER_BYTES, len(padded), SECTOR_BYTES)
    return sum(padded.startswith(zeros, border) for border in borders)
