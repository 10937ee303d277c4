"""The replicated commands and their codec.

A group of commands travels in one Raft entry as one msgpack array, ``[version, [[kind, ...fields], ...]]``. The version
lets later releases read what earlier ones wrote. Nothing in a command depends on where or when it is applied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

from raftkv.operations import Transaction
from raftkv.store.transaction_codec import transaction_bytes, transaction_fields, transaction_of
from raftkv.types import Condition, Revision

FORMAT_VERSION = 1

_PUT = 1
_DELETE = 2
_TRANSACT = 3
_COMPACT = 4
_GRANT_LEASE = 5
_REVOKE_LEASE = 6

_NO_CONDITION = -1
_MUST_EXIST = -2

_FRAMING_BYTES = 48
"""More than the framing of any command takes."""


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
    """

    key: bytes
    value: bytes
    lease: int = 0
    condition: Condition | None = None


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


Command = Put | Delete | Transact | Compact | GrantLease | RevokeLease

_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack


def encoded_size_hint(command: Command) -> int:
    """Return an upper bound of a command's encoded size in bytes."""
    if isinstance(command, Put):
        return len(command.key) + len(command.value) + _FRAMING_BYTES
    if isinstance(command, Delete):
        return len(command.key) + _FRAMING_BYTES
    if isinstance(command, Transact):
        return transaction_bytes(command.transaction) + _FRAMING_BYTES
    return _FRAMING_BYTES


def encode_commands(commands: Sequence[Command]) -> bytes:
    """Return a group of commands as a Raft entry's payload."""
    return bytes(_pack((FORMAT_VERSION, [_fields(command) for command in commands])))


def decode_commands(payload: bytes) -> list[Command]:
    """Read a group of commands.

    Raises:
        MalformedCommand: It is none.
    """
    try:
        version, items = msgpack.unpackb(payload, use_list=False)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise MalformedCommand(f"not a group of commands: {error}") from error
    if version != FORMAT_VERSION or type(items) is not tuple:
        raise MalformedCommand(f"command format {version!r} is unknown")
    return [_command(item) for item in items]


def _fields(command: Command) -> tuple[Any, ...]:
    if isinstance(command, Put | Delete):
        return _write_fields(command)
    if isinstance(command, Transact):
        return (_TRANSACT, transaction_fields(command.transaction))
    if isinstance(command, Compact):
        return (_COMPACT, command.revision)
    if isinstance(command, GrantLease):
        return (_GRANT_LEASE, command.lease_id, command.seconds)
    return (_REVOKE_LEASE, command.lease_id)


def _write_fields(command: Put | Delete) -> tuple[Any, ...]:
    condition = command.condition
    if condition is None:
        expected = _NO_CONDITION
    elif condition.mod_revision is None:
        expected = _MUST_EXIST
    else:
        expected = condition.mod_revision
    if isinstance(command, Put):
        return (_PUT, command.key, command.value, command.lease, expected)
    return (_DELETE, command.key, expected)


def _command(item: Any) -> Command:
    if type(item) is tuple:
        if len(item) == 5 and item[0] == _PUT and type(item[1]) is type(item[2]) is bytes and type(item[3]) is int:
            return Put(item[1], item[2], item[3], _condition(item[4]))
        if len(item) == 3 and item[0] == _DELETE and type(item[1]) is bytes:
            return Delete(item[1], _condition(item[2]))
        if len(item) == 2 and item[0] == _TRANSACT:
            return Transact(_transaction(item[1]))
        if item and type(item[0]) is int and all(type(field) is int and field >= 0 for field in item):
            return _numbers_command(item)
    raise MalformedCommand("an unknown command, or one of a wrong shape")


def _transaction(fields: Any) -> Transaction:
    try:
        return transaction_of(fields)
    except (TypeError, ValueError, IndexError, RecursionError) as error:
        raise MalformedCommand(f"a transaction of a wrong shape: {error}") from None


def _numbers_command(item: tuple[int, ...]) -> Command:
    if len(item) == 2 and item[0] == _COMPACT:
        return Compact(Revision(item[1]))
    if len(item) == 3 and item[0] == _GRANT_LEASE:
        return GrantLease(item[1], item[2])
    if len(item) == 2 and item[0] == _REVOKE_LEASE:
        return RevokeLease(item[1])
    raise MalformedCommand("an unknown command, or one of a wrong shape")


def _condition(expected: Any) -> Condition | None:
    if expected == _NO_CONDITION:
        return None
    if expected == _MUST_EXIST:
        return Condition(None)
    if type(expected) is not int or expected < 0:
        raise MalformedCommand(f"a condition of {expected!r}")
    return Condition(Revision(expected))
