"""What clients were promised, with real processes that die and stop: watches without gaps, fences that hold."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys

import pytest

from raftkv.client import BlockingClient, Client, Found
from raftkv.errors import FenceLost
from raftkv.types import Revision
from tests.process.cluster import ProcessCluster

pytestmark = pytest.mark.process

WRITES = 600


@pytest.fixture
def cluster(tmp_path):
    with ProcessCluster(tmp_path) as running:
        yield running


async def test_a_watch_goes_on_without_a_gap_or_a_repetition_whichever_node_dies(cluster):
    urls = [node.url for node in cluster.nodes]
    seen: list[int] = []
    begun = asyncio.Event()

    async def watch() -> None:
        async with Client(urls, timeout_seconds=60) as client:
            async for change in client.watch(prefix=b"w/"):
                begun.set()
                seen.append(change.revision)
                if change.events[0].event.item.key == b"w/last":
                    return

    def kill_and_restart(node) -> None:
        node.kill()
        node.start()
        node.wait_ready()

    watching = asyncio.create_task(watch())
    written: list[int] = []
    async with Client(urls, timeout_seconds=60) as client:
        while not begun.is_set():
            written.append((await client.put(b"w/begin", b"")).revision)
        for number in range(WRITES):
            if number % 200 == 100:
                # The one that serves the watch, then the leader, then the one that serves it by then.
                victim = cluster.leader() if number == 300 else cluster.nodes[number // 200]
                await asyncio.to_thread(kill_and_restart, victim)
            written.append((await client.put(b"w/%d" % (number % 5), b"%d" % number)).revision)
        written.append((await client.put(b"w/last", b"")).revision)
    await asyncio.wait_for(watching, 60)
    assert seen == written[written.index(seen[0]) :]


async def test_readers_that_wait_miss_nothing_and_see_what_was_acknowledged_before(cluster):
    urls = [node.url for node in cluster.nodes]
    clock = asyncio.get_running_loop().time
    acknowledged: list[tuple[float, int]] = []
    is_begun = [asyncio.Event() for _ in urls]

    async def follow(number: int) -> list[tuple[float, int]]:
        """Return when each read began, and the value that it found."""
        seen: list[tuple[float, int]] = []
        known = Revision(1)
        async with Client([*urls[number:], *urls[:number]], timeout_seconds=60) as client:
            while not seen or seen[-1][1] < WRITES:
                is_begun[number].set()
                began = clock()
                found = await client.wait_for_change(b"k", known, 20)
                assert isinstance(found, Found)
                assert found.item.mod_revision > known
                known = found.revision
                seen.append((began, int(found.item.value)))
        return seen

    def kill_and_restart() -> None:
        leader = cluster.leader()
        leader.kill()
        leader.start()
        leader.wait_ready()

    following = [asyncio.create_task(follow(number)) for number in range(len(urls))]
    for event in is_begun:
        await event.wait()
    async with Client(urls, timeout_seconds=60) as client:
        killing: asyncio.Future[None] | None = None
        for number in range(1, WRITES + 1):
            if number == WRITES // 2:
                killing = asyncio.ensure_future(asyncio.to_thread(kill_and_restart))
            await client.put(b"k", b"%d" % number)
            acknowledged.append((clock(), number))
        assert killing is not None
        await killing
    for seen in await asyncio.wait_for(asyncio.gather(*following), 60):
        values = [value for _began, value in seen]
        assert values == sorted(set(values))
        assert values[-1] == WRITES
        for began, value in seen:
            assert value >= max((number for at, number in acknowledged if at < began), default=0)


HOLDER = """
import sys
from raftkv.client import BlockingClient
from raftkv.errors import FenceLost
with BlockingClient(sys.argv[1].split(",")) as client, client.lock(b"l", seconds=2) as lock:
    client.put(b"guarded", b"holder", fence=lock.fence)
    print("holds", flush=True)
    sys.stdin.readline()
    try:
        client.put(b"guarded", b"holder after its pause", fence=lock.fence)
    except FenceLost:
        print("refused", flush=True)
"""


def test_a_holder_that_was_paused_cannot_write_through_its_fence(cluster):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, cluster.endpoints], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "holds\n"
        os.kill(holder.pid, signal.SIGSTOP)
        try:
            with BlockingClient(cluster.endpoints.split(",")) as client, client.lock(b"l", wait_seconds=30) as lock:
                client.put(b"guarded", b"successor", fence=lock.fence)
                os.kill(holder.pid, signal.SIGCONT)
                output, _ = holder.communicate("go on\n", timeout=30)
                assert output == "refused\n"
                assert client.get(b"guarded").item.value == b"successor"
                client.put(b"guarded", b"successor again", fence=lock.fence)
        finally:
            holder.kill()


def test_a_leader_that_was_paused_lets_no_lease_end_early_and_no_old_holder_write(cluster):
    """The leader's own pause: its successor counts anew, and what it believed to lead it can do nothing with."""
    with BlockingClient(cluster.endpoints.split(","), timeout_seconds=30) as client:
        old = cluster.leader()
        with client.lock(b"l", seconds=5) as lock:
            os.kill(old.process.pid, signal.SIGSTOP)
            try:
                client.put(b"guarded", b"through the new leader", fence=lock.fence)
                assert client.lease_time(lock.lease.id).remaining_seconds >= 1
                assert cluster_leader_other_than(cluster, old)
            finally:
                os.kill(old.process.pid, signal.SIGCONT)
            client.put(b"guarded", b"still held", fence=lock.fence)
            lock.lease.check()
            token = lock.token
        with client.lock(b"l") as lock:
            assert lock.token > token
        with pytest.raises(FenceLost):
            client.put(b"guarded", b"late", fence=lock.fence)


def cluster_leader_other_than(cluster: ProcessCluster, old) -> bool:
    others = [node for node in cluster.nodes if node is not old]
    return any(node.status()["role"] == "leader" for node in others)


def test_leadership_goes_to_whom_an_operator_names_through_either_api(cluster):
    with BlockingClient(cluster.endpoints.split(","), timeout_seconds=30) as client:
        for node in (*cluster.nodes, cluster.nodes[0]):
            leader = cluster.leader()
            body = json.dumps({"to": node.name}).encode()
            expected = {"transferred": True, "leader": node.name}
            assert leader.ask("/v1/cluster/leader", method="POST", body=body) == (200, expected)
            assert node.status()["role"] == "leader"
            client.put(b"k", node.name.encode())
        _, listed = cluster.nodes[0].ask("/v3/cluster/member/list", method="POST", body=b"")
        target = next(member for member in listed["members"] if member["name"] == "n3")
        body = json.dumps({"targetID": target["ID"]}).encode()
        # Sent on to the leader by a follower.
        assert cluster.nodes[1].ask("/v3/maintenance/transfer-leadership", method="POST", body=body)[0] == 200
        assert cluster.leader().name == "n3"


def endpoint_status(cluster: ProcessCluster, *arguments: str) -> tuple[int, dict]:
    command = [sys.executable, "-m", "raftkv", "endpoint", "status", "--json", *arguments]
    environment = {**os.environ, "RAFTKV_ENDPOINTS": cluster.endpoints}
    ended = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
    return ended.returncode, json.loads(ended.stdout)


def test_operators_see_every_member_and_the_one_that_is_away(cluster):
    leader = cluster.leader()
    away = next(node for node in cluster.nodes if node is not leader)
    with BlockingClient(cluster.endpoints.split(","), timeout_seconds=30) as client:
        client.put(b"k", b"v" * 1000)
        code, document = endpoint_status(cluster, "--cluster")
        assert (code, document["healthy"]) == (0, True)
        statuses = {found["name"]: found["status"] for found in document["endpoints"]}
        assert statuses.keys() == {node.name for node in cluster.nodes}
        for status in statuses.values():
            assert status["disk_free_bytes"] > status["disk_reserve_bytes"] > 0
            assert status["store"]["allocated"] >= status["store"]["file"] >= status["store"]["used"] > 0
            assert status["purged_revision"] == status["compacted_revision"] == 0
        assert [bool(status["followers"]) for status in statuses.values()].count(True) == 1
        away.kill()
        for _ in range(20):
            client.put(b"k", b"v" * 1000)
        code, document = endpoint_status(cluster, "--endpoints", cluster.endpoints)
        assert (code, document["healthy"]) == (1, False)
        (lag,) = [
            each
            for found in document["endpoints"]
            if found["status"] is not None
            for each in found["status"]["followers"]
            if each["name"] == away.name
        ]
        assert lag["lag_entries"] >= 1
        assert lag["lag_bytes"] >= 20_000
