"""The main job on real input: the standard library goes in while nodes are killed, and comes out byte for byte."""

from __future__ import annotations

import os
import signal
import subprocess
import sysconfig
import time
from pathlib import Path

import pytest

from tests.process.dev import RAFTKV, DevCluster

pytestmark = pytest.mark.process

IGNORED = ("__pycache__", "site-packages", "test", "idlelib", "ensurepip")


def source_tree(target: Path) -> dict[str, bytes]:
    """Copy the running Python's library, as far as its files fit into values, and return what is there."""
    library = Path(sysconfig.get_path("stdlib"))
    files: dict[str, bytes] = {}
    for path in sorted(library.rglob("*")):
        relative = path.relative_to(library)
        if path.is_file() and not path.is_symlink() and not set(relative.parts) & set(IGNORED):
            content = path.read_bytes()
            if len(content) <= 1_500_000:
                files[str(relative)] = content
                (target / relative).parent.mkdir(parents=True, exist_ok=True)
                (target / relative).write_bytes(content)
    return files


def read_tree(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_the_standard_library_survives_a_killed_leader_and_a_killed_follower(tmp_path):
    source = tmp_path / "source"
    files = source_tree(source)
    assert len(files) > 500
    cluster = DevCluster(tmp_path / "data", "--restart")
    try:
        cluster.read_until("ready")
        endpoints = ",".join(node.url for node in cluster.nodes)
        importing = subprocess.Popen(
            [
                *RAFTKV,
                "import",
                str(source),
                "--prefix",
                "lib/",
                "--batch",
                "16",
                "--concurrency",
                "2",
                "--endpoints",
                endpoints,
                "--timeout",
                "60",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        _wait_for_keys(cluster, 50)
        leader = cluster.leader()
        os.kill(cluster.pid(leader), signal.SIGKILL)
        cluster.read_until(f"{leader.name} started again")
        _wait_for_keys(cluster, 300)
        follower = next(node for node in cluster.nodes if node is not cluster.leader())
        os.kill(cluster.pid(follower), signal.SIGKILL)
        cluster.read_until(f"{follower.name} started again")
        output, errors = importing.communicate(timeout=300)
        assert (importing.returncode, errors) == (0, "")
        assert output == f"{len(files)} files imported\n"
        for node in cluster.nodes:
            target = tmp_path / f"from-{node.name}"
            exported = subprocess.run(
                [*RAFTKV, "export", "lib/", str(target), "--endpoints", node.url, "--timeout", "60"],
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            assert (exported.returncode, exported.stderr) == (0, "")
            assert exported.stdout == f"{len(files)} files exported\n"
            assert read_tree(target) == files
    finally:
        status = cluster.stop()
    assert status == 0


def _wait_for_keys(cluster: DevCluster, number: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for node in cluster.nodes:
            _status, document = node.ask("/v1/kv?count_only=true&consistency=stale")
            if document and document.get("count", 0) >= number:
                return
        time.sleep(0.01)
    raise AssertionError(f"there were never {number} keys")


def test_a_node_that_dies_is_reported_and_left_dead(tmp_path):
    cluster = DevCluster(tmp_path / "data")
    try:
        lines = cluster.read_until("ready")
        assert lines[-1] == "ready"
        assert sum(line.startswith(("n1: http", "n2: http", "n3: http")) for line in lines) == 3
        assert sum("curl" in line for line in lines) == 3
        victim = cluster.leader()
        os.kill(cluster.pid(victim), signal.SIGKILL)
        reported = cluster.read_until("left dead")
        assert reported[0].startswith(f"{victim.name} was killed by SIGKILL")
        others = [node for node in cluster.nodes if node is not victim]
        deadline = time.monotonic() + 20
        while not all(node.ask("/readyz")[0] == 200 for node in others):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert victim.ask("/readyz")[0] == 0
    finally:
        status = cluster.stop()
    assert status == 0
    assert not any((tmp_path / "data" / node.name / "pid").exists() for node in cluster.nodes)


def test_a_cluster_goes_on_from_its_data_after_a_clean_stop(tmp_path):
    cluster = DevCluster(tmp_path / "data")
    cluster.read_until("ready")
    subprocess.run(
        [*RAFTKV, "put", "greeting", "hello", "--endpoints", cluster.nodes[0].url], check=True, capture_output=True
    )
    assert cluster.stop() == 0
    cluster.start()
    try:
        cluster.read_until("ready")
        assert cluster.nodes[2].ask("/v1/kv/greeting") == (200, b"hello")
    finally:
        assert cluster.stop() == 0


def test_dev_says_why_it_cannot_start(tmp_path):
    cluster = DevCluster(tmp_path / "data")
    try:
        cluster.read_until("ready")
        second = subprocess.run(
            [*RAFTKV, "dev", "--nodes", "3", "--port", str(cluster.port), "--data-dir", str(tmp_path / "other")],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert second.returncode == 2
        assert f"port {cluster.port} of n1 is not free: Address already in use" in second.stderr
    finally:
        cluster.stop()
