"""Writes that are applied once however often they are sent: their results are kept, by the key that the caller chose.

Time is what leaders wrote into commands, so that every node forgets the same results at the same command.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import islice

from raftkv.store.backend import ReadTransaction, ReadTree, Space, Tree, WriteTransaction
from raftkv.store.commands import Once
from raftkv.store.result_codec import decode_result, encode_result, is_longer
from raftkv.store.results import Granted, Result
from raftkv.types import Revision

MAX_KEPT_BYTES = 65_536
"""A larger result is not kept, only that there was one."""

_BY_KEY = b"k"
_AFTER_KEYS = b"l"
_BY_END = b"t"
_END = struct.Struct(">Q")
_FINGERPRINT_BYTES = 16

_TOTAL = b"b"
"""Key of the bytes that all kept results take, as one number."""

FORGOTTEN_PER_COMMAND = 4
"""More than come in with one command, so that none are left over in the long run."""

FORGOTTEN_AT_ONCE = 256
"""Those that one ``ForgetOutcomes`` forgets: a millisecond or two of apply."""

_ENTRY_OVERHEAD_BYTES = 64
"""What two entries of a tree take besides keys and values."""


@dataclass(frozen=True, slots=True)
class KeptOutcome:
    """What became of a write that came before.

    Attributes:
        is_same: Whether it was the same request, not another under the same key.
        result: Its result, None when that was too large to be kept.
        revision: The store's revision after it.
    """

    is_same: bool
    result: Result | None
    revision: Revision


class OutcomeWriter:
    """Kept results in one transaction.

    Args:
        transaction: The transaction.
        time: The store's time before it, in seconds.
        may_have_expired: Whether the time of some result may be over then: what the writer before it says of this, true
            when there was none.

    Attributes:
        time: The store's time: the greatest that a command brought.
        may_have_expired: Whether the time of some result may be over.
    """

    def __init__(self, transaction: WriteTransaction, time: int, *, may_have_expired: bool = True) -> None:
        self._tree = transaction.tree(Space.OUTCOMES)
        self.may_have_expired = may_have_expired
        self.time = time

    def pass_time(self, now: int) -> None:
        """Take the time that a command brings; time never goes back."""
        if now > self.time:
            self.time = now
            self.may_have_expired = True

    def has_room(self, once: Once) -> bool:
        """Return whether another result may be kept, within the bound that the command brings."""
        return not once.max_bytes or kept_bytes(self._tree) < once.max_bytes

    def find(self, once: Once) -> KeptOutcome | None:
        """Return the outcome of an earlier write under the same key; None when there was none, or its time is over."""
        record = self._tree.get(_BY_KEY + once.key)
        if record is None or _END.unpack_from(record)[0] <= self.time:
            return None
        fingerprint_end = _END.size + _FINGERPRINT_BYTES
        revision = Revision(_END.unpack_from(record, fingerprint_end)[0])
        kept = record[fingerprint_end + _END.size :]
        is_same = record[_END.size : fingerprint_end] == once.fingerprint
        return KeptOutcome(is_same, decode_result(kept) if kept else None, revision)

    def keep(self, once: Once, result: Result, revision: Revision) -> None:
        """Keep a result for as long as the command says."""
        size = _drop(self._tree, once.key)
        end = _END.pack(self.time + once.keep_seconds)
        encoded = b"" if is_longer(result, MAX_KEPT_BYTES) else encode_result(result)
        kept = encoded if len(encoded) <= MAX_KEPT_BYTES else b""
        record = end + once.fingerprint + _END.pack(revision) + kept
        self._tree.put(_BY_KEY + once.key, record)
        self._tree.put(_BY_END + end + once.key, b"")
        _add_to_total(self._tree, size + _size_of(once.key, record))
        if not once.keep_seconds:
            # What is forgotten may not depend on how entries are grouped into transactions.
            self.may_have_expired = True

    def forget_expired(self, limit: int) -> int:
        """Forget results whose time is over, the oldest first; return how many.

        Args:
            limit: How many at most.
        """
        if not self.may_have_expired:
            return 0
        until = _BY_END + _END.pack(self.time + 1)
        expired = [name for name, _nothing in islice(self._tree.scan(_BY_END, until), limit)]
        if expired:
            _add_to_total(self._tree, sum(_drop(self._tree, name[len(_BY_END) + _END.size :]) for name in expired))
        self.may_have_expired = len(expired) == limit
        return len(expired)


def _drop(tree: Tree, key: bytes) -> int:
    """Remove the result of a key, if there is one; return by how much the total grows: 0 or less."""
    record = tree.get(_BY_KEY + key)
    if record is None:
        return 0
    tree.delete(_BY_KEY + key)
    tree.delete(_BY_END + record[: _END.size] + key)
    return -_size_of(key, record)


def _size_of(key: bytes, record: bytes) -> int:
    return 2 * len(key) + len(record) + _END.size + _ENTRY_OVERHEAD_BYTES


def _add_to_total(tree: Tree, difference: int) -> None:
    tree.put(_TOTAL, _END.pack(kept_bytes(tree) + difference))


def kept_bytes(tree: ReadTree) -> int:
    """Return the bytes that all kept results take."""
    total: int = _END.unpack(tree.get(_TOTAL) or bytes(_END.size))[0]
    return total


def forget_after(transaction: WriteTransaction, revision: Revision) -> None:
    """Forget the results of writes after a revision that are being undone, so that a retry writes again.

    Leases are not undone, so the results of their grants stay.

    Args:
        transaction: The transaction.
        revision: The last revision that stays.
    """
    tree = transaction.tree(Space.OUTCOMES)
    records = tree.scan(_BY_KEY, _AFTER_KEYS)
    undone = [name[len(_BY_KEY) :] for name, record in records if _is_undone(record, revision)]
    if undone:
        _add_to_total(tree, sum(_drop(tree, key) for key in undone))


def _is_undone(record: bytes, revision: Revision) -> bool:
    fingerprint_end = _END.size + _FINGERPRINT_BYTES
    after = _END.unpack_from(record, fingerprint_end)[0]
    kept = record[fingerprint_end + _END.size :]
    return after > revision and not (kept and isinstance(decode_result(kept), Granted))


def first_end(view: ReadTransaction) -> int | None:
    """Return the time in seconds at which the first of the kept results expires, None when none is kept."""
    first = next(iter(view.view(Space.OUTCOMES).scan(_BY_END)), None)
    return None if first is None else _END.unpack_from(first[0], len(_BY_END))[0]


def count_outcomes(view: ReadTransaction) -> int:
    """Return how many results are kept."""
    return sum(1 for _ in view.view(Space.OUTCOMES).scan(_BY_END))
