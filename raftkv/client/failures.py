"""The errors that only a client can have."""

from __future__ import annotations

from raftkv.errors import NotApplied, UnknownOutcome
from raftkv.types import Revision


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


class UnexpectedAnswer(UnknownOutcome):
    """An endpoint answered in a way that raftkv does not; it may be another service."""
