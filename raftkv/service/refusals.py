"""From a command's refusal in the store to the error that its caller gets."""

from __future__ import annotations

from collections.abc import Mapping

from raftkv.errors import (
    FenceLost,
    IdempotencyKeyReused,
    InvalidRequest,
    KeyMissing,
    LeaseExists,
    LeaseNotFound,
    MemberChangeRefused,
    MemberExists,
    MemberMissing,
    NotApplied,
    OutcomesFull,
    RevisionCompacted,
    RevisionInFuture,
    SpaceExceeded,
)
from raftkv.operations import RefusalKind, Refused

_ERRORS: Mapping[RefusalKind, type[NotApplied]] = {
    RefusalKind.KEY_NOT_FOUND: KeyMissing,
    RefusalKind.LEASE_NOT_FOUND: LeaseNotFound,
    RefusalKind.LEASE_EXISTS: LeaseExists,
    RefusalKind.COMPACTED: RevisionCompacted,
    RefusalKind.FUTURE_REVISION: RevisionInFuture,
    RefusalKind.NO_SPACE: SpaceExceeded,
    RefusalKind.FENCED: FenceLost,
    RefusalKind.KEY_REUSED: IdempotencyKeyReused,
    RefusalKind.TOO_MANY_OUTCOMES: OutcomesFull,
    RefusalKind.MEMBER_UNKNOWN: MemberMissing,
    RefusalKind.MEMBER_TAKEN: MemberExists,
    RefusalKind.CHANGE_REFUSED: MemberChangeRefused,
    RefusalKind.TOO_MANY_KEYS: InvalidRequest,
}


def error_of(refused: Refused) -> NotApplied:
    """Return the error for a refusal."""
    return _ERRORS[refused.kind](refused.text)
