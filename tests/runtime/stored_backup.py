"""Backups of a real store, without a node."""

from __future__ import annotations

from pathlib import Path

from raftkv.runtime.backup_files import BackupWriter
from raftkv.runtime.backups import head_of
from raftkv.runtime.manifests import manifest_of_copy
from raftkv.store.commands import Put, encode_commands
from raftkv.store.lmdb_backend import LmdbBackend
from raftkv.store.machine import CommittedEntry, Machine
from raftkv.types import ClusterId, Index, Term


def plain_backup(directory: Path, cluster_id: ClusterId, keys: int) -> bytes:
    """Return a backup of some keys k0, k1 …, written in term 3; the directory is used for the store."""
    directory.mkdir()
    machine = Machine(LmdbBackend(directory, 4_194_304), cluster_id)
    machine.apply([CommittedEntry(Index(1), Term(0), None)])
    for number in range(keys):
        entry = CommittedEntry(Index(number + 2), Term(3), encode_commands([Put(b"k%d" % number, b"v")]))
        machine.apply([entry])
    manifest = manifest_of_copy(machine.copy_to(str(directory / "copy")))
    machine.close()
    return head_of(manifest) + (directory / "copy").read_bytes()


def compressed(plain: bytes) -> bytes:
    """Return a backup as it is stored."""
    stored: list[bytes] = []
    writer = BackupWriter("the backup", stored.append, is_compressed=True)
    for at in range(0, len(plain), 5000):
        writer.feed(plain[at : at + 5000])
    writer.finish()
    return b"".join(stored)
