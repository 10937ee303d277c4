"""Content types of values on real nodes: followers' answers, a restart, a snapshot's installation, and a backup."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from raftkv.client import Client, txn
from raftkv.types import MAX_VALUE_BYTES
from tests.process.cluster import NodeProcess, ProcessCluster

pytestmark = pytest.mark.process

KEYS = (b"a", b"b.json", b"c/d.txt")
TYPES = ("", "", "text/html; charset=utf-8", "application/vnd.x+json", "x/" + "y" * 127)
GUESSED = {b"a": "application/octet-stream", b"b.json": "application/json", b"c/d.txt": "text/plain; charset=utf-8"}

State = dict[bytes, tuple[bytes, str]]
History = dict[int, State]
"""Values and content types by key, for each revision at which one of the keys was written."""


async def write_at_random(endpoints: list[str], history: History, seed: int) -> None:
    """Write from several clients at once, and add what each revision then holds."""
    applied: dict[int, tuple[bytes, tuple[bytes, str] | None]] = {}

    async def work(number: int) -> None:
        rng = random.Random(f"{seed}/{number}")
        # Each asks another node first, which sends most writes on to the leader.
        turned = endpoints[number % len(endpoints) :] + endpoints[: number % len(endpoints)]
        async with Client(turned, timeout_seconds=30) as client:
            for position in range(20):
                key, content_type = rng.choice(KEYS), rng.choice(TYPES)
                value = b"%d-%d" % (number, position)
                way = rng.random()
                if way < 0.1:
                    deleted = await client.delete(key)
                    if deleted.deleted:
                        applied[deleted.revision] = (key, None)
                    continue
                if way < 0.4:
                    operation = txn.put(key, value, content_type=content_type)
                    revision = (await client.transaction().then(operation).commit()).revision
                else:
                    revision = (await client.put(key, value, content_type=content_type)).revision
                applied[revision] = (key, (value, content_type))

    async with asyncio.TaskGroup() as tasks:
        for number in range(6):
            tasks.create_task(work(number))
    for revision in sorted(applied):
        key, written = applied[revision]
        history[revision] = {**(history[max(history)] if history else {})}
        if written is None:
            del history[revision][key]
        else:
            history[revision][key] = written


def get(node: NodeProcess, key: bytes, query: str = "") -> tuple[bytes, str] | None:
    """Return value and content type of a key; None when it does not exist."""
    try:
        with urllib.request.urlopen(f"{node.url}/v1/kv/{key.decode()}{query}", timeout=10) as answer:
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            return answer.read(), answer.headers["Content-Type"]
    except urllib.error.HTTPError as refusal:
        with refusal:
            if refusal.code != 404:
                raise
            return None


def check(node: NodeProcess, history: History) -> None:
    """Compare what a node answers with the history, from its own state."""
    for revision, state in history.items():
        for key in KEYS:
            value, content_type = state.get(key, (None, ""))
            expected = None if value is None else (value, content_type or GUESSED[key])
            assert get(node, key, f"?revision={revision}&consistency=stale") == expected, (node.name, revision, key)
    for key in KEYS:
        value, content_type = history[max(history)].get(key, (None, ""))
        assert get(node, key) == (None if value is None else (value, content_type or GUESSED[key]))


def raftkv(*arguments: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "raftkv", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr


def test_every_node_has_the_content_types_of_each_revision(tmp_path):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    history: History = {}
    with ProcessCluster(tmp_path / "old", 3, "--snapshot-journal-bytes=400000") as cluster:
        endpoints = cluster.endpoints.split(",")
        asyncio.run(write_at_random(endpoints, history, seed))
        for node in cluster.nodes:
            check(node, history)
        laggard = cluster.followers()[0]
        laggard.kill()
        others = [node for node in cluster.nodes if node is not laggard]
        asyncio.run(write_at_random([node.url for node in others], history, seed + 1))
        asyncio.run(fill_journal([node.url for node in others]))
        laggard.start()
        cluster.wait_ready()
        assert "installed the snapshot at index" in laggard.log()
        for node in cluster.nodes:
            check(node, history)
        for node in cluster.nodes:
            assert node.ask("/v1/snapshot", method="POST", timeout=30)[0] == 200
            node.kill()
            # The store at rest is not trusted, and is made again of the snapshot.
            (node.data_dir / "store" / "marker.json").write_text('{"boot_id": "another", "clean": false}')
            node.start()
        cluster.wait_ready()
        for node in cluster.nodes:
            assert "restoring the store from the snapshot at index" in node.log()
            check(node, history)
        backup = tmp_path / "backup"
        raftkv("snapshot", "save", str(backup), f"--endpoints={cluster.endpoints}")
        status, outcome = cluster.leader().ask("/v1/cluster/check", method="POST", timeout=60)
        assert (status, outcome["sound"]) == (200, True)
    check_restored(tmp_path / "new", backup, history, "--bump-revision=0")
    middle = sorted(history)[len(history) // 2]
    until_middle = {revision: state for revision, state in history.items() if revision <= middle}
    check_restored(tmp_path / "middle", backup, until_middle, "--bump-revision=0", f"--revision={middle}")


async def fill_journal(endpoints: list[str]) -> None:
    """Write more than is kept behind a snapshot: the laggard needs one then."""
    async with Client(endpoints, timeout_seconds=60) as client:
        for number in range(30):
            await client.put(b"filler", bytes([number]) * MAX_VALUE_BYTES, content_type="application/x-filler")


def check_restored(directory: Path, backup: Path, history: History, *options: str) -> None:
    """Make a new cluster of one of a backup, and compare it with the history."""
    cluster = ProcessCluster(directory, 1)
    (node,) = cluster.nodes
    arguments = [f"--data-dir={node.data_dir}", f"--name={node.name}", f"--initial-cluster={cluster.members}"]
    raftkv("snapshot", "restore", str(backup), *arguments, *options)
    with cluster:
        check(node, history)
