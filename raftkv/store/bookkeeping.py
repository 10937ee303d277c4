"""What a store says of itself: its format, its cluster, and how far it is."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from raftkv.errors import CorruptData
from raftkv.store.backend import ReadTransaction, Space, WriteTransaction
from raftkv.types import ClusterId, Index, Revision, Term

FORMAT_VERSION = 5

_STATE = b"state"
_FORMAT = b"format"
_CLUSTER_ID = b"cluster-id"

_STATE_FIELDS = struct.Struct("<QQQQQ")
"""Applied index, applied term, revision, compacted revision, time in seconds."""


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What a store says of itself.

    Attributes:
        cluster_id: The cluster it belongs to.
        applied_index: The last log entry that it reflects.
        applied_term: Term of that entry.
        revision: Its revision.
        compacted_revision: History up to here is gone.
        time: Greatest time in seconds that a command brought.
    """

    cluster_id: ClusterId
    applied_index: Index
    applied_term: Term
    revision: Revision
    compacted_revision: Revision
    time: int


def has_no_info(view: ReadTransaction) -> bool:
    """Whether a store was never written to."""
    return view.view(Space.META).get(_FORMAT) is None


def state_of(view: ReadTransaction) -> bytes:
    """Return how far a store is, as bytes to compare."""
    return view.view(Space.META).get(_STATE) or b""


def write_info(transaction: WriteTransaction, info: StoreInfo) -> None:
    """Write what a store says of itself."""
    meta = transaction.tree(Space.META)
    meta.put(_FORMAT, str(FORMAT_VERSION).encode())
    meta.put(_CLUSTER_ID, info.cluster_id.encode())
    fields = (info.applied_index, info.applied_term, info.revision, info.compacted_revision, info.time)
    meta.put(_STATE, _STATE_FIELDS.pack(*fields))


def read_info(view: ReadTransaction, source: str) -> StoreInfo:
    """Read what a store says of itself.

    Raises:
        CorruptData: It is of an unknown format, or incomplete.
    """
    meta = view.view(Space.META)
    version = meta.get(_FORMAT)
    if version != str(FORMAT_VERSION).encode():
        raise CorruptData(source, 0, f"store format {version!r} is unknown, this release reads {FORMAT_VERSION}")
    state = meta.get(_STATE)
    cluster_id = meta.get(_CLUSTER_ID)
    if state is None or cluster_id is None:
        raise CorruptData(source, 0, "its bookkeeping is incomplete")
    index, term, revision, compacted, time = _STATE_FIELDS.unpack(state)
    return StoreInfo(
        ClusterId(cluster_id.decode()), Index(index), Term(term), Revision(revision), Revision(compacted), time
    )
