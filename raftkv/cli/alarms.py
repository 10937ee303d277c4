"""``raftkv alarm``: the alarms of the cluster."""

from __future__ import annotations

from collections.abc import Sequence

import click

from raftkv.cli.endpoints import run_with_client, with_endpoints
from raftkv.cli.failures import EXIT_CODES_HELP
from raftkv.cli.tables import print_json, with_json
from raftkv.client import Client
from raftkv.client.maintenance import ALARM_KINDS
from raftkv.operations import Alarm


@click.group(epilog=EXIT_CODES_HELP)
def alarm() -> None:
    """List and clear the alarms of the cluster.

    NOSPACE: the data has reached the quota, and puts are refused. CORRUPT: a member's data differs from the others'.
    """


@alarm.command("list", epilog=EXIT_CODES_HELP)
@with_json
@with_endpoints
def list_alarms(*, as_json: bool, endpoints: str, timeout_seconds: float) -> None:
    """Print every active alarm: its kind, and the member that it is about. Nothing is printed when there is none."""

    async def run(client: Client) -> None:
        _print(await client.maintenance.alarms(), as_json=as_json)

    run_with_client(endpoints, timeout_seconds, run)


@alarm.command(epilog=EXIT_CODES_HELP)
@click.argument("kind", type=click.Choice(tuple(ALARM_KINDS), case_sensitive=False), required=False)
@click.option("--member", metavar="NAME", help="Only those of this member.")
@with_json
@with_endpoints
def clear(kind: str | None, *, member: str | None, as_json: bool, endpoints: str, timeout_seconds: float) -> None:
    """Clear all alarms, or those of KIND, and print the ones that were cleared.

    Mend the cause first. NOSPACE ends by itself below 90 % of the quota, and comes back while there is more data than
    the quota. After CORRUPT, replace the member.
    """

    async def run(client: Client) -> None:
        chosen = None if kind is None else ALARM_KINDS[kind]
        _print(await client.maintenance.clear_alarms(chosen, member), as_json=as_json)

    run_with_client(endpoints, timeout_seconds, run)


def _print(alarms: Sequence[Alarm], *, as_json: bool) -> None:
    if as_json:
        print_json({"alarms": alarms_document(alarms)})
        return
    for each in alarms:
        click.echo(f"{each.kind.label}\t{each.member}")


def alarms_document(alarms: Sequence[Alarm]) -> list[dict[str, str]]:
    """Return alarms as they are printed as JSON."""
    return [{"kind": alarm.kind.label, "member": alarm.member} for alarm in alarms]
