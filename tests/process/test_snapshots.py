"""Snapshots of real nodes: the journal stays bounded, laggards catch up, restarts do not replay history."""

from __future__ import annotations

import asyncio
import re
import time

import pytest

from raftkv.client import Client
from tests.process.cluster import ProcessCluster

pytestmark = pytest.mark.process

JOURNAL_BYTES = 400_000


async def write_many(endpoints: str, first: int, count: int) -> None:
    async with Client(endpoints.split(","), timeout_seconds=20) as client, asyncio.TaskGroup() as tasks:
        numbers = iter(range(first, first + count))

        async def work() -> None:
            for number in numbers:
                await client.put(b"key/%06d" % number, b"%06d" % number * 200)

        for _ in range(16):
            tasks.create_task(work())


async def read_all(url: str) -> dict[bytes, bytes]:
    async with Client([url], timeout_seconds=20) as client:
        return {item.key: item.value async for item in client.list(b"key/")}


def journal_bytes(node) -> int:
    return sum(path.stat().st_size for path in (node.data_dir / "journal").glob("*.log"))


def test_a_node_that_missed_compacted_entries_catches_up_by_snapshot(tmp_path):
    with ProcessCluster(tmp_path, 3, f"--snapshot-journal-bytes={JOURNAL_BYTES}") as cluster:
        asyncio.run(write_many(cluster.endpoints, 0, 500))
        laggard = cluster.followers()[0]
        laggard.kill()
        # The tail that is kept behind a snapshot is 8 MiB; this is more, in segments of 16 MiB.
        asyncio.run(write_many(cluster.endpoints, 500, 20_000))
        laggard.start()
        cluster.wait_ready()
        expected = {b"key/%06d" % number: b"%06d" % number * 200 for number in range(20_500)}
        for node in cluster.nodes:
            assert asyncio.run(read_all(node.url)) == expected
        assert "installed the snapshot at index" in laggard.log()
        assert all("took a snapshot at index" in node.log() for node in cluster.nodes if node is not laggard)
        assert len(list((laggard.data_dir / "snapshots").glob("*.json"))) == 1
        # 24.6 MB of values were written; two segments of 16 MiB are what may be left.
        assert all(journal_bytes(node) < 36_000_000 for node in cluster.nodes)
        asyncio.run(write_many(cluster.endpoints, 0, 500))
        for node in cluster.nodes:
            node.kill()
        for node in cluster.nodes:
            node.start()
        began = time.monotonic()
        cluster.wait_ready()
        assert time.monotonic() - began < 30
        for node in cluster.nodes:
            assert asyncio.run(read_all(node.url)) == expected


def test_a_store_is_rebuilt_from_snapshot_and_journal(tmp_path):
    with ProcessCluster(tmp_path, 1, f"--snapshot-journal-bytes={JOURNAL_BYTES}") as cluster:
        (node,) = cluster.nodes
        asyncio.run(write_many(cluster.endpoints, 0, 9_000))
        node.kill()
        assert list((node.data_dir / "snapshots").glob("*.json"))
        (node.data_dir / "store" / "marker.json").write_text('{"boot_id": "another", "clean": false}')
        node.start()
        cluster.wait_ready()
        assert "restoring the store from the snapshot at index" in node.log()
        assert asyncio.run(read_all(node.url)) == {b"key/%06d" % n: b"%06d" % n * 200 for n in range(9_000)}


def test_a_damaged_snapshot_is_refused_when_it_is_needed(tmp_path):
    with ProcessCluster(tmp_path, 1, f"--snapshot-journal-bytes={JOURNAL_BYTES}") as cluster:
        (node,) = cluster.nodes
        asyncio.run(write_many(cluster.endpoints, 0, 9_000))
        node.kill()
        (data,) = (node.data_dir / "snapshots").glob("*.data")
        damaged = bytearray(data.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        data.write_bytes(damaged)
        (node.data_dir / "store" / "marker.json").write_text('{"boot_id": "another", "clean": false}')
        node.start()
        assert node.wait() == 1
        last_line = node.log().strip().splitlines()[-1]
        assert str(data) in last_line
        assert "corrupt" in last_line


def test_member_catches_up_with_one_transfer_under_steady_writes(tmp_path):
    """The transfer takes some 6 s at 4 MB/s, in which as much is written as makes several snapshots due."""
    flags = (f"--snapshot-journal-bytes={JOURNAL_BYTES}", "--snapshot-bytes-per-s=4000000")
    with ProcessCluster(tmp_path, 3, *flags) as cluster:
        laggard = cluster.followers()[0]
        laggard.kill()
        asyncio.run(write_many(cluster.endpoints, 0, 20_000))
        others = [node for node in cluster.nodes if node is not laggard]
        endpoints = ",".join(node.url for node in others)

        async def write_until_installed() -> None:
            deadline = time.monotonic() + 60
            while "installed the snapshot at index" not in laggard.log():
                assert time.monotonic() < deadline, "no snapshot was installed"
                await write_many(endpoints, 0, 1_000)
            await write_many(endpoints, 0, 2_000)

        laggard.start()
        asyncio.run(write_until_installed())
        cluster.wait_ready()
        logs = "".join(node.log() for node in others)
        assert len(re.findall(rf"{laggard.name} needs the snapshot at index", logs)) == 1
        ((sent, needed),) = re.findall(r"(\d+) chunks were sent for (\d+)", logs)
        assert int(needed) > 200
        assert int(sent) <= int(needed) + 5
        assert asyncio.run(read_all(laggard.url)) == asyncio.run(read_all(others[0].url))
