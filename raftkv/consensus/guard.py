"""The Raft rules that the engine leaves open, as decisions on single messages: message in, message out.

Each rule closes a hole of pysyncobj 0.3.17 (docs/consensus.md lists them as H1 to H12q). ``Guards`` names them, so
that tests can turn one off and show that its absence is caught; a running node has all of them on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, TypeGuard

from raftkv.consensus.messages import (
    AppendEntries,
    AppendResult,
    Message,
    PreVote,
    ReadPing,
    RequestVote,
    SnapshotChunk,
    SnapshotHeartbeat,
    TimeoutNow,
)
from raftkv.errors import InvariantViolated
from raftkv.types import Index, Term

RequestOfTerm = AppendEntries | RequestVote | TimeoutNow | SnapshotHeartbeat | SnapshotChunk | ReadPing

_KNOWN_COMMANDS = frozenset({0, 1})


@dataclass(frozen=True, slots=True)
class Guards:
    """Which rules are on.

    Attributes:
        promise_after_sync: Votes and acknowledgements leave after the journal is synced (H1).
        leader_counts_synced: A leader counts its own copy of an entry only once that is synced (H1).
        apply_after_sync: An entry is applied only once this node's journal has synced it (H1).
        term_stamped_results: A leader counts acknowledgements of its own term only (H3).
        keep_matching_entries: Entries that match are kept, and an acknowledgement claims what was checked (H4).
        clamp_commit: A follower commits at most what the leader's message vouches for (H4).
        read_index: Reads are confirmed by a majority before they are served (H5).
        answer_lower_terms: A sender of an older term is told about the newer one (H6).
        pre_vote: A node campaigns only when a majority would vote for it (H7).
        clamp_snapshot_commit: A message without a log position commits nothing (H12a).
        known_commands_only: Entries of other types than commands and no-ops are refused (H12b, H12d).
        one_vote_a_member: A repeated vote of one member counts once (H12c).
        members_only: Messages of strangers are dropped (H11, H12c).
        ignore_old_snapshots: A snapshot at or below the own commit index is ignored (H12g).
        conflict_hint: A conflicting follower asks for the start of the conflicting term (H12l).
        bounded_sending: Sending to one peer in one step is bounded (H12o).
        one_member_change: A change of the membership is proposed only when the one before is applied (H12d).
        change_in_own_term: A change is proposed only when an entry of the leader's own term is committed (H12d).
        campaign_when_applied: A node campaigns only with every committed change applied (H12d).
        voters_only: Whoever does not vote does not campaign, and counts for no majority (H12d).
        answering_disk: A leader whose disk has not answered for an election timeout steps down, and a node with such a
            disk neither campaigns nor grants pre-votes.
        compare_log_hash: A follower compares the content of entries, and the terms of committed ones, before it
            appends.
    """

    promise_after_sync: bool = True
    leader_counts_synced: bool = True
    apply_after_sync: bool = True
    term_stamped_results: bool = True
    keep_matching_entries: bool = True
    clamp_commit: bool = True
    read_index: bool = True
    answer_lower_terms: bool = True
    pre_vote: bool = True
    clamp_snapshot_commit: bool = True
    known_commands_only: bool = True
    one_vote_a_member: bool = True
    members_only: bool = True
    ignore_old_snapshots: bool = True
    conflict_hint: bool = True
    bounded_sending: bool = True
    one_member_change: bool = True
    change_in_own_term: bool = True
    campaign_when_applied: bool = True
    voters_only: bool = True
    answering_disk: bool = True
    compare_log_hash: bool = True


ALL_GUARDS = Guards()


class LogView(Protocol):
    """What the rules need to see of a log."""

    @property
    def base_index(self) -> Index:
        """Index of the newest compacted entry."""
        ...

    @property
    def last_index(self) -> Index:
        """Index of the last entry."""
        ...

    @property
    def last_term(self) -> Term:
        """Term of the last entry."""
        ...

    def term_at(self, index: Index) -> Term | None:
        """Term of an entry, None when it is compacted away or not there."""
        ...


@dataclass(frozen=True, slots=True)
class AppendPlan:
    """What the engine shall see of an append, and what its answer may claim.

    Attributes:
        message: The message as the engine gets it.
        claim: The last index that a success may claim to match; None leaves the engine's answer as it is.
    """

    message: AppendEntries
    claim: Index | None


def plan_append(message: AppendEntries, log: LogView, commit_index: Index, guards: Guards) -> AppendPlan:
    """Rewrite an append so that the engine truncates only what conflicts (Raft paper, section 5.3; H4, H12p).

    The engine cuts its log after ``prev_log_index`` whether or not the entries match, claims its whole log in the
    answer, and takes the leader's commit index for it. A late or repeated message would so cut acknowledged entries.

    Args:
        message: The append of a leader whose term is not below this node's.
        log: This node's log.
        commit_index: This node's commit index.
        guards: Rules that are on.

    Raises:
        InvariantViolated: The leader contradicts an entry that is committed here.
    """
    end = Index(message.prev_log_index + len(message.entries))
    if guards.clamp_commit and message.commit_index > end:
        message = replace(message, commit_index=end)
    if not guards.keep_matching_entries:
        return AppendPlan(message, None)
    if message.prev_log_index >= commit_index and log.term_at(Index(message.prev_log_index)) != message.prev_log_term:
        return AppendPlan(message, None)
    first_new = _first_new_entry(message, log, commit_index)
    if first_new == len(message.entries):
        unchanged = replace(message, prev_log_index=log.last_index, prev_log_term=log.last_term, entries=())
        return AppendPlan(unchanged, end)
    if first_new == 0:
        return AppendPlan(message, end)
    previous = message.entries[first_new - 1]
    shortened = replace(
        message, prev_log_index=previous[1], prev_log_term=previous[2], entries=message.entries[first_new:]
    )
    return AppendPlan(shortened, end)


def _first_new_entry(message: AppendEntries, log: LogView, commit_index: Index) -> int:
    for position, (_command, index, term) in enumerate(message.entries):
        if index <= log.base_index:
            continue
        own_term = log.term_at(Index(index))
        if own_term == term:
            continue
        if index <= commit_index:
            raise InvariantViolated(
                f"the leader of term {message.term} has term {term} at index {index}, "
                f"where term {own_term} is committed here (commit index {commit_index})"
            )
        return position
    return len(message.entries)


def answer_append(
    result: AppendResult, plan: AppendPlan | None, log: LogView, commit_index: Index, guards: Guards
) -> AppendResult:
    """Correct the engine's answer to an append.

    Args:
        result: What the engine wants to answer.
        plan: How the append was rewritten, None when it was not.
        log: This node's log after the append.
        commit_index: This node's commit index.
        guards: Rules that are on.

    Returns:
        A success that claims only what was compared, or a refusal whose hint skips the whole conflicting term.
    """
    if result.success:
        if plan is None or plan.claim is None:
            return result
        return replace(result, next_index=Index(plan.claim + 1))
    if not (result.reset and guards.conflict_hint):
        return result
    return replace(result, next_index=_start_of_conflict(Index(result.next_index), log, commit_index))


def _start_of_conflict(next_index: Index, log: LogView, commit_index: Index) -> Index:
    conflicting_term = log.term_at(next_index)
    if conflicting_term is None:
        return next_index
    while next_index > commit_index + 1 and log.term_at(Index(next_index - 1)) == conflicting_term:
        next_index = Index(next_index - 1)
    return next_index


def announce_durable(message: Message, durable_index: Index, guards: Guards) -> Message:
    """Let a leader announce as committed only what its own journal has synced (H1).

    The engine counts the leader at once. Where it is the only voter that commits everything at once too, and a learner
    would apply what that voter can still lose.
    """
    if isinstance(message, AppendEntries | SnapshotHeartbeat) and guards.leader_counts_synced:
        return replace(message, commit_index=durable_index) if message.commit_index > durable_index else message
    return message


def has_known_commands(message: AppendEntries) -> bool:
    """Whether every entry is a command or a no-op: the engine's other types change members or unpickle (H12b, H12d)."""
    return all(command and command[0] in _KNOWN_COMMANDS for command, _index, _term in message.entries)


def is_request_of_term(message: Message) -> TypeGuard[RequestOfTerm]:
    """Whether a message asks something on the strength of its term, so that an older one deserves an answer (H6)."""
    return isinstance(message, RequestOfTerm)


def deposing_answer(term: Term) -> RequestVote:
    """Return a vote request that teaches its receiver a newer term and that nobody can grant (H6)."""
    return RequestVote(term, 0, -1)


def pre_vote_is_grantable(message: PreVote, log: LogView) -> bool:
    """Whether the sender's log is at least as up to date as this one (Raft paper, section 5.4.1)."""
    return (message.last_log_term, message.last_log_index) >= (log.last_term, log.last_index)
