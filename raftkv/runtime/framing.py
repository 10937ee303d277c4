"""Frames on a peer connection, and the handshake that opens it.

A frame is a big-endian u32 length and that many bytes. The first frame each way belongs to the handshake: the dialler
says who it is (``Hello``), the acceptor answers ``Welcome`` or ``Rejected``. Until then frames are small.

Other connections carry one question and its answer only: of a node without data (``Inquiry``), and of an acceptor that
verifies a dialler (``Confirm``, ``Vouch``; see ``raftkv.runtime.peer_proof``).

A handshake message is one msgpack map from field names to values. Receivers ignore unknown fields and take the default
of a missing one, so releases can add fields. Three things never change, so that even distant releases can refuse each
other in words: ``kind``, the range ``oldest_protocol`` to ``protocol`` of a hello, ``code`` and ``text`` of a refusal.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, fields
from enum import IntEnum
from typing import Any, get_type_hints

import msgpack

from raftkv.config import HostPort
from raftkv.errors import ConfigurationError
from raftkv.types import NODE_NAME
from raftkv.versions import SUPPORTED_VERSIONS, AnnouncedVersions

PROTOCOL_VERSION = 1
"""The newest peer protocol that this release speaks. A connection uses the newest that both sides speak."""

OLDEST_PROTOCOL_VERSION = 1
"""The oldest one."""

MAX_FRAME_BYTES = 16_777_216
MAX_HANDSHAKE_BYTES = 4096
_MAX_TEXT = 1024

_LENGTH = struct.Struct(">I")


class BadFrame(ValueError):
    """What arrived is no frame, or no handshake, of this protocol."""


class OtherProtocol(BadFrame):
    """A peer speaks no protocol that this release speaks. The text names the versions of both."""


class Channel(IntEnum):
    """What a connection is for. Snapshots have one of their own, so that nothing ever waits behind them."""

    MESSAGES = 0
    SNAPSHOTS = 1


@dataclass(frozen=True, slots=True)
class Hello:
    """A dialler's introduction.

    Attributes:
        protocol: The newest peer protocol that it speaks.
        cluster_id: The cluster it belongs to.
        name: Its name.
        member_id: Its id as a member.
        storage_id: Id of its data directory.
        target: The member that it wants to reach.
        client_url: Where it serves clients.
        peer_address: ``HOST:PORT`` at which it can be dialled.
        channel: What the connection is for, one of ``Channel``.
        oldest_protocol: The oldest peer protocol that it speaks.
        lowest_version: The lowest cluster version that it supports.
        highest_version: The highest one.
        held_version: The cluster's version shall not rise above this one; empty for no such wish.
        life: Token of its process.
        start_index: Last index of its log when that process began.
        token: A secret of the dialler and the target, by which the dialler recognises its own connection.
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
    oldest_protocol: int = OLDEST_PROTOCOL_VERSION
    lowest_version: str = str(SUPPORTED_VERSIONS.lowest)
    highest_version: str = str(SUPPORTED_VERSIONS.highest)
    held_version: str = ""
    life: str = ""
    start_index: int = 0
    token: str = ""

    @property
    def announced(self) -> AnnouncedVersions:
        """What it says of cluster versions."""
        return AnnouncedVersions.parse(self.lowest_version, self.highest_version, self.held_version)


@dataclass(frozen=True, slots=True)
class Welcome:
    """An acceptor's introduction.

    Attributes:
        name: Its name.
        member_id: Its id as a member.
        storage_id: Id of its data directory.
        client_url: Where it serves clients.
        protocol: The peer protocol of the connection.
        lowest_version: The lowest cluster version that it supports.
        highest_version: The highest one.
        held_version: The cluster's version shall not rise above this one; empty for no such wish.
        life: Token of its process.
        start_index: Last index of its log when that process began.
    """

    name: str
    member_id: int
    storage_id: str
    client_url: str
    protocol: int = PROTOCOL_VERSION
    lowest_version: str = str(SUPPORTED_VERSIONS.lowest)
    highest_version: str = str(SUPPORTED_VERSIONS.highest)
    held_version: str = ""
    life: str = ""
    start_index: int = 0

    @property
    def announced(self) -> AnnouncedVersions:
        """What it says of cluster versions."""
        return AnnouncedVersions.parse(self.lowest_version, self.highest_version, self.held_version)


@dataclass(frozen=True, slots=True)
class Rejected:
    """An acceptor's refusal.

    Attributes:
        code: ``protocol``, ``version``, ``cluster``, ``target``, ``member``, ``removed``, ``older`` or ``storage``;
            ``starting`` by a node that has not begun or joined its cluster yet; ``unproven`` when the dialler could not
            be verified as the member that it says it is;
            and ``departed``, ``unsupported`` or ``forgetful`` when it was the dialler who refused an acceptor that was
            removed, that does not support the cluster's version, or that has lost its storage.
        text: One sentence for people.
    """

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Inquiry:
    """The question of a node without data whether it may begin its cluster.

    Attributes:
        cluster_id: The cluster that it would begin.
        name: Its name.
        target: The member that it wants to ask.
    """

    cluster_id: str
    name: str
    target: str


@dataclass(frozen=True, slots=True)
class Consent:
    """The answer of a node that has no data, or has data of the cluster in which the asker has not taken part yet."""

    name: str


@dataclass(frozen=True, slots=True)
class Probe:
    """The question which member of a cluster listens at an address.

    Attributes:
        cluster_id: The cluster.
    """

    cluster_id: str


@dataclass(frozen=True, slots=True)
class Presence:
    """The answer of a member to a probe.

    Attributes:
        name: Its name.
        member_id: Its id as a member.
        storage_id: Id of its data directory.
        life: Token of its process.
    """

    name: str
    member_id: int
    storage_id: str
    life: str = ""


@dataclass(frozen=True, slots=True)
class Confirm:
    """The question of an acceptor, at a member's address, whether a connection with a certain token is that member's.

    Attributes:
        cluster_id: The cluster of the acceptor.
        name: The acceptor.
        target: The member that is asked.
        token: The token of the hello.
    """

    cluster_id: str
    name: str
    target: str
    token: str


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The answer that it is."""

    name: str


@dataclass(frozen=True, slots=True)
class Vouch:
    """The question whether a peer is a member, by a node that does not know it.

    Attributes:
        cluster_id: The cluster of the node.
        name: The node.
        target: The member that is asked.
        peer: Name of the peer.
        peer_id: Its id as a member.
    """

    cluster_id: str
    name: str
    target: str
    peer: str
    peer_id: int


@dataclass(frozen=True, slots=True)
class Vouched:
    """The answer that it is.

    Attributes:
        name: The member that answers.
        peer_address: The peer's address.
    """

    name: str
    peer_address: str


Question = Inquiry | Probe | Confirm | Vouch
"""What a connection carries that ends with its answer."""

Handshake = Hello | Welcome | Rejected | Consent | Presence | Confirmed | Vouched | Question

_KINDS: dict[str, type[Any]] = {
    "hello": Hello,
    "welcome": Welcome,
    "rejected": Rejected,
    "inquiry": Inquiry,
    "consent": Consent,
    "probe": Probe,
    "presence": Presence,
    "confirm": Confirm,
    "confirmed": Confirmed,
    "vouch": Vouch,
    "vouched": Vouched,
}
_NAME_FIELDS = {"name", "target", "peer"}
_NAMES = {kind: name for name, kind in _KINDS.items()}
_TYPES: dict[type[Any], dict[str, type]] = {kind: get_type_hints(kind) for kind in _KINDS.values()}
_REQUIRED = {kind: {field.name for field in fields(kind) if field.default is MISSING} for kind in _KINDS.values()}


def encode_frame(payload: bytes) -> bytes:
    """Return a payload with its length before it."""
    return _LENGTH.pack(len(payload)) + payload


def encode_handshake(message: Handshake) -> bytes:
    """Return a handshake message as a whole frame."""
    named = {name: int(value) if isinstance(value, int) else value for name, value in asdict(message).items()}
    return encode_frame(msgpack.packb({"kind": _NAMES[type(message)], **named}))


def decode_handshake(payload: bytes) -> Handshake:
    """Read a handshake message; fields that this release does not know are ignored.

    Raises:
        BadFrame: It is none.
        OtherProtocol: It is a hello of a release without a protocol in common.
    """
    try:
        named = msgpack.unpackb(payload, use_list=False)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise BadFrame(f"not msgpack: {error}") from error
    kind = _KINDS.get(named["kind"]) if type(named) is dict and type(named.get("kind")) is str else None
    if kind is None:
        raise BadFrame("not a handshake")
    known = {name: named[name] for name in _TYPES[kind] if name in named}
    if any(type(value) is not _TYPES[kind][name] for name, value in known.items()):
        raise BadFrame(f"{kind.__name__} has fields of other types")
    if kind is Hello:
        _check_protocol(known)
    if missing := _REQUIRED[kind] - known.keys():
        raise BadFrame(f"{kind.__name__} has no {', '.join(sorted(missing))}")
    if any(type(value) is str and len(value) > _MAX_TEXT for value in known.values()):
        raise BadFrame(f"{kind.__name__} has a text of more than {_MAX_TEXT} characters")
    if kind is Rejected:
        # Words of a later release are for people; what they could do to a log or a terminal is taken from them.
        known["text"] = "".join(each if each.isprintable() else "?" for each in known["text"])
    for name in _NAME_FIELDS & known.keys():
        if NODE_NAME.fullmatch(known[name]) is None:
            raise BadFrame(f"{kind.__name__}.{name} is no name of a member")
    if not all(value.isprintable() for value in known.values() if type(value) is str):
        raise BadFrame(f"{kind.__name__} has a text with control characters")
    message: Handshake = kind(**known)
    if isinstance(message, Hello | Welcome):
        _check_versions(message)
    if isinstance(message, Hello):
        _check_hello(message)
    if isinstance(message, Vouched):
        _check_address(message.peer_address)
    return message


def protocol_in_common(hello: Hello) -> int:
    """Return the newest peer protocol that the sender of a hello and this release speak."""
    return min(hello.protocol, PROTOCOL_VERSION)


def _check_protocol(named: dict[str, Any]) -> None:
    newest = named.get("protocol", 0)
    oldest = named.get("oldest_protocol", newest)
    if not oldest <= newest:
        raise BadFrame(f"Hello has a range of protocols from {oldest} to {newest}")
    if newest < OLDEST_PROTOCOL_VERSION or oldest > PROTOCOL_VERSION:
        raise OtherProtocol(
            f"this release speaks the peer protocols {OLDEST_PROTOCOL_VERSION} to {PROTOCOL_VERSION}, "
            f"the peer speaks {oldest} to {newest}"
        )


def _check_versions(message: Hello | Welcome) -> None:
    try:
        message.announced  # noqa: B018 - it is parsed
    except ValueError as error:
        raise BadFrame(f"{type(message).__name__}: {error}") from error


def _check_hello(message: Hello) -> None:
    if message.channel not in list(Channel):
        raise BadFrame(f"channel {message.channel} is unknown")
    _check_address(message.peer_address)


def _check_address(text: str) -> None:
    try:
        HostPort.parse(text)
    except ConfigurationError as error:
        raise BadFrame(f"a peer address that cannot be dialled: {error}") from error


_TLS_RECORDS = (b"\x15\x03", b"\x16\x03")
"""How an alert and a handshake of TLS begin. As lengths of frames they are beyond every limit."""

_HTTP = (b"GET ", b"HEAD", b"POST", b"PUT ", b"HTTP")


def _too_long(first: bytes, length: int, limit: int) -> str:
    """Return what is wrong with a frame that is longer than allowed."""
    if first.startswith(_TLS_RECORDS):
        return "it speaks TLS where plaintext is expected: TLS is on at one of the two nodes only"
    if first in _HTTP:
        return "it speaks HTTP, and not the protocol of peers: is a client port taken for a peer port?"
    return f"a frame of {length} bytes, the limit is {limit}"


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
                    raise BadFrame(_too_long(bytes(buffer[offset : offset + 4]), length, self.max_bytes))
                end = offset + _LENGTH.size + length
                if len(buffer) < end:
                    break
                payload = bytes(memoryview(buffer)[offset + _LENGTH.size : end])
                offset = end
                yield payload
        finally:
            # Once for all frames of a read, or many small frames would move the rest of the buffer each.
            del buffer[:offset]
