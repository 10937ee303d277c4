"""Changes of a store at rest: of which cluster it is, and back to what its keys were at an earlier revision.

Clients remember revisions of the cluster that a store comes from, also such that the store has not reached, or gives to
other writes after it went back. So the new cluster begins at a much higher revision, and everything below counts as
compacted: a watch that goes on from a remembered revision ends with an error, and misses nothing in silence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from raftkv.errors import ConfigurationError
from raftkv.membership import Membership
from raftkv.ports import PRIVATE_DIRECTORY
from raftkv.store.backend import Backend, StoreIsFull, WriteTransaction
from raftkv.store.bookkeeping import StoreInfo, read_info, write_info
from raftkv.store.copies import StoreCopy, copy_store
from raftkv.store.lease import LeaseWriter
from raftkv.store.lmdb_backend import DATA_NAME, open_plain
from raftkv.store.members import write_membership
from raftkv.store.mvcc import undo_after
from raftkv.store.outcomes import forget_after
from raftkv.types import ClusterId, Revision

DEFAULT_REVISION_BUMP = 1_000_000_000
"""What the revision is raised by: more writes than a cluster makes between a backup and its loss, as etcd advises."""


@dataclass(frozen=True, slots=True)
class NewOwner:
    """The cluster that a store is to belong to.

    Attributes:
        cluster_id: Its id.
        membership: Who belongs to it.
    """

    cluster_id: ClusterId
    membership: Membership


def rewrite_copy(
    source: Path,
    target: str,
    workplace: Path,
    owner: NewOwner,
    revision: int | None,
    bump: int = DEFAULT_REVISION_BUMP,
) -> StoreCopy:
    """Make of a copy of a store one of another cluster, perhaps as it was earlier.

    Args:
        source: The copy; it is moved into the workplace and changed there.
        target: Path of the new copy.
        workplace: A directory that is made and removed.
        owner: The other cluster.
        revision: The revision to go back to, None for the last.
        bump: What to raise the revision by after that; 0 leaves it, and the history.

    Raises:
        ConfigurationError: The store does not know what was at that revision.
        OSError: The disk refused.
    """
    workplace.mkdir(mode=PRIVATE_DIRECTORY)
    source.replace(workplace / DATA_NAME)
    backend = open_plain(workplace)
    try:
        rewrite(backend, owner, revision, bump)
        return copy_store(backend, target)
    finally:
        backend.close()
        for file in workplace.iterdir():
            file.unlink()
        workplace.rmdir()


def rewrite(backend: Backend, owner: NewOwner, revision: int | None, bump: int = DEFAULT_REVISION_BUMP) -> StoreInfo:
    """Do the same with an open store, in one transaction."""
    while True:
        try:
            with backend.write() as transaction:
                return _rewrite(transaction, owner, revision, bump)
        except StoreIsFull:
            backend.grow()


def _rewrite(transaction: WriteTransaction, owner: NewOwner, revision: int | None, bump: int) -> StoreInfo:
    info = replace(read_info(transaction, "the backup"), cluster_id=owner.cluster_id)
    if revision is not None:
        first = max(1, info.compacted_revision)
        if not first <= revision <= info.revision:
            raise ConfigurationError(
                f"the backup has the history from revision {first} to {info.revision}, and not of {revision}"
            )
        _go_back(transaction, Revision(revision), info.revision)
        forget_after(transaction, Revision(revision))
        info = replace(info, revision=Revision(revision))
    if bump:
        bumped = Revision(info.revision + bump)
        info = replace(info, revision=bumped, compacted_revision=bumped)
    write_info(transaction, info)
    write_membership(transaction, owner.membership)
    return info


def _go_back(transaction: WriteTransaction, revision: Revision, last: Revision) -> None:
    """Undo every change after a revision. Leases stay as they are: of them there is no history.

    A key that was attached to a lease which has ended since is attached to none.
    """
    leases = LeaseWriter(transaction)
    for key, before, after in undo_after(transaction, revision, last, leases.exists):
        leases.move(key, before, after)
