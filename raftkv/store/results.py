"""What applying a command results in, the same on every node."""

from __future__ import annotations

from dataclasses import dataclass

from raftkv.membership import Membership
from raftkv.operations import Lease, Refused, TransactionResult
from raftkv.types import ConditionFailed, Revision, Written
from raftkv.versions import ClusterVersion


@dataclass(frozen=True, slots=True)
class Compacted:
    """A compaction that happened, with the store's revision."""

    revision: Revision


@dataclass(frozen=True, slots=True)
class Granted:
    """A lease that was made, with the store's revision."""

    revision: Revision
    lease: Lease


@dataclass(frozen=True, slots=True)
class AlarmSet:
    """An alarm that was raised or cleared, or was so before; with the store's revision."""

    revision: Revision


@dataclass(frozen=True, slots=True)
class OutcomesForgotten:
    """Results of idempotent writes were forgotten; with the store's revision, which stays as it is.

    Attributes:
        revision: The store's revision.
        count: How many were forgotten.
    """

    revision: Revision
    count: int


@dataclass(frozen=True, slots=True)
class AppliedBefore:
    """A write that was applied when it came the first time, and whose result was too large to be kept.

    Attributes:
        revision: The store's revision after it.
    """

    revision: Revision


@dataclass(frozen=True, slots=True)
class MembersChanged:
    """A change of the membership that happened.

    Attributes:
        revision: The store's revision, which it leaves as it is.
        membership: The membership after it.
    """

    revision: Revision
    membership: Membership


@dataclass(frozen=True, slots=True)
class ClusterVersionSet:
    """The cluster's version after a command that was to raise it, with the store's revision, which stays as it is."""

    revision: Revision
    version: ClusterVersion


Applied = (
    Written
    | TransactionResult
    | Compacted
    | Granted
    | AlarmSet
    | OutcomesForgotten
    | MembersChanged
    | ClusterVersionSet
)
Result = Applied | ConditionFailed | AppliedBefore | Refused
