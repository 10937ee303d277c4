"""Log records on standard error: lines for people, or one JSON object a line for machines."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

import orjson

from raftkv.config import LogFormat


class JsonFormatter(logging.Formatter):
    """Writes a record as one JSON object: ``time``, ``level``, ``logger``, ``message``, ``exception``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line without its end."""
        fields = {
            "time": _utc(record).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _encodable(record.getMessage()),
        }
        if record.exc_info:
            fields["exception"] = _encodable(self.formatException(record.exc_info))
        return orjson.dumps(fields).decode()


class TextFormatter(logging.Formatter):
    """Writes a record as one line for people, with its time in UTC; a traceback follows on further lines."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-8s %(name)s: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802
        """Return the record's time as ISO 8601 in UTC."""
        return _utc(record).isoformat(timespec="milliseconds")


def configure_logging(log_format: LogFormat, stream: TextIO | None = None) -> None:
    """Send every record of level INFO and above to a stream.

    Args:
        log_format: How records are written.
        stream: Where they go, standard error when None.
    """
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonFormatter() if log_format is LogFormat.JSON else TextFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)


def _utc(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _encodable(text: str) -> str:
    # File names that are not UTF-8 arrive as lone surrogates, which JSON cannot carry.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
