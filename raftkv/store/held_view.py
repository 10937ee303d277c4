"""A view of a store that another thread reads a little at a time, and that the store can take back between two pieces.

An LMDB map can neither grow nor be replaced while a transaction is open, and pages that the transaction sees are not
used again. So whatever takes long gives its view up at once when the store needs that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from raftkv.store.backend import ReadTransaction, ViewAbandoned


class LockedView:
    """``raftkv.store.backend.HeldView``.

    Args:
        view: What it sees.
        release: Ends the transaction.
    """

    def __init__(self, view: ReadTransaction, release: Callable[[], None] = lambda: None) -> None:
        self._view = view
        self._release = release
        self._in_use = threading.Lock()
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        """Whether its transaction has ended."""
        return self._is_closed

    @contextmanager
    def reading(self) -> Iterator[ReadTransaction]:
        """Keep the view for the time of the context."""
        with self._in_use:
            if self._is_closed:
                raise ViewAbandoned
            yield self._view

    def close(self) -> None:
        """End the transaction, after the piece that is being read."""
        with self._in_use:
            if not self._is_closed:
                self._is_closed = True
                self._release()
