"""``raftkv backup``: backups on a schedule, of which the newest are kept."""

from __future__ import annotations

import asyncio
import re

import click

from raftkv.cli.backup_destinations import BackupDestination, destination_of
from raftkv.cli.backup_run import BackupRun, TakenBackup
from raftkv.cli.endpoints import new_client, run_with_client, with_endpoints
from raftkv.cli.failures import EXIT_CODES_HELP, failures_as_exit_codes, os_error_text
from raftkv.client import Client
from raftkv.errors import RaftkvError
from raftkv.types import BackupReport

_REPORT_SECONDS = 5.0
"""A report is worth no longer wait: the backup is stored already, or is not."""

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
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    default=48,
    show_default=True,
    help="Number of backups of the cluster to keep. They need room for one more.",
)
@click.option("--once", is_flag=True, help="Take one backup, remove what is too old, and end.")
@with_endpoints
def backup(*, target: str, every: float, keep: int, once: bool, endpoints: str, timeout_seconds: float) -> None:
    """Take backups of the cluster on a schedule, and keep the newest.

    Each is one file, compressed with zstd, which appears when it is complete and checked:
    CLUSTER-ID/raftkv-00000042-20260102T030405Z-r17.snapshot.zst is number 42 of its cluster, of revision 17. The number
    decides which are the newest, and not the clock. Old ones are removed after a success. Where there is no room for
    the next one, the oldest are removed first; the newest that checks stays in any case.

    A failure is reported on standard error, and with --once by the exit code. Successes and failures are reported
    to the members, which show them at /metrics (raftkv_backup_last_success_timestamp_seconds,
    raftkv_backup_failures_total).
    """
    with failures_as_exit_codes():
        destination = destination_of(target)

    async def run(client: Client) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        backups = BackupRun(client, destination, keep, click.echo)
        while True:
            try:
                taken = await backups.take()
            except (RaftkvError, OSError) as error:
                await _report(client, None)
                if once:
                    raise
                _warn(f"the backup failed: {os_error_text(error) if isinstance(error, OSError) else error}")
            else:
                _describe(taken, destination, keep)
                report = BackupReport(taken.manifest.revision, taken.size, taken.kept, taken.lacks_room)
                await _report(client, report)
            if once:
                return
            # In step with the beginning, however long one takes; what was missed meanwhile is not caught up on.
            due += every * max(1, -(-(loop.time() - due) // every))
            await _pause(due - loop.time())

    run_with_client(endpoints, timeout_seconds, run)


async def _pause(seconds: float) -> None:
    await asyncio.sleep(seconds)


async def _report(client: Client, report: BackupReport | None) -> None:
    """Report a run, a failed one as None, to every member that can be reached; a lost report is no failure of the run.

    The metrics of the members show when the last backup was stored.
    """
    try:
        async with asyncio.timeout(_REPORT_SECONDS):
            view = await client.cluster()
    except (RaftkvError, TimeoutError) as error:
        _warn(f"the members do not know of this run: {error}")
        return
    urls = {member.status.client_url for member in view.members if member.status is not None}
    await asyncio.gather(*(_report_to(url, report) for url in urls if url is not None))


async def _report_to(url: str, report: BackupReport | None) -> None:
    try:
        async with new_client(url, _REPORT_SECONDS) as client:
            await client.report_backup(report)
    except RaftkvError as error:
        _warn(f"{url} does not know of this run: {error}")


def _describe(taken: TakenBackup, destination: BackupDestination, keep: int) -> None:
    manifest = taken.manifest
    click.echo(f"{taken.where}: revision {manifest.revision}, {taken.size} bytes of {manifest.size}")
    if taken.lacks_room:
        _warn(
            f"{destination} has room for {taken.room_for} backups of this size, and --keep {keep} needs room for "
            f"{keep + 1}: the oldest will be removed early"
        )


def _warn(text: str) -> None:
    click.echo(f"raftkv: {text}", err=True)
