"""The errors that only a client can have, and the errors that a node's problem documents stand for."""

from __future__ import annotations

from collections.abc import Mapping

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


class LeaseLost(NotApplied):
    """A lease that was to be kept alive has ended, or may have."""


class UnexpectedAnswer(UnknownOutcome):
    """An endpoint answered in a way that raftkv does not; it may be another service."""


_FINAL: Mapping[str, type[RaftkvError]] = {
    "duplicate-key": errors.InvalidRequest,
    "fence-lost": errors.FenceLost,
    "idempotency-key-reused": errors.IdempotencyKeyReused,
    "key-missing": errors.KeyMissing,
    "lease-exists": errors.LeaseExists,
    "lease-not-found": errors.LeaseNotFound,
    "member-change-refused": errors.MemberChangeRefused,
    "member-exists": errors.MemberExists,
    "member-not-found": errors.MemberMissing,
    "not-acquired": NotAcquired,
    "not-held": errors.NotHeld,
    "not-text": errors.InvalidRequest,
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
