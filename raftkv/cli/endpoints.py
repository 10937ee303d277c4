"""What every command that talks to a cluster has in common: its endpoints, its time, and its event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import click

from raftkv.cli.failures import failures_as_exit_codes
from raftkv.client import Client
from raftkv.errors import ConfigurationError, InvalidRequest

DEFAULT_ENDPOINT = "http://127.0.0.1:2379"

_Result = TypeVar("_Result")


def with_endpoints(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say where the cluster is and how long to wait for it."""
    command = click.option(
        "--timeout",
        "timeout_seconds",
        type=click.FloatRange(min=0, min_open=True),
        default=10.0,
        show_default=True,
        help="Seconds in which each request must be served by some endpoint.",
    )(command)
    return click.option(
        "--endpoints",
        metavar="URL,URL,…",
        envvar="RAFTKV_ENDPOINTS",
        default=DEFAULT_ENDPOINT,
        show_default=True,
        show_envvar=True,
        help="Nodes to ask, in this order; redirects to the leader are followed.",
    )(command)


def run_with_client(
    endpoints: str, timeout_seconds: float, use: Callable[[Client], Coroutine[Any, Any, _Result]]
) -> _Result:
    """Run a command's coroutine with a client, its errors as exit codes."""
    with failures_as_exit_codes():
        try:
            client = Client([endpoint.strip() for endpoint in endpoints.split(",")], timeout_seconds)
        except InvalidRequest as error:
            raise ConfigurationError(f"--endpoints: {error}") from error
        return asyncio.run(_use(client, use))


async def _use(client: Client, use: Callable[[Client], Coroutine[Any, Any, _Result]]) -> _Result:
    async with client:
        return await use(client)


def key_argument(text: str) -> bytes:
    """Return a key as it was given on the command line, byte for byte."""
    return os.fsencode(text)
