"""What clients did and saw: one operation a call, with its times and its outcome."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What an operation does to its key."""

    PUT = "put"
    """Writes ``value``."""
    DELETE = "delete"
    """Removes the key."""
    SWAP = "swap"
    """Writes ``value`` if the key has ``expected`` (None: does not exist)."""
    GET = "get"
    """Reads ``value`` (None: the key does not exist)."""


class Outcome(Enum):
    """How an operation ended."""

    DONE = "done"
    """It happened, between its two times."""
    CONDITION_FAILED = "condition failed"
    """A swap that found another value, between its two times."""
    UNKNOWN = "unknown"
    """It may have happened at any time after its start, or may yet happen."""
    REFUSED = "refused"
    """It never happened and never will."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of one client.

    Attributes:
        client: Who did it.
        key: The key.
        kind: What it does.
        value: What it wrote or read. Written values are unique in a history, so that a read names its write.
        expected: What a swap expected.
        started: Time before the request was sent.
        ended: Time after the answer had come; infinite when none came.
        outcome: How it ended.
    """

    client: str
    key: bytes
    kind: Kind
    value: bytes | None
    started: float
    ended: float
    outcome: Outcome
    expected: bytes | None = None

    def __str__(self) -> str:
        ended = "…" if math.isinf(self.ended) else f"{self.ended:.6f}"
        expected = f" instead of {readable(self.expected)}" if self.kind is Kind.SWAP else ""
        return (
            f"{self.started:.6f} to {ended}: {self.client} {self.kind.value} {readable(self.value)}{expected}: "
            f"{self.outcome.value}"
        )


def readable(value: bytes | None) -> str:
    """Return a key or value as people want to see it."""
    return "nothing" if value is None else value.decode(errors="backslashreplace")
