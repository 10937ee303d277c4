"""``raftkv txn``."""

from __future__ import annotations

import sys
from typing import BinaryIO

import click

from raftkv.cli.endpoints import run_with_client, with_endpoints
from raftkv.cli.failures import EXIT_CODES_HELP, NotDone
from raftkv.client import Client


@click.command(epilog=EXIT_CODES_HELP)
@click.argument("file", type=click.File("rb"), default="-")
@with_endpoints
def txn(file: BinaryIO, *, endpoints: str, timeout_seconds: float) -> None:
    """Carry out the transaction in FILE (default: standard input) and print its answer, both JSON.

    The form is that of POST /v1/txn, such as {"if": [{"key": "a", "version": {"equal": 0}}], "then": [{"put": {"key":
    "a", "value": "1"}}], "else": [{"get": {"key": "a"}}]}. Exit code 1 when the conditions did not hold.
    """
    body = file.read()

    async def run(client: Client) -> None:
        answer, succeeded = await client.transact_json(body)
        sys.stdout.buffer.write(answer + b"\n")
        sys.stdout.buffer.flush()
        if not succeeded:
            raise NotDone("the conditions did not hold; the operations of 'else' were carried out")

    run_with_client(endpoints, timeout_seconds, run)
