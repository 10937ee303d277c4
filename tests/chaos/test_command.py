"""``raftkv chaos`` against front-ends over fakes: a service that keeps its promises, and ones that do not."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from raftkv.cli.chaos import _parse_endpoints
from raftkv.cli.main import raftkv
from raftkv.errors import NoLeader
from raftkv.service.api import Read
from raftkv.types import Consistency, Revision
from tests.http.http_fakes import FakeKeyValueService
from tests.http.http_thread import ServerThread


class Forgetful(FakeKeyValueService):
    """Loses every tenth write that it has acknowledged."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0

    async def put(self, key, value, condition=None, **options):
        before = self.keys.get(key)
        written = await super().put(key, value, condition, **options)
        self.writes += 1
        if self.writes % 10 == 0:
            if before is None:
                self.keys.pop(key, None)
            else:
                self.keys[key] = before
        return written


class Stale(FakeKeyValueService):
    """Reads see what was there a few revisions ago."""

    async def get(self, key, consistency=Consistency.LINEARIZABLE):
        read = await super().get(key, consistency)
        self.seen = [*getattr(self, "seen", []), (key, read)][-40:]
        old = [earlier for other, earlier in self.seen[:-5] if other == key]
        return old[-1] if old else read


class NextRevision(FakeKeyValueService):
    """Answers a put with the revision after its own, as if the store had gone on meanwhile."""

    async def put(self, key, value, condition=None, **options):
        written = await super().put(key, value, condition, **options)
        return replace(written, revision=Revision(written.revision + 1))


@pytest.fixture
def start():
    servers = []

    def start(kv: FakeKeyValueService | None = None) -> ServerThread:
        servers.append(ServerThread(kv))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def run(directory: Path, *arguments: str):
    before = Path.cwd()
    os.chdir(directory)
    try:
        return CliRunner().invoke(raftkv, ["chaos", *arguments])
    finally:
        os.chdir(before)


QUICK = ("--duration", "2", "--rate", "2000", "--seed", "5")


def test_a_service_that_keeps_its_promises_passes_and_is_left_clean(start, tmp_path):
    server = start()
    result = run(tmp_path, "--endpoints", server.url, *QUICK)
    assert result.exit_code == 0, result.output
    assert "seed 5" in result.output
    assert "verdict: linearizable" in result.output
    assert "faults: none" in result.output
    assert (tmp_path / "raftkv-chaos.svg").read_bytes().startswith(b"<?xml")
    assert not (tmp_path / "raftkv-chaos.jsonl").exists()
    assert server.kv.keys == {}


def test_keys_and_history_can_be_kept(start, tmp_path):
    server = start()
    arguments = ("--keep-keys", "--history", "h.jsonl", "--timeline", "t.svg", "--max-operations", "200")
    result = run(tmp_path, "--endpoints", server.url, *QUICK, *arguments)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "t.svg").exists()
    operations = [json.loads(line) for line in (tmp_path / "h.jsonl").read_text().splitlines()]
    assert {operation["kind"] for operation in operations} == {"put", "get", "delete", "swap"}
    # A swap reads first, the probe writes too, and every key is read once at the end.
    assert 200 <= len(operations) <= 400
    assert set(server.kv.keys) <= {operation["key"].encode() for operation in operations}
    assert server.kv.keys


@pytest.mark.parametrize("service", [Forgetful, Stale])
def test_a_service_that_breaks_them_is_caught(start, tmp_path, service):
    result = run(tmp_path, "--endpoints", start(service()).url, *QUICK)
    assert result.exit_code == 1, result.output
    assert "verdict: FAILED" in result.output
    assert "no order of the operations on key chaos/" in result.output
    operations = [json.loads(line) for line in (tmp_path / "raftkv-chaos.jsonl").read_text().splitlines()]
    assert len(operations) > 100


def test_wrong_revisions_refute_run(start, tmp_path):
    result = run(tmp_path, "--endpoints", start(NextRevision()).url, *QUICK)
    assert result.exit_code == 1, result.output
    assert "verdict: FAILED" in result.output
    assert "no order of the operations" not in result.output
    assert "wrong revision: " in result.output
    operations = [json.loads(line) for line in (tmp_path / "raftkv-chaos.jsonl").read_text().splitlines()]
    assert any(operation["revision"] != operation["mod_revision"] for operation in operations)


def test_a_service_that_does_not_serve_is_said_to_be_so(start, tmp_path):
    server = start()
    server.kv.failure = NoLeader("no leader is known")
    result = run(tmp_path, "--endpoints", server.url, *QUICK, "--recovery", "0.5")
    assert result.exit_code == 1
    assert "no endpoint served the request within 0.5 s" in result.stderr


def test_a_node_that_stops_serving_for_good_fails_the_run(start, tmp_path):

    class Dying(FakeKeyValueService):
        async def get(self, key, consistency=Consistency.LINEARIZABLE) -> Read:
            if self.revision > 100:
                raise NoLeader("gone")
            return Read(Revision(self.revision), self.keys.get(key))

    result = run(tmp_path, "--endpoints", start(Dying()).url, *QUICK, "--recovery", "0.5")
    assert result.exit_code == 1, result.output
    assert "does not serve 0.5 s after the last fault" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--endpoints", "http://192.0.2.1:2379"], "http://192.0.2.1:2379 is not on this machine; --allow-remote"),
        (["--endpoints", "http://db.example:2379"], "http://db.example:2379 is not on this machine"),
        (["--endpoints", "http://[::1]:1,http://[2001:db8::1]:1"], "http://[2001:db8::1]:1 is not on this machine"),
        (["--endpoints", "not a url"], "not a url is not on this machine"),
        (["--endpoints", "http://localhost:1", "--faults", "kill"], "only what 'raftkv dev' runs can be broken"),
        (["--faults", "kill,earthquake"], "'earthquake' is not a valid Fault; some of kill,kill-all,pause,"),
        (["--data-dir", "nowhere"], "no cluster of 'raftkv dev' runs on nowhere"),
        (["--duration", "0"], "0.0 is not in the range"),
        (["--rate", "1e9"], "is not in the range"),
    ],
)
def test_wrong_usage_is_refused_before_anything_happens(tmp_path, arguments, message):
    result = run(tmp_path, *arguments)
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr
    assert list(tmp_path.iterdir()) == []


def test_remote_endpoints_are_taken_when_told_so():
    assert _parse_endpoints("http://db.example:2379, http://[::1]:1", allow_remote=True) == (
        "http://db.example:2379",
        "http://[::1]:1",
    )


def test_a_cluster_that_is_gone_is_said_to_be_gone(tmp_path):
    (tmp_path / "control").write_text(f"{tmp_path}/socket\n")
    result = run(tmp_path, "--data-dir", str(tmp_path))
    assert (result.exit_code, "does not answer" in result.stderr) == (2, True), result.stderr
