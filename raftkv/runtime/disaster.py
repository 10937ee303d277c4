"""What is left of a cluster that has lost its majority for good, as a backup to begin a new cluster from.

Everything in the journal is taken over, also what this member does not know to be committed: it may have been
acknowledged by a majority that this member was part of, and an acknowledged write must not get lost. So a write whose
outcome was unknown, or that another leader's entry had replaced elsewhere, may turn up in the new cluster.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from raftkv.consensus.entries import payload_of
from raftkv.consensus.snapshot import SnapshotManifest
from raftkv.errors import ConfigurationError
from raftkv.membership import Membership
from raftkv.runtime.backups import MAGIC
from raftkv.runtime.clock import RealRandomness
from raftkv.runtime.files import DataDirectoryLock, RealDirectory, boot_id, sync_directory
from raftkv.runtime.identity import Identity, read_identity
from raftkv.runtime.manifests import manifest_of_copy
from raftkv.runtime.recovery import Storage, recover_storage
from raftkv.store.machine import CommittedEntry, open_machine
from raftkv.types import Index, NodeId, Term

_CONNECT_SECONDS = 2.0
_COPY_NAME = "salvaged.partial"
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


def membership_of(data_dir: Path) -> Membership:
    """Return who belongs to the cluster, as far as a stopped member knows.

    Raises:
        ConfigurationError: A node runs on the directory, or there is none.
        FatalError: The data does not check.
    """
    identity = owner_of(data_dir)
    with DataDirectoryLock(data_dir):
        storage = _open(data_dir, identity)
        try:
            return storage.machine.membership
        finally:
            storage.machine.close()


def reachable_voters(identity: Identity, membership: Membership) -> list[NodeId]:
    """Return the other voters whose Raft listener can be connected to now."""
    others = [member for member in membership.members if member.is_voter and member.id != identity.member_id]
    return [member.name for member in others if _listens(member.peer_address)]


def salvage(data_dir: Path, file: Path) -> SnapshotManifest:
    """Write a backup of everything that a stopped member has; its directory is left as it is, but for what it replays.

    Args:
        data_dir: The member's data directory.
        file: The backup, which must not exist.

    Raises:
        ConfigurationError: A node runs on the directory, or the file exists.
        FatalError: The data does not check.
        OSError: The file could not be written.
    """
    if file.exists():
        raise ConfigurationError(f"{file} exists")
    identity = owner_of(data_dir)
    with DataDirectoryLock(data_dir):
        storage = _open(data_dir, identity)
        try:
            _apply_everything(storage)
            return _write(storage, file)
        finally:
            storage.machine.close()


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
        CommittedEntry(Index(index), Term(term), payload_of(command))
        for command, index, term in journal[0 : len(journal)]
        if index > machine.applied_index
    ]
    for first in range(0, len(entries), _ENTRIES_AT_A_TIME):
        machine.apply(entries[first : first + _ENTRIES_AT_A_TIME])


def _write(storage: Storage, file: Path) -> SnapshotManifest:
    copy = file.parent / _COPY_NAME
    copy.unlink(missing_ok=True)
    partial = file.with_name(file.name + ".partial")
    try:
        manifest = manifest_of_copy(storage.machine.copy_to(str(copy)))
        with partial.open("wb") as output, copy.open("rb") as data:
            output.write(MAGIC + manifest.encode() + b"\n")
            while piece := data.read(1 << 20):
                output.write(piece)
            output.flush()
            os.fsync(output.fileno())
        partial.replace(file)
    finally:
        copy.unlink(missing_ok=True)
        partial.unlink(missing_ok=True)
    sync_directory(file.parent)
    return manifest


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS):
            return True
    except OSError:
        return False
