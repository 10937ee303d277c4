"""Log records on standard error: lines for people, or one JSON object a line for machines.

A thread of its own writes them, so that a reader of the log who is slow, or stops reading a pipe, stops nothing else.
What does not fit into the queue before it is dropped and counted; the log says so where lines are missing.
"""

from __future__ import annotations

import io
import logging
import select
import sys
import threading
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

import orjson

from raftkv.config import LogFormat, LogLevel

_QUEUE_BYTES = 4_194_304


class JsonFormatter(logging.Formatter):
    """Writes a record as one JSON object: ``time``, ``level``, ``logger``, ``message``, ``exception``, ``request``.

    ``request`` has the fields of a request's record (``raftkv.http.request_log``).
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line without its end."""
        fields: dict[str, Any] = {
            "time": _utc(record).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _encodable(record.getMessage()),
        }
        if record.exc_info:
            fields["exception"] = _encodable(self.formatException(record.exc_info))
        request_fields = getattr(record, "request_fields", None)
        if request_fields is not None:
            fields["request"] = request_fields
        return orjson.dumps(fields).decode()


class TextFormatter(logging.Formatter):
    """Writes a record as one line for people, with its time in UTC; a traceback follows on further lines."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-8s %(name)s: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802
        """Return the record's time as ISO 8601 in UTC."""
        return _utc(record).isoformat(timespec="milliseconds")


class LogOutput(logging.Handler):
    """A handler that queues formatted records for a thread, and never blocks.

    Args:
        write: Writes a line; may block, and may raise ``OSError``.
        queue_bytes: Characters that may wait; further records are dropped and counted.
    """

    def __init__(self, write: Callable[[str], None], queue_bytes: int = _QUEUE_BYTES) -> None:
        super().__init__()
        self._write = write
        self._queue_bytes = queue_bytes
        self._lines: deque[str] = deque()
        self._waiting_bytes = 0
        self._dropped = 0
        self._is_writing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record, or count it as dropped."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - as all handlers of the standard library do
            self.handleError(record)
            return
        with self._changed:
            if self._waiting_bytes + len(line) > self._queue_bytes:
                self._dropped += 1
                return
            self._append_notice()
            self._append(line)
            self._changed.notify_all()

    def finish(self, last_line: str | None, timeout_seconds: float) -> bool:
        """Write what waits, for a bounded time.

        Args:
            last_line: A line to write after it, also when the queue is full.
            timeout_seconds: How long to wait.

        Returns:
            Whether everything was written.
        """
        with self._changed:
            self._append_notice()
            if last_line is not None:
                self._append(last_line)
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._lines and not self._is_writing, timeout_seconds)

    def _append(self, line: str) -> None:
        self._lines.append(line)
        self._waiting_bytes += len(line)

    def _append_notice(self) -> None:
        if not self._dropped:
            return
        text = f"{self._dropped} log records are missing here: they came faster than the log was read"
        self._dropped = 0
        record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, None, None)
        self._append(self.format(record))

    def _run(self) -> None:
        is_written = True
        while True:
            with self._changed:
                self._is_writing = False
                if is_written and not self._lines:
                    self._append_notice()
                self._changed.notify_all()
                self._changed.wait_for(lambda: bool(self._lines))
                line = self._lines.popleft()
                self._waiting_bytes -= len(line)
                self._is_writing = True
            try:
                self._write(line + "\n")
                is_written = True
            except OSError:
                # The reader is gone, or the file system is full: only a later record can say so.
                is_written = False
                with self._changed:
                    self._dropped += 1


def configure_logging(log_format: LogFormat, level: LogLevel, stream: TextIO | None = None) -> LogOutput:
    """Send every record of a level and above to a stream, in a thread.

    Args:
        log_format: How records are written.
        level: The lowest level that is written.
        stream: Where they go, standard error when None.

    Returns:
        The handler that writes them; call ``finish`` before the process ends.
    """
    output = LogOutput(_writer_of(sys.stderr if stream is None else stream))
    output.setFormatter(JsonFormatter() if log_format is LogFormat.JSON else TextFormatter())
    root = logging.getLogger()
    root.handlers = [output]
    root.setLevel(level.name)
    logging.captureWarnings(capture=True)
    return output


def _writer_of(stream: TextIO) -> Callable[[str], None]:
    """Return a function that writes to a stream without its buffers, whose locks would hold the end of the process."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        # A stream in memory.
        def write_text(text: str) -> None:
            stream.write(text)

        return write_text

    raw = io.FileIO(descriptor, "wb", closefd=False)

    def write(text: str) -> None:
        view = memoryview(text.encode("utf-8", "backslashreplace"))
        while view:
            written = raw.write(view)
            if written is None:
                # Another process that shares the pipe has made it non-blocking.
                select.select([], [descriptor], [])
            else:
                view = view[written:]

    return write


def _utc(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _encodable(text: str) -> str:
    # File names that are not UTF-8 arrive as lone surrogates, which JSON cannot carry.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
