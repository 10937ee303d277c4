from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner, Result

from raftkv.cli.main import raftkv
from tests.http.http_store import InstantLog
from tests.http.http_thread import ServerThread


@pytest.fixture
def log() -> InstantLog:
    return InstantLog()


@pytest.fixture
def server(log) -> Iterator[ServerThread]:
    """Serve a front-end over a real store."""
    with ServerThread(log=log) as running:
        yield running


@pytest.fixture
def run(server) -> Callable[..., Result]:
    """Return what runs a command of raftkv in this process, against the server."""

    def invoke(*arguments: str, stdin: bytes | None = None) -> Result:
        return CliRunner(env={"RAFTKV_ENDPOINTS": server.url}).invoke(raftkv, list(arguments), input=stdin)

    return invoke
