"""``raftkv snapshot``: backups of a running cluster, and a new cluster from one."""

from __future__ import annotations

import os
from pathlib import Path

import click

from raftkv.cli.endpoints import run_with_client, with_endpoints
from raftkv.cli.failures import EXIT_CODES_HELP, failures_as_exit_codes
from raftkv.client import Client
from raftkv.consensus.snapshot import SnapshotManifest
from raftkv.runtime.backup_files import BackupReader, restore_backup, verify_backup
from raftkv.runtime.clock import RealRandomness
from raftkv.runtime.files import sync_directory
from raftkv.settings import parse_initial_cluster
from raftkv.types import Consistency, NodeId

_PARTIAL_SUFFIX = ".partial"


@click.group(epilog=EXIT_CODES_HELP)
def snapshot() -> None:
    """Take backups of a running cluster, look at them, and make a new cluster of one."""


@snapshot.command(epilog=EXIT_CODES_HELP)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--stale", is_flag=True, help="What the node has, even without a majority.")
@click.option("--force", is_flag=True, help="Replace FILE.")
@with_endpoints
def save(file: Path, *, stale: bool, force: bool, endpoints: str, timeout_seconds: float) -> None:
    """Write a backup of everything acknowledged so far to FILE, checked while it arrives.

    FILE appears when it is whole and durable, and not before.
    """
    if file.exists() and not force:
        raise click.UsageError(f"{file} exists; --force replaces it")

    async def run(client: Client) -> None:
        manifest = await save_backup(client, file, Consistency.STALE if stale else Consistency.LINEARIZABLE)
        _describe(manifest)

    run_with_client(endpoints, timeout_seconds, run)


@snapshot.command(epilog=EXIT_CODES_HELP)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def status(file: Path) -> None:
    """Check FILE and print what it holds."""
    with failures_as_exit_codes():
        _describe(verify_backup(file))


@snapshot.command(epilog=EXIT_CODES_HELP)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def verify(file: Path) -> None:
    """Check FILE; print nothing when it is sound."""
    with failures_as_exit_codes():
        verify_backup(file)


@snapshot.command(epilog=EXIT_CODES_HELP)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--data-dir", required=True, type=click.Path(file_okay=False, path_type=Path), help="Made by this command."
)
@click.option("--name", default="n1", show_default=True, help="The member that the directory is for.")
@click.option(
    "--initial-cluster",
    required=True,
    metavar="NAME=HOST:PORT,…",
    help="All members of the new cluster, as for serve; the same for each of them.",
)
@click.option(
    "--revision",
    type=click.IntRange(min=1),
    help="Go back to what keys were at this revision.",
)
def restore(file: Path, *, data_dir: Path, name: str, initial_cluster: str, revision: int | None) -> None:
    """Make the data directory of one member of a new cluster from FILE.

    Run it once for each member, with the same FILE and the same --initial-cluster; then start them. Keys, history and
    leases are those of the backup. The cluster has a new id, so members of the old one refuse it, and it them.
    With --revision, which is to be the same for each member too, later changes of keys are undone; leases stay.
    """
    with failures_as_exit_codes():
        members = parse_initial_cluster(initial_cluster)
        cluster_id = restore_backup(file, data_dir, NodeId(name), members, RealRandomness(), revision)
        click.echo(f"{data_dir} is member {name} of the new cluster {cluster_id}")


@snapshot.command(epilog=EXIT_CODES_HELP)
@with_endpoints
def take(*, endpoints: str, timeout_seconds: float) -> None:
    """Let each of the nodes take a snapshot of itself now, and compact its journal behind it.

    Nodes do that by themselves; it is of use before one is stopped for long, or joined by another. For a copy to keep
    elsewhere use "raftkv snapshot save".
    """
    for endpoint in endpoints.split(","):
        taken = run_with_client(endpoint, timeout_seconds, lambda client: client.take_snapshot())
        click.echo(f"{taken.answered_by}\tindex {taken.index}\trevision {taken.revision}\t{taken.size} bytes")


async def save_backup(client: Client, file: Path, consistency: Consistency) -> SnapshotManifest:
    """Write a backup to a file, which appears when it is whole, checked and durable.

    Args:
        client: Where from.
        file: The file; one that exists is replaced.
        consistency: ``STALE`` for what the node has, without a majority.

    Raises:
        NotApplied: It was refused, nobody served it in time, or it broke off.
        CorruptData: It does not check.
        OSError: It could not be written.
    """
    partial = file.with_name(file.name + _PARTIAL_SUFFIX)
    async with client.backup(consistency) as (pieces, source):
        reader = BackupReader(source)
        try:
            with partial.open("wb") as output:
                async for piece in pieces:
                    reader.feed(piece)
                    output.write(piece)
                manifest = reader.finish()
                output.flush()
                os.fsync(output.fileno())
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
    sync_directory(file.parent)
    return manifest


def _describe(manifest: SnapshotManifest) -> None:
    click.echo(f"revision  {manifest.revision}")
    click.echo(f"cluster   {manifest.cluster_id}, members {', '.join(manifest.members)}")
    click.echo(f"log       index {manifest.index}, term {manifest.term}")
    click.echo(f"data      {manifest.size} bytes, SHA-256 {manifest.sha256}")
