"""How much one transaction may visit and read, so that none is applied for long or has a result that fills memory.

Every member carries a transaction out when it applies it, builds its result, and applies nothing else meanwhile. What a
member decides follows from its state and the command alone, so all decide alike.
"""

from __future__ import annotations

import math

from raftkv.operations import MAX_READ_BYTES, MAX_VISITED_KEYS, RefusalKind, Refused

_COUNTED_AS_ONE = 10
"""So many keys that are only counted take the time of one that is read."""


class Refusal(Exception):  # a step of the check, not an error
    """A transaction cannot be carried out."""

    def __init__(self, kind: RefusalKind, text: str) -> None:
        super().__init__(text)
        self.refused = Refused(kind, text)


class Allowance:
    """What a transaction and those nested in it may still visit and read.

    Args:
        keys: Keys that may be visited.
        size: Bytes of keys and values that may be read.
        first_revision: Deleted keys whose deletion is of an earlier revision do not count: each member removes them
            from its data when it likes.

    Attributes:
        first_revision: See above.
    """

    def __init__(self, keys: float, size: float, first_revision: int = 0) -> None:
        self.first_revision = first_revision
        self._bounds = keys, size
        self._room, self._bytes_left = keys * _COUNTED_AS_ONE, size

    def visit(self, keys: int, size: int) -> None:
        """Count keys that were visited, with the bytes that were read of them and of their later changes.

        Raises:
            Refusal: They are too many.
        """
        self._take(keys * _COUNTED_AS_ONE, size)

    def count(self, keys: int) -> None:
        """Count keys whose number alone is asked for.

        Raises:
            Refusal: They are too many.
        """
        self._take(keys, 0)

    def _take(self, room: int, size: int) -> None:
        self._room -= room
        self._bytes_left -= size
        if self._room < 0 or self._bytes_left < 0:
            most_keys, most_bytes = self._bounds
            # One text for both bounds: which of two that are passed at nearly the same key is found first depends on
            # what this member has removed, and the text is part of the outcome that all members keep alike.
            raise Refusal(
                RefusalKind.TOO_MANY_KEYS,
                f"the transaction visits more than {most_keys} keys or reads more than {most_bytes} bytes of keys and "
                "values: ask for less at once",
            )


UNBOUNDED = Allowance(math.inf, math.inf)
"""For what is read outside transactions, or alone in one; nothing is ever taken from it."""


def transaction_allowance(compacted: int) -> Allowance:
    """Return what each transaction may visit and read, given the compacted revision."""
    return Allowance(MAX_VISITED_KEYS, MAX_READ_BYTES, compacted)
