"""What clients did and saw: one operation a call, with its times and its outcome."""

from __future__ import annotations

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
