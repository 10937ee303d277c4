"""Entries of the log as the rest of a node sees them."""

from __future__ import annotations

from dataclasses import dataclass

from raftkv.consensus.engine import NO_OP_COMMAND, REGULAR_COMMAND
from raftkv.consensus.journal import changes_members
from raftkv.errors import UndecodableEntry
from raftkv.types import Index, Term


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a proposal stands in the log. The proposal is committed if and only if this very pair is."""

    index: Index
    term: Term


@dataclass(frozen=True, slots=True)
class Committed:
    """One committed entry.

    Attributes:
        index: Its index.
        term: Its term.
        payload: What was proposed; None for a no-op of the engine.
    """

    index: Index
    term: Term
    payload: bytes | None


def payload_of(command: bytes, index: int, term: int) -> bytes | None:
    """Return what was proposed of an entry of the log; None for a no-op of the engine.

    Args:
        command: The entry's command.
        index: Its index, for the error.
        term: Its term, for the error.

    Raises:
        UndecodableEntry: It is of another type. ``known_commands_only`` keeps such entries out of the log (H12b).
    """
    if command[:1] == NO_OP_COMMAND:
        return None
    if command[:1] != REGULAR_COMMAND:
        raise UndecodableEntry(f"entry {index} of term {term} is of the unknown type {command[:1]!r}")
    return command[2:] if changes_members(command) else command[1:]
