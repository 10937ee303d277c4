"""What a node may hold in memory for its disk, its peers and its clients, however slow they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raftkv.consensus import core as core_module
from raftkv.consensus import engine, snapshot, snapshot_sender
from raftkv.operations import OperationResult, PutResult, RangeResult, TransactionResult
from raftkv.runtime import snapshot_transfers
from raftkv.service import watches
from tests.simulation import node as node_module
from tests.simulation.network import MAX_BUFFERED_BYTES, Network

if TYPE_CHECKING:
    from collections.abc import Iterable

    from raftkv.store.results import Result
    from raftkv.types import Index, NodeId
    from tests.simulation.node import SimulatedNode
    from tests.simulation.world import World

_LARGEST_ENTRY_BYTES = 4_000
_LARGEST_OUTCOME_BYTES = 600
_READ_AHEAD_BLOCKS = 2

MAX_WATCHES = 40
"""More than all clients of a run have: their watches, and those that wait for a lock."""

_EXPIRY_SECONDS = 0.5
"""A node refuses late reads at each of its timers: every 25 ms."""


class Bounds:
    """Checks the memory of nodes at each iteration, in a time that does not depend on how much they hold.

    Args:
        world: The cluster.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._late_since: dict[NodeId, float] = {}
        self._outcomes_checked_at: dict[NodeId, Index] = {}

    def check(self, node: SimulatedNode) -> None:
        """Note a violation when a node exceeds a bound."""
        if not node.is_up:
            # What was due when its process ended still comes.
            return
        self._check_log(node)
        self._check_peers(node)
        self._check_reads(node)
        self._check_watches(node)
        self._check_outcomes(node)
        self._check_transfers(node)

    def check_results(self, node: SimulatedNode, results: Iterable[Result]) -> None:
        """Note a violation when the result of a command has more keys than a transaction may visit."""
        for result in results:
            if isinstance(result, TransactionResult):
                self._limit(node, _keys_in(result), "keys in a result", node_module.MAX_VISITED_KEYS)

    def _limit(self, node: SimulatedNode, size: int, what: str, bound: int) -> None:
        if size > bound:
            self._world.violate(f"{node.name} holds {size} {what}, more than {bound}", is_local=True)

    def _check_log(self, node: SimulatedNode) -> None:
        limits, proposer = node_module.REPLICA_SETTINGS.proposer, node.replica.proposer
        unsynced = core_module.MAX_UNSYNCED_BYTES + 3 * core_module.PEER_WINDOW_BYTES
        self._limit(node, node.storage.journal.unsynced_bytes, "unsynced journal bytes", unsynced)
        self._limit(node, proposer.pending_commands, "pending commands", limits.pending_commands)
        self._limit(node, proposer.pending_bytes, "bytes of pending commands", limits.pending_bytes)

    def _check_peers(self, node: SimulatedNode) -> None:
        message = engine._BATCH_BYTES + _LARGEST_ENTRY_BYTES
        window, buffer = core_module.PEER_WINDOW_BYTES + message, MAX_BUFFERED_BYTES + message
        network, name, core = self._world.network, node.name, node.core
        in_flight_bytes = core.in_flight_bytes
        connections = network.connections if isinstance(network, Network) else {}
        for peer in core.configuration.others(name):
            if (size := in_flight_bytes(peer)) > window:
                self._limit(node, size, f"bytes in flight to {peer}", window)
            connection = connections.get((name, peer))
            if connection is not None and (size := connection.buffered_bytes) > buffer:
                self._limit(node, size, f"bytes buffered for {peer}", buffer)

    def _check_reads(self, node: SimulatedNode) -> None:
        """Check that reads end with their timeout, which bounds their number, and leave nothing in the core."""
        gate, name = node.replica.gate, node.name
        asked, confirmed = gate._asked, gate._confirmed
        # A follower has a read index request in the present round, and repeats it for the next one.
        of_peers = 2 * (len(self._world.nodes) - 1)
        self._limit(node, node.core._barrier.number_waiting, "reads in its core", len(asked) + of_peers)
        # Both are in the order of their deadlines, or nearly: what is never removed comes to the front.
        first = next(iter(asked.values()), None)
        deadlines = [batch.deadline for batch in (first, confirmed[0][1] if confirmed else None) if batch is not None]
        if not deadlines or min(deadlines) > node.clock.now():
            self._late_since.pop(name, None)
            return
        # A clock that jumps makes many reads late at once: they are refused at the next timer.
        now = self._world.loop.time()
        if now - self._late_since.setdefault(name, now) > _EXPIRY_SECONDS:
            self._world.violate(f"{name} holds reads that are later than their timeout", is_local=True)

    def _check_watches(self, node: SimulatedNode) -> None:
        hub = node.replica.watches
        recent = hub._recent
        self._limit(node, hub.number_waiting + len(hub._due), "watches", MAX_WATCHES)
        # Those that went are removed from the list when they are as many as may stay.
        self._limit(node, len(recent._changes), "recent changes", 2 * watches._RECENT_CHANGES)
        self._limit(node, recent._bytes, "bytes of recent changes", watches._RECENT_BYTES)
        self._limit(node, len(recent._events), "decoded events", len(recent._changes) - recent._begin)

    def _check_outcomes(self, node: SimulatedNode) -> None:
        machine = node.storage.machine
        index = machine.applied_index
        if self._outcomes_checked_at.get(node.name) == index:
            return
        self._outcomes_checked_at[node.name] = index
        limits = [each.settings.outcome_bytes for each in self._world.nodes.values()]
        if all(limits):
            # The last result that still has room may exceed the bound of the leader that proposed it.
            bound = max(limits) + _LARGEST_OUTCOME_BYTES
            self._limit(node, machine.outcome_bytes, "bytes of idempotency outcomes", bound)

    def _check_transfers(self, node: SimulatedNode) -> None:
        block = snapshot_transfers._BLOCK_CHUNKS * snapshot.CHUNK_BYTES
        for peer, transfer in node.keeper.transfers._transfers.items():
            chunks = len(transfer.sender._in_flight)
            self._limit(node, chunks, f"snapshot chunks in flight to {peer}", snapshot_sender.MAX_WINDOW_CHUNKS)
            blocks = [transfer.reader._current, transfer.reader._ahead]
            size = sum(len(each.data) for each in blocks if each is not None)
            self._limit(node, size, f"bytes of a snapshot read ahead for {peer}", _READ_AHEAD_BLOCKS * block)


def _keys_in(result: OperationResult) -> int:
    if isinstance(result, TransactionResult):
        return sum(map(_keys_in, result.results))
    if isinstance(result, PutResult):
        return int(result.previous is not None)
    return len(result.items if isinstance(result, RangeResult) else result.previous)
