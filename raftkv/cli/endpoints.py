"""What every command that talks to a cluster has in common: its endpoints, its time, and its event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click

from raftkv.cli.failures import failures_as_exit_codes
from raftkv.client import Client, TlsFiles
from raftkv.errors import ConfigurationError, InvalidRequest

DEFAULT_ENDPOINT = "http://127.0.0.1:2379"

_TLS_OPTIONS = (
    ("--cacert", "RAFTKV_CACERT", "Certificates (PEM) by which the nodes must be certified.  [default: the system's]"),
    ("--cert", "RAFTKV_CERT", "Certificate (PEM) to show to nodes that ask for one."),
    ("--cert-key", "RAFTKV_CERT_KEY", "Private key (PEM) of --cert."),
)

_Result = TypeVar("_Result")


def with_endpoints(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say where the cluster is, whom to trust, and how long to wait for it."""
    for flag, variable, text in reversed(_TLS_OPTIONS):
        command = click.option(
            flag,
            f"tls{flag.replace('-', '_')}",
            metavar="FILE",
            envvar=variable,
            show_envvar=True,
            type=click.Path(path_type=Path),
            # Kept for run_with_client, so that no command has to hand it on.
            expose_value=False,
            callback=_keep,
            help=text,
        )(command)
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
        return asyncio.run(_use(new_client(endpoints, timeout_seconds), use))


def new_client(endpoints: str, timeout_seconds: float) -> Client:
    """Return a client of some endpoints, with the certificates that the command was given.

    Raises:
        ConfigurationError: An endpoint is malformed, or a file cannot be used.
    """
    try:
        return Client(split_endpoints(endpoints), timeout_seconds, tls=_tls_files())
    except InvalidRequest as error:
        raise ConfigurationError(f"--endpoints: {error}") from error


def split_endpoints(endpoints: str) -> list[str]:
    """Return the URLs of ``--endpoints``, in its order."""
    return [endpoint.strip() for endpoint in endpoints.split(",")]


def _keep(context: click.Context, parameter: click.Parameter, value: Path | None) -> None:
    assert parameter.name is not None
    context.meta[parameter.name] = value


def _tls_files() -> TlsFiles | None:
    meta = click.get_current_context().meta
    files = TlsFiles(meta.get("tls__cacert"), meta.get("tls__cert"), meta.get("tls__cert_key"))
    return None if files == TlsFiles() else files


async def _use(client: Client, use: Callable[[Client], Coroutine[Any, Any, _Result]]) -> _Result:
    async with client:
        return await use(client)


def key_argument(text: str) -> bytes:
    """Return a key as it was given on the command line, byte for byte."""
    return os.fsencode(text)
