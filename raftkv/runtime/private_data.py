"""Data directories are their owner's: what earlier releases or people left open to others is closed at the start.

A directory that passes its group on (setgid) is shared with that group on purpose. Kubernetes does so with the volume
of a pod that has an ``fsGroup``. There the group keeps its rights, and other users lose theirs.
"""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

logger = logging.getLogger(__name__)

_OTHERS = stat.S_IRWXO
_GROUP_AND_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def close_to_others(data_dir: Path) -> None:
    """Take the rights of other users away from a data directory and everything in it, and log that.

    What belongs to another user cannot be changed, and is logged. Links are not followed.

    Args:
        data_dir: The data directory, which exists.

    Raises:
        OSError: It cannot be read.
    """
    is_shared = bool(data_dir.stat().st_mode & stat.S_ISGID)
    forbidden = _OTHERS if is_shared else _GROUP_AND_OTHERS
    closed, refused = 0, []
    for path in (data_dir, *_entries(data_dir)):
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode & forbidden:
                path.chmod(mode & ~forbidden)
                closed += 1
        except FileNotFoundError:
            continue
        except OSError as error:
            refused.append(f"{path} ({error.strerror})")
    whom = "users outside its group" if is_shared else "other users"
    if closed:
        logger.warning("%s could be used by %s: closed %d files and directories to them", data_dir, whom, closed)
    if refused:
        logger.warning(
            "%s can be used by %s, and cannot be closed to them by user %d: %s%s",
            data_dir,
            whom,
            os.geteuid(),
            refused[0],
            f" and {len(refused) - 1} more" if len(refused) > 1 else "",
        )


def _entries(directory: Path) -> list[Path]:
    """Return the files and directories below a directory, without links and special files."""
    found: list[Path] = []
    for root, directories, files in os.walk(directory):
        paths = (Path(root, name) for name in (*directories, *files))
        found += [path for path in paths if not path.is_symlink() and (path.is_file() or path.is_dir())]
    return found
