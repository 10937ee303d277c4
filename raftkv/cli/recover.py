"""``raftkv recover``: a new cluster from what is left of one that has lost its majority for good."""

from __future__ import annotations

import os
from pathlib import Path

import click

from raftkv.cli.failures import EXIT_CODES_HELP, NotDone, failures_as_exit_codes
from raftkv.cli.new_members import named_members
from raftkv.errors import ConfigurationError
from raftkv.membership import Membership
from raftkv.runtime.backup_files import restore_backup
from raftkv.runtime.clock import RealRandomness
from raftkv.runtime.disaster import (
    Survivor,
    finish_interrupted,
    open_survivor,
    reachable_voters,
    replace_directory,
)
from raftkv.runtime.identity import Identity
from raftkv.runtime.set_aside import directory_beside
from raftkv.types import ClusterId, Member


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
    help="All members of the new cluster.  [default: what serve's variables say; without them, the survivor alone]",
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
        aside = directory_beside(data_dir, "old")
        if finish_interrupted(data_dir, aside):
            click.echo(f"an earlier recovery was interrupted after its last step: {aside} is the old directory")
            return
        with open_survivor(data_dir) as survivor:
            identity, membership = survivor.identity, survivor.membership
            _refuse_live_majority(identity, membership)
            own = membership.with_id(identity.member_id)
            _, members = named_members(None, initial_cluster, os.environ)
            if not members and own is not None:
                members = (Member(own.name, own.peer_address),)
            if not members:
                raise ConfigurationError(
                    f"{identity.name} was removed from its cluster; say with --initial-cluster who is new"
                )
            names = ", ".join(member.name for member in members)
            click.echo(f"{data_dir} is the directory of member {identity.name} of cluster {identity.cluster_id}.")
            if not yes:
                click.confirm(
                    f"Make it the beginning of a new cluster of {names}, and end the old one for good?", abort=True
                )
            recover_into(survivor, data_dir, aside, members)


def recover_into(survivor: Survivor, data_dir: Path, aside: Path, members: tuple[Member, ...]) -> None:
    """Replace a survivor's data directory by one of a new cluster, and say what is where.

    Args:
        survivor: The survivor.
        data_dir: Its data directory.
        aside: The name that the old directory gets.
        members: All members of the new cluster.
    """
    backup = aside.with_suffix(".snapshot")
    name = survivor.identity.name
    manifest = survivor.write_backup(backup)
    made: list[ClusterId] = []
    replace_directory(
        data_dir, aside, lambda path: made.append(restore_backup(backup, path, name, members, RealRandomness()))
    )
    click.echo(f"{backup} has everything up to revision {manifest.revision}")
    click.echo(f"{aside} is the old directory, as it was")
    click.echo(f"{data_dir} is member {name} of the new cluster {made[0]}")


def _refuse_live_majority(identity: Identity, membership: Membership) -> None:
    live = reachable_voters(identity, membership)
    own = membership.with_id(identity.member_id)
    votes = len(live) + (own is not None and own.is_voter)
    if live and votes >= len(membership.voters) // 2 + 1:
        count = len(membership.voters)
        raise NotDone(
            f"{', '.join(live)} can be reached: with this member they are a majority of the {count} members, so "
            "nothing is lost. Start this member again; or stop the others first, if you want a new cluster all the same"
            if votes > len(live)
            else f"{', '.join(live)} can be reached, and are a majority of the {count} members: "
            "what they have would be thrown away. Stop them first, if that is what you want"
        )
