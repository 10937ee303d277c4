"""What a log held before the entries that are kept: enough to find that another log had other entries.

A snapshot replaces a follower's log. Its manifest so carries the history of the leader's log, and the follower compares
that with what it has committed. The hash of all entries up to an index is a sum (``Journal.range_hash``), so one equal
sum says that everything before it is equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

KEPT_TERMS = 64
"""Terms whose first index a history has. Elections are rare: they reach far back."""

KEPT_HASHES = 32
"""Hashes that a history has. A manifest travels with each piece of a snapshot, so it must be small."""

_NEW_HASHES = 16


@dataclass(frozen=True, slots=True)
class LogHistory:
    """The history of a log up to an index.

    Attributes:
        log_hash: Hash of all entries up to the index; None when some of them were never known.
        terms: (term, index of its first entry) of the newest terms, oldest first.
        hashes: (index, hash of all entries up to it), oldest first; sparser towards the beginning.
    """

    log_hash: int | None = None
    terms: tuple[tuple[int, int], ...] = ()
    hashes: tuple[tuple[int, int], ...] = ()

    def term_at(self, index: int) -> int | None:
        """Return the term of an entry up to the index of the history, None when that is not known."""
        return term_in(self.terms, index)


def term_in(terms: Sequence[tuple[int, int]], index: int) -> int | None:
    """Return the term of an entry, given the first entries of the terms; None before the first of them."""
    return next((term for term, first in reversed(terms) if first <= index), None)


def beginning_at(index: int, term: int) -> LogHistory:
    """Return the history of a log that begins with an entry, for all members alike."""
    return LogHistory(0, ((term, index),), ())


def indexes_to_hash(after: int, to: int) -> Iterable[int]:
    """Return indexes at which the hash of a log is noted: a few at equal distances, the last one included."""
    step = max(1, (to - after) // _NEW_HASHES)
    return reversed(range(to, after, -step))


def thinned(hashes: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return as many hashes as a history has; the further back, the sparser, so that some are of long ago."""
    kept = list(hashes)
    while len(kept) > KEPT_HASHES:
        last = kept[-1][0]
        # The gap that leaving one out makes, in proportion to its distance from the end.
        gaps = [
            ((kept[number + 1][0] - kept[number - 1][0]) / (last - kept[number - 1][0]), number)
            for number in range(1, len(kept) - 1)
        ]
        del kept[min(gaps)[1]]
    return tuple(kept)
