"""Room on the data disk for copies of stores: none may take what the journal and votes need."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class CopyRoom:
    """Lets a copy begin when the disk has room for it: one that is made, or one that is received.

    Several threads may use it.

    Args:
        free_bytes: Returns the free bytes of the disk.
        reserved_bytes: What stays free.
    """

    def __init__(self, free_bytes: Callable[[], int], reserved_bytes: int) -> None:
        self._free_bytes = free_bytes
        self._reserved_bytes = reserved_bytes
        self._under_way = 0
        self._lock = threading.Lock()

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Keep room for a copy for the length of the context; see ``take``."""
        self.take(size)
        try:
            yield
        finally:
            self.give_back(size)

    def take(self, size: int) -> None:
        """Keep room for a copy, until it is given back.

        What is written already of other copies counts twice: as used, and as still to come.

        Args:
            size: Bytes that the copy takes.

        Raises:
            OSError: There is too little room.
        """
        with self._lock:
            free, needed = self._free_bytes(), size + self._under_way
            if free < needed + self._reserved_bytes:
                text = f"about {needed} bytes and a reserve of {self._reserved_bytes} are needed, {free} are free"
                raise OSError(errno.ENOSPC, text)
            self._under_way += size

    def give_back(self, size: int) -> None:
        """Give room back: the copy is complete, or given up."""
        with self._lock:
            self._under_way -= size
