"""One tree of errors. Every error of a request says whether the request may have been applied.

``NotApplied``: it certainly was not and never will be, a retry is safe. ``UnknownOutcome``: it may have been, or may
yet be. ``AlreadyApplied``: it was, earlier. ``FatalError`` ends the process: the node cannot go on without risking
what it promised.
"""

from __future__ import annotations

from raftkv.types import NodeId, Revision


class RaftkvError(Exception):
    """Root of all errors that raftkv raises on purpose."""


class NotApplied(RaftkvError):
    """The request was refused; it has no effect, now or later."""


class UnknownOutcome(RaftkvError):
    """The request was proposed, and whether it is applied is not known here."""


class InvalidRequest(NotApplied):
    """The request itself is wrong and will be refused again."""


class KeyMissing(NotApplied):
    """A put was to keep the value or lease of a key that does not exist."""


class LeaseNotFound(NotApplied):
    """There is no lease of this id."""


class LeaseExists(NotApplied):
    """There is a lease of this id already."""


class SpaceExceeded(NotApplied):
    """The store has reached its quota."""


class NotHeld(NotApplied):
    """The place in a queue (a lock, a candidacy) is gone."""


class FenceLost(NotApplied):
    """The lock under which the write was to happen is not held any more under that token."""


class IdempotencyKeyReused(NotApplied):
    """The idempotency key was used for another request."""


class AlreadyApplied(RaftkvError):
    """The request was applied when it came before, and its answer is not kept.

    Attributes:
        revision: The store's revision after it.
    """

    def __init__(self, revision: Revision) -> None:
        super().__init__(f"the request was applied before, at revision {revision}; its answer was too large to keep")
        self.revision = revision


class RevisionCompacted(NotApplied):
    """The revision asked for is below what history is kept of."""


class RevisionInFuture(NotApplied):
    """The store has not reached the revision asked for."""


class NotLeader(NotApplied):
    """Only the leader accepts this request.

    Attributes:
        leader: The member believed to lead.
        leader_url: Its client URL, None while that is not known.
    """

    def __init__(self, leader: NodeId, leader_url: str | None) -> None:
        super().__init__(f"the leader is {leader}")
        self.leader = leader
        self.leader_url = leader_url


class NoLeader(NotApplied):
    """No leader is known, or it cannot reach a majority."""


class LogsContradict(NotApplied):
    """The logs of the members contradict each other, and no majority decides which of them is wrong."""


class BackupFailed(NotApplied):
    """A copy of the store could not be made."""


class MemberMissing(NotApplied):
    """There is no such member."""


class MemberExists(NotApplied):
    """Another member has that name or address."""


class MembersUnsettled(NotApplied):
    """The membership cannot be changed yet: a change is under way, or the leader is new."""


class MemberUnreachable(NotApplied):
    """A member does not answer at the address where it is said to be."""


class MemberChangeRefused(NotApplied):
    """The change would leave the cluster without voters, or without a majority that can be reached."""


class TransferFailed(NotApplied):
    """No other member took the leadership over in time."""


class Superseded(NotApplied):
    """The entry lost its place in the log to one of another leader, so it can never be committed."""


class ClusterVersionTooLow(NotApplied):
    """The cluster's version does not allow the request yet: some member may not know what it asks for."""


class Overloaded(NotApplied):
    """Too many proposals are waiting."""


class OutcomesFull(NotApplied):
    """The results of idempotent writes take as much as they may; they expire one by one."""


class BuffersFull(NotApplied):
    """Clients have not read so much of their answers that the node makes no more large ones for now."""


class StorageLow(NotApplied):
    """The node's disk is nearly full, so writes are refused before they could fail."""


class ShuttingDown(NotApplied):
    """The node is stopping and takes no new requests."""


class Timeout(UnknownOutcome):
    """The deadline passed before the outcome was known."""


class ReadTimeout(NotApplied):
    """A linearizable read could not be confirmed in time; reads change nothing."""


class LeadershipLost(UnknownOutcome):
    """The node stopped, or lost track of its proposal, before the outcome was known."""


class FatalError(RaftkvError):
    """The node must stop, with this message."""


class CorruptData(FatalError):
    """Something at rest does not check.

    Attributes:
        file: Path of the file.
        offset: Byte offset of the fault in it.
    """

    def __init__(self, file: str, offset: int, reason: str) -> None:
        super().__init__(f"{file}: corrupt at byte {offset}: {reason}")
        self.file = file
        self.offset = offset


class ForeignData(FatalError):
    """The data directory, or a peer, belongs to another cluster or another member."""


class UnsupportedVersion(FatalError):
    """The cluster is at a version, or has data of a format, that this release does not support.

    Nothing was changed: a release that supports it can go on with the data.
    """


class UndecodableEntry(UnsupportedVersion):
    """A committed entry of the log cannot be read. To skip it would let this node's state differ from the others'."""


class RemovedFromCluster(FatalError):
    """The node was removed from its cluster: what it has is of no more use, and it must not take part."""


class StorageFailed(FatalError):
    """A write or flush failed; what the page cache now holds cannot be trusted, so it is never retried."""


class ConfigurationError(FatalError):
    """The configuration contradicts itself or its surroundings."""


class OlderThanItsPromises(FatalError):
    """This node's log ends before entries that it has acknowledged: its disk was put back to an older state."""


class CopyOfMember(FatalError):
    """Another process runs with a copy of this data directory, at the address of this member."""


class LogDiverged(FatalError):
    """This node's log has other entries than a majority has, where they must be equal."""


class StateDiverged(FatalError):
    """This node's store differs from those of a majority, at the same index."""


class InvariantViolated(FatalError):
    """A rule of Raft was broken; going on could corrupt data."""
