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
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import click

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


@contextmanager
def failures_as_exit_codes() -> Iterator[None]:
    """Turn errors into a line on standard error and an exit code."""
    try:
        yield
    except ConfigurationError as error:
        fail(str(error), WRONG_USAGE)
    except UnknownOutcome as error:
        fail(f"{error} (the outcome is unknown: it may have been applied)", UNKNOWN_OUTCOME)
    except RaftkvError as error:
        fail(str(error), NOT_DONE)
    except BrokenPipeError:
        # The reader of standard output has had enough, such as `head`; closing it again would complain.
        sys.stderr.close()
        sys.exit(NOT_DONE)
    except OSError as error:
        fail(str(error), NOT_DONE)


def fail(message: str, code: int) -> NoReturn:
    """End the process with a message and a code."""
    click.echo(f"raftkv: {message}", err=True)
    sys.exit(code)
