"""``raftkv chaos`` against real nodes over real sockets: kills, pauses, and proxies that cut, delay and throttle."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from raftkv.chaos.session import Session, SessionFailed
from raftkv.dev.links import Conditions
from raftkv.types import NodeId
from tests.process.dev import RAFTKV, DevCluster

SECONDS = float(os.environ.get("TEST_CHAOS_SECONDS", "60"))

pytestmark = pytest.mark.process


@pytest.fixture
def cluster(tmp_path):
    running = DevCluster(tmp_path / "data")
    try:
        running.read_until("ready")
        yield running
    finally:
        status = running.stop()
    assert status == 0


def start_chaos(cluster: DevCluster, directory: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*RAFTKV, "chaos", "--data-dir", str(cluster.directory), *arguments],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_until(process: subprocess.Popen[str], pattern: str) -> str:
    for line in process.stdout:
        if found := re.search(pattern, line):
            return found[0]
    raise AssertionError(f"{pattern!r} did not come; {process.stderr.read()}")


def test_a_cluster_keeps_its_promises_under_every_fault(cluster, tmp_path):
    chaos = start_chaos(cluster, tmp_path, "--duration", str(SECONDS))
    output, errors = chaos.communicate(timeout=SECONDS + 240)
    print(output)
    assert (chaos.returncode, errors) == (0, ""), output
    assert "verdict: linearizable" in output
    (faults,) = re.findall(r"^faults: (.*)$", output, re.MULTILINE)
    assert sum(int(item.split()[-1]) for item in faults.split(", ")) >= SECONDS / 10
    assert re.search(r"^longest unavailability: [0-9.]+ s", output, re.MULTILINE)
    assert ET.fromstring((tmp_path / "raftkv-chaos.svg").read_bytes()).tag.endswith("svg")
    # Nothing is left behind: neither keys nor dead nodes.
    for node in cluster.nodes:
        assert node.ask("/v1/kv?prefix=chaos/&keys_only=true")[1]["items"] == []


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def wait_until(condition, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_end_of_a_session_mends_whatever_it_broke(cluster):
    async def break_and_leave() -> None:
        async with Session(cluster.directory) as session:
            await session.proxy_links()
            await session.kill([NodeId("n1")])
            await session.pause([NodeId("n2")])
            await session.set_links({(NodeId("n1"), NodeId("n3")): Conditions(is_cut=True)})
            wait_until(lambda: state(cluster.pid(cluster.nodes[1])) == "T")

    before = cluster.pid(cluster.nodes[0])
    asyncio.run(break_and_leave())
    wait_until(lambda: state(cluster.pid(cluster.nodes[1])) != "T")
    wait_until(lambda: cluster.pid(cluster.nodes[0]) != before)
    for node in cluster.nodes:
        wait_until(lambda node=node: node.ask("/readyz")[0] == 200)


def test_member_moves_while_links_are_proxied(cluster):
    """The leader asks at the new address who is there, through the proxy before that."""

    async def move() -> None:
        async with Session(cluster.directory) as session:
            await session.proxy_links()
            node = cluster.nodes[1]
            await asyncio.to_thread(wait_until, lambda: node.ask("/readyz")[0] == 200)
            address = f"localhost:{cluster.port + 11}"
            command = [*RAFTKV, "member", "move", "n2", address, "--endpoints", cluster.nodes[0].url]
            moved = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
            assert moved.returncode == 0, moved.stderr
            await asyncio.to_thread(wait_until, lambda: address in str(node.ask("/v1/cluster/members")[1]))

    asyncio.run(move())
    for node in cluster.nodes:
        wait_until(lambda node=node: node.ask("/readyz")[0] == 200)


def test_one_session_at_a_time_and_wrong_requests_are_refused(cluster):
    async def ask() -> None:
        async with Session(cluster.directory) as session:
            other = start_chaos(cluster, cluster.directory, "--duration", "5")
            _output, errors = await asyncio.to_thread(other.communicate, timeout=30)
            assert (other.returncode, "the cluster refuses (409)" in errors) == (2, True), errors
            for request, message in [
                (session.kill([NodeId("n9")]), "'nodes' must be some of n1, n2, n3"),
                (session.break_links([(NodeId("n1"), NodeId("n9"))]), "'links' is malformed"),
                (session.set_links({(NodeId("n1"), NodeId("n9")): Conditions()}), "no such link"),
                (session._ask("explode"), "'do' must be one of describe, "),
                (session._ask("set-links", links=[{"source": "n1", "target": "n2", "delay_seconds": "x"}]), "float"),
                (session._ask("set-links", links=7), "'links' is malformed"),
            ]:
                with pytest.raises(SessionFailed, match=re.escape(message)):
                    await request
            # None of that ended the session.
            assert [node.name for node in await session.nodes()] == ["n1", "n2", "n3"]

    asyncio.run(ask())


def test_a_node_that_ends_by_itself_fails_the_run(cluster, tmp_path):
    chaos = start_chaos(cluster, tmp_path, "--duration", "600", "--faults", "pause", "--recovery", "5")
    # Not the one that is paused: the request to do that may still be under way, and a dead node cannot be.
    number = 1 if read_until(chaos, "pause n[0-9]") == "pause n3" else 2
    name = f"n{number + 1}"
    os.kill(cluster.pid(cluster.nodes[number]), signal.SIGKILL)
    cluster.read_until(f"{name} is left dead")
    # Ctrl-C shortens the run, and what there is of it is judged.
    chaos.send_signal(signal.SIGINT)
    output, _errors = chaos.communicate(timeout=120)
    assert chaos.returncode == 1, output
    assert f"{cluster.nodes[number].url} does not serve 5 s after the last fault" in output
    assert f"{name} ended by itself; its log is" in output


def test_a_cluster_that_is_stopped_meanwhile_ends_the_run(cluster, tmp_path):
    chaos = start_chaos(cluster, tmp_path, "--duration", "600", "--faults", "kill")
    read_until(chaos, "kill n")
    assert cluster.stop() == 0
    _output, errors = chaos.communicate(timeout=60)
    assert (chaos.returncode, "the cluster was stopped meanwhile" in errors) == (1, True), errors
