"""Comparison of two members' logs, and the vote that decides which of them is wrong.

Log matching (Raft paper, section 5.3) says that two entries of one index and term are equal, and state machine safety
that no leader has another entry where one is committed. Both hold unless a node forgot what it had acknowledged: an
older copy of its disk was put back, and a majority with it elected a leader that lacks a committed entry.

A follower that finds such a contradiction accepts nothing and reports it. The leader counts: it stops when a majority
of the voters contradicts it, and orders the follower to stop when a majority agrees with it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Protocol

from raftkv.consensus.guard import LogView
from raftkv.consensus.history import LogHistory
from raftkv.consensus.journal import HASH_MASK, entry_hash
from raftkv.consensus.messages import AppendEntries, LogDivergence, LogMismatch
from raftkv.types import Index, NodeId, Term

REPLACE_ADVICE = "Keep this data directory, and replace this member (docs/operations.md)"

DIVERGED_ADVICE = (
    f"A disk was put back to an older state, or is damaged: acknowledged writes may be lost. {REPLACE_ADVICE}"
)

_HASHED_ENTRIES = 4096
"""Entries before an append that its hash covers where the hash of the whole log is not known."""


class HashedLog(LogView, Protocol):
    """A log whose entries can be compared with those of another node."""

    def range_hash(self, after: int, to: int) -> int | None:
        """Hash of the entries after an index (0 for the whole log) and up to another; None when it is not known."""
        ...

    def known_term_at(self, index: int) -> Term | None:
        """Term of an entry that may be compacted away, None when it is not known."""
        ...


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a log has in a range of entries, as far as it is known.

    Attributes:
        entry_term: Term of the last entry of the range, 0 when unknown.
        log_hash: Hash of the range, 0 when unknown.
    """

    entry_term: int
    log_hash: int

    def contradicts(self, other: Fingerprint) -> bool:
        """Whether two logs differ in a range for certain."""
        terms_differ = bool(self.entry_term and other.entry_term) and self.entry_term != other.entry_term
        hashes_differ = bool(self.log_hash and other.log_hash) and self.log_hash != other.log_hash
        return terms_differ or hashes_differ

    def __str__(self) -> str:
        """Return a text for logs and errors."""
        log_hash = f"hash {self.log_hash:016x}" if self.log_hash else "hash unknown"
        return f"{log_hash}, term {self.entry_term or 'unknown'}"


def fingerprint_of(log: HashedLog, after: int, to: int) -> Fingerprint:
    """Return what a log has after an index and up to another."""
    return Fingerprint(log.known_term_at(to) or 0, log.range_hash(after, to) or 0)


def with_log_hash(message: AppendEntries, log: HashedLog) -> AppendEntries:
    """Let an append say what the leader's log holds up to the entry before it."""
    index = message.prev_log_index
    after, log_hash, last_hash = 0, log.range_hash(0, index), log.range_hash(index - 1, index)
    if log_hash is None:
        after = max(log.base_index, index - _HASHED_ENTRIES)
        log_hash = log.range_hash(after, index)
    if log_hash is None:
        return message
    return replace(message, hash_after=after, log_hash=log_hash, prev_log_hash=last_hash or 0)


def find_contradiction(message: AppendEntries, log: HashedLog, commit_index: Index) -> tuple[int, int] | None:
    """Compare an append with the entries that a log has already.

    Args:
        message: The append.
        log: This node's log.
        commit_index: This node's commit index; only beyond it may a leader have an entry of another term.

    Returns:
        Entries that differ, as (index before the first, index of the last); None when none are known to.
    """
    index = message.prev_log_index
    own_term = log.known_term_at(index)
    if own_term == message.prev_log_term:
        for after, expected in ((message.hash_after, message.log_hash), (index - 1, message.prev_log_hash)):
            own = log.range_hash(after, index)
            if expected and own is not None and own != expected:
                return after, index
    elif own_term is not None and index <= commit_index:
        return index - 1, index
    for command, entry_index, term in message.entries:
        own_term = log.known_term_at(entry_index)
        if own_term is None:
            continue
        if own_term != term:
            # Beyond the commit index it is an ordinary conflict, and what follows goes with it.
            return (entry_index - 1, entry_index) if entry_index <= commit_index else None
        own = log.range_hash(entry_index - 1, entry_index)
        if own is not None and own != entry_hash(command, entry_index, term) & HASH_MASK:
            return entry_index - 1, entry_index
    return None


def find_snapshot_contradiction(
    history: LogHistory, index: Index, log: HashedLog, commit_index: Index
) -> tuple[int, int] | None:
    """Compare the history of a snapshot with the log that it would replace.

    Args:
        history: The history, from the snapshot's manifest.
        index: Last index that the snapshot covers.
        log: This node's log.
        commit_index: This node's commit index; only beyond it may the snapshot cover entries of other terms.

    Returns:
        Entries that differ, as (index before the first, index of the last); None when none are known to.
    """
    compared = min(index, commit_index)
    own_term, term = log.known_term_at(compared), history.term_at(compared)
    if own_term is not None and term is not None and own_term != term:
        return compared - 1, compared
    for hashed, expected in history.hashes:
        own = log.range_hash(0, hashed)
        must_be_equal = hashed <= commit_index or log.known_term_at(hashed) == history.term_at(hashed)
        if own is not None and own != expected and must_be_equal:
            return 0, hashed
    return None


def report_of(log: HashedLog, term: Term, after: int, index: int) -> LogMismatch:
    """Return a follower's report of entries that differ."""
    own = fingerprint_of(log, after, index)
    return LogMismatch(term, after, index, own.log_hash, own.entry_term)


@dataclass(frozen=True, slots=True)
class Divergence:
    """What a leader knows about a member whose log contradicts its own.

    Attributes:
        peer: The member.
        after: Index before the first entry that may differ.
        index: Index of the last.
        own: What the leader has there.
        theirs: What the member has there.
        agreeing: Voters that have the leader's entries up to the index, the leader included.
        contradicting: Voters whose log contradicts the leader's.
        voters: Number of voters.
    """

    peer: NodeId
    after: int
    index: int
    own: Fingerprint
    theirs: Fingerprint
    agreeing: tuple[NodeId, ...]
    contradicting: tuple[NodeId, ...]
    voters: int

    @property
    def peer_is_wrong(self) -> bool:
        """Whether a majority agrees with the leader."""
        return 2 * len(self.agreeing) > self.voters

    @property
    def leader_is_wrong(self) -> bool:
        """Whether a majority contradicts the leader."""
        return 2 * len(self.contradicting) > self.voters

    @property
    def is_decided(self) -> bool:
        """Whether a majority has said which log is wrong."""
        return self.peer_is_wrong or self.leader_is_wrong

    def order(self, term: Term) -> LogDivergence:
        """Return the message that orders the member to stop."""
        own = self.own
        return LogDivergence(term, self.after, self.index, own.log_hash, own.entry_term, self.agreeing)

    def __str__(self) -> str:
        """Return which member is wrong, and who says so."""
        fact = f"index {self.index}: {self.own} at the leader, {self.theirs} at {self.peer}"
        if self.leader_is_wrong:
            wrong = ", ".join(self.contradicting)
            return f"a majority of the voters ({wrong}) has other entries than the leader up to {fact}"
        if self.peer_is_wrong:
            return f"{self.peer} has other entries than a majority ({', '.join(self.agreeing)}) up to {fact}"
        return (
            f"{self.peer} has other entries than the leader up to {fact}; {', '.join(self.agreeing) or 'no voter'} "
            f"agrees with the leader, {', '.join(self.contradicting) or 'no voter'} contradicts it, of {self.voters} "
            "voters: no majority decides which log is wrong"
        )


class DivergenceVote:
    """A leader's count of the members that contradict it in its term.

    Args:
        name: This node.
    """

    def __init__(self, name: NodeId) -> None:
        self._name = name
        self._term = Term(0)
        self._reports: dict[NodeId, Divergence] = {}

    def count(
        self,
        peer: NodeId,
        message: LogMismatch,
        log: HashedLog,
        voters: Collection[NodeId],
        match_index: Callable[[NodeId], int],
    ) -> Divergence | None:
        """Count a report of the leader's term.

        Args:
            peer: The member that reports.
            message: The report.
            log: The leader's log.
            voters: The voters.
            match_index: Returns the index up to which a peer has acknowledged the leader's entries.

        Returns:
            What is known now; None when the report does not contradict the log.
        """
        own = fingerprint_of(log, message.hash_after, message.index)
        theirs = Fingerprint(message.entry_term, message.log_hash)
        if not own.contradicts(theirs):
            return None
        contradicting = self.contradicting(Term(message.term)) | {peer}
        sound = [voter for voter in sorted(voters) if voter not in contradicting]
        self._term = Term(message.term)
        self._reports[peer] = Divergence(
            peer,
            message.hash_after,
            message.index,
            own,
            theirs,
            tuple(each for each in sound if each == self._name or match_index(each) >= message.index),
            tuple(each for each in sorted(voters) if each in contradicting),
            len(voters),
        )
        return self._reports[peer]

    def contradicting(self, term: Term) -> set[NodeId]:
        """Return the members that contradict this node as the leader of a term."""
        if self._term != term:
            self._reports.clear()
        return set(self._reports)

    def accepted(self, peer: NodeId, index: Index) -> None:
        """Forget the report of a member that accepts the leader's entries up to an index, when it was about them.

        One that accepts what is before still contradicts the leader.
        """
        if peer in self._reports and index >= self._reports[peer].index:
            self.withdraw(peer)

    def withdraw(self, peer: NodeId) -> None:
        """Forget the report of a member that was replaced."""
        self._reports.pop(peer, None)

    def stalemate(self, term: Term, voters: Collection[NodeId]) -> Divergence | None:
        """Return a contradiction without which a majority could be reached; None when one remains without it."""
        contradicting = self.contradicting(term).intersection(voters)
        if not contradicting or 2 * (len(voters) - len(contradicting)) > len(voters):
            return None
        return self._reports[min(contradicting)]
