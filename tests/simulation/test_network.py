"""The virtual network: order, bandwidth, buffers and who can dial, without a node."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from raftkv.consensus.messages import Message, ReadPing, SnapshotChunk, encode
from raftkv.types import NodeId
from tests.simulation.loop import SimulationLoop
from tests.simulation.network import CONGESTED_BYTES, DRAINED_BYTES, FRAME_HEAD_BYTES, MAX_BUFFERED_BYTES, Network

A, B = NodeId("a"), NodeId("b")
LINK = (A, B)


class Rig:
    """A network of two nodes that only note what happens to them."""

    def __init__(self) -> None:
        self.loop = SimulationLoop()
        self.arrived: list[tuple[float, Message]] = []
        self.congestion: list[bool] = []
        self.network = Network(
            self.loop,
            random.Random(7),
            [A, B],
            lambda _source, _target, message: self.arrived.append((self.loop.time(), message)),
            lambda _source, _target: None,
            lambda _source, _target: None,
            lambda _name: True,
            lambda _source, _target: True,
            lambda _source, _target, is_congested: self.congestion.append(is_congested),
        )

    def run(self, seconds: float) -> None:
        """Let virtual time pass."""
        self.loop.call_later(seconds, self.loop.stop)
        self.loop.run_forever()

    def send(self, message: Message) -> bool:
        return self.network.send(A, B, message)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    rig.run(0.2)
    yield rig
    rig.loop.close()


def chunk(size: int) -> SnapshotChunk:
    return SnapshotChunk(1, 9, 1, b"", 0, bytes(size), last=False)


def rounds(rig: Rig) -> list[int]:
    return [message.round for _time, message in rig.arrived if isinstance(message, ReadPing)]


def test_messages_that_arrive_at_the_same_time_keep_their_order(rig: Rig) -> None:
    for number in range(200):
        assert rig.send(ReadPing(1, number))
    rig.run(1.0)
    assert len({time for time, _message in rig.arrived}) < 200, "none of them arrive at the same time"
    assert rounds(rig) == list(range(200))


def test_messages_keep_their_order_behind_a_cut_link(rig: Rig) -> None:
    rig.network.weather.cut.add(LINK)
    rig.send(ReadPing(1, 0))
    rig.network.weather.cut.clear()
    rig.send(ReadPing(1, 1))
    rig.run(1.0)
    assert rounds(rig) == [0, 1]


def test_bandwidth_delays_what_waits_behind_earlier_messages(rig: Rig) -> None:
    size = FRAME_HEAD_BYTES + len(encode(ReadPing(1, 0)))
    rig.network.weather.bandwidth[LINK] = 10.0 * size
    began = rig.loop.time()
    for number in range(20):
        rig.send(ReadPing(1, number))
    rig.run(3.0)
    times = [time - began for time, _message in rig.arrived]
    assert rounds(rig) == list(range(20))
    assert times == pytest.approx([0.1 * (number + 1) for number in range(20)], abs=0.02)


def test_a_full_send_buffer_is_reported_and_then_refuses(rig: Rig) -> None:
    size = FRAME_HEAD_BYTES + len(encode(ReadPing(1, 0)))
    rig.network.weather.bandwidth[LINK] = 1_000.0
    for _ in range(CONGESTED_BYTES // size + 1):
        assert rig.send(ReadPing(1, 0))
    rig.run(0.001)
    assert rig.congestion == [True]
    while rig.send(ReadPing(1, 0)):
        pass
    assert rig.network.buffered_bytes(A, B) >= MAX_BUFFERED_BYTES
    rig.run((MAX_BUFFERED_BYTES - DRAINED_BYTES) / 1_000.0 + 1.0)
    assert rig.congestion == [True, False]


def test_heartbeats_do_not_wait_behind_a_snapshot(rig: Rig) -> None:
    rig.network.weather.bandwidth[LINK] = 1_000.0
    assert not rig.send(chunk(5_000)), "its connection is dialled only now"
    rig.run(0.2)
    assert rig.send(chunk(5_000))
    rig.send(ReadPing(1, 1))
    rig.run(1.0)
    assert rounds(rig) == [1]
    rig.run(5.0)
    assert len(rig.arrived) == 2


def test_an_undialable_link_keeps_its_connection_until_it_breaks(rig: Rig) -> None:
    rig.network.weather.undialable.add(LINK)
    assert rig.send(ReadPing(1, 0))
    rig.network.break_link(*LINK)
    rig.run(2.0)
    assert not rig.send(ReadPing(1, 1))
    assert rig.network.send(B, A, ReadPing(1, 2)), "the other direction is not affected"
    rig.network.weather.undialable.clear()
    rig.run(1.0)
    assert rig.send(ReadPing(1, 3))
