"""One scenario for each guard: it shows the hole when the guard is off, and nothing when it is on.

Each scenario returns what it saw of the fault, None when there was none. The names H1 to H12o are explained in
docs/consensus.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import pytest

from raftkv.consensus.guard import ALL_GUARDS, Guards
from raftkv.consensus.messages import (
    AppendEntries,
    AppendResult,
    SnapshotHeartbeat,
    TimeoutNow,
    Vote,
)
from raftkv.errors import CorruptData, LogDiverged
from raftkv.types import Index, NodeId, Role, Term
from tests.consensus.harness import Harness
from tests.consensus.rollback import diverge_by_an_older_disk

Scenario = Callable[[Guards], str | None]


def acknowledgement_before_sync(guards: Guards) -> str | None:
    """H1: a follower acknowledges, loses power before its sync, and an acknowledged write is gone."""
    cluster = Harness(guards=guards)
    cluster.elect("a")
    cluster["b"].auto_sync = False
    cluster.isolate("c")
    cluster.put("a", b"x")
    cluster.settle("a", "b")
    if b"x" not in cluster["a"].payloads():
        return None
    cluster.crash("b")
    cluster.restart("b")
    holders = [name for name in "bc" if cluster[name].journal.last_index >= 3]
    return None if holders else "a write that was applied at the leader is on no other disk"


def vote_before_sync(guards: Guards) -> str | None:
    """H1: a voter loses power before its vote is synced, and votes again in the same term."""
    cluster = Harness(guards=guards)
    cluster.settle()
    cluster["b"].auto_sync = False
    cluster.isolate("c")
    cluster["a"].campaign()
    cluster.settle("a", "b")
    if cluster["a"].core.role is not Role.LEADER:
        return None
    cluster.crash("b")
    cluster["b"].auto_sync = True
    cluster.restart("b")
    cluster.heal()
    cluster.isolate("a")
    cluster["c"].campaign()
    cluster.settle("b", "c")
    leaders = {name for name in "ac" if cluster[name].core.role is Role.LEADER and cluster[name].core.term == 1}
    return f"two leaders of term 1: {leaders}" if len(leaders) == 2 else None


def leader_counts_what_it_has_not_synced(guards: Guards) -> str | None:
    """H1: the leader commits with one follower, loses power, and the entry is on one disk of three."""
    cluster = Harness(guards=guards)
    cluster.elect("a")
    cluster.isolate("c")
    cluster["a"].auto_sync = False
    cluster.put("a", b"x")
    cluster.settle("a", "b")
    if b"x" not in cluster["b"].payloads():
        return None
    cluster.crash("a")
    cluster["a"].auto_sync = True
    cluster.restart("a")
    holders = [name for name in "ac" if cluster[name].journal.last_index >= 3]
    return None if holders else "b has applied an entry that a majority does not have"


def store_ahead_of_its_journal(guards: Guards) -> str | None:
    """H1: a node applies what its journal has not synced, and cannot start again after losing power."""
    cluster = Harness(guards=guards)
    cluster.elect("a")
    cluster["b"].auto_sync = False
    cluster.put("a", b"x")
    cluster.settle()
    assert b"x" in cluster["a"].payloads()
    cluster.crash("b")
    try:
        cluster.restart("b")
    except CorruptData as error:
        return str(error)
    return None


def only_voter_announces_what_it_can_lose(guards: Guards) -> str | None:
    """H1: the engine commits for an only voter at once, and a learner applies what that voter has not synced."""
    cluster = Harness("ab", guards)
    for node in cluster.nodes.values():
        node.core.reconfigure([NodeId("a")], [NodeId("b")], Index(1))
    cluster.elect("a")
    cluster["a"].auto_sync = False
    cluster.put("a", b"x")
    cluster.advance(0.3)
    return "a learner applied it" if b"x" in cluster["b"].payloads() else None


def only_voter_sends_entries_of_a_term_it_can_forget(guards: Guards) -> str | None:
    """H1: an only voter leads a term that it has not synced, and after a crash leads it again, with other entries."""
    cluster = Harness("ab", guards)
    for node in cluster.nodes.values():
        node.core.reconfigure([NodeId("a")], [NodeId("b")], Index(1))
    cluster["a"].auto_sync = False
    cluster["a"].campaign()
    cluster["a"].turn()
    cluster.put("a", b"first")
    cluster.settle()
    sent = [(index, term) for _command, index, term in cluster["b"].journal[1 : len(cluster["b"].journal)]]
    return "it sent what it could append differently" if sent else None


def acknowledgement_of_an_older_term(guards: Guards) -> str | None:
    """H3: a late acknowledgement counts for entries of another term at the same indexes."""
    cluster = Harness("abcde", guards)
    cluster.elect("a")
    cluster.isolate("a", "b")
    cluster.held.add(("b", "a"))
    for payload in (b"1", b"2", b"3"):
        cluster.put("a", payload)
    cluster.settle("a", "b")
    late = [message for message in cluster.links[NodeId("b"), NodeId("a")] if isinstance(message, AppendResult)]
    assert late[-1].success
    cluster.links.clear()
    cluster.elect("c", "c", "d", "e")
    cluster.held.clear()
    cluster.heal()
    cluster.advance(1)
    cluster.elect("a")
    cluster.isolate("a", "d")
    for payload in (b"4", b"5", b"6"):
        cluster.put("a", payload)
    cluster.settle("a", "d")
    cluster["a"].core.receive(NodeId("b"), replace(late[-1], next_index=Index(cluster["a"].journal.last_index + 1)))
    cluster.settle("a", "d")
    return "committed on two of five" if b"4" in cluster["a"].payloads() else None


def late_append_cuts_acknowledged_entries(guards: Guards) -> str | None:
    """H4: an append arrives a second time, and everything behind it is cut."""
    cluster = Harness(guards=guards)
    cluster.elect("a")
    cluster.isolate("c")
    cluster.put("a", b"x")
    cluster["a"].flush()
    repeated = next(
        message
        for message in cluster.links[NodeId("a"), NodeId("b")]
        if isinstance(message, AppendEntries) and message.entries
    )
    cluster.put("a", b"y")
    cluster["a"].flush()
    while cluster.links[NodeId("a"), NodeId("b")]:
        cluster.deliver("a", "b")
    cluster["b"].sync()
    cluster.held.add(("a", "b"))
    cluster.settle("a", "b")
    assert b"y" in cluster["a"].payloads()
    cluster["b"].core.receive(NodeId("a"), repeated)
    return "an acknowledged entry was cut" if cluster["b"].journal.last_index < 4 else None


def commit_beyond_what_was_compared(guards: Guards) -> str | None:
    """H4: a follower with a conflicting tail commits it because the leader's commit index is higher."""
    cluster = Harness(guards=guards)
    cluster.elect("b")
    cluster.isolate("b")
    cluster.put("b", b"lost-1")
    cluster.put("b", b"lost-2")
    cluster.settle("b")
    cluster.elect("a", "a", "c")
    cluster.put("a", b"kept")
    cluster.settle("a", "c")
    cluster["b"].core.receive(NodeId("a"), AppendEntries(2, 4, 2, 1, ()))
    cluster["b"].turn()
    wrong = {b"lost-1", b"lost-2"} & set(cluster["b"].payloads())
    return f"applied {wrong}" if wrong else None


def read_at_a_deposed_leader(guards: Guards) -> str | None:
    """H5: a leader that was cut off serves a read after its successor has accepted a write."""
    cluster = Harness(guards=guards)
    cluster.elect("a")
    cluster.isolate("a")
    cluster.elect("b", "b", "c")
    cluster.put("b", b"newer")
    cluster.settle("b", "c")
    cluster["a"].core.request_read(7)
    cluster.settle("a")
    return "a stale read was confirmed" if cluster["a"].reads else None


def deposed_leader_never_learns(guards: Guards) -> str | None:
    """H6: the new leader cannot reach the old one, which goes on speaking to a node that ignores it."""
    cluster = Harness(guards=guards)
    cluster.elect("a")
    cluster.isolate("a")
    cluster.elect("b", "b", "c")
    cluster.heal()
    cluster.cut |= {("b", "a"), ("a", "b")}
    cluster.advance(0.5)
    return "it still believes in its term" if cluster["a"].core.term == 1 else None


def one_dead_link_raises_the_term(guards: Guards) -> str | None:
    """H7: a node that hears no leader campaigns for ever and disturbs the others."""
    cluster = Harness(guards=guards)
    cluster.elect("a")
    cluster.cut |= {("a", "c"), ("c", "a")}
    cluster.advance(20)
    term = cluster["b"].core.term
    return f"the term rose to {term}" if term > 2 else None


def heartbeat_without_a_position_commits(guards: Guards) -> str | None:
    """H12a: a message for a node that needs a snapshot commits the entries that the node will have to discard."""
    cluster = Harness(guards=guards)
    cluster.elect("a")
    cluster.isolate("a")
    cluster.put("a", b"lost")
    cluster.settle("a")
    cluster["a"].core.receive(NodeId("b"), SnapshotHeartbeat(2, 50))
    cluster["a"].turn()
    return "a discarded entry was applied" if b"lost" in cluster["a"].payloads() else None


def entry_of_another_type(guards: Guards) -> str | None:
    """H12b, H12d: a membership command of the engine arrives as an entry."""
    cluster = Harness(guards=guards)
    cluster.elect("a")
    last = cluster["b"].journal.last_index
    cluster["b"].core.receive(NodeId("a"), AppendEntries(1, 2, last, 1, ((b"\x02add z", last + 1, 1),)))
    return "the entry was taken" if cluster["b"].journal.last_index > last else None


def repeated_vote(guards: Guards) -> str | None:
    """H12c: one member's vote arrives three times."""
    cluster = Harness("abcde", guards)
    cluster.settle()
    cluster["a"].campaign()
    cluster["a"].turn()
    for _ in range(3):
        cluster["a"].core.receive(NodeId("b"), Vote(1))
    cluster["a"].turn()
    return "elected by two of five" if cluster["a"].core.role is Role.LEADER else None


def stranger(guards: Guards) -> str | None:
    """H11, H12c: somebody who is no member speaks as if it led."""
    cluster = Harness(guards=guards)
    cluster.elect("a")
    cluster["b"].core.receive(NodeId("stranger"), AppendEntries(2, 1, 2, 1, ()))
    return "it was obeyed" if cluster["b"].core.term > 1 else None


def second_change_while_one_is_under_way(guards: Guards) -> str | None:
    """H12d: two additions at once have majorities that know nothing of each other."""
    cluster = Harness(guards=guards)
    cluster.elect("a")
    cluster.isolate("a")
    core = cluster["a"].core
    assert core.propose_membership(b"add d") is not None
    return "two changes are in the log at once" if core.propose_membership(b"add e") is not None else None


def change_before_the_own_term_has_committed(guards: Guards) -> str | None:
    """H12d: a leader that has committed nothing yet may not know of a change that another one committed."""
    cluster = Harness(guards=guards)
    cluster["a"].campaign()
    cluster["a"].turn()
    cluster.dropped_types.add(AppendEntries)
    cluster.settle()
    assert cluster["a"].core.role is Role.LEADER
    slot = cluster["a"].core.propose_membership(b"add d")
    return "a leader changed members before its no-op was committed" if slot is not None else None


def campaign_with_an_old_membership(guards: Guards) -> str | None:
    """H12d: a node that has not applied a committed change counts the votes of members that may be gone."""
    cluster = Harness(guards=guards)
    cluster.elect("a")
    assert cluster["a"].core.propose_membership(b"remove c") is not None
    # Nobody here tells the cores that the change is applied.
    cluster.settle()
    cluster["b"].core.receive(NodeId("a"), TimeoutNow(Term(1)))
    cluster.settle()
    return "it was elected by the members of old" if cluster["b"].core.role is Role.LEADER else None


def learner_that_campaigns(guards: Guards) -> str | None:
    """H12d: a member that does not vote yet is elected."""
    cluster = Harness(guards=guards)
    for node in cluster.nodes.values():
        node.core.reconfigure([NodeId("a"), NodeId("b")], [NodeId("c")], Index(1))
    cluster["c"].campaign()
    cluster.settle()
    return "a learner leads" if cluster["c"].core.role is Role.LEADER else None


def old_snapshot(guards: Guards) -> str | None:
    """H12g: a snapshot that is older than what is committed rolls the log back."""
    cluster = Harness(guards=guards)
    cluster.elect("a")
    for payload in (b"1", b"2", b"3"):
        cluster.put("a", payload)
    cluster.settle()
    cluster["b"].core.install_snapshot(Index(3), Term(1))
    cluster.advance(0.3)
    repeated = len(cluster["b"].applied) - len(set(cluster["b"].applied))
    return f"{repeated} entries were applied again" if repeated else None


def conflict_is_found_one_by_one(guards: Guards) -> str | None:
    """H12l: 300 conflicting entries take 300 rounds to step over."""
    cluster = Harness(guards=guards)
    cluster.elect("a")
    cluster.isolate("a")
    for number in range(300):
        cluster.put("a", b"lost-%d" % number)
    cluster.settle("a")
    cluster.elect("b", "b", "c")
    for number in range(300):
        cluster.put("b", b"kept-%d" % number)
    cluster.settle("b", "c")
    cluster.heal()
    cluster.advance(60)
    assert cluster["a"].journal.last_term == 2
    refusals = sum(
        1
        for source, _target, message in cluster.delivered
        if source == "a" and isinstance(message, AppendResult) and message.reset
    )
    return f"{refusals} refusals" if refusals > 10 else None


def backlog_in_one_step(guards: Guards) -> str | None:
    """H12o: a peer that comes back is sent its whole backlog at once."""
    cluster = Harness(guards=guards)
    cluster.elect("a")
    cluster["a"].core.disconnected(NodeId("c"))
    for _ in range(40):
        cluster.put("a", bytes(1_000_000))
        cluster.settle("a", "b")
    cluster["a"].core.connected(NodeId("c"))
    cluster.clock.time += 0.2
    cluster["a"].core.step()
    # The first append asks whether the logs match, the next one where; its answer opens the way.
    cluster["a"].core.receive(NodeId("c"), AppendResult(1, 3, reset=True, success=False))
    cluster["a"].core.receive(NodeId("c"), AppendResult(1, 3, reset=False, success=True))
    cluster["a"].core.take_messages()
    cluster.clock.time += 0.2
    cluster["a"].core.step()
    sent = sum(
        len(command)
        for peer, message in cluster["a"].core.take_messages()
        if peer == "c" and isinstance(message, AppendEntries)
        for command, _index, _term in message.entries
    )
    assert sent > 0
    return f"{sent} bytes in one step" if sent > 9_000_000 else None


def stalled_disk_at_the_leader(guards: Guards) -> str | None:
    """A leader whose disk takes nothing goes on leading, and no write is committed."""
    cluster = Harness(guards=guards)
    cluster.elect("a")
    cluster["a"].auto_sync = False
    cluster.put("a", b"x")
    cluster.advance(10)
    return None if b"x" in cluster["b"].payloads() else "a write that two disks have was not committed in 10 s"


def older_copy_of_a_disk(guards: Guards) -> str | None:
    """Log matching: a disk is put back to an older copy, and two leaders of one term write at the same index."""
    cluster = diverge_by_an_older_disk(guards)
    cluster.heal()
    try:
        cluster.advance(1)
    except LogDiverged:
        return None
    differing = {cluster[name].payloads()[-1] for name in "ab"}
    return None if len(differing) == 1 else f"{differing} are applied at one index and term"


SCENARIOS: list[tuple[str, Scenario]] = [
    ("promise_after_sync", acknowledgement_before_sync),
    ("promise_after_sync", vote_before_sync),
    ("leader_counts_synced", leader_counts_what_it_has_not_synced),
    ("leader_counts_synced", only_voter_announces_what_it_can_lose),
    ("promise_after_sync", only_voter_sends_entries_of_a_term_it_can_forget),
    ("apply_after_sync", store_ahead_of_its_journal),
    ("term_stamped_results", acknowledgement_of_an_older_term),
    ("keep_matching_entries", late_append_cuts_acknowledged_entries),
    ("clamp_commit", commit_beyond_what_was_compared),
    ("read_index", read_at_a_deposed_leader),
    ("answer_lower_terms", deposed_leader_never_learns),
    ("pre_vote", one_dead_link_raises_the_term),
    ("clamp_snapshot_commit", heartbeat_without_a_position_commits),
    ("known_commands_only", entry_of_another_type),
    ("one_vote_a_member", repeated_vote),
    ("members_only", stranger),
    ("ignore_old_snapshots", old_snapshot),
    ("one_member_change", second_change_while_one_is_under_way),
    ("change_in_own_term", change_before_the_own_term_has_committed),
    ("campaign_when_applied", campaign_with_an_old_membership),
    ("voters_only", learner_that_campaigns),
    ("conflict_hint", conflict_is_found_one_by_one),
    ("bounded_sending", backlog_in_one_step),
    ("answering_disk", stalled_disk_at_the_leader),
    ("compare_log_hash", older_copy_of_a_disk),
]

_IDS = [f"{guard}-{scenario.__name__}" for guard, scenario in SCENARIOS]


@pytest.mark.parametrize(("guard", "scenario"), SCENARIOS, ids=_IDS)
def test_the_fault_appears_without_the_guard(guard: str, scenario: Scenario):
    assert scenario(replace(ALL_GUARDS, **{guard: False})) is not None


@pytest.mark.parametrize(("guard", "scenario"), SCENARIOS, ids=_IDS)
def test_nothing_appears_with_it(guard: str, scenario: Scenario):
    assert scenario(ALL_GUARDS) is None


def test_every_guard_has_a_scenario():
    assert {guard for guard, _scenario in SCENARIOS} == {field.name for field in fields(Guards)}
