"""``raftkv leader``: show and move the leadership."""

from __future__ import annotations

import click

from raftkv.cli.endpoints import run_with_client, with_endpoints
from raftkv.cli.failures import EXIT_CODES_HELP, NotDone
from raftkv.client import Client


@click.group(epilog=EXIT_CODES_HELP)
def leader() -> None:
    """Show and move the leadership."""


@leader.command(epilog=EXIT_CODES_HELP)
@with_endpoints
def show(*, endpoints: str, timeout_seconds: float) -> None:
    """Print the leader's name and client URL. Exit code 1 when none is known."""

    async def run(client: Client) -> None:
        view = await client.cluster()
        if view.leader is None:
            raise NotDone(f"{view.answered_by} knows no leader")
        click.echo(f"{view.leader}\t{view.leader_url or '-'}")

    run_with_client(endpoints, timeout_seconds, run)


@leader.command(epilog=EXIT_CODES_HELP)
@click.argument("member", required=False)
@with_endpoints
def move(member: str | None, *, endpoints: str, timeout_seconds: float) -> None:
    """Make MEMBER the leader, or the member that is best, and print who leads then.

    Writes are refused for the moment in between, and clients try again. Use it before a machine is stopped; a node that
    is stopped with SIGTERM hands over by itself.
    """

    async def run(client: Client) -> None:
        click.echo(await client.maintenance.move_leader(member) or "-")

    run_with_client(endpoints, timeout_seconds, run)
