"""``raftkv compact``: forget history."""

from __future__ import annotations

import asyncio

import click

from raftkv.cli.endpoints import run_with_client, split_endpoints, with_endpoints
from raftkv.cli.failures import EXIT_CODES_HELP
from raftkv.client import Client
from raftkv.errors import RevisionCompacted
from raftkv.types import Consistency, Revision

_POLL_SECONDS = 0.2


@click.command(epilog=EXIT_CODES_HELP)
@click.option(
    "--revision",
    type=click.IntRange(min=1),
    help="The oldest revision that can still be read.  [default: the present one]",
)
@click.option("--physical", is_flag=True, help="Wait until each of --endpoints has removed the history from its data.")
@with_endpoints
def compact(*, revision: int | None, physical: bool, endpoints: str, timeout_seconds: float) -> None:
    """Forget the history of keys below a revision, and print that revision. The present values of all keys stay.

    Nodes do that by themselves as far as compact-keep-revisions and compact-keep-s say. Each node removes forgotten
    history from its data a little at a time, and uses the space again; --physical waits for that for as long as the
    nodes answer. Exit code 1 when one of them does not: the compaction is in effect all the same.
    """

    async def run(client: Client) -> Revision:
        chosen = Revision(revision) if revision is not None else await _present_revision(client)
        try:
            await client.compact(chosen)
        except RevisionCompacted:
            # Without a revision the aim is reached already, by an earlier run for example.
            if revision is not None:
                raise
        return chosen

    compacted = run_with_client(endpoints, timeout_seconds, run)
    click.echo(compacted)
    if physical:
        for endpoint in split_endpoints(endpoints):
            run_with_client(endpoint, timeout_seconds, lambda client: _wait_until_purged(client, compacted))


async def _present_revision(client: Client) -> Revision:
    page = await client.list_page(limit=1, keys_only=True, consistency=Consistency.LINEARIZABLE)
    return page.revision


async def _wait_until_purged(client: Client, revision: Revision) -> None:
    while (await client.maintenance.status()).purged_revision < revision:  # noqa: ASYNC110 - another process does it
        await asyncio.sleep(_POLL_SECONDS)
