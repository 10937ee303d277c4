"""``raftkv backup``: backups again and again, of which the newest are kept."""

from __future__ import annotations

import asyncio
import re
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import click

from raftkv.cli.backup_places import BackupDirectory, BackupPlace, backup_place
from raftkv.cli.endpoints import run_with_client, with_endpoints
from raftkv.cli.failures import EXIT_CODES_HELP, failures_as_exit_codes
from raftkv.cli.snapshots import save_backup
from raftkv.client import Client
from raftkv.errors import RaftkvError
from raftkv.types import Consistency

_SECONDS_OF = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Duration(click.ParamType[float]):
    """A number with a unit: 90s, 30m, 6h, 1d."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return it in seconds."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d{1,6})([smhd])", str(value))
        if found is None or int(found[1]) == 0:
            self.fail(f"{value!r} is no duration such as 90s, 30m, 6h or 1d", param, ctx)
        return float(int(found[1]) * _SECONDS_OF[found[2]])


@click.command(epilog=EXIT_CODES_HELP)
@click.option(
    "--to",
    "target",
    metavar="DIR|s3://BUCKET/PREFIX",
    required=True,
    help="Where they go: a directory, or a bucket (needs the extra raftkv[s3]; settings as for the AWS tools).",
)
@click.option("--every", type=Duration(), default="30m", show_default=True, help="Time between backups.")
@click.option("--keep", type=click.IntRange(min=1), default=48, show_default=True, help="Number of backups to keep.")
@click.option("--once", is_flag=True, help="Take one backup, remove what is too old, and end.")
@with_endpoints
def backup(*, target: str, every: float, keep: int, once: bool, endpoints: str, timeout_seconds: float) -> None:
    """Take a backup of the cluster now and then, and keep the newest.

    Each is a file of its own, whole and checked before it appears: raftkv-20260102T030405Z-r17.snapshot is of revision
    17. One that fails is reported, and the next is tried in time; nothing is removed then.
    """
    with failures_as_exit_codes():
        place = backup_place(target)

    async def run(client: Client) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            try:
                await _take(client, place, keep)
            except (RaftkvError, OSError) as error:
                if once:
                    raise
                click.echo(f"raftkv: the backup failed: {error}", err=True)
            if once:
                return
            # In step with the beginning, however long one takes; what was missed meanwhile is not caught up on.
            due += every * max(1, -(-(loop.time() - due) // every))
            await _pause(due - loop.time())

    run_with_client(endpoints, timeout_seconds, run)


async def _pause(seconds: float) -> None:
    await asyncio.sleep(seconds)


async def _take(client: Client, place: BackupPlace, keep: int) -> None:
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    with tempfile.TemporaryDirectory(prefix="raftkv-backup-", dir=_staging(place)) as staging:
        arriving = Path(staging) / "arriving"
        manifest = await save_backup(client, arriving, Consistency.LINEARIZABLE)
        where = await asyncio.to_thread(place.put, arriving, f"raftkv-{now}-r{manifest.revision}.snapshot")
    click.echo(f"{where}: revision {manifest.revision}, {manifest.size} bytes")
    for old in (await asyncio.to_thread(place.newest_first))[keep:]:
        click.echo(f"{await asyncio.to_thread(place.remove, old)}: removed")


def _staging(place: BackupPlace) -> Path | None:
    """Return where a backup arrives: beside its place, where that is a directory, so that it can be moved there."""
    return place.directory if isinstance(place, BackupDirectory) else None
