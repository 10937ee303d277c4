"""Virtual streams, without a node."""

from __future__ import annotations

import asyncio
import random

from raftkv.types import NodeId
from tests.simulation.loop import SimulationLoop
from tests.simulation.network import Weather
from tests.simulation.streams import Owner, Streams

_STREAMS = 50


class Noting(asyncio.Protocol):
    """Notes when its stream is lost."""

    def __init__(self, number: int, lost: list[int]) -> None:
        self._number = number
        self._lost = lost

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost.append(self._number)


def test_streams_of_one_process_are_reset_in_the_order_in_which_they_began():
    loop = SimulationLoop()
    owner = Owner(NodeId("n1"), lambda: True, lambda action, *arguments: action(*arguments))
    streams = Streams(loop, random.Random(1), Weather(), lambda: owner)
    lost: list[int] = []

    async def open_and_close() -> None:
        await streams.create_server(asyncio.Protocol, "n1", 1)
        for number in range(_STREAMS):
            await streams.create_connection(lambda number=number: Noting(number, lost), "host1", 1)
        streams.break_between(owner.name, owner.name)
        await asyncio.sleep(1)

    loop.run_until_complete(open_and_close())
    loop.close()
    assert lost == list(range(_STREAMS))
