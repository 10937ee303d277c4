"""``raftkv status``: the cluster at a glance."""

from __future__ import annotations

from typing import Any

import click

from raftkv.cli.endpoints import run_with_client, with_endpoints
from raftkv.cli.failures import EXIT_CODES_HELP, NotDone
from raftkv.cli.tables import json_document, print_json, print_table, with_json
from raftkv.client import Client, ClusterView, MemberView

_COLUMNS = ("NAME", "ROLE", "TERM", "COMMIT", "APPLIED", "REVISION", "CLIENT URL", "PEER ADDRESS", "VERSION")


@click.command(epilog=EXIT_CODES_HELP)
@with_json
@with_endpoints
def status(*, as_json: bool, endpoints: str, timeout_seconds: float) -> None:
    """Print the cluster's members as the first endpoint that answers sees them.

    Exit code 1 when no leader is known.
    """

    async def run(client: Client) -> None:
        view = await client.cluster()
        if as_json:
            print_json(json_document(view))
        else:
            _print_table(view)
        if view.leader is None:
            raise NotDone("no leader is known")

    run_with_client(endpoints, timeout_seconds, run)


def _print_table(view: ClusterView) -> None:
    rows = [_row(member) for member in view.members]
    click.echo(
        f"cluster {view.cluster_id} at version {view.cluster_version}, term {view.term}, "
        f"leader {view.leader or '-'}, seen by {view.answered_by}"
    )
    print_table(_COLUMNS, rows)


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
