"""What a store says of itself: its format, its cluster, and how far it is."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from raftkv.errors import CorruptData, UnsupportedVersion
from raftkv.formats import Format, Formats, UnknownFormat
from raftkv.store.backend import ReadTransaction, Space, WriteTransaction
from raftkv.types import ClusterId, Index, Revision, Term
from raftkv.versions import FIRST_VERSION, ClusterVersion, SupportedVersions

_STATE = b"state"
_FORMAT = b"format"
_CLUSTER_ID = b"cluster-id"
_CLUSTER_VERSION = b"cluster-version"

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
        cluster_version: The cluster's version.
    """

    cluster_id: ClusterId
    applied_index: Index
    applied_term: Term
    revision: Revision
    compacted_revision: Revision
    time: int
    cluster_version: ClusterVersion = FIRST_VERSION


def has_no_info(view: ReadTransaction) -> bool:
    """Whether a store was never written to."""
    return view.view(Space.META).get(_FORMAT) is None


def state_of(view: ReadTransaction) -> bytes:
    """Return how far a store is, and the cluster's version, as bytes to compare."""
    meta = view.view(Space.META)
    return (meta.get(_STATE) or b"") + (meta.get(_CLUSTER_VERSION) or b"")


def write_info(transaction: WriteTransaction, info: StoreInfo, version_at_rest: ClusterVersion | None = None) -> None:
    """Write what a store says of itself, in the format of the cluster's version in it.

    Args:
        transaction: The transaction.
        info: What it says.
        version_at_rest: The cluster's version that was written last, by this release to this store; None when that is
            not known. The rest of what does not change is not written again then.
    """
    meta = transaction.tree(Space.META)
    if version_at_rest is None:
        meta.put(_CLUSTER_ID, info.cluster_id.encode())
    if version_at_rest != info.cluster_version:
        meta.put(_FORMAT, str(STORE_FORMATS.written_at(info.cluster_version)).encode())
        meta.put(_CLUSTER_VERSION, str(info.cluster_version).encode())
    fields = (info.applied_index, info.applied_term, info.revision, info.compacted_revision, info.time)
    meta.put(_STATE, _STATE_FIELDS.pack(*fields))


def format_of(view: ReadTransaction) -> int | bytes:
    """Return the number of a store's format, or what is there in its place."""
    text = view.view(Space.META).get(_FORMAT) or b""
    return int(text) if text.isdigit() else text


def read_info(view: ReadTransaction, source: str) -> StoreInfo:
    """Read what a store says of itself.

    Raises:
        CorruptData: It is incomplete.
        UnsupportedVersion: It is of a format that this release does not read.
    """
    number = format_of(view)
    version = view.view(Space.META).get(_CLUSTER_VERSION)
    try:
        return STORE_FORMATS.read(number, view, version.decode(errors="replace") if version else None)
    except UnknownFormat as error:
        raise UnsupportedVersion(f"{source}: {error}; its data was left as it is") from error
    except ValueError as error:
        raise CorruptData(source, 0, f"its bookkeeping cannot be read ({error})") from error


def check_readable(store_format: int, cluster_version: str, supported: SupportedVersions, source: str) -> None:
    """Check that this node can go on with a copy of a store, before anything is done with it.

    Args:
        store_format: Number of its format.
        cluster_version: The cluster's version in it, ``MAJOR.MINOR``.
        supported: The cluster versions that this node supports.
        source: File or peer, for the message.

    Raises:
        UnsupportedVersion: It cannot.
        CorruptData: The version is none.
    """
    try:
        STORE_FORMATS.check(store_format)
        refusal = supported.refusal("this node", ClusterVersion.parse(cluster_version))
    except UnknownFormat as error:
        raise UnsupportedVersion(f"{source}: {error}; nothing was changed") from error
    except ValueError as error:
        raise CorruptData(source, 0, str(error)) from error
    if refusal is not None:
        raise UnsupportedVersion(f"{source}: {refusal}; nothing was changed")


def _read_7(view: ReadTransaction) -> StoreInfo:
    meta = view.view(Space.META)
    state = meta.get(_STATE)
    cluster_id = meta.get(_CLUSTER_ID)
    cluster_version = meta.get(_CLUSTER_VERSION)
    if state is None or len(state) != _STATE_FIELDS.size or cluster_id is None or cluster_version is None:
        raise ValueError("it is incomplete")
    index, term, revision, compacted, time = _STATE_FIELDS.unpack(state)
    return StoreInfo(
        ClusterId(cluster_id.decode()),
        Index(index),
        Term(term),
        Revision(revision),
        Revision(compacted),
        time,
        ClusterVersion.parse(cluster_version.decode()),
    )


STORE_FORMATS: Formats[ReadTransaction, StoreInfo] = Formats("store", {7: Format(_read_7)})
