"""A request that takes long to parse holds nothing up at its node, since it is parsed in slices."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from raftkv.http.slicing import Counter
from tests.simulation.http_client import request
from tests.simulation.node import HEARTBEAT_SECONDS, MAX_HOLD_SECONDS, SimulatedNode
from tests.simulation.parsing import PART_KB, PARTS_AT_ONCE, SECONDS_PER_KB, arrival_seconds
from tests.simulation.world import Plan, World

_NESTED, _PUTS = 32, 120
_SECONDS_PER_KB = max(SECONDS_PER_KB)
_SLICE_SECONDS = PARTS_AT_ONCE * PART_KB * _SECONDS_PER_KB


def large_request() -> bytes:
    """Return a transaction of some 4,000 parts that is refused when all of it was read: its last key is there twice."""
    keys = [f"key-{number}" for number in range(_NESTED * _PUTS)]
    keys[-1] = keys[0]
    puts = [{"put": {"key": key, "value": ""}} for key in keys]
    nested = [{"txn": {"then": puts[begin : begin + _PUTS]}} for begin in range(0, len(puts), _PUTS)]
    return orjson.dumps({"then": nested})


class LargeRequest(World):
    """Sends a large request to the leader, and measures what a follower hears of it meanwhile.

    Attributes:
        status: Status of the answer.
        seconds: Time until the answer.
        longest_silence: Longest time between two messages of the leader.
        terms: Terms from the request to the answer.
        violation: The first violation.
    """

    def __init__(self) -> None:
        super().__init__(Plan(1, 3, faults=frozenset(), has_features=False, is_wired=True))
        self.parse_seconds_per_kb = _SECONDS_PER_KB
        self.status = 0
        self.seconds = 0.0
        self.longest_silence = 0.0
        self.terms = 0
        self.violation: str | None = None
        self._pair: tuple[SimulatedNode, SimulatedNode] | None = None
        self._heard_at = 0.0

    def violate(self, what: str, *, is_local: bool = False) -> None:
        """Note a violation, and go on after it."""
        self.violation = self.violation or what

    def on_turn(self, node: SimulatedNode) -> None:
        super().on_turn(node)
        if self._pair is None or node is not self._pair[1]:
            return
        heard_at = node.heard.get(self._pair[0].name, 0.0)
        if self._heard_at:
            self.longest_silence = max(self.longest_silence, heard_at - self._heard_at)
        self._heard_at = heard_at

    async def _run(self) -> None:
        for node in self.nodes.values():
            node.start()
        while not (leaders := [node for node in self.nodes.values() if node.leads]):  # noqa: ASYNC110 - virtual time
            await asyncio.sleep(0.05)
        await asyncio.sleep(2.0)
        (leader,) = leaders
        self._pair = leader, next(node for node in self.nodes.values() if node is not leader)
        term, began = leader.core.term, self.loop.time()
        self.status, _, _ = await request(self.loop, leader.name, "POST", "/v1/txn", {}, large_request())
        self.seconds = self.loop.time() - began
        await asyncio.sleep(2.0)
        self.terms = max(node.core.term for node in self.nodes.values()) - term + 1


@pytest.fixture(scope="module")
def sliced():
    world = LargeRequest()
    world.run()
    return world


def test_parsing_takes_time_in_proportion_to_its_size(sliced):
    assert sliced.status == 400
    # One pass reads it, and two look for keys that are there twice: among those that it deletes, and that it puts.
    expected = 3 * _NESTED * _PUTS * PART_KB * _SECONDS_PER_KB
    assert expected > 5.0
    assert expected < sliced.seconds < 1.2 * expected


def test_large_request_delays_heartbeats_by_no_more_than_a_slice(sliced):
    assert sliced.violation is None
    # A heartbeat is due at a timer, four of which go into its period.
    period = 1.25 * HEARTBEAT_SECONDS
    latency, arrival = 0.02, arrival_seconds(len(large_request()), _SECONDS_PER_KB)
    assert sliced.longest_silence < period + latency + arrival + _SLICE_SECONDS
    assert sliced.terms == 1


def test_request_that_is_parsed_at_once_delays_heartbeats_and_is_found(monkeypatch):
    monkeypatch.setattr(Counter, "is_full", lambda _counter: False)
    world = LargeRequest()
    world.run()
    assert world.longest_silence > 10 * MAX_HOLD_SECONDS
    assert world.terms > 1
    assert "holds its event loop" in (world.violation or "")
