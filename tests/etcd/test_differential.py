"""The same random requests to etcd and to raftkv: the same answers, field by field, errors included."""

from __future__ import annotations

import os
import random

import pytest

from tests.etcd.peers import EtcdProcess, RaftkvProcess, ask, needs_etcd
from tests.etcd.requests import Requests, b64, normal

REQUESTS = int(os.environ.get("TEST_REQUESTS", "5000"))

pytestmark = [pytest.mark.process, needs_etcd]


def test_random_requests_are_answered_as_by_etcd(tmp_path):
    seed = int(os.environ.get("TEST_SEED", str(random.SystemRandom().randrange(10**6))))
    print(f"TEST_SEED={seed}")
    requests = Requests(seed)
    differences = []
    with EtcdProcess(tmp_path) as etcd, RaftkvProcess(tmp_path) as raftkv:
        for number in range(REQUESTS):
            path, document = requests.draw()
            theirs, ours = ask(etcd.url, path, document), ask(raftkv.url, path, document)
            if isinstance(theirs[1], dict) and "revision" in theirs[1].get("header", {}):
                requests.revision = int(theirs[1]["header"]["revision"])
            if normal(path, document, theirs) != normal(path, document, ours):
                differences.append(f"{number}: {path} {document!s:.600}")
                differences += [f"  etcd   {theirs!s:.900}", f"  raftkv {ours!s:.900}"]
                if len(differences) == 30:
                    break
    assert not differences, "\n".join(differences)
    print(f"{REQUESTS} requests answered alike, the last at revision {requests.revision}")


LEADER = {"name": b64(b"e"), "key": b64(b"e/9"), "rev": "1", "lease": "9"}
NO_SPACE = {"alarm": "NOSPACE", "memberID": 0}

SERVICES: list[tuple[str, dict[str, object]]] = [
    *(
        (f"/v3/auth/{path}", {})
        for path in [
            *("enable", "disable", "status", "authenticate"),
            *("user/add", "user/get", "user/list", "user/delete", "user/changepw", "user/grant", "user/revoke"),
            *("role/add", "role/get", "role/list", "role/delete", "role/grant", "role/revoke"),
        ]
    ),
    ("/v3/auth/authenticate", {"name": "x", "password": "y"}),
    ("/v3/auth/user/get", {"name": "x"}),
    ("/v3/auth/user/changepw", {"name": "x", "password": "y"}),
    ("/v3/auth/user/grant", {"user": "x", "role": "y"}),
    ("/v3/auth/role/grant", {"name": "x", "perm": {"key": b64(b"a")}}),
    ("/v3/auth/role/revoke", {"role": "x", "key": b64(b"a")}),
    ("/v3/lock/lock", {"name": b64(b"l"), "lease": 5}),
    ("/v3/lock/lock", {"name": b64(b"l")}),
    ("/v3/lock/lock", {}),
    ("/v3/lock/unlock", {}),
    ("/v3/lock/unlock", {"key": b64(b"nobody")}),
    ("/v3/election/leader", {"name": b64(b"e")}),
    ("/v3/election/campaign", {"name": b64(b"e"), "lease": 7}),
    ("/v3/election/campaign", {"name": b64(b"e"), "value": b64(b"v")}),
    ("/v3/election/leader", {"name": b64(b"e")}),
    ("/v3/election/proclaim", {}),
    ("/v3/election/proclaim", {"leader": LEADER}),
    ("/v3/election/resign", {}),
    ("/v3/election/resign", {"leader": LEADER}),
    ("/v3/maintenance/alarm", {}),
    ("/v3/maintenance/alarm", {"action": "ACTIVATE", **NO_SPACE}),
    ("/v3/maintenance/alarm", {"action": "GET"}),
    ("/v3/kv/put", {"key": b64(b"a")}),
    ("/v3/kv/txn", {"success": [{"request_put": {"key": b64(b"a")}}]}),
    ("/v3/kv/deleterange", {"key": b64(b"a")}),
    ("/v3/lease/grant", {"TTL": 5}),
    ("/v3/maintenance/alarm", {"action": "DEACTIVATE", **NO_SPACE, "memberID": 99}),
    ("/v3/maintenance/alarm", {"action": "DEACTIVATE", **NO_SPACE}),
    ("/v3/kv/put", {"key": b64(b"a")}),
    ("/v3/maintenance/defragment", {}),
    ("/v3/maintenance/hash", {}),
    ("/v3/cluster/member/list", {}),
    ("/v3/maintenance/transfer-leadership", {}),
    ("/v3/maintenance/transfer-leadership", {"targetID": "5"}),
]
OWN_NAMES = {"key", "lease", "hash", "ID", "name", "peerURLs", "clientURLs", "memberID"}
"""Fields that every server fills in its own way."""


def shape(value: object) -> object:
    """Return a document without ids of its server's making, and without the order of an error's members."""
    if isinstance(value, dict):
        return {name: shape(item) for name, item in value.items() if name not in OWN_NAMES | {"header"}}
    return [shape(item) for item in value] if isinstance(value, list) else value


def test_the_other_services_answer_as_those_of_etcd(tmp_path):
    differences = []
    with EtcdProcess(tmp_path) as etcd, RaftkvProcess(tmp_path) as raftkv:
        for path, document in SERVICES:
            theirs, ours = ask(etcd.url, path, document), ask(raftkv.url, path, document)
            assert theirs[0], f"etcd is gone after {path} {document}"
            revisions = [answer[1].get("header", {}).get("revision") for answer in (theirs, ours)]
            if (theirs[0], shape(theirs[1])) != (ours[0], shape(ours[1])) or revisions[0] != revisions[1]:
                differences.append(f"{path} {document}\n  etcd   {theirs!s:.500}\n  raftkv {ours!s:.500}")
    assert not differences, "\n".join(differences)
