"""The revisions of answers under 64 concurrent clients: through the leader, through followers, and at etcd itself."""

from __future__ import annotations

import os
import random

import pytest

from raftkv.verification.history import Outcome
from raftkv.verification.revisions import check_revisions
from tests.etcd.concurrent import record
from tests.etcd.peers import EtcdProcess, RaftkvProcess, ask, needs_etcd
from tests.etcd.requests import b64
from tests.process.cluster import ProcessCluster

OPERATIONS_PER_CLIENT = 40

pytestmark = pytest.mark.process


def seed() -> int:
    chosen = int(os.environ.get("TEST_SEED", random.SystemRandom().getrandbits(32)))
    print(f"TEST_SEED={chosen}")
    return chosen


def check(history) -> None:
    done = sum(operation.outcome in (Outcome.DONE, Outcome.CONDITION_FAILED) for operation in history)
    assert done > 0.9 * len(history), f"only {done} of {len(history)} operations were answered"
    findings = check_revisions(history)
    assert not findings, f"{len(findings)} findings, the first: " + "\n".join(findings[:5])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with ProcessCluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


async def test_answers_of_leader_carry_revision_of_their_operation(cluster):
    check(await record([cluster.leader().url], seed(), OPERATIONS_PER_CLIENT))


async def test_answers_of_followers_carry_revision_of_their_operation(cluster):
    check(await record([node.url for node in cluster.followers()], seed(), OPERATIONS_PER_CLIENT))


async def test_answers_of_all_nodes_carry_revision_of_their_operation(cluster):
    check(await record([node.url for node in cluster.nodes], seed(), OPERATIONS_PER_CLIENT))


@needs_etcd
async def test_checker_has_no_findings_at_etcd(tmp_path):
    with EtcdProcess(tmp_path) as etcd:
        check(await record([etcd.url], seed(), OPERATIONS_PER_CLIENT))


SPAN = {"key": b64(b"s/"), "range_end": b64(b"s0")}
MISS = {"key": b64(b"s/1"), "target": "MOD", "mod_revision": "1"}
SCRIPT = [
    ("/v3/kv/put", {"key": b64(b"s/1")}),
    ("/v3/kv/put", {"key": b64(b"s/2"), "prev_kv": True}),
    ("/v3/kv/range", {"key": b64(b"s/1"), "revision": "2"}),
    ("/v3/kv/range", {**SPAN, "serializable": True}),
    ("/v3/kv/txn", {"compare": [MISS], "success": [{"request_put": {"key": b64(b"s/1")}}]}),
    ("/v3/kv/txn", {"success": [{"request_range": SPAN}, {"request_delete_range": {"key": b64(b"none")}}]}),
    ("/v3/kv/txn", {"success": [{"request_range": SPAN}, {"request_put": {"key": b64(b"s/1")}}]}),
    ("/v3/kv/deleterange", {"key": b64(b"none")}),
    ("/v3/kv/deleterange", SPAN),
    ("/v3/kv/compaction", {"revision": "3"}),
    ("/v3/lease/grant", {"ID": "7", "TTL": "600"}),
    ("/v3/kv/put", {"key": b64(b"leased"), "lease": "7"}),
    ("/v3/lease/timetolive", {"ID": "7"}),
    ("/v3/lease/timetolive", {"ID": "8"}),
    ("/v3/lease/leases", {}),
    ("/v3/lease/revoke", {"ID": "7"}),
    ("/v3/lease/grant", {"ID": "9", "TTL": "600"}),
    ("/v3/lock/lock", {"name": b64(b"l"), "lease": "9"}),
    ("/v3/kv/put", {"key": b64(b"s/1")}),
    ("/v3/lock/lock", {"name": b64(b"l"), "lease": "9"}),
    ("/v3/lock/unlock", {"key": b64(b"l/9")}),
    ("/v3/lock/unlock", {"key": b64(b"l/9")}),
    ("/v3/election/campaign", {"name": b64(b"e"), "lease": "9", "value": b64(b"1")}),
    ("/v3/election/leader", {"name": b64(b"e")}),
    ("/v3/election/campaign", {"name": b64(b"e"), "lease": "9", "value": b64(b"2")}),
    ("/v3/election/proclaim", {"leader": {"key": b64(b"e/9"), "lease": "9", "rev": "11"}, "value": b64(b"3")}),
    ("/v3/election/resign", {"leader": {"name": b64(b"e"), "key": b64(b"e/9"), "lease": "9", "rev": "11"}}),
    ("/v3/election/resign", {"leader": {"name": b64(b"e"), "key": b64(b"e/9"), "lease": "9", "rev": "11"}}),
    ("/v3/maintenance/status", {}),
    ("/v3/maintenance/alarm", {"action": "ACTIVATE", "alarm": "NOSPACE"}),
    ("/v3/maintenance/alarm", {}),
    ("/v3/maintenance/alarm", {"action": "DEACTIVATE", "alarm": "NOSPACE"}),
    ("/v3/maintenance/hash", {}),
    ("/v3/cluster/member/list", {}),
    ("/v3/auth/status", {}),
]


@needs_etcd
def test_headers_of_all_requests_have_revisions_of_etcd(tmp_path):
    with EtcdProcess(tmp_path) as etcd, RaftkvProcess(tmp_path) as raftkv:
        for path, document in SCRIPT:
            revisions = []
            for url in (etcd.url, raftkv.url):
                status, answer = ask(url, path, document)
                assert status == 200, (path, document, url, answer)
                revisions.append(answer["header"].get("revision"))
            assert revisions[0] == revisions[1], (path, document, revisions)
        assert revisions[0] == "14"
