"""``raftkv status``: the cluster at a glance."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

import click
import orjson
from rich.console import Console
from rich.table import Table

from raftkv.cli.endpoints import run_with_client, with_endpoints
from raftkv.cli.failures import EXIT_CODES_HELP, NotDone
from raftkv.client import Client, ClusterView, MemberView

_COLUMNS = ("NAME", "ROLE", "TERM", "COMMIT", "APPLIED", "REVISION", "CLIENT URL", "PEER ADDRESS", "VERSION")


@click.command(epilog=EXIT_CODES_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@with_endpoints
def status(*, as_json: bool, endpoints: str, timeout_seconds: float) -> None:
    """Print the cluster's members as the first endpoint that answers sees them.

    Exit code 1 when no leader is known.
    """

    async def run(client: Client) -> None:
        view = await client.cluster()
        if as_json:
            click.echo(orjson.dumps(asdict(view), option=orjson.OPT_INDENT_2))
        else:
            _print_table(view)
        if view.leader is None:
            raise NotDone("no leader is known")

    run_with_client(endpoints, timeout_seconds, run)


def _print_table(view: ClusterView) -> None:
    rows = [_row(member) for member in view.members]
    click.echo(f"cluster {view.cluster_id}, term {view.term}, leader {view.leader or '-'}, seen by {view.answered_by}")
    if not sys.stdout.isatty():
        for row in (_COLUMNS, *rows):
            click.echo("\t".join(row))
        return
    table = Table(*_COLUMNS)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _row(member: MemberView) -> tuple[str, ...]:
    status = member.status
    if status is None:
        return (member.name, "no answer", *("-" for _ in range(5)), member.peer_address, "-")
    numbers: tuple[Any, ...] = (status.term, status.commit_index, status.applied_index, status.revision)
    return (
        member.name,
        status.role.value,
        *(str(number) for number in numbers),
        status.client_url or "-",
        member.peer_address,
        status.version,
    )
