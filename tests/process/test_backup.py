"""Backup and restore with real processes: taken under load, refused when damaged, and a new cluster from one."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import aiohttp
import pytest

from raftkv.client import BlockingClient, Client, Found, txn
from raftkv.errors import RevisionCompacted
from raftkv.store.rewriting import DEFAULT_REVISION_BUMP
from raftkv.types import Consistency, Revision
from tests.process.cluster import READY_SECONDS, NodeProcess, ProcessCluster

pytestmark = pytest.mark.process


def raftkv(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "raftkv", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def write(client: BlockingClient, until: threading.Event, acknowledged: list[int]) -> None:
    while not until.is_set():
        acknowledged.append(client.put(b"load/%d" % (len(acknowledged) % 50), b"x" * 200).revision)


def restore(backup: Path, cluster: ProcessCluster, *more: str) -> None:
    for node in cluster.nodes:
        arguments = [f"--data-dir={node.data_dir}", f"--name={node.name}", f"--initial-cluster={cluster.members}"]
        result = raftkv("snapshot", "restore", str(backup), *arguments, *more)
        assert result.returncode == 0, result.stderr


def test_a_new_cluster_begins_where_the_backup_was_taken_under_load(tmp_path):
    backup = tmp_path / "backup"
    with ProcessCluster(tmp_path / "old") as old, BlockingClient(old.endpoints.split(",")) as client:
        client.put(b"before", b"1")
        lease = client.grant_lease(3600)
        client.put(b"leased", b"1", lease=lease.id)
        acknowledged: list[int] = []
        end = threading.Event()
        writer = threading.Thread(target=write, args=(client, end, acknowledged))
        writer.start()
        while len(acknowledged) < 100:
            pass
        so_far = len(acknowledged)
        for node in old.nodes:
            result = raftkv("snapshot", "save", str(backup), "--force", f"--endpoints={node.url}")
            assert result.returncode == 0, result.stderr
        end.set()
        writer.join()
        history = client.get(b"load/7")
        old_id = client.cluster().cluster_id
    revision = int(raftkv("snapshot", "status", str(backup)).stdout.split()[1])
    assert revision >= acknowledged[so_far - 1]
    with_room = tmp_path / "new"
    new = ProcessCluster(with_room)
    restore(backup, new, "--bump-revision=0")
    with new, BlockingClient(new.endpoints.split(",")) as client:
        assert client.cluster().cluster_id != old_id
        found = client.get(b"before", Consistency.LINEARIZABLE)
        assert isinstance(found, Found)
        assert found.revision >= revision
        assert client.lease_time(lease.id).keys == (b"leased",)
        past = client.transact([], [txn.get(txn.prefix(b"load/"), revision=acknowledged[so_far - 1])])
        assert len(past.results[0].items) == 50
        assert isinstance(history, Found)
        assert client.put(b"after", b"1").revision > revision
        for node in new.nodes:
            node.kill()
        for node in new.nodes:
            node.start()
        new.wait_ready()
        assert isinstance(client.get(b"after"), Found)
    # And one that begins in the middle of the load: every key is as it was at exactly that revision.
    middle = so_far // 2
    earlier = ProcessCluster(tmp_path / "earlier")
    restore(backup, earlier, f"--revision={acknowledged[middle]}")
    with earlier, BlockingClient(earlier.endpoints.split(",")) as client:
        expected = {b"load/%d" % (number % 50): acknowledged[number] for number in range(middle + 1)}
        assert {item.key: item.mod_revision for item in client.list(b"load/")} == expected
        assert client.put(b"after", b"1").revision == acknowledged[middle] + DEFAULT_REVISION_BUMP + 1
    too_far = raftkv(
        "snapshot", "restore", str(backup), f"--data-dir={tmp_path}/none", "--initial-cluster=n1=127.0.0.1:1",
        f"--revision={revision + 1}",
    )  # fmt: skip
    assert (too_far.returncode, "the backup has the history from revision" in too_far.stderr) == (2, True)
    # A member of the new cluster is a stranger to the old one.
    assert json.loads((old.nodes[0].data_dir / "identity.json").read_text())["cluster_id"] == old_id


async def test_watches_and_retries_of_old_cluster_are_told_of_restore(tmp_path):
    backup = tmp_path / "backup"
    with ProcessCluster(tmp_path, 1) as cluster:
        (node,) = cluster.nodes
        async with Client([node.url], timeout_seconds=20) as client:
            watching = client.watch(prefix=b"k/", from_revision=Revision(2))
            for number in range(7):
                await client.put(b"k/%d" % number, b"")
            for number in range(7, 11):
                status, _ = node.ask(f"/v1/kv/k/{number}", method="PUT", body=b"", headers=once(number))
                assert status == 201
            seen = [(await anext(watching)).revision for _ in range(11)]
            assert seen == list(range(2, 13))
            saved = await asyncio.to_thread(raftkv, "snapshot", "save", str(backup), f"--endpoints={node.url}")
            assert saved.returncode == 0, saved.stderr
            node.kill()
            node.data_dir.rename(tmp_path / "lost")
            await asyncio.to_thread(restore, backup, cluster, "--revision=8")
            node.start()
            await asyncio.to_thread(cluster.wait_ready)
            for number in range(7, 11):
                status, answer = node.ask(f"/v1/kv/k/{number}", method="PUT", body=b"", headers=once(number))
                assert (status, answer["version"]) == (201, 1), "the write was undone, so its retry is applied"
                assert answer["revision"] > DEFAULT_REVISION_BUMP
            with pytest.raises(RevisionCompacted):
                await asyncio.wait_for(anext(watching), 20)
            for begin in (9, 13, 20):
                status, problem = node.ask(f"/v1/watch?prefix=k/&from_revision={begin}")
                assert (status, problem["type"].rpartition(":")[2]) == (410, "revision-compacted")
            async with aiohttp.ClientSession() as session:
                create = {"create_request": {"key": "aw==", "range_end": "bA==", "start_revision": 13}}
                async with session.post(node.url + "/v3/watch", json=create) as stream:
                    frames = [json.loads(await stream.content.readline())["result"] for _ in range(2)]
            assert frames[0]["created"]
            assert frames[1]["canceled"]
            assert int(frames[1]["compact_revision"]) > DEFAULT_REVISION_BUMP


def once(number: int) -> dict[str, str]:
    return {"Idempotency-Key": f"once-{number}"}


def test_what_is_damaged_or_in_the_way_is_refused(tmp_path):
    backup = tmp_path / "backup"
    with ProcessCluster(tmp_path / "old", 1) as old:
        old.nodes[0].ask("/v1/kv/a", method="PUT", body=b"x")
        assert raftkv("snapshot", "save", str(backup), f"--endpoints={old.nodes[0].url}").returncode == 0
        again = raftkv("snapshot", "save", str(backup), f"--endpoints={old.nodes[0].url}")
        assert (again.returncode, "--force" in again.stderr) == (2, True)
    assert raftkv("snapshot", "verify", str(backup)).returncode == 0
    members = "n1=127.0.0.1:1"
    content = backup.read_bytes()
    for name, damaged in {
        "flipped": content[:-50] + bytes([content[-50] ^ 1]) + content[-49:],
        "short": content[:-1],
        "long": content + b"x",
        "manifest": content.replace(b'"index":', b'"index":1', 1),
        "other": b"something else entirely",
        "empty": b"",
    }.items():
        bad = tmp_path / name
        bad.write_bytes(damaged)
        for command in (
            ["verify", str(bad)],
            ["status", str(bad)],
            ["restore", str(bad), f"--data-dir={tmp_path}/made", f"--initial-cluster={members}"],
        ):
            result = raftkv("snapshot", *command)
            assert (result.returncode, "corrupt at byte" in result.stderr) == (1, True), (name, command, result)
        assert not (tmp_path / "made").exists()
    occupied = raftkv(
        "snapshot", "restore", str(backup), f"--data-dir={old.nodes[0].data_dir}", f"--initial-cluster={members}"
    )
    assert (occupied.returncode, "is not empty" in occupied.stderr) == (2, True)
    stranger = raftkv(
        "snapshot", "restore", str(backup), f"--data-dir={tmp_path}/made", "--name=n9", f"--initial-cluster={members}"
    )
    assert (stranger.returncode, "n9 is not in the initial cluster" in stranger.stderr) == (2, True)
    # What an interrupted restore left behind is in nobody's way.
    (tmp_path / "made.restoring" / "journal").mkdir(parents=True)
    arguments = [f"--data-dir={tmp_path}/made", f"--initial-cluster={members}"]
    assert raftkv("snapshot", "restore", str(backup), *arguments).returncode == 0
    assert not (tmp_path / "made.restoring").exists()


def test_a_backup_without_a_majority_is_taken_only_when_that_is_asked_for(tmp_path):
    with ProcessCluster(tmp_path) as cluster:
        cluster.nodes[0].ask("/v1/kv/a", method="PUT", body=b"x")
        for node in cluster.nodes[1:]:
            node.kill()
        arguments = [str(tmp_path / "backup"), f"--endpoints={cluster.nodes[0].url}", "--timeout=8"]
        assert raftkv("snapshot", "save", *arguments).returncode == 1
        assert not (tmp_path / "backup").exists()
        assert raftkv("snapshot", "save", "--stale", *arguments).returncode == 0


def test_a_new_cluster_is_forced_from_a_survivor_when_the_majority_is_gone(tmp_path):
    with ProcessCluster(tmp_path) as cluster:
        with BlockingClient(cluster.endpoints.split(",")) as client:
            stored = [client.put(b"k/%d" % number, b"%d" % number) for number in range(50)]
        leader, *others = [cluster.leader(), *cluster.followers()]
        data_dir = str(leader.data_dir)
        arguments = ["recover", "--force-new-cluster", "--yes", f"--data-dir={data_dir}"]
        busy = raftkv(*arguments)
        assert (busy.returncode, "another process uses the data directory" in busy.stderr) == (2, True)
        leader.kill()
        live = raftkv(*arguments)
        assert (live.returncode, "are a majority of the 3 members" in live.stderr) == (1, True)
        for node in others:
            node.kill()
        unconfirmed = raftkv(*[argument for argument in arguments if argument != "--yes"])
        assert unconfirmed.returncode == 1
        assert (leader.data_dir / "identity.json").exists()
        done = raftkv(*arguments)
        assert done.returncode == 0, done.stderr
        survivor = NodeProcess(
            leader.name, tmp_path, *(int(leader.command[at].rsplit(":", 1)[1]) for at in (6, 7)),
            f"{leader.name}={leader.command[7].split('=')[1]}",
        )  # fmt: skip
        survivor.start()
        survivor.wait_ready()
        with BlockingClient([survivor.url]) as client:
            assert client.get(b"k/49").item.mod_revision == stored[-1].mod_revision
            assert len(list(client.list(b"k/"))) == 50
            assert client.cluster().members[0].name == leader.name
            assert client.put(b"k/50", b"").revision > stored[-1].revision + DEFAULT_REVISION_BUMP
        # The dead of the old cluster are strangers when they come back.
        others[0].start()
        assert not others[0].is_ready()
        survivor.terminate()
        names = sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(f"{leader.name}-"))
        assert [name.rsplit(".", 1)[1] for name in names] == ["old", "snapshot"]


def test_old_members_that_come_back_do_not_end_a_recovered_one(tmp_path):
    """Play the procedure of docs/operations.md through, with two old members that return in the middle of it."""
    with ProcessCluster(tmp_path) as cluster:
        with BlockingClient(cluster.endpoints.split(",")) as client:
            client.put(b"k", b"1")
        survivor, *others = [cluster.leader(), *cluster.followers()]
        for node in cluster.nodes:
            node.kill()
        arguments = [f"--data-dir={survivor.data_dir}", f"--initial-cluster={cluster.members}", "--yes"]
        done = raftkv("recover", "--force-new-cluster", *arguments)
        assert done.returncode == 0, done.stderr
        (backup,) = tmp_path.glob("*.snapshot")
        for node in cluster.nodes:
            node.start()
        # Each side has dialled the other, and both old members have refused the recovered one.
        deadline = time.monotonic() + READY_SECONDS
        advice = "which was restored from cluster"
        while not all(f"{node.name} refuses this node" in survivor.log() and advice in node.log() for node in others):
            assert time.monotonic() < deadline, (survivor.log(), *(node.log() for node in others))
            time.sleep(0.05)
        assert survivor.is_running, survivor.log()[-2000:]
        for node in others:
            node.terminate()
            node.data_dir.rename(tmp_path / f"{node.name}.old")
            arguments = [f"--data-dir={node.data_dir}", f"--name={node.name}", f"--initial-cluster={cluster.members}"]
            assert raftkv("snapshot", "restore", str(backup), *arguments).returncode == 0
            node.start()
        cluster.wait_ready()
        for node in cluster.nodes:
            with BlockingClient([node.url]) as client:
                assert client.get(b"k").item.value == b"1"


def test_what_is_no_data_directory_cannot_be_recovered(tmp_path):
    result = raftkv("recover", "--force-new-cluster", "--yes", f"--data-dir={tmp_path}")
    assert (result.returncode, "is no data directory" in result.stderr) == (2, True)
    assert raftkv("recover", "--yes", f"--data-dir={tmp_path}").returncode == 2
