"""Committed entries for a store without a log."""

from __future__ import annotations

from typing import Any

from raftkv.store.commands import Command, encode_commands
from raftkv.store.machine import CommittedEntry, Machine
from raftkv.types import Index, Term


def apply_to(machine: Machine, *commands: Command) -> list[Any]:
    """Apply the next entry, which has some commands; return their results."""
    entry = CommittedEntry(Index(machine.applied_index + 1), Term(1), encode_commands(commands))
    return machine.apply([entry])[0]
