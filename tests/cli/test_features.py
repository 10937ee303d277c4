"""watch, txn, lease, lock and elect, in this process, against a front-end over a real store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from raftkv.errors import NoLeader
from tests.http.http_thread import ServerThread


@contextmanager
def started(server: ServerThread, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "RAFTKV_ENDPOINTS": server.url}
    command = [sys.executable, "-m", "raftkv", *arguments]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=10)


def test_watch_prints_changes_as_lines_of_json(run):
    run("put", "a/1", "one")
    run("put", "a/2", "-", stdin=b"\xff")
    run("put", "a/1", "two")
    run("del", "a/2")
    result = run("watch", "--prefix", "a/", "--from-revision", "2", "--previous", "--changes", "4")
    assert result.exit_code == 0
    lines = [json.loads(line) for line in result.output.splitlines()]
    assert [line["revision"] for line in lines] == [2, 3, 4, 5]
    assert lines[0]["events"] == [
        {"type": "put", "key": "a/1", "value": "one", "create_revision": 2, "mod_revision": 2, "version": 1}
    ]
    assert lines[1]["events"][0]["value"] == {"base64": "/w=="}
    assert lines[2]["events"][0]["previous"]["value"] == "one"
    assert lines[3]["events"][0]["type"] == "delete"
    assert json.loads(run("watch", "a/1", "--from-revision", "2", "--changes", "1").output)["revision"] == 2


def test_watch_prints_changes_of_any_size(run):
    run("put", "large", "-", stdin=b"v" * 1_500_000)
    result = run("watch", "large", "--from-revision", "2", "--changes", "1")
    assert result.exit_code == 0
    assert json.loads(result.output)["events"][0]["value"] == "v" * 1_500_000


def test_txn_reads_and_prints_json(run, tmp_path):
    document = {"if": [{"key": "a", "version": {"equal": 0}}], "then": [{"put": {"key": "a", "value": "1"}}]}
    result = run("txn", stdin=json.dumps(document).encode())
    assert (result.exit_code, json.loads(result.output)["succeeded"]) == (0, True)
    file = tmp_path / "txn.json"
    file.write_text(json.dumps(document))
    result = run("txn", str(file))
    assert (result.exit_code, "the conditions did not hold" in result.stderr) == (1, True)
    result = run("txn", stdin=b"{")
    assert (result.exit_code, "is not JSON" in result.stderr) == (1, True)


def test_leases(run):
    granted = run("lease", "grant", "60").output.strip()
    assert run("lease", "ls").output.strip() == granted
    assert run("lease", "ttl", granted, "--keys").output == "60\t60\n"
    assert run("lease", "keep-alive", "--once", granted).output == "60\n"
    assert run("lease", "revoke", granted).exit_code == 0
    assert run("lease", "revoke", granted).exit_code == 1
    assert run("lease", "keep-alive", granted).exit_code == 1


def test_a_lease_is_kept_alive_until_it_is_gone(run, server):
    granted = run("lease", "grant", "2").output.strip()
    with started(server, "lease", "keep-alive", granted) as process:
        while run("lease", "keep-alive", "--once", granted).exit_code == 0 and process.poll() is None:
            run("lease", "revoke", granted)
        _, errors = process.communicate(timeout=10)
        assert (process.returncode, f"lease {granted}".encode() in errors) == (1, True)


PRINT = "import os; print(os.environ['RAFTKV_LEASE'], os.environ.get('RAFTKV_FENCE'), flush=True)"


WAIT = "\nimport signal\nwhile True: signal.pause()"


def test_lock_runs_a_command_and_returns_its_exit_code(run, server):
    with started(server, "lock", "a:b", "--", sys.executable, "-c", PRINT + "; raise SystemExit(7)") as process:
        output, _ = process.communicate(timeout=10)
        lease, fence = output.decode().split()
        assert process.returncode == 7
        assert fence.startswith("a%3Ab:")
        assert int(lease) > 0
        assert run("lease", "ls").output == ""
        assert run("lock", "l", "--", "/does/not/exist").exit_code == 1


def test_a_command_is_ended_when_its_lock_is_lost(run, server):
    with started(server, "lock", "--ttl", "2", "l", "--", sys.executable, "-c", PRINT + WAIT) as process:
        lease = process.stdout.readline().split()[0].decode()
        assert run("lock", "--wait", "0", "l", "--", "true").exit_code == 1
        assert run("lease", "revoke", lease).exit_code == 0
        _, errors = process.communicate(timeout=10)
        assert (process.returncode, b"the turn was lost" in errors) == (1, True)


def test_a_command_is_ended_when_nobody_confirms_its_lock(server):
    command = PRINT + "; import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" + WAIT
    with started(server, "lock", "--ttl", "2", "l", "--timeout", "1", "--", sys.executable, "-c", command) as process:
        process.stdout.readline()
        began = time.monotonic()
        server.log.refusal = NoLeader("none")
        _, errors = process.communicate(timeout=20)
        assert (process.returncode, b"the turn was lost" in errors) == (1, True)
        assert time.monotonic() - began < 15
        server.log.refusal = None


def test_a_signal_goes_to_the_command_and_the_lock_is_released(run, server):
    with started(server, "lock", "l", "--", sys.executable, "-c", PRINT + WAIT) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM
        assert run("lease", "ls").output == ""


def test_elect_runs_a_command_as_leader(run, server):
    with started(server, "elect", "--value", "me", "e", "--", sys.executable, "-c", PRINT + WAIT) as process:
        process.stdout.readline()
        assert run("elect", "--wait", "0", "e", "--", "true").exit_code == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(10) in (1, 128 + signal.SIGINT)
