"""No long read or write holds the event loop: on a real LMDB store of many keys.

``tests/conftest.py`` fails each test in which a callback takes longer than its bound.
"""

from __future__ import annotations

import asyncio

import pytest

from raftkv.operations import (
    Compare,
    CompareTarget,
    KeySpan,
    RangeQuery,
    Relation,
    SortOrder,
    SortTarget,
    Transaction,
)
from raftkv.runtime.clock import RealClock
from raftkv.service.slices import SlicePolicy, Slices
from raftkv.store.commands import Put, encode_commands
from raftkv.store.lmdb_backend import LmdbBackend
from raftkv.store.machine import CommittedEntry, Machine
from raftkv.types import ClusterId, Index, Term
from tests.loop_watch import HELD_SECONDS, LoopWatch

KEYS = 100_000
PUTS_AT_ONCE = 1000
ALL = KeySpan(b"", None)
COMPARE_ALL = Compare(ALL, CompareTarget.VALUE, Relation.NOT_EQUAL, b"other")

READS = {
    "all keys": lambda machine: machine.range_steps(RangeQuery(ALL)),
    "the number of keys": lambda machine: machine.range_steps(RangeQuery(ALL, count_only=True)),
    "one key of many": lambda machine: machine.range_steps(RangeQuery(ALL, limit=1)),
    "the newest key": lambda machine: machine.range_steps(
        RangeQuery(ALL, limit=1, target=SortTarget.MOD, order=SortOrder.DESCEND)
    ),
    "all keys by value": lambda machine: machine.range_steps(RangeQuery(ALL, target=SortTarget.VALUE)),
    "a read-only transaction": lambda machine: machine.evaluate_steps(
        Transaction((COMPARE_ALL,), (RangeQuery(ALL),), ())
    ),
}


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    machine = Machine(LmdbBackend(tmp_path_factory.mktemp("store")), ClusterId("0123456789abcdef"))
    for start in range(0, KEYS, PUTS_AT_ONCE):
        puts = [Put(b"key-%08d" % (number * 7919 % KEYS), b"v" * 50) for number in range(start, start + PUTS_AT_ONCE)]
        machine.apply([CommittedEntry(Index(machine.applied_index + 1), Term(1), encode_commands(puts))])
        machine.take_changes()
    yield machine
    machine.close()


@pytest.mark.parametrize("name", READS)
async def test_long_read_does_not_hold_the_loop(machine, name):
    slices = Slices(RealClock(), SlicePolicy())
    result = await slices.run(READS[name](machine))
    counts = [part.count for part in getattr(result, "results", [])] or [result.result.count]
    assert set(counts) == {KEYS}


async def test_many_long_reads_at_once_do_not_hold_the_loop(machine):
    slices = Slices(RealClock(), SlicePolicy())
    query = RangeQuery(ALL, count_only=True)
    results = await asyncio.gather(*(slices.run(machine.range_steps(query)) for _ in range(20)))
    assert {found.result.count for found in results} == {KEYS}


@pytest.mark.holds_loop
async def test_the_bound_is_one_that_a_read_at_once_exceeds(machine):
    async def read_at_once():
        return machine.evaluate(Transaction((COMPARE_ALL,), (RangeQuery(ALL),), ()))

    with LoopWatch() as watch:
        await asyncio.create_task(read_at_once())
    assert watch.held_seconds > HELD_SECONDS
