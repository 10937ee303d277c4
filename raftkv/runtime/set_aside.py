"""A data directory is replaced by a restored one, and kept: nothing that a node had is ever removed for a restore.

The new directory is built beside the old one, takes its name in one step, and the old one gets another name. What is
interrupted is completed or begun again when the same restore is run again.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from raftkv.errors import ConfigurationError, FatalError
from raftkv.runtime.exchange import exchange
from raftkv.runtime.files import DataDirectoryLock, RealDirectory, sync_directory
from raftkv.runtime.identity import read_identity
from raftkv.types import ClusterId, NodeId

logger = logging.getLogger(__name__)

_FRESH_SUFFIX = ".restored"
_OWN_NAMES = frozenset({"identity.json", "journal", "snapshots", "store", "backups", "lock"})
"""What a data directory has, whatever is missing or damaged in it."""


def directory_beside(data_dir: Path, suffix: str) -> Path:
    """Return a path beside a data directory, with the present moment (UTC) and a suffix in its name."""
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    return data_dir.with_name(f"{data_dir.name}-{moment}.{suffix}")


def restore_in_place(
    data_dir: Path, aside: Path, owner: tuple[ClusterId, NodeId], build: Callable[[Path], object]
) -> Path | None:
    """Put the data directory of a new cluster where one with data may be.

    Args:
        data_dir: The data directory, of a node that does not run.
        aside: The name that a directory with data gets.
        owner: The new cluster, and the member of it that the directory is for.
        build: Makes the new directory, complete and durable, under the path that it is given.

    Returns:
        The old directory; None when there was none, or when it was the owner's already.

    Raises:
        ConfigurationError: A node runs on the directory, it is no data directory, or something is in the way.
        OSError: The disk failed. Run it again.
    """
    fresh = data_dir.with_name(data_dir.name + _FRESH_SUFFIX)
    if not data_dir.exists() or not any(data_dir.iterdir()):
        build(data_dir)
        return None
    if not any(entry.name in _OWN_NAMES for entry in data_dir.iterdir()):
        raise ConfigurationError(f"{data_dir} has data that is not raftkv's, and is left as it is")
    with DataDirectoryLock(data_dir):
        if _owner_of(data_dir) == owner:
            return _set_aside(fresh, aside) if fresh.exists() else None
        if fresh.exists():
            if _owner_of(fresh) != owner:
                raise ConfigurationError(f"{fresh} is in the way: look at what it has, and move it away")
            # Built by a run that was interrupted before it took its place, so no node ever ran on it.
            shutil.rmtree(fresh)
        build(fresh)
        exchange(data_dir, fresh)
        return _set_aside(fresh, aside)


def _set_aside(old: Path, aside: Path) -> Path:
    old.rename(aside)
    sync_directory(aside.parent)
    return aside


def _owner_of(data_dir: Path) -> tuple[ClusterId, NodeId] | None:
    """Return whose data it is, None when that cannot be read: damaged data is set aside like any other."""
    try:
        identity = read_identity(RealDirectory(data_dir))
    except (OSError, FatalError) as error:
        logger.debug("the identity of %s cannot be read: %s", data_dir, error)
        return None
    return identity.cluster_id, identity.name
