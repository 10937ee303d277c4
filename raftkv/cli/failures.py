"""How commands end: the exit codes, and errors as one line on standard error.

| code | meaning |
|---|---|
| 0 | done |
| 1 | not done, and it certainly has no effect: refused, not found, condition not met, nobody served it |
| 2 | the command line or the configuration is wrong; nothing was tried |
| 3 | the outcome is unknown: a write that may or may not have been applied |
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import click

from raftkv.client import ImportStopped
from raftkv.errors import ConfigurationError, RaftkvError, UnknownOutcome

NOT_DONE = 1
WRONG_USAGE = 2
UNKNOWN_OUTCOME = 3

EXIT_CODES_HELP = (
    "Exit codes: 0 done; 1 not done and without effect (refused, not found, nobody served it); "
    "2 wrong usage or configuration; 3 outcome unknown (the write may or may not have been applied)."
)


class NotDone(RaftkvError):
    """A command ended without having done what was asked."""


def _say(line: str) -> None:
    click.echo(line, err=True)


@contextmanager
def failures_as_exit_codes(say: Callable[[str], None] = _say) -> Iterator[None]:
    """Turn errors into a line on standard error and an exit code.

    Args:
        say: Prints the line.
    """
    try:
        yield
    except ConfigurationError as error:
        fail(str(error), WRONG_USAGE, say)
    except ImportStopped as error:
        fail(str(error), UNKNOWN_OUTCOME if error.is_unknown else NOT_DONE, say)
    except UnknownOutcome as error:
        fail(f"{error} (the outcome is unknown: it may have been applied)", UNKNOWN_OUTCOME, say)
    except RaftkvError as error:
        fail(str(error), NOT_DONE, say)
    except BrokenPipeError:
        # The reader of standard output has had enough, such as `head`; closing it again would complain.
        sys.stderr.close()
        sys.exit(NOT_DONE)
    except OSError as error:
        fail(os_error_text(error), NOT_DONE, say)


def os_error_text(error: OSError) -> str:
    """Return an error of the system in words, without its number."""
    reason = error.strerror or str(error)
    return reason if error.filename is None else f"{error.filename}: {reason}"


def fail(message: str, code: int, say: Callable[[str], None] = _say) -> NoReturn:
    """End the process with a message and a code."""
    say(f"raftkv: {message}")
    sys.exit(code)
