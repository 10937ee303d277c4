"""What is left of a cluster that has lost its majority for good, as a backup to begin a new cluster from.

Everything in the journal is taken over, also what this member does not know to be committed: it may have been
acknowledged by a majority that this member was part of, and an acknowledged write must not get lost. So a write whose
outcome was unknown, or that another leader's entry had replaced elsewhere, may turn up in the new cluster.

All of that happens to a copy. The member's own directory is only read, and renamed at the end: uncommitted entries that
were applied to it would count as committed if it were put back.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from raftkv.consensus.entries import payload_of
from raftkv.consensus.snapshot import SnapshotManifest
from raftkv.errors import ConfigurationError
from raftkv.membership import Membership
from raftkv.ports import PRIVATE_DIRECTORY, private_opener
from raftkv.runtime.backup_compression import is_compressed_name
from raftkv.runtime.backup_files import BackupWriter
from raftkv.runtime.backups import head_of
from raftkv.runtime.clock import RealRandomness
from raftkv.runtime.exchange import exchange
from raftkv.runtime.files import DataDirectoryLock, RealDirectory, boot_id, sync_directory
from raftkv.runtime.identity import Identity, read_identity
from raftkv.runtime.manifests import manifest_of_copy
from raftkv.runtime.recovery import Storage, recover_storage
from raftkv.store.machine import CommittedEntry, open_machine
from raftkv.types import Index, NodeId, Term

_CONNECT_SECONDS = 2.0
_WORKING_SUFFIX = ".recovering"
_FRESH_SUFFIX = ".recovered"
_ENTRIES_AT_A_TIME = 1000


def owner_of(data_dir: Path) -> Identity:
    """Return whose data directory it is.

    Raises:
        ConfigurationError: There is none.
        CorruptData: Its identity does not check.
    """
    if not (data_dir / "identity.json").exists():
        raise ConfigurationError(f"{data_dir} is no data directory")
    return read_identity(RealDirectory(data_dir))


class Survivor:
    """A stopped member, of which everything is read from a working copy.

    Args:
        data_dir: Its data directory, which is never written to.
        working: Directory of the working copy.
    """

    def __init__(self, data_dir: Path, working: Path) -> None:
        self.identity = owner_of(data_dir)
        self._working = working
        self._storage = _open(_copied(data_dir, working / "copy"), self.identity)

    @property
    def membership(self) -> Membership:
        """The members of the cluster, as far as this member knows."""
        return self._storage.machine.membership

    def write_backup(self, file: Path) -> SnapshotManifest:
        """Write a backup of everything that the member has.

        Args:
            file: The backup, compressed when its name says so; it appears complete and durable, or not at all.

        Raises:
            FatalError: The data does not check.
            OSError: The file could not be written.
        """
        _apply_everything(self._storage)
        return _write(self._storage, self._working, file)

    def close(self) -> None:
        """Close the working copy."""
        self._storage.machine.close()


@contextmanager
def open_survivor(data_dir: Path) -> Iterator[Survivor]:
    """Lock the data directory of a stopped member, and read it through a working copy.

    The copy lies beside the directory and is removed at the end. One that a kill has left behind is replaced.

    Raises:
        ConfigurationError: A node runs on the directory, or there is none.
        FatalError: The data does not check.
        OSError: There is no room for the copy, or the disk failed.
    """
    owner_of(data_dir)
    working = data_dir.with_name(data_dir.name + _WORKING_SUFFIX)
    with DataDirectoryLock(data_dir):
        _remove_tree(working)
        try:
            working.mkdir(mode=PRIVATE_DIRECTORY)
            survivor = Survivor(data_dir, working)
            try:
                yield survivor
            finally:
                survivor.close()
        finally:
            _remove_tree(working)


def replace_directory(data_dir: Path, aside: Path, build: Callable[[Path], None]) -> None:
    """Replace the data directory of a member by that of a member of a cluster restored from its data, in one step.

    Args:
        data_dir: The data directory.
        aside: The name that the old directory gets.
        build: Makes the new directory, complete and durable, under the path that it is given.

    Raises:
        OSError: The disk failed.
    """
    fresh = data_dir.with_name(data_dir.name + _FRESH_SUFFIX)
    build(fresh)
    # In one step: a node that is started without its directory would begin a cluster with nothing.
    exchange(data_dir, fresh)
    _set_aside(fresh, aside)


def finish_interrupted(data_dir: Path, aside: Path) -> bool:
    """Complete or undo what an interrupted ``replace_directory`` has left behind.

    Args:
        data_dir: The data directory.
        aside: The name that the old directory gets.

    Returns:
        Whether the new directory had been put in place already, so that nothing is left to do.
    """
    fresh = data_dir.with_name(data_dir.name + _FRESH_SUFFIX)
    if not fresh.exists():
        return False
    left, current = owner_of(fresh), owner_of(data_dir)
    if current.restored_from == left.cluster_id:
        _set_aside(fresh, aside)
        return True
    if left.restored_from == current.cluster_id:
        _remove_tree(fresh)
        return False
    raise ConfigurationError(f"{fresh} is in the way: it is of cluster {left.cluster_id}")


def reachable_voters(identity: Identity, membership: Membership) -> list[NodeId]:
    """Return the other voters whose Raft listener can be connected to now."""
    others = [member for member in membership.members if member.is_voter and member.id != identity.member_id]
    return [member.name for member in others if _listens(member.peer_address)]


def _set_aside(old: Path, aside: Path) -> None:
    old.rename(aside)
    sync_directory(aside.parent)


def _remove_tree(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


def _copied(data_dir: Path, copy: Path) -> Path:
    """Copy what a store can be rebuilt from. The store itself may be large, and may be damaged after a power cut."""
    copy.mkdir(mode=PRIVATE_DIRECTORY)
    shutil.copy(data_dir / "identity.json", copy)
    for name in ("journal", "snapshots"):
        if (data_dir / name).exists():
            shutil.copytree(data_dir / name, copy / name)
    return copy


def _open(data_dir: Path, identity: Identity) -> Storage:
    return recover_storage(
        RealDirectory(data_dir),
        identity.name,
        identity.members,
        RealRandomness(),
        lambda cluster_id: open_machine(data_dir / "store", cluster_id, boot_id()),
    )


def _apply_everything(storage: Storage) -> None:
    journal, machine = storage.journal, storage.machine
    entries = [
        CommittedEntry(Index(index), Term(term), payload_of(command, index, term))
        for command, index, term in journal[0 : len(journal)]
        if index > machine.applied_index
    ]
    for first in range(0, len(entries), _ENTRIES_AT_A_TIME):
        machine.apply(entries[first : first + _ENTRIES_AT_A_TIME])


def _write(storage: Storage, working: Path, file: Path) -> SnapshotManifest:
    copy, partial = working / "store", working / "backup"
    manifest = manifest_of_copy(storage.machine.copy_to(str(copy)))
    with open(partial, "wb", opener=private_opener) as output, copy.open("rb") as data:
        writer = BackupWriter(str(copy), output.write, is_compressed=is_compressed_name(file.name))
        writer.feed(head_of(manifest))
        while piece := data.read(1 << 20):
            writer.feed(piece)
        writer.finish()
        output.flush()
        os.fsync(output.fileno())
    copy.unlink()
    partial.replace(file)
    sync_directory(file.parent)
    return manifest


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS):
            return True
    except OSError:
        return False
