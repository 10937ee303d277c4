"""``raftkv snapshot``: backups of a running cluster, and a new cluster from one."""

from __future__ import annotations

import os
from pathlib import Path

import click

from raftkv.cli.backup_destinations import find_backup, stored_at
from raftkv.cli.backup_download import save_backup
from raftkv.cli.endpoints import run_with_client, split_endpoints, with_endpoints
from raftkv.cli.failures import EXIT_CODES_HELP, NotDone, failures_as_exit_codes
from raftkv.cli.new_members import named_members
from raftkv.client import Client
from raftkv.consensus.snapshot import SnapshotManifest
from raftkv.errors import ConfigurationError
from raftkv.runtime.backup_compression import BackupSource
from raftkv.runtime.backup_files import read_manifest, restore_backup, restored_cluster_id, verify_backup
from raftkv.runtime.clock import RealRandomness
from raftkv.runtime.disaster import open_survivor
from raftkv.runtime.set_aside import directory_beside, restore_in_place
from raftkv.store.rewriting import DEFAULT_REVISION_BUMP
from raftkv.types import ClusterId, Consistency, NodeId

_DEFAULT_NAME = NodeId("n1")
_BACKUP = "FILE|DIR|s3://BUCKET/PREFIX[/FILE]"
_MAX_BUMP = 2**53
"""Revisions stay far below 2**63, whatever number of restores."""


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

    FILE appears when it is whole and durable, and not before. It is compressed with zstd when its name ends with .zst;
    the other commands read both kinds.
    """
    if file.exists() and not force:
        raise click.UsageError(f"{file} exists; --force replaces it")

    async def run(client: Client) -> None:
        manifest = await save_backup(client, file, Consistency.STALE if stale else Consistency.LINEARIZABLE)
        _describe(manifest)

    run_with_client(endpoints, timeout_seconds, run)


@snapshot.command(epilog=EXIT_CODES_HELP)
@click.argument("backup", metavar=_BACKUP)
def status(backup: str) -> None:
    """Check a backup and print what it holds; of a directory or a prefix, the latest."""
    with failures_as_exit_codes():
        _describe(verify_backup(_found(backup)))


@snapshot.command(epilog=EXIT_CODES_HELP)
@click.argument("backup", metavar=_BACKUP)
def verify(backup: str) -> None:
    """Check a backup; print nothing when a file is sound. Of a directory or a prefix it is the latest."""
    with failures_as_exit_codes():
        verify_backup(_found(backup))


@snapshot.command("list", epilog=EXIT_CODES_HELP)
@click.argument("destination", metavar="DIR|s3://BUCKET/PREFIX")
def list_backups(destination: str) -> None:
    """List what "raftkv backup" has stored: each backup with its bytes, the oldest of each cluster first.

    Exit code 1 when there is none.
    """
    with failures_as_exit_codes():
        found = stored_at(destination)
        for backups, stored in found:
            for each in stored:
                click.echo(f"{backups.source(each.name)}\t{each.size} bytes")
        if not found:
            raise NotDone(f"{destination} has no backup that raftkv backup took")


@snapshot.command(epilog=EXIT_CODES_HELP)
@click.argument("backup", metavar=_BACKUP)
@click.option(
    "--data-dir", required=True, type=click.Path(file_okay=False, path_type=Path), help="Made by this command."
)
@click.option("--name", help="The member that the directory is for.  [default: variable RAFTKV_NAME, or n1]")
@click.option(
    "--initial-cluster",
    metavar="NAME=HOST:PORT,…",
    help="All members of the new cluster, as for serve; the same for each of them.  [default: what the variables of "
    "serve say, such as RAFTKV_INITIAL_CLUSTER, or RAFTKV_DISCOVER_SERVICE in a pod]",
)
@click.option(
    "--set-aside",
    "sets_aside",
    is_flag=True,
    help="Keep a data directory that is there as DATA_DIR-TIME.old, instead of refusing to restore. Does nothing when "
    "it is of the new cluster already, so that it can be run again.",
)
@click.option(
    "--revision",
    type=click.IntRange(min=1),
    help="Go back to what keys were at this revision.",
)
@click.option(
    "--bump-revision",
    "bump",
    type=click.IntRange(0, _MAX_BUMP),
    default=DEFAULT_REVISION_BUMP,
    show_default=True,
    metavar="N",
    help="Raise the revision by N and mark what is below as compacted, so that watches of the old cluster end with an "
    "error; more than the revisions that it can have reached. 0 keeps revision and history.",
)
def restore(
    backup: str,
    *,
    data_dir: Path,
    name: str | None,
    initial_cluster: str | None,
    sets_aside: bool,
    revision: int | None,
    bump: int,
) -> None:
    """Make the data directory of one member of a new cluster from a backup.

    The backup is a file, an object in a bucket, or the latest that "raftkv backup" has stored in a directory or below a
    prefix; the command prints which one that is. Run it once for each member, with the same backup and the same
    options; then start them.

    Keys and leases are those of the backup. The cluster has a new id, so members of the old one refuse it, and it them.
    Its revision is higher by --bump-revision, so that clients that remember revisions of the old one get an error
    instead of missing changes. With --revision, later changes of keys are undone, and retries of those writes are
    applied again; leases stay. Restore the same backup a second time with a greater --bump-revision, if clients have
    seen the first cluster.
    """
    with failures_as_exit_codes():
        given, members = named_members(name, initial_cluster, os.environ)
        own = given or _DEFAULT_NAME
        if not members:
            raise ConfigurationError("name the members of the new cluster with --initial-cluster")

        source = _found(backup)

        def build(path: Path) -> ClusterId:
            return restore_backup(source, path, own, members, RealRandomness(), revision, bump)

        if sets_aside:
            cluster_id = restored_cluster_id(read_manifest(source), members, revision, bump)
            old = restore_in_place(data_dir, directory_beside(data_dir, "old"), (cluster_id, own), build)
            if old is not None:
                click.echo(f"{old} is the old directory, as it was")
        else:
            cluster_id = build(data_dir)
        click.echo(f"{data_dir} is member {own} of the new cluster {cluster_id}")


@snapshot.command(epilog=EXIT_CODES_HELP)
@click.argument("data_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Replace FILE.")
def extract(data_dir: Path, file: Path, *, force: bool) -> None:
    """Write a backup of what a stopped member has in DATA_DIR to FILE, to look at it or to compare it.

    DATA_DIR is only read. FILE also has entries of the member's log that were never committed, so it is no backup of
    the cluster. It is compressed when its name ends with .zst. To begin a new cluster from the last member of one use
    "raftkv recover".
    """
    if file.exists() and not force:
        raise click.UsageError(f"{file} exists; --force replaces it")
    with failures_as_exit_codes(), open_survivor(data_dir) as survivor:
        _describe(survivor.write_backup(file))


@snapshot.command(epilog=EXIT_CODES_HELP)
@with_endpoints
def take(*, endpoints: str, timeout_seconds: float) -> None:
    """Let each of the nodes take a snapshot of itself now, and compact its journal behind it.

    Nodes do that by themselves; it is of use before one is stopped for long, or joined by another. For a copy to keep
    elsewhere use "raftkv snapshot save".
    """
    for endpoint in split_endpoints(endpoints):
        taken = run_with_client(endpoint, timeout_seconds, lambda client: client.take_snapshot())
        click.echo(f"{taken.answered_by}\tindex {taken.index}\trevision {taken.revision}\t{taken.size} bytes")


def _found(backup: str) -> BackupSource:
    """Return the backup that an argument names; say which one, unless it names that itself."""
    source = find_backup(backup)
    if str(source) != backup:
        click.echo(f"{source} is the latest backup there")
    return source


def _describe(manifest: SnapshotManifest) -> None:
    click.echo(f"revision  {manifest.revision}")
    click.echo(f"cluster   {manifest.cluster_id}, members {', '.join(manifest.members)}")
    click.echo(f"log       index {manifest.index}, term {manifest.term}")
    click.echo(f"data      {manifest.size} bytes, SHA-256 {manifest.sha256}")
