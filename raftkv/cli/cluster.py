"""``raftkv cluster``: the cluster's version, and whether the stores of its members are equal."""

from __future__ import annotations

import click

from raftkv.cli.endpoints import run_with_client, with_endpoints
from raftkv.cli.failures import EXIT_CODES_HELP, NotDone
from raftkv.client import Client


@click.group(epilog=EXIT_CODES_HELP)
def cluster() -> None:
    """Show what the members have agreed on, and check that they do."""


@cluster.command(epilog=EXIT_CODES_HELP)
@with_endpoints
def version(*, endpoints: str, timeout_seconds: float) -> None:
    """Print the cluster's version, and for each member its release and the cluster versions that it supports.

    The version rises by itself when all members support the next one, unless a member has max-cluster-version set. From
    then on, releases that do not support it cannot take part.
    """

    async def run(client: Client) -> None:
        view = await client.cluster()
        click.echo(f"cluster version {view.cluster_version}")
        for member in view.members:
            status = member.status
            supports = "no answer" if status is None else f"{status.version}\t{status.supported_versions}"
            click.echo(f"{member.name}\t{supports}")

    run_with_client(endpoints, timeout_seconds, run)


@cluster.command(epilog=EXIT_CODES_HELP)
@with_endpoints
def check(*, endpoints: str, timeout_seconds: float) -> None:
    """Compare the stores of all members at one log index, and print the result for each member.

    "agrees": its store is that of a majority. "differs": it is not, and the member stops. "disputed": stores differ,
    and no majority has the same. "unknown": it did not answer, or too few others did. Exit code 1 unless all agree.
    A million keys take about half a minute.
    """

    async def run(client: Client) -> None:
        view = await client.check_states()
        click.echo(f"compared at index {view.index}")
        for name, result in view.results.items():
            click.echo(f"{name}\t{result}")
        if not view.is_sound:
            raise NotDone("the stores of the members are not known to be equal")

    run_with_client(endpoints, timeout_seconds, run)
