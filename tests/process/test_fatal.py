"""Conditions under which a node must not serve: a clear message, a non-zero status, and nothing lost."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.process.cluster import NodeProcess, ProcessCluster, free_ports

pytestmark = pytest.mark.process


FAILING_CALL = """
import errno, os
real, calls = os.CALL, [0]
def fail_later(*arguments):
    calls[0] += 1
    if calls[0] > 100:
        raise OSError(errno.NUMBER, os.strerror(errno.NUMBER))
    return real(*arguments)
os.CALL = fail_later
from raftkv.cli.main import main
main()
"""


@pytest.fixture
def node(tmp_path):
    """One node that is a cluster of its own."""
    client_port, peer_port = free_ports(2)
    single = NodeProcess("n1", tmp_path, client_port, peer_port, f"n1=127.0.0.1:{peer_port}")
    yield single
    if single.is_running:
        single.kill()


def serve_until_ready(node: NodeProcess, *flags: str) -> None:
    node.start(*flags)
    node.wait_ready()


def filled(node: NodeProcess, count: int = 20) -> None:
    serve_until_ready(node)
    for number in range(count):
        assert node.ask(f"/v1/kv/key{number}", method="PUT", body=b"value")[0] == 201


def last_line(node: NodeProcess) -> str:
    return node.log().strip().splitlines()[-1]


def expect_refusal(node: NodeProcess, status: int, *words: str) -> None:
    node.start()
    assert node.wait() == status, node.log()
    assert all(word in last_line(node) for word in words), last_line(node)
    assert "Traceback" not in node.log()


def test_a_single_node_needs_no_flags(tmp_path):
    ports = free_ports(2)
    environment = {"RAFTKV_LISTEN_CLIENT": f"127.0.0.1:{ports[0]}", "RAFTKV_LISTEN_PEER": f"127.0.0.1:{ports[1]}"}
    node = NodeProcess("n1", tmp_path, ports[0], ports[1], "")
    node.command = [sys.executable, "-m", "raftkv", "serve", "--data-dir", str(tmp_path / "data")]
    node.name = "default"
    node.start(environment=environment)
    try:
        node.wait_ready()
        assert node.ask("/v1/kv/a", method="PUT", body=b"x")[0] == 201
        assert node.status()["role"] == "leader"
        assert node.terminate() == 0
    finally:
        if node.is_running:
            node.kill()


@pytest.mark.parametrize("position", [0.2, 0.5, 0.9])
def test_a_corrupt_journal_record_is_named_and_refused(node, position):
    filled(node)
    node.kill()
    (segment,) = (node.data_dir / "journal").glob("*.log")
    data = bytearray(segment.read_bytes())
    data[int(len(data) * position)] ^= 0x10
    segment.write_bytes(data)
    expect_refusal(node, 1, str(segment), "corrupt at byte")
    data[int(len(data) * position)] ^= 0x10
    segment.write_bytes(data)
    serve_until_ready(node)
    assert all(node.ask(f"/v1/kv/key{number}") == (200, b"value") for number in range(20))


def test_a_torn_tail_of_the_journal_is_cut_and_logged(node):
    filled(node)
    node.kill()
    (segment,) = (node.data_dir / "journal").glob("*.log")
    with segment.open("ab") as file:
        file.write(bytes(7))
    serve_until_ready(node)
    assert "cut 7 bytes of an unsynced write" in node.log()
    assert all(node.ask(f"/v1/kv/key{number}") == (200, b"value") for number in range(20))


def test_a_missing_journal_is_refused(node):
    filled(node)
    node.kill()
    shutil.rmtree(node.data_dir / "journal")
    expect_refusal(node, 1, "the store has applied entry", "not in the journal")


def test_a_damaged_store_is_rebuilt_after_a_reboot(node):
    filled(node)
    node.kill()
    marker = node.data_dir / "store" / "marker.json"
    marker.write_text('{"boot_id": "another boot", "clean": false}')
    (node.data_dir / "store" / "data.mdb").write_bytes(b"damaged" * 1000)
    serve_until_ready(node)
    assert "is set aside" in node.log()
    assert all(node.ask(f"/v1/kv/key{number}") == (200, b"value") for number in range(20))


def test_a_port_in_use_is_named(node):
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", int(node.url.rpartition(":")[2])))
        other.listen()
        expect_refusal(node, 2, node.url.removeprefix("http://"), "ddress already in use")


def test_a_peer_port_in_use_is_named(node):
    port = next(flag for flag in node.command if flag.startswith("--listen-peer")).rpartition(":")[2]
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", int(port)))
        other.listen()
        expect_refusal(node, 2, f"127.0.0.1:{port}", "ddress already in use")


def test_an_unwritable_data_directory_is_named(node, tmp_path):
    node.data_dir = Path("/proc/raftkv-data")
    node.command = [flag if "--data-dir" not in flag else "--data-dir=/proc/raftkv-data" for flag in node.command]
    expect_refusal(node, 2, "/proc/raftkv-data", "cannot be made")
    file = tmp_path / "file"
    file.write_text("x")
    node.command = [flag if "--data-dir" not in flag else f"--data-dir={file}" for flag in node.command]
    expect_refusal(node, 2, str(file))


def test_a_data_directory_in_use_is_refused(node, tmp_path):
    serve_until_ready(node)
    ports = free_ports(2)
    second = NodeProcess("n1", tmp_path, ports[0], ports[1], f"n1=127.0.0.1:{ports[1]}")
    second.log_path = tmp_path / "second.log"
    expect_refusal(second, 2, "another process uses the data directory")
    assert node.is_ready()


def test_data_of_another_member_or_cluster_is_refused(node):
    serve_until_ready(node)
    assert node.terminate() == 0
    good = list(node.command)
    node.command = [flag.replace("--name=n1", "--name=n2").replace("=n1=", "=n2=") for flag in good]
    expect_refusal(node, 1, "belongs to member 'n1', not to 'n2'")
    node.command = [f"{flag},n2=127.0.0.1:9" if "--initial-cluster" in flag else flag for flag in good]
    expect_refusal(node, 1, "belongs to cluster", "the initial cluster given now is n1=", "may be left out")


def test_a_wrong_initial_cluster_is_refused_by_the_others(tmp_path):
    with ProcessCluster(tmp_path) as cluster:
        stranger = cluster.nodes[2]
        stranger.terminate()
        shutil.rmtree(stranger.data_dir)
        good = list(stranger.command)
        stranger.command = [f"{flag},n4=127.0.0.1:9" if flag.startswith("--initial-cluster") else flag for flag in good]
        expect_refusal(stranger, 1, "refuses this node", "the initial clusters differ")
        assert all(node.is_ready() for node in cluster.nodes[:2])


def test_a_member_that_lost_its_disk_is_refused(tmp_path):
    with ProcessCluster(tmp_path) as cluster:
        victim = cluster.nodes[1]
        victim.kill()
        shutil.rmtree(victim.data_dir)
        expect_refusal(victim, 1, "refuses this node", "has taken part in it with other storage", "member replace n2")


def test_a_full_disk_refuses_writes_and_serves_reads(node):
    serve_until_ready(node)
    assert node.ask("/v1/kv/a", method="PUT", body=b"x")[0] == 201
    assert node.terminate() == 0
    serve_until_ready(node, f"--min-free-bytes={10**17}")
    status, problem = node.ask("/v1/kv/b", method="PUT", body=b"x")
    assert (status, problem["type"], problem["applied"]) == (507, "urn:raftkv:problem:storage-low", "no")
    assert node.ask("/v1/kv/a") == (200, b"x")
    assert node.ask("/v1/kv/b")[0] == 404
    assert node.is_ready()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 120 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=120m", "tmpfs", path], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system takes the rights of an administrator")
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.mark.parametrize("min_free_bytes", [1_000_000, 20_000_000])
def test_leader_on_a_small_disk_refuses_writes_before_it_is_full(small_disk, node, min_free_bytes):
    node.data_dir = small_disk / "n1"
    node.command = [f"--data-dir={node.data_dir}" if "--data-dir" in part else part for part in node.command]
    serve_until_ready(node, f"--min-free-bytes={min_free_bytes}")
    for number in range(600):
        status, problem = node.ask(f"/v1/kv/big{number}", method="PUT", body=os.urandom(200_000))
        if status != 201:
            break
    assert (status, problem["type"], problem["applied"]) == (507, "urn:raftkv:problem:storage-low", "no")
    assert node.ask("/v1/kv/big0", method="DELETE")[0] == 200, "what frees space goes on"
    assert node.is_ready()
    assert node.terminate() == 0
    serve_until_ready(node)
    assert len(node.ask(f"/v1/kv/big{number - 1}")[1]) == 200_000


def test_a_store_that_cannot_grow_refuses_writes_and_keeps_serving(node):
    """A limit of file sizes stands for the full disk."""
    filled(node)
    node.kill()
    limit = (node.data_dir / "store" / "data.mdb").stat().st_size
    with node.log_path.open("ab") as log:
        node.process = subprocess.Popen(
            node.command,
            stdout=log,
            stderr=log,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),  # noqa: PLW1509 - no threads
        )
    node.wait_ready()
    acknowledged = []
    for number in range(1000):
        status, problem = node.ask(f"/v1/kv/big{number}", method="PUT", body=bytes(100_000))
        if status != 201:
            assert (status, problem["applied"]) == (507, "no"), problem
            break
        acknowledged.append(number)
    else:
        pytest.fail("every write was accepted")
    assert node.ask("/v1/kv/key0") == (200, b"value")
    assert node.is_ready()
    assert node.terminate() == 0
    serve_until_ready(node)
    for number in acknowledged:
        assert node.ask(f"/v1/kv/big{number}") == (200, bytes(100_000))
    assert node.ask("/v1/kv/more", method="PUT", body=b"x")[0] == 201


@pytest.mark.parametrize(("call", "error"), [("fdatasync", "EIO"), ("write", "ENOSPC"), ("write", "EIO")])
def test_a_disk_that_refuses_ends_the_node_and_loses_nothing(node, call, error):
    filled(node)
    assert node.terminate() == 0
    script = FAILING_CALL.replace("CALL", call).replace("NUMBER", error)
    node.command = [sys.executable, "-c", script, *node.command[3:]]
    good = [sys.executable, "-m", "raftkv", *node.command[3:]]
    serve_until_ready(node)
    acknowledged = []
    for number in range(300):
        status, problem = node.ask(f"/v1/kv/more{number}", method="PUT", body=b"x")
        if status != 201:
            assert status == 0 or problem["applied"] == "unknown" or status == 503
            break
        acknowledged.append(number)
    assert node.wait() == 1
    assert "writing the journal in" in last_line(node)
    assert os.strerror(getattr(errno, error)) in last_line(node)
    node.command = good
    serve_until_ready(node)
    assert acknowledged
    assert all(node.ask(f"/v1/kv/more{number}") == (200, b"x") for number in acknowledged)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--heartbeat-ms=500"], "election-timeout-ms (1000) must be more than three times"),
        (["--listen-client=nowhere"], "--listen-client: 'nowhere' is not HOST:PORT"),
        (["--initial-cluster=n9=127.0.0.1:1"], "name 'n1' is not in initial-cluster"),
        (["--config=/does/not/exist"], "/does/not/exist cannot be read"),
        (["--log-format=xml"], "--log-format: 'xml' is not text or json"),
    ],
)
def test_wrong_settings_are_named(node, flags, words):
    node.command += flags
    expect_refusal(node, 2, words)
    assert not node.data_dir.exists()


def test_logs_are_as_they_are_configured(node, tmp_path):
    config = tmp_path / "raftkv.toml"
    config.write_text('log_level = "error"\naccess_log = true\nlog_format = "json"\nslow_request_ms = 0\n')
    serve_until_ready(node, f"--config={config}")
    assert node.ask("/v1/kv/a", method="PUT", body=b"secret", headers={"X-Request-Id": "mine"})[0] == 201
    assert node.terminate() == 0
    records = [json.loads(line) for line in node.log().splitlines()]
    assert {record["logger"] for record in records} == {"raftkv.http.access"}, "nothing else is an error"
    (request,) = [record["request"] for record in records if record["request"]["id"] == "mine"]
    assert (request["method"], request["path"], request["operation"]) == ("PUT", "/v1/kv/a", "put")
    assert "secret" not in node.log()


def test_a_configuration_file_is_read(node, tmp_path):
    config = tmp_path / "raftkv.toml"
    config.write_text('log_format = "json"\nheartbeat_ms = 50\n')
    serve_until_ready(node, f"--config={config}")
    assert node.log().startswith('{"time":"')
    assert node.terminate() == 0
