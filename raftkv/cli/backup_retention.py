"""Which backups of a cluster are kept, by their sequence numbers."""

from __future__ import annotations

from collections.abc import Callable

from raftkv.cli.backup_destinations import ClusterBackups
from raftkv.cli.backup_names import StoredBackup
from raftkv.errors import CorruptData, UnsupportedVersion
from raftkv.runtime.backup_files import verify_backup


class BackupRetention:
    """Removes old backups of one cluster. The newest one that checks is never removed. Its methods block.

    Args:
        backups: The backups.
        keep: How many are kept, where there is room.
        say: Prints a line for people.
    """

    def __init__(self, backups: ClusterBackups, keep: int, say: Callable[[str], None]) -> None:
        self._backups = backups
        self._keep = keep
        self._say = say

    def prune(self) -> list[StoredBackup]:
        """Remove what is older than the newest backups; call it after a success, which the newest one is.

        Returns:
            Those that are kept, the oldest first.

        Raises:
            OSError: One could not be removed.
        """
        stored = self._backups.stored()
        for old in stored[: -self._keep]:
            self._say(f"{self._backups.remove(old.name)}: removed")
        return stored[-self._keep :]

    def make_room(self, needed: int) -> bool:
        """Remove the oldest backups until the next one fits, at least one of them.

        None is removed when even all of them would not free enough, and never the newest one that checks.

        Args:
            needed: Bytes that the next backup is expected to need.

        Returns:
            Whether any was removed.

        Raises:
            OSError: One could not be removed, or read.
        """
        stored = self._backups.stored()
        removable = stored[: self._newest_sound(stored)]
        free = self._backups.free_bytes()
        if not removable or (free is not None and free + sum(each.size for each in removable) < needed):
            return False
        for number, old in enumerate(removable):
            if number and (free is None or free >= needed):
                break
            self._say(f"{self._backups.remove(old.name)}: removed early, because {self._backups} is full")
            free = self._backups.free_bytes()
        return True

    def _newest_sound(self, stored: list[StoredBackup]) -> int:
        """Return the position of the newest backup that checks, 0 when none does."""
        for position in range(len(stored) - 1, 0, -1):
            source = self._backups.source(stored[position].name)
            try:
                verify_backup(source)
            except (CorruptData, UnsupportedVersion) as error:
                self._say(f"{source} is no sound backup: {error}")
            else:
                return position
        return 0
