"""Entries of the log as the rest of a node sees them."""

from __future__ import annotations

from dataclasses import dataclass

from raftkv.consensus.engine import NO_OP_COMMAND
from raftkv.consensus.journal import changes_members
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


def payload_of(command: bytes) -> bytes | None:
    """Return what was proposed of an entry of the log; None for a no-op of the engine."""
    if command[:1] == NO_OP_COMMAND:
        return None
    return command[2:] if changes_members(command) else command[1:]
