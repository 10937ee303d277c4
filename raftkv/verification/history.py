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
        revision: The store's revision in its answer, None when the answer had none.
        mod_revision: The revision of the key's last write in its answer, 0 for a key that does not exist; None when the
            answer did not name it.
        has_changed: Of a delete, whether the key existed.
    """

    client: str
    key: bytes
    kind: Kind
    value: bytes | None
    started: float
    ended: float
    outcome: Outcome
    expected: bytes | None = None
    revision: int | None = None
    mod_revision: int | None = None
    has_changed: bool = True

    @property
    def has_written(self) -> bool:
        """Whether it certainly changed the store."""
        is_write = self.kind in (Kind.PUT, Kind.SWAP) or (self.kind is Kind.DELETE and self.has_changed)
        return is_write and self.outcome is Outcome.DONE

    def __str__(self) -> str:
        ended = "…" if math.isinf(self.ended) else f"{self.ended:.6f}"
        expected = f" instead of {readable(self.expected)}" if self.kind is Kind.SWAP else ""
        revision = "" if self.revision is None else f", revision {self.revision}"
        return (
            f"{self.started:.6f} to {ended}: {self.client} {self.kind.value} {readable(self.value)}{expected}: "
            f"{self.outcome.value}{revision}"
        )


def readable(value: bytes | None) -> str:
    """Return a key or value as people want to see it."""
    return "nothing" if value is None else value.decode(errors="backslashreplace")
