"""The command ``raftkv``."""

from __future__ import annotations

import os

import click

from raftkv import __version__
from raftkv.cli import (
    alarms,
    backups,
    chaos,
    cluster,
    compaction,
    dev,
    imports,
    keys,
    leaders,
    leases,
    members,
    node_status,
    recover,
    serve,
    snapshots,
    status,
    transactions,
    trees,
    turns,
    watch,
)
from raftkv.cli.failures import EXIT_CODES_HELP
from raftkv.settings import unknown_variables


@click.group(epilog=EXIT_CODES_HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="raftkv")
@click.pass_context
def raftkv(context: click.Context) -> None:
    """raftkv: a strongly consistent key-value service over HTTP."""
    # A node writes these to its log.
    if context.invoked_subcommand != serve.serve.name:
        for warning in unknown_variables(os.environ):
            click.echo(f"raftkv: {warning}", err=True)


for _command in (
    serve.serve,
    dev.dev,
    chaos.chaos,
    keys.put,
    keys.get,
    keys.delete,
    keys.list_keys,
    watch.watch,
    transactions.txn,
    leases.lease,
    members.member,
    cluster.cluster,
    node_status.endpoint,
    leaders.leader,
    alarms.alarm,
    compaction.compact,
    turns.lock,
    turns.elect,
    snapshots.snapshot,
    backups.backup,
    snapshots.restore,
    recover.recover,
    status.status,
    imports.import_items,
    trees.export_tree,
):
    raftkv.add_command(_command)


def main() -> None:
    """Run the command line."""
    raftkv()
