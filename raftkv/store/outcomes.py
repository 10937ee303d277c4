"""Writes that are applied once however often they are sent: their results are kept, by the key that the caller chose.

Time is what leaders wrote into commands, so that every node forgets the same results at the same command.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import islice

from raftkv.store.backend import ReadTransaction, Space, WriteTransaction
from raftkv.store.commands import Once
from raftkv.store.result_codec import decode_result, encode_result
from raftkv.store.results import Result
from raftkv.types import Revision

MAX_KEPT_BYTES = 65_536
"""A larger result is not kept, only that there was one."""

_BY_KEY = b"k"
_BY_END = b"t"
_END = struct.Struct(">Q")
_FINGERPRINT_BYTES = 16

_FORGOTTEN_AT_A_TIME = 4
"""More than come in with one command, so that none are left over in the long run."""


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

    Attributes:
        time: The store's time: the greatest that a command brought.
    """

    def __init__(self, transaction: WriteTransaction, time: int) -> None:
        self._tree = transaction.tree(Space.OUTCOMES)
        self.time = time

    def find(self, once: Once) -> KeptOutcome | None:
        """Return what became of an earlier write under the same key, None when there was none or it is too long ago."""
        self.time = max(self.time, once.now)
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
        self._forget_old()
        before = self._tree.get(_BY_KEY + once.key)
        if before is not None:
            self._tree.delete(_BY_END + before[: _END.size] + once.key)
        end = _END.pack(self.time + once.keep_seconds)
        encoded = encode_result(result)
        kept = encoded if len(encoded) <= MAX_KEPT_BYTES else b""
        self._tree.put(_BY_KEY + once.key, end + once.fingerprint + _END.pack(revision) + kept)
        self._tree.put(_BY_END + end + once.key, b"")

    def _forget_old(self) -> None:
        until = _BY_END + _END.pack(self.time + 1)
        for name, _nothing in list(islice(self._tree.scan(_BY_END, until), _FORGOTTEN_AT_A_TIME)):
            self._tree.delete(name)
            self._tree.delete(_BY_KEY + name[len(_BY_END) + _END.size :])


def count_outcomes(view: ReadTransaction) -> int:
    """Return how many results are kept."""
    return sum(1 for _ in view.view(Space.OUTCOMES).scan(_BY_END))
