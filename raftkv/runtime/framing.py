"""Frames on a peer connection, and the handshake that opens it.

A frame is a big-endian u32 length and that many bytes. The first frame each way belongs to the handshake: the dialler
says who it is (``Hello``), the acceptor answers ``Welcome`` or ``Rejected``. Until then frames are small.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from enum import IntEnum
from typing import Any

import msgpack

from raftkv.config import HostPort
from raftkv.errors import ConfigurationError

PROTOCOL_VERSION = 1

MAX_FRAME_BYTES = 16_777_216
MAX_HANDSHAKE_BYTES = 4096
_MAX_TEXT = 1024

_LENGTH = struct.Struct(">I")


class BadFrame(ValueError):
    """What arrived is no frame, or no handshake, of this protocol."""


class Channel(IntEnum):
    """What a connection is for. Snapshots have one of their own, so that nothing ever waits behind them."""

    MESSAGES = 0
    SNAPSHOTS = 1


@dataclass(frozen=True, slots=True)
class Hello:
    """A dialler's introduction.

    Attributes:
        protocol: Version of the peer protocol.
        cluster_id: The cluster it belongs to.
        name: Its name.
        member_id: Its id as a member.
        storage_id: Id of its data directory.
        target: The member that it wants to reach.
        client_url: Where it serves clients.
        peer_address: ``HOST:PORT`` at which it can be dialled.
        channel: What the connection is for, one of ``Channel``.
    """

    protocol: int
    cluster_id: str
    name: str
    member_id: int
    storage_id: str
    target: str
    client_url: str
    peer_address: str
    channel: int = Channel.MESSAGES


@dataclass(frozen=True, slots=True)
class Welcome:
    """An acceptor's introduction.

    Attributes:
        name: Its name.
        member_id: Its id as a member.
        storage_id: Id of its data directory.
        client_url: Where it serves clients.
    """

    name: str
    member_id: int
    storage_id: str
    client_url: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """An acceptor's refusal.

    Attributes:
        code: ``protocol``, ``cluster``, ``target``, ``member``, ``removed`` or ``storage``;
            and ``departed`` when it was the dialler who refused an acceptor that was removed.
        text: One sentence for people.
    """

    code: str
    text: str


Handshake = Hello | Welcome | Rejected

_KINDS: dict[int, tuple[type[Any], tuple[type, ...]]] = {
    1: (Hello, (int, str, str, int, str, str, str, str, int)),
    2: (Welcome, (str, int, str, str)),
    3: (Rejected, (str, str)),
}
_NUMBERS = {kind: number for number, (kind, _types) in _KINDS.items()}


def encode_frame(payload: bytes) -> bytes:
    """Return a payload with its length before it."""
    return _LENGTH.pack(len(payload)) + payload


def encode_handshake(message: Handshake) -> bytes:
    """Return a handshake message as a whole frame."""
    fields = (int(field) if isinstance(field, Channel) else field for field in astuple(message))
    return encode_frame(msgpack.packb((_NUMBERS[type(message)], *fields)))


def decode_handshake(payload: bytes) -> Handshake:
    """Read a handshake message.

    Raises:
        BadFrame: It is none.
    """
    try:
        fields = msgpack.unpackb(payload, use_list=False)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise BadFrame(f"not msgpack: {error}") from error
    if type(fields) is not tuple or not fields or type(fields[0]) is not int or fields[0] not in _KINDS:
        raise BadFrame("not a handshake")
    kind, types = _KINDS[fields[0]]
    if [type(field) for field in fields[1:]] != list(types):
        raise BadFrame(f"{kind.__name__} has fields of other types")
    if any(type(field) is str and len(field) > _MAX_TEXT for field in fields):
        raise BadFrame(f"{kind.__name__} has a text of more than {_MAX_TEXT} characters")
    message: Handshake = kind(*fields[1:])
    if isinstance(message, Hello) and message.channel not in list(Channel):
        raise BadFrame(f"channel {message.channel} is unknown")
    if isinstance(message, Hello):
        _check_address(message.peer_address)
    return message


def _check_address(text: str) -> None:
    try:
        HostPort.parse(text)
    except ConfigurationError as error:
        raise BadFrame(f"a peer address that cannot be dialled: {error}") from error


class FrameReader:
    """Cuts a stream of bytes into frames.

    Args:
        max_bytes: Longest payload that is accepted; may be raised after the handshake.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the payloads that are complete now.

        Raises:
            BadFrame: A frame is longer than allowed.
        """
        buffer = self._buffer
        buffer += data
        offset = 0
        try:
            while len(buffer) - offset >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(buffer, offset)
                if length > self.max_bytes:
                    raise BadFrame(f"a frame of {length} bytes, the limit is {self.max_bytes}")
                end = offset + _LENGTH.size + length
                if len(buffer) < end:
                    break
                payload = bytes(memoryview(buffer)[offset + _LENGTH.size : end])
                offset = end
                yield payload
        finally:
            # Once for all frames of a read, or many small frames would move the rest of the buffer each.
            del buffer[:offset]
