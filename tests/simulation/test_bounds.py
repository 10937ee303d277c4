"""The bounds on a node's memory: scenarios that reach each of them, and mistakes by which each is exceeded."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from raftkv.consensus import snapshot_sender
from raftkv.consensus.barrier import ReadBarrier, _RemoteRead
from raftkv.consensus.messages import Message, ReadPong
from raftkv.consensus.snapshot_sender import SnapshotSender
from raftkv.errors import InvalidRequest, OutcomesFull, Overloaded, RaftkvError
from raftkv.operations import Idempotency, KeySpan, PutOperation, RangeQuery, Safeguards, Transaction, Watch
from raftkv.runtime.snapshot_reader import SnapshotReader
from raftkv.service import watches
from raftkv.service.proposer import ProposerLimits
from raftkv.service.reads import ReadGate
from raftkv.service.watches import WatchHub
from raftkv.store.allowance import Allowance
from raftkv.store.outcomes import OutcomeWriter
from raftkv.types import NodeId
from tests.simulation import node as node_module
from tests.simulation.bounds import MAX_WATCHES
from tests.simulation.catch_up import CatchUp
from tests.simulation.node import NodeSettings, SimulatedNode
from tests.simulation.world import Plan, World

_PENDING_COMMANDS = 10
_PENDING_BYTES = 2_000
_OUTCOME_BYTES = 1_500
_RECENT_CHANGES = 20
_RECENT_BYTES = 4_000


class Scenario(World):
    """A cluster of three without faults, of which one queue of one node is filled.

    Attributes:
        refused: Operations that were refused.
    """

    def __init__(self) -> None:
        super().__init__(Plan(1, 3, faults=frozenset(), has_features=False))
        self.refused = 0

    async def _run(self) -> None:
        for node in self.nodes.values():
            node.start()
        while not (leaders := [node for node in self.nodes.values() if node.leads]):  # noqa: ASYNC110 - virtual time
            await asyncio.sleep(0.05)
        await leaders[0].kv.put(b"key", b"value")
        await self.fill(leaders[0], [node for node in self.nodes.values() if node is not leaders[0]])
        self.raise_violation()

    async def fill(self, leader: SimulatedNode, followers: list[SimulatedNode]) -> None:
        """Fill the queue."""
        raise NotImplementedError

    async def _read(self, node: SimulatedNode) -> None:
        try:
            await node.kv.get(b"key")
        except RaftkvError:
            self.refused += 1

    async def _read_for(self, node: SimulatedNode, seconds: float) -> None:
        end = self.loop.time() + seconds
        reads = set()
        while self.loop.time() < end:
            reads.add(self.loop.create_task(self._read(node)))
            await asyncio.sleep(0.05)
            self.raise_violation()
        await asyncio.gather(*reads)


def violation_of(scenario: World) -> str:
    return scenario.run().violation or "none"


class LonelyReads(Scenario):
    """Reads at a node that has lost both others."""

    async def fill(self, leader: SimulatedNode, followers: list[SimulatedNode]) -> None:
        for node in (leader, followers[0]):
            node.crash(power_loss=False)
        await self._read_for(followers[1], 10.0)


def test_reads_without_a_leader_end_with_their_timeout():
    scenario = LonelyReads()
    assert violation_of(scenario) == "none"
    assert scenario.refused > 150


def test_reads_that_never_expire_are_found(monkeypatch):
    monkeypatch.setattr(ReadGate, "expire", lambda _gate: None)
    assert "reads that are later than their timeout" in violation_of(LonelyReads())


def test_expired_reads_that_stay_in_the_core_are_found(monkeypatch):
    monkeypatch.setattr(ReadBarrier, "forget", lambda *_: None)
    assert "reads in its core" in violation_of(LonelyReads())


class RepeatedRequests(Scenario):
    """Reads at a follower whose leader is confirmed by no other node: requests for a read index are repeated."""

    is_leader_confirmed = True
    requests = 0

    def _deliver(self, source: NodeId, target: NodeId, message: Message) -> None:
        if self.is_leader_confirmed or not isinstance(message, ReadPong):
            super()._deliver(source, target, message)

    def on_turn(self, node: SimulatedNode) -> None:
        super().on_turn(node)
        waiting = node.core._barrier._waiting
        self.requests = max(self.requests, sum(isinstance(read, _RemoteRead) for read in waiting))

    async def fill(self, leader: SimulatedNode, followers: list[SimulatedNode]) -> None:
        self.is_leader_confirmed = False
        await self._read_for(followers[0], 5.0)
        self.is_leader_confirmed = True
        await followers[0].kv.get(b"key")


def test_repeated_request_for_a_read_index_waits_once():
    scenario = RepeatedRequests()
    assert violation_of(scenario) == "none"
    assert scenario.refused > 20
    assert scenario.requests == 1


def test_repeated_requests_for_a_read_index_that_add_up_are_found(monkeypatch):
    def receive_request(self, peer, request, _view):
        self._waiting.append(_RemoteRead(peer, request.request_id))
        return []

    monkeypatch.setattr(ReadBarrier, "receive_request", receive_request)
    assert "reads in its core" in violation_of(RepeatedRequests())


class AbandonedWatches(Scenario):
    """Clients that begin to watch, one after the other, and go."""

    async def fill(self, leader: SimulatedNode, followers: list[SimulatedNode]) -> None:
        hub = leader.replica.watches
        for _ in range(MAX_WATCHES + 10):
            watching = self.loop.create_task(hub.open(Watch(KeySpan.prefix(b"key"))).next())
            await asyncio.sleep(0.1)
            watching.cancel()
            self.raise_violation()


def test_watches_end_with_their_clients():
    assert violation_of(AbandonedWatches()) == "none"


def test_watches_that_stay_when_their_clients_are_gone_are_found(monkeypatch):
    async def wait(self, watcher):
        woken = watcher.begin_waiting()
        self._waiting.add(watcher)
        await woken

    monkeypatch.setattr(WatchHub, "wait", wait)
    assert "watches, more than" in violation_of(AbandonedWatches())


class Changes(Scenario):
    """More changes than are kept in memory, and a watch that reads them.

    Args:
        value_bytes: Size of each value.
    """

    def __init__(self, value_bytes: int) -> None:
        super().__init__()
        self._value = bytes(value_bytes)

    async def fill(self, leader: SimulatedNode, followers: list[SimulatedNode]) -> None:
        watching = self.loop.create_task(self._watch(leader))
        for _ in range(3 * _RECENT_CHANGES):
            await leader.kv.put(b"key", self._value)
            self.raise_violation()
        watching.cancel()

    async def _watch(self, node: SimulatedNode) -> None:
        watcher = node.replica.watches.open(Watch(KeySpan.prefix(b"key")))
        while True:
            await watcher.next()


@pytest.fixture
def _few_recent_changes(monkeypatch):
    monkeypatch.setattr(watches, "_RECENT_CHANGES", _RECENT_CHANGES)
    monkeypatch.setattr(watches, "_RECENT_BYTES", _RECENT_BYTES)


@pytest.mark.usefixtures("_few_recent_changes")
@pytest.mark.parametrize("value_bytes", [1, 1_000])
def test_recent_changes_are_bounded_in_number_and_bytes(value_bytes):
    assert violation_of(Changes(value_bytes)) == "none"


@pytest.mark.usefixtures("_few_recent_changes")
@pytest.mark.parametrize(("value_bytes", "found"), [(1, "recent changes"), (1_000, "bytes of recent changes")])
def test_recent_changes_without_a_bound_are_found(monkeypatch, value_bytes, found):
    def add(self, changes):
        self._changes.extend(changes)
        self._bytes += sum(len(record) for _place, record in changes)

    monkeypatch.setattr(watches._RecentChanges, "add", add)
    assert found in violation_of(Changes(value_bytes))


@pytest.mark.usefixtures("_few_recent_changes")
def test_decoded_events_that_outlive_their_changes_are_found(monkeypatch):
    class Leak(dict):
        def pop(self, *_):
            return None

    create = watches._RecentChanges.__init__

    def leaking(self, first):
        create(self, first)
        self._events = Leak()

    monkeypatch.setattr(watches._RecentChanges, "__init__", leaking)
    assert "decoded events" in violation_of(Changes(1))


class Outcomes(Scenario):
    """More writes under idempotency keys than there is room for their outcomes."""

    def settings_of(self, name: NodeId) -> NodeSettings:
        """Return settings under which outcomes are kept for long, and few of them."""
        return NodeSettings(outcome_bytes=_OUTCOME_BYTES)

    async def fill(self, leader: SimulatedNode, followers: list[SimulatedNode]) -> None:
        for number in range(60):
            token = b"%016d" % number
            try:
                await leader.kv.put(b"key", token, safeguards=Safeguards(idempotency=Idempotency(token, token)))
            except OutcomesFull:
                self.refused += 1
            self.raise_violation()


def test_idempotency_outcomes_are_bounded():
    scenario = Outcomes()
    assert violation_of(scenario) == "none"
    assert scenario.refused > 20


def test_idempotency_outcomes_without_a_bound_are_found(monkeypatch):
    monkeypatch.setattr(OutcomeWriter, "has_room", lambda *_: True)
    assert "bytes of idempotency outcomes" in violation_of(Outcomes())


class LongResults(Scenario):
    """Transactions of ranges over a few keys, which read them again and again."""

    async def fill(self, leader: SimulatedNode, followers: list[SimulatedNode]) -> None:
        put, everything = PutOperation(b"key", b"value"), RangeQuery(KeySpan(b"", None))
        for number in range(8):
            await leader.kv.put(b"key %d" % number, b"value")
            try:
                await leader.store.transact(Transaction((), (put, *[everything] * (number * 2)), ()))
            except InvalidRequest:
                self.refused += 1
            self.raise_violation()


def test_results_of_transactions_are_bounded():
    scenario = LongResults()
    assert violation_of(scenario) == "none"
    assert 0 < scenario.refused < 8


def test_results_of_transactions_without_a_bound_are_found(monkeypatch):
    monkeypatch.setattr(Allowance, "visit", lambda *_: None)
    monkeypatch.setattr(Allowance, "count", lambda *_: None)
    assert "keys in a result" in violation_of(LongResults())


class PendingWrites(Scenario):
    """Writes at a leader that has lost both followers.

    Args:
        value_bytes: Size of each value.
        limits: Bounds of the leader's proposer, None for those of the settings.
    """

    def __init__(self, value_bytes: int, limits: ProposerLimits | None = None) -> None:
        super().__init__()
        self._value = bytes(value_bytes)
        self._limits = limits

    async def fill(self, leader: SimulatedNode, followers: list[SimulatedNode]) -> None:
        proposer = leader.replica.proposer
        proposer._limits = self._limits or proposer._limits
        for node in followers:
            node.crash(power_loss=False)
        writes = [self.loop.create_task(self._put(leader)) for _ in range(3 * _PENDING_COMMANDS)]
        await asyncio.sleep(0.2)
        self.raise_violation()
        for write in writes:
            write.cancel()

    async def _put(self, leader: SimulatedNode) -> None:
        try:
            await leader.kv.put(b"key", self._value)
        except Overloaded:
            self.refused += 1


@pytest.fixture
def _few_pending_commands(monkeypatch):
    limits = replace(
        node_module.REPLICA_SETTINGS.proposer, pending_commands=_PENDING_COMMANDS, pending_bytes=_PENDING_BYTES
    )
    monkeypatch.setattr(node_module, "REPLICA_SETTINGS", replace(node_module.REPLICA_SETTINGS, proposer=limits))


@pytest.mark.usefixtures("_few_pending_commands")
@pytest.mark.parametrize("value_bytes", [1, 1_000])
def test_pending_commands_are_bounded_in_number_and_bytes(value_bytes):
    scenario = PendingWrites(value_bytes)
    assert violation_of(scenario) == "none"
    assert scenario.refused >= 2 * _PENDING_COMMANDS


@pytest.mark.usefixtures("_few_pending_commands")
@pytest.mark.parametrize(("value_bytes", "found"), [(1, "pending commands"), (1_000, "bytes of pending commands")])
def test_pending_commands_without_a_bound_are_found(value_bytes, found):
    generous = ProposerLimits(pending_commands=_PENDING_COMMANDS if value_bytes > 1 else 1_000)
    assert found in violation_of(PendingWrites(value_bytes, generous))


@pytest.fixture
def _small_window(monkeypatch):
    # Each chunk carries the manifest, so the send buffer of a virtual connection holds 23 of them.
    monkeypatch.setattr(snapshot_sender, "MAX_WINDOW_CHUNKS", 8)


def lagging_member() -> CatchUp:
    return CatchUp(1, 60_000, 40_000.0, writes_per_second=0.1)


@pytest.mark.usefixtures("_small_window")
def test_snapshot_window_without_a_bound_is_found(monkeypatch):
    def grow(self, _seconds):
        self._window_chunks += 1

    monkeypatch.setattr(SnapshotSender, "_adapt_window", grow)
    assert "snapshot chunks in flight" in violation_of(lagging_member())


def test_snapshot_that_is_read_ahead_as_a_whole_is_found(monkeypatch):
    create = SnapshotReader.__init__

    def reading_all(self, read, size, _block_bytes, worker, ready):
        create(self, read, size, size, worker, ready)

    monkeypatch.setattr(SnapshotReader, "__init__", reading_all)
    assert "bytes of a snapshot read ahead" in violation_of(lagging_member())


@pytest.mark.usefixtures("_small_window")
def test_snapshot_to_a_lagging_member_stays_within_its_bounds():
    world = lagging_member()
    assert violation_of(world) == "none"
    assert world.way is not None
    assert world.way.chunks > 100
