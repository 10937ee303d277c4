"""``raftkv recover``: a new cluster from what is left of one that has lost its majority for good."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from raftkv.cli.failures import EXIT_CODES_HELP, NotDone, failures_as_exit_codes
from raftkv.errors import ConfigurationError
from raftkv.membership import Membership
from raftkv.runtime.backup_files import restore_backup
from raftkv.runtime.clock import RealRandomness
from raftkv.runtime.disaster import membership_of, owner_of, reachable_voters, salvage
from raftkv.runtime.exchange import exchange
from raftkv.runtime.files import sync_directory
from raftkv.runtime.identity import Identity
from raftkv.settings import parse_initial_cluster
from raftkv.types import Member, NodeId


@click.command(epilog=EXIT_CODES_HELP)
@click.option(
    "--force-new-cluster", "is_forced", is_flag=True, required=True, help="Say that this is what you want to do."
)
@click.option(
    "--data-dir",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Of the surviving member, stopped; with several, of the one with the highest revision.",
)
@click.option(
    "--initial-cluster",
    metavar="NAME=HOST:PORT,…",
    help="All members of the new cluster; without it, the surviving member alone.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
def recover(*, is_forced: bool, data_dir: Path, initial_cluster: str | None, yes: bool) -> None:
    """Begin a new cluster with what one surviving member has, when a majority is lost for good.

    Every write that was acknowledged and that this member has is kept; one that only lost members had is gone. The
    directory of the old cluster is set aside beside the new one, and a backup of everything in it is written: make the
    other members of the new cluster from that with "raftkv snapshot restore".

    Refused while so many other members can be reached that they may be a majority: then it is not lost.
    """
    assert is_forced, "the option is required"
    with failures_as_exit_codes():
        identity = owner_of(data_dir)
        membership = membership_of(data_dir)
        _refuse_live_majority(identity, membership)
        own = membership.with_id(identity.member_id)
        if initial_cluster is not None:
            members = parse_initial_cluster(initial_cluster)
        elif own is not None:
            members = (Member(own.name, own.peer_address),)
        else:
            raise ConfigurationError(
                f"{identity.name} was removed from its cluster; say with --initial-cluster who is new"
            )
        names = ", ".join(member.name for member in members)
        click.echo(f"{data_dir} is of member {identity.name} of cluster {identity.cluster_id}.")
        if not yes:
            click.confirm(
                f"Make it the beginning of a new cluster of {names}, and end the old one for good?", abort=True
            )
        _recover(data_dir, identity.name, members)


def _recover(data_dir: Path, name: NodeId, members: tuple[Member, ...]) -> None:
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    backup = data_dir.with_name(f"{data_dir.name}-{moment}.snapshot")
    manifest = salvage(data_dir, backup)
    aside = data_dir.with_name(f"{data_dir.name}-{moment}.old")
    fresh = data_dir.with_name(f"{data_dir.name}-{moment}.new")
    cluster_id = restore_backup(backup, fresh, name, members, RealRandomness())
    # In one step: a node that is started over a directory that is not there would begin a cluster with nothing.
    exchange(data_dir, fresh)
    fresh.rename(aside)
    sync_directory(data_dir.parent)
    click.echo(f"{backup} has everything up to revision {manifest.revision}")
    click.echo(f"{aside} is the old directory")
    click.echo(f"{data_dir} is member {name} of the new cluster {cluster_id}")


def _refuse_live_majority(identity: Identity, membership: Membership) -> None:
    live = reachable_voters(identity, membership)
    majority = len(membership.voters) // 2 + 1
    if len(live) >= majority:
        raise NotDone(
            f"{', '.join(live)} can be reached, and are a majority of the {len(membership.voters)} members: "
            "what they have would be thrown away. Stop them first, if that is what you want"
        )
