"""Linearizable reads: who waits for what, and how waiting ends."""

from __future__ import annotations

import asyncio

import pytest

from raftkv.errors import LogsContradict, NoLeader, ReadTimeout, ShuttingDown
from raftkv.service.reads import ReadGate
from raftkv.types import Index
from tests.consensus.harness import ManualClock


class Fixture:
    def __init__(self) -> None:
        self.requested: list[int] = []
        self.forgotten: list[int] = []
        self.leader = True
        self.clock = ManualClock()
        self.gate = ReadGate(self, self.clock, 5.0, lambda: self.leader, lambda: None)

    def request_read(self, token):
        self.requested.append(token)

    def forget_reads(self, tokens):
        self.forgotten += tokens

    async def start(self, count: int = 1) -> list[asyncio.Task]:
        tasks = [asyncio.ensure_future(self.gate.wait()) for _ in range(count)]
        await asyncio.sleep(0)
        return tasks


async def test_reads_of_one_turn_share_one_question():
    fixture = Fixture()
    tasks = await fixture.start(5)
    fixture.gate.flush()
    fixture.gate.flush()
    assert fixture.requested == [1]
    fixture.gate.confirmed([(1, Index(7))])
    fixture.gate.applied(Index(6))
    await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)
    fixture.gate.applied(Index(7))
    await asyncio.gather(*tasks)


async def test_a_read_after_the_question_waits_for_the_next():
    fixture = Fixture()
    (first,) = await fixture.start()
    fixture.gate.flush()
    (second,) = await fixture.start()
    fixture.gate.confirmed([(1, Index(1))])
    fixture.gate.applied(Index(1))
    await first
    assert not second.done()
    fixture.gate.flush()
    fixture.gate.confirmed([(2, Index(1)), (99, Index(1))])
    fixture.gate.applied(Index(1))
    await second


@pytest.mark.parametrize(("leader", "error"), [(True, ReadTimeout), (False, NoLeader)])
async def test_a_read_that_is_not_confirmed_in_time_is_refused(leader, error):
    fixture = Fixture()
    fixture.leader = leader
    (unconfirmed,) = await fixture.start()
    fixture.gate.flush()
    (unapplied,) = await fixture.start()
    fixture.gate.flush()
    fixture.gate.confirmed([(2, Index(9))])
    fixture.clock.time += 6
    fixture.gate.expire()
    for task in (unconfirmed, unapplied):
        with pytest.raises(error):
            await task
    assert fixture.forgotten == [1]


async def test_all_reads_can_be_refused_at_once_and_later_ones_go_on():
    fixture = Fixture()
    (asked,) = await fixture.start()
    fixture.gate.flush()
    (confirmed,) = await fixture.start()
    fixture.gate.flush()
    fixture.gate.confirmed([(2, Index(9))])
    fixture.gate.refuse_all(LogsContradict("a contradicts b"))
    for task in (asked, confirmed):
        with pytest.raises(LogsContradict, match="a contradicts b"):
            await task
    assert fixture.forgotten == [1]
    (later,) = await fixture.start()
    fixture.gate.flush()
    fixture.gate.confirmed([(3, Index(1))])
    fixture.gate.applied(Index(1))
    await later


async def test_a_stop_refuses_everything_now_and_later():
    fixture = Fixture()
    (asked,) = await fixture.start()
    fixture.gate.flush()
    (confirmed,) = await fixture.start()
    fixture.gate.flush()
    fixture.gate.confirmed([(2, Index(9))])
    (collecting,) = await fixture.start()
    fixture.gate.stop()
    for task in (asked, confirmed, collecting):
        with pytest.raises(ShuttingDown):
            await task
    with pytest.raises(ShuttingDown):
        await fixture.gate.wait()


async def test_a_cancelled_reader_does_not_take_the_others_along():
    fixture = Fixture()
    gone, there = await fixture.start(2)
    fixture.gate.flush()
    gone.cancel()
    await asyncio.sleep(0)
    fixture.gate.confirmed([(1, Index(1))])
    fixture.gate.applied(Index(1))
    await there


async def test_reads_of_entries_that_cannot_be_applied_are_refused_and_others_go_on():
    fixture = Fixture()
    (confirmed,) = await fixture.start()
    fixture.gate.flush()
    (asked,) = await fixture.start()
    fixture.gate.flush()
    fixture.gate.confirmed([(1, Index(9))])
    fixture.gate.refuse_unapplied("the disk does not answer")
    with pytest.raises(ReadTimeout, match="the disk does not answer"):
        await confirmed
    assert not asked.done()
    fixture.gate.confirmed([(2, Index(8))])
    fixture.gate.applied(Index(8))
    await asked
