"""The errors that only a client can have, and the errors that a node's problem documents stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from raftkv import errors
from raftkv.errors import NotApplied, RaftkvError, UnknownOutcome
from raftkv.types import Revision

_TYPE_PREFIX = "urn:raftkv:problem:"


class Unreachable(NotApplied):
    """No endpoint could serve the request before the deadline, and none can have applied it."""


class ConditionNotMet(NotApplied):
    """A conditional write was refused because its condition did not hold.

    Attributes:
        mod_revision: Revision of the key's last write; 0 when the key does not exist.
        revision: The store's revision.
    """

    def __init__(self, message: str, mod_revision: Revision, revision: Revision) -> None:
        super().__init__(message)
        self.mod_revision = mod_revision
        self.revision = revision


class NotAcquired(NotApplied):
    """Somebody else held the lock, or led, for as long as this client was ready to wait."""


class ClusterChanged(NotApplied):
    """A watch was to be resumed, and another cluster answers, such as one restored from a backup.

    Revisions of one cluster mean nothing in another: read what is watched again, and begin a new watch.
    """


class EventTooLarge(NotApplied):
    """One event of a stream has more bytes than this client reads (``max_event_bytes``)."""


@dataclass(frozen=True, slots=True)
class ImportedBatch:
    """Items of an import that were written together, or not.

    Attributes:
        first: Number of the first one among all items, from 0.
        count: How many they are.
        revision: The store's revision after they were written; None when they were not, or may not have been.
        error: Why; ``NotApplied`` when none of them was written, ``UnknownOutcome`` when all of them may have been.
    """

    first: int
    count: int
    revision: Revision | None
    error: RaftkvError | None = None


class ImportStopped(RaftkvError):
    """An import did not get to its end. What was written before stays written.

    Attributes:
        position: All items before this number are written; begin again with it as ``skip``.
        batches: What was under way from there on, each with its outcome: some of it may have been written. To write it
            again does no harm, if no other client writes these keys.
    """

    def __init__(self, cause: Exception, position: int, batches: tuple[ImportedBatch, ...]) -> None:
        super().__init__(f"{cause or type(cause).__name__} (the {position} items before are written)")
        self.position = position
        self.batches = batches

    @property
    def is_unknown(self) -> bool:
        """Whether the outcome of any batch is unknown."""
        return any(isinstance(batch.error, UnknownOutcome) for batch in self.batches)


class LeaseLost(NotApplied):
    """A lease that was to be kept alive has ended, or may have."""


class UnexpectedAnswer(UnknownOutcome):
    """An endpoint answered in a way that raftkv does not; it may be another service."""


_FINAL: Mapping[str, type[RaftkvError]] = {
    "cluster-version-too-low": errors.ClusterVersionTooLow,
    "duplicate-key": errors.InvalidRequest,
    "fence-lost": errors.FenceLost,
    "idempotency-key-reused": errors.IdempotencyKeyReused,
    "key-missing": errors.KeyMissing,
    "lease-exists": errors.LeaseExists,
    "lease-not-found": errors.LeaseNotFound,
    "member-change-refused": errors.MemberChangeRefused,
    "member-exists": errors.MemberExists,
    "member-not-found": errors.MemberMissing,
    "member-unreachable": errors.MemberUnreachable,
    "not-acquired": NotAcquired,
    "not-held": errors.NotHeld,
    "revision-compacted": errors.RevisionCompacted,
    "revision-in-future": errors.RevisionInFuture,
    "space-exceeded": errors.SpaceExceeded,
    "storage-low": errors.StorageLow,
}
"""Problems that another endpoint would not solve."""


def error_of_problem(kind: str, detail: str) -> RaftkvError | None:
    """Return the error that a problem document stands for, None when another endpoint may be asked.

    Args:
        kind: Its ``type``.
        detail: What it says.
    """
    known = _FINAL.get(kind.removeprefix(_TYPE_PREFIX))
    return None if known is None else known(detail)
