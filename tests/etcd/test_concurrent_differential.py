"""A sample of the comparison with etcd under 32 concurrent clients, and whether the comparison finds what differs."""

from __future__ import annotations

import os
import random
from typing import cast

import aiohttp
import pytest

from tests.etcd.concurrent_differential import Answer, Client, Difference, RangeRequests, compare
from tests.etcd.peers import needs_etcd

REQUESTS = int(os.environ.get("TEST_REQUESTS", "1500"))


@pytest.mark.process
@needs_etcd
def test_concurrent_clients_are_answered_as_by_etcd(tmp_path):
    seed = int(os.environ.get("TEST_SEED", random.SystemRandom().getrandbits(32)))
    print(f"TEST_SEED={seed}")
    found = compare(tmp_path, seed, clients=32, requests=REQUESTS, nodes=3)
    assert not found.differences, "\n".join(found.differences)
    assert found.requests >= REQUESTS * 0.9
    assert found.errors < found.requests / 2
    assert found.shared > REQUESTS * 0.15


def kv(mod: int, create: int, value: str = "MQ==") -> dict[str, str]:
    return {"key": "YQ==", "create_revision": str(create), "mod_revision": str(mod), "version": "2", "value": value}


def found(revision: int, *kvs: dict[str, str]) -> Answer:
    return 200, {"header": {"revision": str(revision)}, "kvs": list(kvs), "count": str(len(kvs))}


def written(revision: int) -> Answer:
    return 200, {"header": {"revision": str(revision)}}


def part(outer: int, inner: int) -> Answer:
    response = {"response_range": {"header": {"revision": str(inner)}}}
    return 200, {"header": {"revision": str(outer)}, "responses": [response]}


WRITES = [("kv/put", written(5), written(9)), ("kv/put", written(7), written(10))]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (found(7, kv(7, 5)), found(12, kv(10, 9))),
        (found(8, kv(7, 3)), found(10, kv(10, 4))),
        (part(8, 7), part(20, 19)),
        ((400, {"error": "x", "message": "x", "code": 3}), (400, {"error": "y", "message": "y", "code": 3})),
        ((404, None), (404, None)),
    ],
)
def test_answers_that_mean_the_same_are_alike(theirs, ours):
    client = Client(("", ""), cast("aiohttp.ClientSession", None), RangeRequests(1, 1))
    for path, *answers in [*WRITES, ("kv/range", theirs, ours)]:
        client._compare(f"/v3/{path}", {}, answers)
    assert len(client._writes) == 2


@pytest.mark.parametrize(
    ("path", "theirs", "ours"),
    [
        ("kv/range", found(7, kv(7, 5)), found(12, kv(9, 9))),
        ("kv/range", found(7, kv(5, 5)), found(12, kv(10, 9))),
        ("kv/range", found(7, kv(7, 5)), found(12, kv(10, 9, "Mg=="))),
        ("kv/range", found(7, kv(7, 5)), found(12)),
        ("kv/range", found(7), found(8)),
        ("kv/range", found(6), found(12)),
        ("kv/put", written(7), written(11)),
        ("kv/put", written(8), written(10)),
        ("kv/txn", part(8, 7), part(20, 20)),
        ("kv/put", written(8), (400, {"error": "x", "message": "x", "code": 3})),
        (
            "kv/put",
            (400, {"error": "", "message": "etcdserver: x", "code": 3}),
            (400, {"error": "", "message": "etcdserver: y", "code": 3}),
        ),
    ],
    ids=[
        *("other write", "other write of etcd", "value", "missing key", "stale header", "stale header of etcd"),
        *("write without a revision of etcd", "write without a revision", "part", "status", "message"),
    ],
)
def test_answers_that_differ_are_found(path, theirs, ours):
    client = Client(("", ""), cast("aiohttp.ClientSession", None), RangeRequests(1, 1))
    for earlier, *answers in WRITES:
        client._compare(f"/v3/{earlier}", {}, answers)
    with pytest.raises(Difference):
        client._compare(f"/v3/{path}", {}, [theirs, ours])


def test_events_in_another_order_are_found():
    for ours in ([10, 9], [9], [9, 11]):
        client = Client(("", ""), cast("aiohttp.ClientSession", None), RangeRequests(1, 1))
        for earlier, *answers in WRITES:
            client._compare(f"/v3/{earlier}", {}, answers)
        client.events[0].extend({"kv": kv(mod, 5)} for mod in (5, 7))
        client.events[1].extend({"kv": kv(mod, 9)} for mod in ours)
        with pytest.raises(Difference):
            client.compare_events()
