"""``raftkv member``: who belongs to the cluster, and changes of that."""

from __future__ import annotations

import click

from raftkv.cli.endpoints import run_with_client, with_endpoints
from raftkv.cli.failures import EXIT_CODES_HELP
from raftkv.client import Client, KnownMember


@click.group(epilog=EXIT_CODES_HELP)
def member() -> None:
    """Show, add, remove and replace the members of the cluster, one at a time."""


@member.command("list", epilog=EXIT_CODES_HELP)
@with_endpoints
def list_members(*, endpoints: str, timeout_seconds: float) -> None:
    """Print every member: its name, its id, its peer address, and whether it votes."""

    async def run(client: Client) -> None:
        for known in (await client.members.list()).members:
            _print(known)

    run_with_client(endpoints, timeout_seconds, run)


@member.command(epilog=EXIT_CODES_HELP)
@click.argument("name")
@click.argument("peer_address", metavar="HOST:PORT")
@with_endpoints
def add(name: str, peer_address: str, *, endpoints: str, timeout_seconds: float) -> None:
    """Add the member NAME, reached at HOST:PORT; it gets its vote when it has caught up.

    Start it then with "raftkv serve --join", which would add it too.
    """

    async def run(client: Client) -> None:
        _print(await client.members.add(name, peer_address))

    run_with_client(endpoints, timeout_seconds, run)


@member.command(epilog=EXIT_CODES_HELP)
@click.argument("name")
@with_endpoints
def remove(name: str, *, endpoints: str, timeout_seconds: float) -> None:
    """Remove the member NAME for good; its node stops."""
    run_with_client(endpoints, timeout_seconds, lambda client: client.members.remove(name))


@member.command(epilog=EXIT_CODES_HELP)
@click.argument("name")
@with_endpoints
def promote(name: str, *, endpoints: str, timeout_seconds: float) -> None:
    """Let the member NAME vote now; this happens by itself when it has caught up."""
    run_with_client(endpoints, timeout_seconds, lambda client: client.members.promote(name))


@member.command(epilog=EXIT_CODES_HELP)
@click.argument("name")
@click.option("--peer-address", metavar="HOST:PORT", help="Where the new node is reached, if not at the same address.")
@with_endpoints
def replace(name: str, *, peer_address: str | None, endpoints: str, timeout_seconds: float) -> None:
    """Give the place of the member NAME, which has lost its data or its machine, to a new node of that name.

    Start that with an empty data directory and "raftkv serve --join".
    """

    async def run(client: Client) -> None:
        _print(await client.members.replace(name, peer_address))

    run_with_client(endpoints, timeout_seconds, run)


@member.command(epilog=EXIT_CODES_HELP)
@click.argument("name")
@click.argument("peer_address", metavar="HOST:PORT")
@click.option(
    "--force",
    is_flag=True,
    help="Do not check that NAME answers at HOST:PORT. If it never will, the cluster has lost this member's vote.",
)
@with_endpoints
def move(name: str, peer_address: str, *, force: bool, endpoints: str, timeout_seconds: float) -> None:
    """Tell the others that the member NAME is reached at HOST:PORT from now on.

    Start it with that peer address first: the leader asks there for the member, and changes nothing if another node
    answers, or none.
    """
    run_with_client(endpoints, timeout_seconds, lambda client: client.members.move(name, peer_address, force=force))


def _print(known: KnownMember) -> None:
    click.echo(f"{known.name}\t{known.id}\t{known.peer_address}\t{'votes' if known.votes else 'does not vote yet'}")
