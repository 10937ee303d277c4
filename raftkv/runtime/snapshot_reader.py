"""Reads a snapshot ahead of its transfer, so that the event loop never waits for the disk that has it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass

from raftkv.ports import Worker


@dataclass(frozen=True, slots=True)
class _Block:
    begin: int
    data: bytes

    @property
    def end(self) -> int:
        return self.begin + len(self.data)


class SnapshotReader:
    """The data of one snapshot on its way to one member: the block that is being sent, and the next one.

    Args:
        read: Returns a piece of the data, given offset and size; called by the worker.
        size: Size of the data.
        block_bytes: Bytes that are read at once.
        worker: Runs ``read``.
        ready: Called when data that ``take`` did not have is there, or could not be read.
    """

    def __init__(
        self,
        read: Callable[[int, int], bytes],
        size: int,
        block_bytes: int,
        worker: Worker,
        ready: Callable[[], None],
    ) -> None:
        self._read = read
        self._size = size
        self._block_bytes = block_bytes
        self._worker = worker
        self._ready = ready
        self._current = _Block(0, b"")
        self._ahead: _Block | None = None
        self._is_reading = False
        self._is_awaited = False
        self._is_stale = False
        self._error: Exception | None = None

    def take(self, offset: int, size: int) -> bytes | None:
        """Return a piece of the data; None when it is not there yet: ``ready`` is then called later.

        Raises:
            OSError: It could not be read.
        """
        end = min(offset + size, self._size)
        data = self._find(offset, end)
        if data is None and not self._is_reading:
            self._begin(offset)
            # A worker may be done at once.
            data = self._find(offset, end)
        self._is_awaited = data is None
        if data is not None and self._ahead is None and not self._is_reading and self._current.end < self._size:
            self._begin(self._current.end)
        return data

    def clear(self) -> None:
        """Forget what was read: the file is to be read again."""
        self._current, self._ahead, self._error = _Block(0, b""), None, None
        self._is_stale = self._is_reading

    def _find(self, offset: int, end: int) -> bytes | None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        ahead = self._ahead
        if ahead is not None and ahead.begin <= offset and end <= ahead.end:
            self._current, self._ahead = ahead, None
        current = self._current
        if current.begin <= offset and end <= current.end:
            return current.data[offset - current.begin : end - current.begin]
        return None

    def _begin(self, offset: int) -> None:
        self._is_reading = True
        size = min(self._block_bytes, self._size - offset)

        def read() -> _Block:
            data = self._read(offset, size)
            if len(data) < size:
                raise OSError(errno.EIO, f"{len(data)} bytes were read at offset {offset} instead of {size}")
            return _Block(offset, data)

        self._worker.submit(read, self._take_block, self._take_error)

    def _take_block(self, block: _Block) -> None:
        self._ahead = None if self._is_stale else block
        self._end_reading()

    def _take_error(self, error: Exception) -> None:
        self._error = None if self._is_stale else error
        self._end_reading()

    def _end_reading(self) -> None:
        self._is_reading = self._is_stale = False
        if self._is_awaited:
            self._is_awaited = False
            self._ready()
