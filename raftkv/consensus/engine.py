"""pysyncobj behind typed messages: the only module that imports it or touches its private attributes.

What is used of the engine is Raft itself: terms, elections, replication, commit. Its journal, transport, snapshots,
apply and membership are replaced or never reached. Private names and the order of its tick are load-bearing, hence
the exact pin; ``check_engine_version`` refuses any other release.

The engine reads time and randomness from two names of its module. Both are replaced by ``_world``, which every entry
into an engine sets first: many engines can then live in one process, each with its own clock.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from typing import Any

import pysyncobj
import pysyncobj.syncobj as engine_module
from pysyncobj.config import SERIALIZER_STATE, SyncObjConf
from pysyncobj.node import Node
from pysyncobj.transport import Transport
from pysyncobj.version import VERSION as ENGINE_VERSION

from raftkv.consensus.journal import Journal
from raftkv.consensus.messages import (
    AppendEntries,
    AppendResult,
    Message,
    RequestVote,
    SnapshotHeartbeat,
    TimeoutNow,
    Vote,
)
from raftkv.errors import ConfigurationError, InvariantViolated
from raftkv.ports import Clock, Randomness
from raftkv.types import MAX_ENTRY_BYTES, Index, NodeId, Role, Term

PINNED_VERSION = "0.3.17"

REGULAR_COMMAND = b"\x00"
NO_OP_COMMAND = b"\x01"

DELIVERED_AT_ONCE = 5000
"""Committed entries that one tick delivers: after a restart there may be as many as the journal has."""

_BATCH_BYTES = 4_194_304
# An entry of a batch's size would take the engine's chunked path, which is broken (H12e).
assert MAX_ENTRY_BYTES + len(REGULAR_COMMAND) < _BATCH_BYTES

_NEVER = 2**62
_FOLLOWER = 0
_ROLES = {_FOLLOWER: Role.FOLLOWER, 1: Role.CANDIDATE, 2: Role.LEADER}


@dataclass(frozen=True, slots=True)
class Timing:
    """The engine's periods.

    Attributes:
        heartbeat_seconds: A leader speaks to each follower at least this often.
        election_timeout_seconds: A follower campaigns after hearing nothing for this long, up to twice as long.
    """

    heartbeat_seconds: float
    election_timeout_seconds: float

    def __post_init__(self) -> None:
        if not 0 < 3 * self.heartbeat_seconds < self.election_timeout_seconds:
            msg = (
                f"the election timeout ({self.election_timeout_seconds} s) must be more than three heartbeats "
                f"({self.heartbeat_seconds} s)"
            )
            raise ConfigurationError(msg)


class _World:
    """Time and randomness of the engine that is running right now."""

    def __init__(self) -> None:
        self.now = 0.0
        self.randomness: Randomness | None = None

    def random(self) -> float:
        assert self.randomness is not None, "an engine was entered without a world"
        return self.randomness.random()


_world = _World()


def check_engine_version() -> None:
    """Refuse any release of the engine but the one whose private parts were studied.

    Raises:
        ConfigurationError: Another version of pysyncobj is installed.
    """
    if ENGINE_VERSION != PINNED_VERSION:
        raise ConfigurationError(f"pysyncobj {PINNED_VERSION} is required, {ENGINE_VERSION} is installed")


def _take_over_engine_module() -> None:
    engine_module.monotonicTime = lambda: _world.now
    engine_module.random = _world
    # One pipe per engine and one byte per command serve a thread that does not exist here.
    engine_module.PIPE_NOTIFIER_ENABLED = False


check_engine_version()
_take_over_engine_module()
# The engine reports "no dump to send" with a traceback each time; snapshots are ours.
logging.getLogger("pysyncobj").setLevel(logging.CRITICAL)


class _PeerNode(Node):  # type: ignore[misc]
    """A node whose hash does not change between processes: the engine iterates over sets of nodes."""

    def __init__(self, name: NodeId) -> None:
        super().__init__(name)
        self._hash = zlib.crc32(name.encode())

    def __hash__(self) -> int:
        return self._hash


class _NoDumps:
    """Stands in for the engine's serializer, so that it never writes, loads or sends a dump (H8, H9, H12g-k, H12o)."""

    def checkSerializing(self) -> tuple[int, None]:  # noqa: N802 - the engine's name
        return SERIALIZER_STATE.NOT_SERIALIZING, None

    def getTransmissionData(self, _node: Node) -> None:  # noqa: N802 - the engine's name
        return None

    def cancelTransmisstion(self, _node: Node) -> None:  # noqa: N802 - the engine's name
        return None


class _NoPoller:
    """Stands in for the engine's poller: sockets are not its business."""

    def poll(self, _timeout: float) -> None:
        return None


class _EngineTransport(Transport):  # type: ignore[misc]
    """Hands what the engine sends to ``Engine`` and counts every node as reachable."""

    def __init__(self, send: Callable[[Node, dict[str, Any]], bool]) -> None:
        super().__init__(None, None, [])
        self._send = send

    def send(self, node: Node, message: dict[str, Any]) -> bool:
        return self._send(node, message)


class _GuardedSyncObj(pysyncobj.SyncObj):  # type: ignore[misc]
    """The engine with its apply replaced: committed commands are handed out, never unpickled (H11, H12b)."""

    def __init__(self, deliver: Callable[[bytes], None], *args: Any, **kwargs: Any) -> None:
        self._deliver_committed = deliver
        super().__init__(*args, **kwargs)

    def _SyncObj__doApplyCommand(self, command: bytes) -> None:  # noqa: N802 - overrides a name-mangled method
        self._deliver_committed(command)

    def _checkCommandsToApply(self) -> None:  # noqa: N802 - the engine's name
        # The engine's own finds an empty queue by an exception. Most ticks have no command.
        if self._SyncObj__commandsQueue._FastQueue__queue:
            super()._checkCommandsToApply()

    def _SyncObj__tryLogCompaction(self) -> None:  # noqa: N802 - overrides a name-mangled method
        """Never compact: snapshots are not the engine's."""


class Engine:
    """One Raft instance over a journal.

    Args:
        name: This node.
        voters: The voting members.
        learners: Members that get the log and do not vote.
        journal: The log, term and vote as recovered.
        applied_index: Entries up to here are reflected in the store already and are not delivered again.
        timing: Heartbeat and election timeout.
        clock: Monotonic time.
        randomness: Election jitter.
        send: Called with every message the engine wants to send; its result says whether the engine may go on
            sending to that peer within this call.
        deliver: Called with index and command of each committed entry, in order, once.
    """

    def __init__(
        self,
        name: NodeId,
        voters: Iterable[NodeId],
        learners: Iterable[NodeId],
        journal: Journal,
        applied_index: Index,
        timing: Timing,
        clock: Clock,
        randomness: Randomness,
        send: Callable[[NodeId, Message], bool],
        deliver: Callable[[Index, bytes], None],
    ) -> None:
        self._name = name
        self._nodes: dict[NodeId, _PeerNode] = {}
        self._connected: set[NodeId] = set()
        self._clock = clock
        self._randomness = randomness
        self._send = send
        self._deliver = deliver
        self._enter()
        others = [self._node(member) for member in sorted(voters) if member != name]
        self._transport = _EngineTransport(self._on_engine_send)
        original = engine_module.createJournal
        engine_module.createJournal = lambda _path: journal
        try:
            self._raft = _GuardedSyncObj(
                self._on_committed,
                self._node(name),
                others,
                conf=_configuration(timing),
                transport=self._transport,
            )
        finally:
            engine_module.createJournal = original
        self._raft._SyncObj__serializer = _NoDumps()
        self._raft._poller = _NoPoller()
        # The engine would start at index 1 and find those entries compacted away; the store already has them.
        self._raft._SyncObj__raftLastApplied = applied_index
        self._raft._SyncObj__applyLogEntries = self._deliver_some
        self.reconfigure(voters, learners)

    def reconfigure(
        self, voters: Iterable[NodeId], learners: Iterable[NodeId], renewed: Container[NodeId] = ()
    ) -> None:
        """Go on with other members; what is known of those that stay is kept, but for the renewed.

        The engine's own membership changes are never used (H12d). Its observers are what learners need: they are sent
        the log, and nothing waits for them.
        """
        self._enter()
        raft = self._raft
        # The order in which a set is filled decides, where hashes collide in its table, in which order it is iterated.
        others = {self._node(member) for member in sorted(voters) if member != self._name}
        observers = {self._node(member) for member in sorted(learners) if member != self._name}
        known = others | observers
        progress = (raft._SyncObj__raftNextIndex, raft._SyncObj__raftMatchIndex, raft._SyncObj__lastResponseTime)
        for table, beginning in zip(progress, (raft._SyncObj__raftLog[-1][1] + 1, 0, _world.now), strict=True):
            for node in [node for node in table if node not in known or node.id in renewed]:
                del table[node]
            for node in known:
                table.setdefault(node, beginning)
        raft._SyncObj__otherNodes = others
        raft._SyncObj__readonlyNodes = observers

    def _node(self, member: NodeId) -> _PeerNode:
        node = self._nodes.get(member)
        if node is None:
            node = self._nodes[member] = _PeerNode(member)
        return node

    def _enter(self) -> None:
        _world.now = self._clock.now()
        _world.randomness = self._randomness

    @property
    def role(self) -> Role:
        """This node's role in its term."""
        return _ROLES[self._raft._SyncObj__raftState]

    @property
    def term(self) -> Term:
        """The current term."""
        return Term(self._raft._SyncObj__raftCurrentTerm)

    def learn_commit(self, index: Index) -> None:
        """Take note that an entry of this log is committed, whoever said so (log matching, Raft paper 5.3)."""
        # The engine itself takes it from appends of the leader alone.
        self._raft._SyncObj__raftCommitIndex = index
        self._raft._SyncObj__raftLog.setRaftCommitIndex(index)

    @property
    def leader(self) -> NodeId | None:
        """The member that this node takes for the leader."""
        leader = self._raft._SyncObj__raftLeader
        return None if leader is None else NodeId(leader.id)

    @property
    def commit_index(self) -> Index:
        """Highest index known to be committed."""
        return Index(self._raft._SyncObj__raftCommitIndex)

    @property
    def election_deadline(self) -> float:
        """When this node campaigns next; 0 asks for it now (a leadership transfer sets that)."""
        return float(self._raft._SyncObj__raftElectionDeadline)

    @election_deadline.setter
    def election_deadline(self, deadline: float) -> None:
        # The only way to hold an election back until pre-vote is won (H7).
        self._raft._SyncObj__raftElectionDeadline = deadline

    def match_index(self, peer: NodeId) -> Index:
        """At a leader: the highest index known to be durable at a peer."""
        return Index(self._raft._SyncObj__raftMatchIndex.get(self._node(peer), 0))

    def heard_within(self, peer: NodeId, seconds: float) -> bool:
        """At a leader: whether a peer has acknowledged anything in this time."""
        last: float = self._raft._SyncObj__lastResponseTime.get(self._node(peer), float("-inf"))
        return last > self._clock.now() - seconds

    def step_down(self) -> None:
        """At a leader: follow in the same term, as after an election timeout without a majority (check-quorum)."""
        self._raft._SyncObj__setState(_FOLLOWER)
        self._raft._SyncObj__raftLeader = None

    def next_index(self, peer: NodeId) -> Index:
        """At a leader: the index of the entry that a peer is sent next."""
        return Index(self._raft._SyncObj__raftNextIndex.get(self._node(peer), 0))

    def connect(self, peer: NodeId) -> None:
        """Let the engine send to a peer."""
        self._connected.add(peer)
        self._transport._onNodeConnected(self._node(peer))

    def is_connected(self, peer: NodeId) -> bool:
        """Whether the engine may send to a peer."""
        return peer in self._connected

    def disconnect(self, peer: NodeId) -> None:
        """Keep the engine from sending to a peer."""
        self._connected.discard(peer)
        self._transport._onNodeDisconnected(self._node(peer))

    def tick(self) -> None:
        """Campaign, commit, deliver, send: whatever is due now."""
        self._enter()
        self._raft.doTick(0)

    def append(self, payload: bytes) -> None:
        """At a leader: put a command into the log and send it on; elsewhere the engine drops it."""
        self._enter()
        self._raft._applyCommand(REGULAR_COMMAND + payload, None)
        self._raft.doTick(0)

    def transfer_leadership(self, peer: NodeId | None) -> None:
        """Ask a follower to campaign at once; nothing happens while it is not caught up, or cannot be reached.

        Args:
            peer: The follower, None for the most caught-up that can be reached.
        """
        self._enter()
        self._raft.transferLeadership(None if peer is None else self._node(peer))

    def receive(self, peer: NodeId, message: Message) -> None:
        """Process one message of another member."""
        self._enter()
        node = self._node(peer)
        if isinstance(message, AppendResult):
            self._receive_append_result(node, message)
        else:
            self._transport._onMessageReceived(node, _to_engine(message))

    def _receive_append_result(self, node: Node, message: AppendResult) -> None:
        next_index = self._raft._SyncObj__raftNextIndex
        sent_up_to = next_index.get(node, 0)
        self._transport._onMessageReceived(node, _to_engine(message))
        if message.success and not message.reset and node in next_index:
            # The engine moves nextIndex back to the acknowledged entry and would send everything in flight again.
            next_index[node] = max(sent_up_to, next_index[node])

    @property
    def has_more_to_deliver(self) -> bool:
        """Whether committed entries wait for the next tick to be delivered."""
        raft = self._raft
        return bool(raft._SyncObj__raftCommitIndex > raft.raftLastApplied)

    def _deliver_some(self) -> bool:
        """Deliver committed entries; the engine's own loop takes all of them, however many there are.

        Returns:
            Whether there were any: the leader then announces the commit at once.
        """
        raft = self._raft
        first = raft.raftLastApplied + 1
        count = min(raft._SyncObj__raftCommitIndex + 1 - first, DELIVERED_AT_ONCE)
        if count <= 0:
            return False
        for entry in raft._SyncObj__getEntries(first, count):
            raft._SyncObj__doApplyCommand(entry[0])
            raft._SyncObj__raftLastApplied += 1
        return True

    def _on_committed(self, command: bytes) -> None:
        self._deliver(Index(self._raft.raftLastApplied + 1), command)

    def _on_engine_send(self, node: Node, message: dict[str, Any]) -> bool:
        typed = _from_engine(message, self.term)
        if typed is None:
            return False
        peer = NodeId(node.id)
        if not self._send(peer, typed):
            # The engine stops its loop over a backlog only for a node that is gone (H12o).
            self.disconnect(peer)
        return True


def _configuration(timing: Timing) -> SyncObjConf:
    longest_election = 2 * timing.election_timeout_seconds
    return SyncObjConf(
        autoTick=False,
        # False: an entry goes out and a commit is announced in the same tick, not a heartbeat later.
        appendEntriesUseBatch=False,
        appendEntriesPeriod=timing.heartbeat_seconds,
        appendEntriesBatchSizeBytes=_BATCH_BYTES,
        raftMinTimeout=timing.election_timeout_seconds,
        raftMaxTimeout=longest_election,
        connectionTimeout=longest_election,
        # Check-quorum: a leader that hears no majority for an election timeout steps down (H5).
        leaderFallbackTimeout=timing.election_timeout_seconds,
        commandsWaitLeader=False,
        dynamicMembershipChange=False,
        useFork=False,
        logCompactionMinEntries=_NEVER,
        logCompactionMinTime=_NEVER,
    )


def _from_engine(message: dict[str, Any], term: Term) -> Message | None:
    kind = message["type"]
    if kind == "append_entries":
        return _append_entries_from_engine(message)
    if kind == "next_node_idx":
        return AppendResult(term, message["next_node_idx"], message["reset"], message["success"])
    if kind == "request_vote":
        return RequestVote(message["term"], message["last_log_index"], message["last_log_term"])
    if kind == "response_vote":
        return Vote(message["term"])
    if kind == "timeout_now":
        return TimeoutNow(message["term"])
    if kind == "apply_command":
        # A command that reached the engine after leadership was lost: it is refused, never forwarded (H10).
        return None
    raise InvariantViolated(f"the engine sent an unexpected message of type {kind!r}")


def _append_entries_from_engine(message: dict[str, Any]) -> Message:
    if "transmission" in message:
        raise InvariantViolated("the engine tried to send an entry in pieces")
    if "prevLogIdx" not in message:
        return SnapshotHeartbeat(message["term"], message["commit_index"])
    return AppendEntries(
        message["term"],
        message["commit_index"],
        message["prevLogIdx"],
        message["prevLogTerm"],
        tuple(message["entries"]),
    )


def _to_engine(message: Message) -> dict[str, Any]:
    match message:
        case AppendEntries():
            return {
                "type": "append_entries",
                "term": message.term,
                "commit_index": message.commit_index,
                "prevLogIdx": message.prev_log_index,
                "prevLogTerm": message.prev_log_term,
                "entries": message.entries,
            }
        case AppendResult():
            return {
                "type": "next_node_idx",
                "next_node_idx": message.next_index,
                "reset": message.reset,
                "success": message.success,
            }
        case SnapshotHeartbeat():
            return {
                "type": "append_entries",
                "term": message.term,
                "commit_index": message.commit_index,
                "serialized": None,
            }
        case RequestVote():
            return {
                "type": "request_vote",
                "term": message.term,
                "last_log_index": message.last_log_index,
                "last_log_term": message.last_log_term,
            }
        case Vote():
            return {"type": "response_vote", "term": message.term}
        case TimeoutNow():
            return {"type": "timeout_now", "term": message.term}
        case _:
            raise InvariantViolated(f"{type(message).__name__} is not for the engine")
