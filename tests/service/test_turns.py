"""Turns: what whoever waits in a queue is told."""

from __future__ import annotations

import asyncio
import gc

from raftkv.errors import NoLeader, NotHeld
from raftkv.service.turns import Turn, Turns
from raftkv.types import Revision


class LosingTurns(Turns):
    """Queues in which key and lease of whoever waits are found to be gone at the same moment."""

    async def wait(self, turn: Turn) -> Revision:
        raise NotHeld("the key is gone")

    async def _keep_alive(self, lease: int) -> None:
        raise NotHeld("the lease is gone")


def test_of_two_ends_at_once_the_same_is_told_each_time():
    turns = LosingTurns(None, None, None)  # type: ignore[arg-type]

    async def told() -> str:
        try:
            await turns._wait_within(Turn(b"q/", b"q/1", 1, 1), None)
        except NotHeld as error:
            return str(error)
        raise AssertionError("nothing is told")

    async def told_often() -> list[str]:
        # At once, so that their tasks lie at many addresses.
        return await asyncio.gather(*(told() for _ in range(200)))

    assert set(asyncio.run(told_often())) == {"the key is gone"}


class SlowLeases:
    """Leases of which the end fails, when it is let go on."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()

    async def revoke(self, _lease: int) -> Revision:
        await self.gate.wait()
        raise NoLeader("leadership was lost")


async def test_error_of_withdrawal_that_fails_after_cancellation_is_retrieved():
    leases, errors = SlowLeases(), []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: errors.append(context))
    turns = Turns(None, leases, None)  # type: ignore[arg-type]
    withdrawing = asyncio.create_task(turns._withdraw(b"q/", 1, is_own_lease=True))
    await asyncio.sleep(0)
    withdrawing.cancel()
    await asyncio.gather(withdrawing, return_exceptions=True)
    leases.gate.set()
    for _ in range(3):
        await asyncio.sleep(0)
    gc.collect()
    assert errors == []
