"""Names of the backups that ``raftkv backup`` takes.

A name has a sequence number, which orders the backups of a cluster: it is higher by one than that of the backup before,
whatever the clock says. The time in the name is for people.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from raftkv.runtime.backup_compression import COMPRESSED_SUFFIX
from raftkv.types import ClusterId

_PLAIN_SUFFIX = ".snapshot"
_SUFFIX = _PLAIN_SUFFIX + COMPRESSED_SUFFIX
_NAME = re.compile(rf"raftkv-(\d{{8,18}})-(\d{{8}}T\d{{6}}Z)-r(\d{{1,19}}){re.escape(_SUFFIX)}")
_CLUSTER = re.compile(r"[0-9a-f]{16}")

FILE_SUFFIXES = (_PLAIN_SUFFIX, _SUFFIX)
"""What the names of backups end with, compressed or not, as opposed to those of directories and prefixes."""


@dataclass(frozen=True, slots=True, order=True)
class BackupName:
    """The name of a backup. Names are in the order of their sequence numbers.

    Attributes:
        sequence: Number of the backup among those of its cluster, from 1 on.
        taken: When it was taken, by the clock of the machine that took it: ``20260102T030405Z``.
        revision: The store's revision in it.
    """

    sequence: int
    taken: str
    revision: int

    def __str__(self) -> str:
        return f"raftkv-{self.sequence:08d}-{self.taken}-r{self.revision}{_SUFFIX}"

    @classmethod
    def parse(cls, text: str) -> BackupName | None:
        """Return the name that a file has, None when ``raftkv backup`` did not write it."""
        found = _NAME.fullmatch(text)
        return None if found is None else cls(int(found[1]), found[2], int(found[3]))


@dataclass(frozen=True, slots=True, order=True)
class StoredBackup:
    """A backup that is stored under its final name, which it gets when it is complete.

    Attributes:
        name: Its name.
        size: Its bytes as stored.
    """

    name: BackupName
    size: int


def cluster_of(name: str) -> ClusterId | None:
    """Return the cluster whose backups a directory of this name has, None when it has another purpose."""
    return ClusterId(name) if _CLUSTER.fullmatch(name) else None


def next_sequence(stored: Iterable[StoredBackup]) -> int:
    """Return the sequence number of the next backup of a cluster."""
    return max((each.name.sequence for each in stored), default=0) + 1
