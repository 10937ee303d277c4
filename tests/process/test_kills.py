"""Every acknowledged write survives kill -9 of a minority at any moment, and of all nodes at once."""

from __future__ import annotations

import asyncio
import os
import random
import time

import pytest

from raftkv.client import Client, ConditionNotMet, Found
from raftkv.errors import NotApplied, UnknownOutcome
from raftkv.types import Condition, Revision
from tests.process.cluster import ProcessCluster

KILLS = int(os.environ.get("TEST_KILLS", "30"))
WRITERS = 8
# Small enough that snapshots, compaction and catching up happen between the kills.
SNAPSHOT_FLAG = "--snapshot-journal-bytes=200000"

pytestmark = pytest.mark.process


class Writer:
    """Writes keys of its own and remembers what was acknowledged."""

    def __init__(self, number: int, seed: int) -> None:
        self.prefix = b"writer-%d/" % number
        self.acknowledged: dict[bytes, bytes] = {}
        self.refused: set[bytes] = set()
        self.counter = 0
        self.counter_floor = 0
        self._rng = random.Random(seed)

    async def run(self, client: Client, stop: asyncio.Event) -> None:
        sequence = 0
        while not stop.is_set():
            sequence += 1
            key, value = self.prefix + b"%06d" % sequence, self._rng.randbytes(300)
            try:
                await client.put(key, value, Condition(Revision(0)))
                self.acknowledged[key] = value
            except ConditionNotMet as error:
                raise AssertionError(f"a fresh key exists: {error}") from error
            except UnknownOutcome:
                continue
            except NotApplied:
                self.refused.add(key)
            await self._count(client)

    async def _count(self, client: Client) -> None:
        """Raise a counter by compare-and-swap: no acknowledged increment may be lost."""
        key = self.prefix + b"counter"
        try:
            found = await client.get(key)
            now = int(found.item.value) if isinstance(found, Found) else 0
            assert now >= self.counter_floor, "a linearizable read went back"
            self.counter_floor = now
            revision = found.item.mod_revision if isinstance(found, Found) else Revision(0)
            await client.put(key, b"%d" % (now + 1), Condition(revision))
            self.counter_floor = now + 1
        except (NotApplied, UnknownOutcome):
            return


def test_acknowledged_writes_survive_kills_at_random_moments(tmp_path):
    seed = int(os.environ.get("TEST_SEED", str(random.SystemRandom().randrange(10**6))))
    print(f"TEST_SEED={seed}")
    with ProcessCluster(tmp_path, 3, SNAPSHOT_FLAG) as cluster:
        writers = [Writer(number, seed + number) for number in range(WRITERS)]
        asyncio.run(_write_while_killing(cluster, writers, random.Random(seed)))
        asyncio.run(_check(cluster, writers))
    print(f"{sum(len(writer.acknowledged) for writer in writers)} acknowledged writes, {KILLS} kills")


async def _write_while_killing(cluster: ProcessCluster, writers: list[Writer], rng: random.Random) -> None:
    stop = asyncio.Event()
    async with Client(cluster.endpoints.split(","), timeout_seconds=20) as client, asyncio.TaskGroup() as tasks:
        for writer in writers:
            tasks.create_task(writer.run(client, stop))
        try:
            await asyncio.to_thread(_kill_at_random, cluster, rng)
        finally:
            stop.set()


def _kill_at_random(cluster: ProcessCluster, rng: random.Random) -> None:
    killed = 0
    while killed < KILLS:
        # What is random here is the moment of the kill; nothing is waited for.
        time.sleep(rng.uniform(0.0, 0.6))
        if rng.random() < 0.15:
            victims = list(cluster.nodes)
        elif rng.random() < 0.6:
            victims = [cluster.leader()]
        else:
            victims = [rng.choice(cluster.nodes)]
        for node in victims:
            node.process.kill()
        for node in victims:
            node.process.wait(10)
            killed += 1
        for node in victims:
            node.start()
        cluster.wait_ready()


async def _check(cluster: ProcessCluster, writers: list[Writer]) -> None:
    for node in cluster.nodes:
        async with Client([node.url], timeout_seconds=20) as client:
            for writer in writers:
                stored = {item.key: item.value async for item in client.list(writer.prefix)}
                missing = [key for key, value in writer.acknowledged.items() if stored.get(key) != value]
                assert not missing, f"{len(missing)} acknowledged writes are missing at {node.name}: {missing[:5]}"
                assert not writer.refused & stored.keys(), "a refused write was applied"
                assert int(stored.get(writer.prefix + b"counter", b"0")) >= writer.counter_floor
    assert sum(len(writer.acknowledged) for writer in writers) > KILLS
