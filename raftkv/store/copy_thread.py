"""A copy that another thread makes, read piece by piece, and given up at once when it is in the way.

LMDB copies a view of the store into a file descriptor, and for as long as that lasts the map can neither grow nor be
replaced. Whoever owns the store must not wait for that: a copy takes as long as the disk lets it.
"""

from __future__ import annotations

import mmap
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import suppress


class CopyThread:
    """Runs one copy.

    Args:
        copy: Writes the copy into a descriptor.
        reading: Held while it does.
        piece_bytes: Size of its pieces.

    Attributes:
        is_abandoned: Whether it was given up before its end.
        refusal: Why it should not be begun again, if it was.
    """

    def __init__(self, copy: Callable[[int], None], reading: threading.Lock, piece_bytes: int) -> None:
        self._copy = copy
        self._reading = reading
        self._memory = memoryview(mmap.mmap(-1, piece_bytes))
        self._output, self._input = socket.socketpair()
        self._errors: list[Exception] = []
        self._has_ended = False
        self.is_abandoned = False
        self.refusal: Exception | None = None

    def pieces(self) -> Generator[memoryview]:
        """Yield the copy, in pieces of one size but for the last; it ends early when it is given up.

        All pieces are in the same memory, which begins with a page: each is gone when the next is asked for.

        Raises:
            Exception: What ``copy`` raised.
        """
        memory = self._memory
        thread = threading.Thread(target=self._run, name="copy", daemon=True)
        thread.start()
        try:
            with self._output:
                while (count := _fill(memory, self._output)) == len(memory):
                    yield memory
                thread.join()
                if self.is_abandoned:
                    return
                if self._errors:
                    raise self._errors[0]
                if count:
                    yield memory[:count]
        finally:
            # Without a reader it ends by itself.
            thread.join()

    def abandon(self) -> bool:
        """Let it end where it is; called in another thread.

        Whoever gets ``reading`` after that knows that it has ended, or will not begin.

        Returns:
            Whether it was given up, now or before; False when it has come to its end.
        """
        if not self._has_ended and not self.is_abandoned:
            self.is_abandoned = True
            with suppress(OSError):
                self._input.shutdown(socket.SHUT_RDWR)
        return self.is_abandoned

    def _run(self) -> None:
        try:
            with self._input, self._reading:
                if not self.is_abandoned:
                    self._copy(self._input.fileno())
        except Exception as error:  # noqa: BLE001 - raised again by whoever reads
            self._errors.append(error)
        finally:
            self._has_ended = True


def _fill(memory: memoryview, source: socket.socket) -> int:
    """Read until the memory is full or the stream is at its end; return how many bytes there are."""
    count = 0
    while count < len(memory) and (received := source.recv_into(memory[count:], 0, socket.MSG_WAITALL)):
        count += received
    return count
