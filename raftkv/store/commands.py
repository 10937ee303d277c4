"""The replicated commands and their codec.

A group of commands travels in one Raft entry as one msgpack array, ``[format, [[kind, ...fields], ...], version]``.
The format is that of the array. The version is the lowest cluster version (``raftkv.versions``) at which every command
of the group may be applied: it is checked before the commands are read, so a release that does not know a command can
say which version it needs. Nothing in a command depends on where or when it is applied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

from raftkv.membership import MemberChange
from raftkv.operations import FINGERPRINT_BYTES, Alarm, AlarmKind, Fence, Transaction
from raftkv.store.members import change_fields, change_of
from raftkv.store.transaction_codec import content_type_of, transaction_bytes, transaction_fields, transaction_of
from raftkv.types import Condition, Revision
from raftkv.versions import FIRST_VERSION, ClusterVersion

FORMAT_VERSION = 2

_PUT = 1
_DELETE = 2
_TRANSACT = 3
_COMPACT = 4
_GRANT_LEASE = 5
_REVOKE_LEASE = 6
_GUARDED = 7
_SET_ALARM = 8
_CHANGE_MEMBERS = 9
_SET_CLUSTER_VERSION = 10
_FORGET_OUTCOMES = 11

_NO_CONDITION = -1
_MUST_EXIST = -2

_FRAMING_BYTES = 48
"""More than the framing of any command takes."""

_MEMBER_BYTES = 1024
"""More than any change of the membership takes."""


class MalformedCommand(ValueError):
    """A payload is no group of commands that this release knows."""


@dataclass(frozen=True, slots=True)
class Put:
    """Write a key.

    Attributes:
        key: The key.
        value: Its new value.
        lease: Lease to attach it to, 0 for none.
        condition: What must hold of the key, None for nothing.
        content_type: Media type to store with the value, empty for none.
    """

    key: bytes
    value: bytes
    lease: int = 0
    condition: Condition | None = None
    content_type: str = ""


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove a key if it exists.

    Attributes:
        key: The key.
        condition: What must hold of the key, None for nothing.
    """

    key: bytes
    condition: Condition | None = None


@dataclass(frozen=True, slots=True)
class Transact:
    """Carry out a transaction."""

    transaction: Transaction


@dataclass(frozen=True, slots=True)
class Compact:
    """Forget the history below a revision."""

    revision: Revision


@dataclass(frozen=True, slots=True)
class GrantLease:
    """Make a lease.

    Attributes:
        lease_id: Its id, from 1.
        seconds: For how long.
    """

    lease_id: int
    seconds: int


@dataclass(frozen=True, slots=True)
class RevokeLease:
    """Remove a lease, and delete its keys."""

    lease_id: int


@dataclass(frozen=True, slots=True)
class SetAlarm:
    """Raise an alarm, or clear it."""

    alarm: Alarm
    is_active: bool


@dataclass(frozen=True, slots=True)
class Once:
    """A command that is applied once, however often it comes.

    Attributes:
        key: By what it is recognised.
        fingerprint: Digest of the request, 16 bytes.
        now: The proposer's time in seconds; it never goes back in one log.
        keep_seconds: For how long its result is kept.
        max_bytes: It is refused when all kept results take this many bytes, 0 for no bound.
    """

    key: bytes
    fingerprint: bytes
    now: int
    keep_seconds: int
    max_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ForgetOutcomes:
    """Forget results of idempotent writes whose time is over, as many as one command may.

    Attributes:
        now: The proposer's time in seconds.
    """

    now: int


PlainCommand = Put | Delete | Transact | Compact | GrantLease | RevokeLease | SetAlarm | ForgetOutcomes


@dataclass(frozen=True, slots=True)
class Guarded:
    """A command under the safeguards of its sender.

    Attributes:
        command: The command.
        fence: The lock that must still be held, None for none.
        once: By what it is recognised when it comes again, None when it need not be.
    """

    command: PlainCommand
    fence: Fence | None
    once: Once | None


@dataclass(frozen=True, slots=True)
class ChangeMembers:
    """Change the membership. It travels in an entry of its own, which the consensus can tell from others."""

    change: MemberChange


@dataclass(frozen=True, slots=True)
class SetClusterVersion:
    """Raise the cluster's version; one that is not above the present version changes nothing."""

    version: ClusterVersion


Command = PlainCommand | Guarded | ChangeMembers | SetClusterVersion

REQUIRED_VERSIONS: dict[type[Any], ClusterVersion] = {}
"""Lowest cluster version of each kind of command that came after the first."""

_FIRST_VERSION_FIELDS = (FIRST_VERSION.major, FIRST_VERSION.minor)
"""No cluster is at a lower version, and every entry of most clusters needs no higher one."""

_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack


def encoded_size_hint(command: Command) -> int:
    """Return an upper bound of a command's encoded size in bytes."""
    if isinstance(command, Put):
        return len(command.key) + len(command.value) + len(command.content_type) + _FRAMING_BYTES
    if isinstance(command, Delete):
        return len(command.key) + _FRAMING_BYTES
    if isinstance(command, Transact):
        return transaction_bytes(command.transaction) + _FRAMING_BYTES
    if isinstance(command, Guarded):
        fence = 0 if command.fence is None else len(command.fence.prefix)
        once = 0 if command.once is None else len(command.once.key) + FINGERPRINT_BYTES
        return encoded_size_hint(command.command) + fence + once + _FRAMING_BYTES
    if isinstance(command, SetAlarm):
        return len(command.alarm.member.encode()) + _FRAMING_BYTES
    return _MEMBER_BYTES if isinstance(command, ChangeMembers) else _FRAMING_BYTES


def required_version(command: Command) -> ClusterVersion:
    """Return the lowest cluster version at which a command may be proposed and applied."""
    if isinstance(command, Guarded):
        return required_version(command.command)
    return REQUIRED_VERSIONS.get(type(command), FIRST_VERSION)


def encode_commands(commands: Sequence[Command]) -> bytes:
    """Return a group of commands as a Raft entry's payload."""
    required = max(map(required_version, commands), default=FIRST_VERSION)
    return bytes(_pack((FORMAT_VERSION, [_fields(command) for command in commands], (required.major, required.minor))))


def decode_commands(payload: bytes, cluster_version: ClusterVersion | None = None) -> list[Command]:
    """Read a group of commands.

    Args:
        payload: What ``encode_commands`` returned.
        cluster_version: The cluster's version where the group stands in the log; None to read any.

    Raises:
        MalformedCommand: It is no group of commands that this release knows, or it needs a higher cluster version.
    """
    return list(iterate_commands(payload, cluster_version))


def iterate_commands(payload: bytes, cluster_version: ClusterVersion | None = None) -> Iterator[Command]:
    """Read a group of commands one after the other, since all of them may take long; see ``decode_commands``."""
    try:
        fields = msgpack.unpackb(payload, use_list=False)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise MalformedCommand(f"not a group of commands: {error}") from error
    if type(fields) is not tuple or not fields or fields[0] != FORMAT_VERSION:
        found = fields[0] if type(fields) is tuple and fields else fields
        raise MalformedCommand(f"command format {found!r} is unknown, this release reads {FORMAT_VERSION}")
    if len(fields) != 3 or type(fields[1]) is not tuple or not _has_types(fields[2], (int, int)) or not fields[2]:
        raise MalformedCommand(f"a group of commands of a wrong shape in format {FORMAT_VERSION}")
    if fields[2] != _FIRST_VERSION_FIELDS and cluster_version is not None:
        required = ClusterVersion(*fields[2])
        if required > cluster_version:
            raise MalformedCommand(
                f"it needs cluster version {required}, and the cluster is at version {cluster_version}"
            )
    for item in fields[1]:
        yield _command(item)


def _fields(command: Command) -> tuple[Any, ...]:
    if isinstance(command, Put | Delete):
        return _write_fields(command)
    if isinstance(command, Transact):
        return (_TRANSACT, transaction_fields(command.transaction))
    if isinstance(command, Compact):
        return (_COMPACT, command.revision)
    if isinstance(command, GrantLease):
        return (_GRANT_LEASE, command.lease_id, command.seconds)
    if isinstance(command, RevokeLease):
        return (_REVOKE_LEASE, command.lease_id)
    if isinstance(command, ForgetOutcomes):
        return (_FORGET_OUTCOMES, command.now)
    if isinstance(command, SetAlarm):
        alarm = command.alarm
        return (_SET_ALARM, alarm.kind.value, alarm.member, alarm.is_automatic, command.is_active)
    if isinstance(command, ChangeMembers):
        return (_CHANGE_MEMBERS, change_fields(command.change))
    if isinstance(command, SetClusterVersion):
        return (_SET_CLUSTER_VERSION, command.version.major, command.version.minor)
    return _guarded_fields(command)


def _guarded_fields(command: Guarded) -> tuple[Any, ...]:
    fence, once = command.fence, command.once
    return (
        _GUARDED,
        _fields(command.command),
        None if fence is None else (fence.prefix, fence.token),
        None if once is None else (once.key, once.fingerprint, once.now, once.keep_seconds, once.max_bytes),
    )


def _write_fields(command: Put | Delete) -> tuple[Any, ...]:
    condition = command.condition
    if condition is None:
        expected = _NO_CONDITION
    elif condition.mod_revision is None:
        expected = _MUST_EXIST
    else:
        expected = condition.mod_revision
    if isinstance(command, Put):
        fields = (_PUT, command.key, command.value, command.lease, expected)
        return (*fields, command.content_type) if command.content_type else fields
    return (_DELETE, command.key, expected)


def _command(item: Any) -> Command:
    if type(item) is tuple:
        if len(item) in (5, 6) and item[0] == _PUT and _has_types(item[1:4], (bytes, bytes, int)):
            return Put(item[1], item[2], item[3], _condition(item[4]), _content_type(item[5:]))
        if len(item) == 3 and item[0] == _DELETE and type(item[1]) is bytes:
            return Delete(item[1], _condition(item[2]))
        if len(item) == 2 and item[0] == _TRANSACT:
            return Transact(_transaction(item[1]))
        if len(item) == 2 and item[0] == _CHANGE_MEMBERS:
            return _change_members(item[1])
        if len(item) == 5 and item[0] == _SET_ALARM:
            return _set_alarm(*item[1:])
        if len(item) == 4 and item[0] == _GUARDED:
            return _guarded(*item[1:])
        if item and type(item[0]) is int and all(type(field) is int and field >= 0 for field in item):
            return _numbers_command(item)
    raise _unknown(item)


def _unknown(item: Any) -> MalformedCommand:
    kind = item[0] if type(item) is tuple and item else item
    return MalformedCommand(f"a command of the unknown kind {kind!r}, or of a wrong shape")


def _content_type(fields: tuple[Any, ...]) -> str:
    try:
        return content_type_of(fields)
    except (TypeError, ValueError) as error:
        raise MalformedCommand(f"a put of a wrong shape: {error}") from None


def _transaction(fields: Any) -> Transaction:
    try:
        return transaction_of(fields)
    except (TypeError, ValueError, IndexError, RecursionError) as error:
        raise MalformedCommand(f"a transaction of a wrong shape: {error}") from None


def _change_members(fields: Any) -> ChangeMembers:
    try:
        return ChangeMembers(change_of(fields))
    except ValueError as error:
        raise MalformedCommand(str(error)) from None


def _set_alarm(kind: Any, member: Any, is_automatic: Any, is_active: Any) -> SetAlarm:
    flags_are_flags = type(is_automatic) is bool and type(is_active) is bool
    if kind not in [known.value for known in AlarmKind] or type(member) is not str or not flags_are_flags:
        raise MalformedCommand("an alarm of a wrong shape")
    return SetAlarm(Alarm(AlarmKind(kind), member, is_automatic), is_active)


def _guarded(inner: Any, fence: Any, once: Any) -> Guarded:
    if type(inner) is tuple and inner and inner[0] in (_GUARDED, _CHANGE_MEMBERS, _SET_CLUSTER_VERSION):
        raise MalformedCommand("a command that takes no safeguards")
    command = _command(inner)
    assert not isinstance(command, Guarded | ChangeMembers | SetClusterVersion), "that was refused above"
    if not _has_types(fence, (bytes, int)) or not _has_types(once, (bytes, bytes, int, int, int)):
        raise MalformedCommand("safeguards of a wrong shape")
    if once is not None and (len(once[1]) != FINGERPRINT_BYTES or min(once[2:]) < 0):
        raise MalformedCommand("safeguards out of bounds")
    return Guarded(command, None if fence is None else Fence(*fence), None if once is None else Once(*once))


def _has_types(fields: Any, types: tuple[type[Any], ...]) -> bool:
    return fields is None or (type(fields) is tuple and tuple(type(field) for field in fields) == types)


def _numbers_command(item: tuple[int, ...]) -> Command:
    if len(item) == 2 and item[0] == _COMPACT:
        return Compact(Revision(item[1]))
    if len(item) == 3 and item[0] == _GRANT_LEASE:
        return GrantLease(item[1], item[2])
    if len(item) == 2 and item[0] == _REVOKE_LEASE:
        return RevokeLease(item[1])
    if len(item) == 2 and item[0] == _FORGET_OUTCOMES:
        return ForgetOutcomes(item[1])
    if len(item) == 3 and item[0] == _SET_CLUSTER_VERSION:
        return SetClusterVersion(ClusterVersion(item[1], item[2]))
    raise _unknown(item)


def _condition(expected: Any) -> Condition | None:
    if expected == _NO_CONDITION:
        return None
    if expected == _MUST_EXIST:
        return Condition(None)
    if type(expected) is not int or expected < 0:
        raise MalformedCommand(f"a condition of {expected!r}")
    return Condition(Revision(expected))
