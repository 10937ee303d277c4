"""``raftkv lease``."""

from __future__ import annotations

import os
import sys

import click

from raftkv.cli.endpoints import run_with_client, with_endpoints
from raftkv.cli.failures import EXIT_CODES_HELP
from raftkv.client import Client, LeaseLost


@click.group(epilog=EXIT_CODES_HELP)
def lease() -> None:
    """Make leases, keep them alive and end them. Keys that are attached to one are deleted with it."""


@lease.command(epilog=EXIT_CODES_HELP)
@click.argument("seconds", type=click.IntRange(min=1))
@with_endpoints
def grant(seconds: int, *, endpoints: str, timeout_seconds: float) -> None:
    """Make a lease of SECONDS and print its number."""

    async def run(client: Client) -> None:
        click.echo((await client.grant_lease(seconds)).id)

    run_with_client(endpoints, timeout_seconds, run)


@lease.command(epilog=EXIT_CODES_HELP)
@click.argument("lease_id", type=click.IntRange(min=1))
@with_endpoints
def revoke(lease_id: int, *, endpoints: str, timeout_seconds: float) -> None:
    """End the lease LEASE_ID and delete its keys."""
    run_with_client(endpoints, timeout_seconds, lambda client: client.revoke_lease(lease_id))


@lease.command("keep-alive", epilog=EXIT_CODES_HELP)
@click.argument("lease_id", type=click.IntRange(min=1))
@click.option("--once", is_flag=True, help="Send one keep-alive, print the time it gave, and end.")
@with_endpoints
def keep_alive(lease_id: int, *, once: bool, endpoints: str, timeout_seconds: float) -> None:
    """Keep the lease LEASE_ID alive until it is gone or this command is interrupted."""

    async def run(client: Client) -> None:
        if once:
            click.echo(await client.keep_lease_alive(lease_id))
            return
        async with client.adopt_lease(lease_id) as held:
            await held.lost.wait()
            raise LeaseLost(f"lease {lease_id} has ended, or may have")

    run_with_client(endpoints, timeout_seconds, run)


@lease.command("ttl", epilog=EXIT_CODES_HELP)
@click.argument("lease_id", type=click.IntRange(min=1))
@click.option("--keys", is_flag=True, help="Print its keys too, one a line.")
@with_endpoints
def time_to_live(lease_id: int, *, keys: bool, endpoints: str, timeout_seconds: float) -> None:
    """Print the seconds that the lease LEASE_ID has left, and those it was made for."""

    async def run(client: Client) -> None:
        left = await client.lease_time(lease_id)
        click.echo(f"{left.remaining_seconds}\t{left.granted_seconds}")
        for key in left.keys if keys else ():
            sys.stdout.buffer.write(key + os.linesep.encode())

    run_with_client(endpoints, timeout_seconds, run)


@lease.command("ls", epilog=EXIT_CODES_HELP)
@with_endpoints
def list_leases(*, endpoints: str, timeout_seconds: float) -> None:
    """Print the number of every lease, the one that ends soonest first."""

    async def run(client: Client) -> None:
        for lease_id in await client.leases():
            click.echo(lease_id)

    run_with_client(endpoints, timeout_seconds, run)
