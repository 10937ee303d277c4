"""Log records leave the process in a thread: a log that is not read stops nothing."""

from __future__ import annotations

import io
import json
import logging
import os
import threading

import pytest

from raftkv.config import LogFormat, LogLevel
from raftkv.runtime.logs import JsonFormatter, LogOutput, TextFormatter, configure_logging


class BlockedLog:
    """A log that takes nothing until it is read."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.entered = threading.Event()
        self.is_read = threading.Event()
        self.error: OSError | None = None

    def write(self, text: str) -> None:
        self.entered.set()
        assert self.is_read.wait(20)
        if self.error is not None:
            raise self.error
        self.lines.append(text)


def record(message: str) -> logging.LogRecord:
    return logging.LogRecord("raftkv", logging.INFO, "", 0, message, None, None)


def test_records_are_dropped_and_counted_while_the_log_is_not_read():
    log = BlockedLog()
    output = LogOutput(log.write, queue_bytes=1000)
    output.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    output.handle(record("0" * 90))
    assert log.entered.wait(20)
    for number in range(1, 100):
        output.handle(record(f"{number}".rjust(90, ".")))
    assert not output.finish(None, 0.01)
    log.is_read.set()
    assert output.finish(None, 20)
    written = [int(line.split()[1].strip(".")) for line in log.lines if "missing" not in line]
    assert written == list(range(11)), "the first one was being written, and ten of 95 characters fit into the queue"
    assert log.lines[-1].startswith("WARNING 89 log records are missing here")
    output.handle(record("afterwards"))
    assert output.finish(None, 20)
    assert log.lines[-1] == "INFO afterwards\n"


def test_missing_records_are_reported_where_they_are_missing():
    log = BlockedLog()
    output = LogOutput(log.write, queue_bytes=100)
    output.handle(record("first"))
    assert log.entered.wait(20)
    output.handle(record("second".ljust(100)))
    output.handle(record("dropped"))
    log.is_read.set()
    assert output.finish("last", 20)
    assert [line.split()[0] for line in log.lines] == ["first", "second", "1", "last"]


def test_the_last_line_is_written_though_the_queue_is_full():
    log = BlockedLog()
    output = LogOutput(log.write, queue_bytes=50)
    for _ in range(20):
        output.handle(record("x" * 20))
    assert log.entered.wait(20)
    assert not output.finish("raftkv: the reason", 0.01)
    log.is_read.set()
    assert output.finish(None, 20)
    assert log.lines[-1] == "raftkv: the reason\n"


def test_an_error_of_the_log_ends_nothing_and_is_counted():
    log = BlockedLog()
    log.is_read.set()
    log.error = BrokenPipeError()
    output = LogOutput(log.write)
    output.handle(record("lost"))
    assert log.entered.wait(20)
    assert output.finish(None, 20)
    log.error = None
    output.handle(record("after"))
    assert output.finish(None, 20)
    assert [line.strip() for line in log.lines][-1] == "after"
    assert any("are missing here" in line for line in log.lines)


@pytest.fixture
def root_logger():
    root = logging.getLogger()
    before = root.handlers, root.level
    yield root
    root.handlers, level = before
    root.setLevel(level)
    logging.captureWarnings(capture=False)


@pytest.mark.parametrize("log_format", LogFormat)
def test_configured_records_reach_a_pipe_in_order(root_logger, log_format):
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        output = configure_logging(log_format, LogLevel.INFO, stream)
        assert isinstance(output.formatter, JsonFormatter if log_format is LogFormat.JSON else TextFormatter)
        for number in range(10):
            logging.getLogger("raftkv").info("line %d \udce4", number)
        assert output.finish(None, 20)
    with os.fdopen(reader, encoding="utf-8") as lines:
        text = lines.read().splitlines()
    if log_format is LogFormat.JSON:
        text = [json.loads(line)["message"] for line in text]
    assert [line[line.index("line") :] for line in text] == [f"line {number} \\udce4" for number in range(10)]


def test_configured_records_reach_a_stream_in_memory(root_logger):
    stream = io.StringIO()
    output = configure_logging(LogFormat.TEXT, LogLevel.INFO, stream)
    logging.getLogger("raftkv").warning("there")
    assert output.finish("raftkv: the end", 20)
    assert stream.getvalue().endswith("there\nraftkv: the end\n")
