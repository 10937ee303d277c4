"""A hundred megabytes where a key would do: refused, at a cost that does not depend on what is sent."""

from __future__ import annotations

import base64
import http.client
import json
import os
import threading
from pathlib import Path

import pytest

from tests.loop_watch import IS_TRACED
from tests.process.cluster import NodeProcess, ProcessCluster

pytestmark = pytest.mark.process

BODY_BYTES = 100_000_000
PIECE = b"[" * 65_536
MAX_GROWTH_BYTES = 80_000_000


def send(url: str, method: str, path: str, *, chunked: bool, answers: list[int]) -> None:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    pieces = (PIECE for _ in range(BODY_BYTES // len(PIECE)))
    headers = {} if chunked else {"Content-Length": str(BODY_BYTES // len(PIECE) * len(PIECE))}
    try:
        connection.request(method, path, body=pieces, headers=headers, encode_chunked=chunked)
        answers.append(connection.getresponse().status)
    except (BrokenPipeError, ConnectionResetError):
        # The server answered and closed while this side was still sending.
        answers.append(0)
    finally:
        connection.close()


def test_huge_bodies_cost_bounded_memory(tmp_path):
    with ProcessCluster(tmp_path, 1) as cluster:
        (node,) = cluster.nodes
        assert node.ask("/v1/kv/a", method="PUT", body=b"x")[0] == 201
        before = node.peak_memory_bytes()
        answers: list[int] = []
        senders = [
            threading.Thread(target=send, args=(node.url, *target), kwargs={"chunked": chunked, "answers": answers})
            for target in (("PUT", "/v1/kv/a"), ("POST", "/v1/txn"), ("POST", "/v3/kv/put"), ("POST", "/v3/watch"))
            for chunked in (False, True)
        ]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join(60)
        assert len(answers) == len(senders)
        # A stream's answer begins before its request is read.
        assert set(answers) <= {0, 200, 400, 413}
        assert node.ask("/v1/kv/a") == (200, b"x")
        assert node.peak_memory_bytes() - before < MAX_GROWTH_BYTES


KEYS = 20_000
SPAN = {"key": base64.b64encode(b"k/").decode(), "range_end": base64.b64encode(b"k0").decode()}
RANGE, COUNT = {"request_range": SPAN}, {"request_range": {**SPAN, "count_only": True}}
PUT = {"request_put": {"key": base64.b64encode(b"written").decode()}}
PATIENCE_SECONDS = 8.0 if IS_TRACED else 2.0
"""Of the node's own time, so that a busy machine does not count; without a bound it is eight and more."""

HEAVY = {
    "ranges": {"success": [PUT, *[RANGE] * 127]},
    "ranges, natively": {"then": [{"put": {"key": "written", "value": ""}}, *[{"get": {"prefix": "k/"}}] * 127]},
    "numbers of keys, nested": {"success": [PUT, *[{"request_txn": {"success": [COUNT] * 64}}] * 60]},
}


def cpu_seconds(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def fill(node: NodeProcess) -> None:
    for first in range(0, KEYS, 125):
        puts = [{"put": {"key": f"k/{number:08}", "value": "v" * 100}} for number in range(first, first + 125)]
        assert node.ask("/v1/txn", method="POST", body=json.dumps({"then": puts}).encode())[0] == 200


def test_transactions_that_read_much_are_refused_before_others_wait_long(tmp_path):
    with ProcessCluster(tmp_path, 1) as cluster:
        (node,) = cluster.nodes
        fill(node)
        before = node.peak_memory_bytes()
        for name, document in HEAVY.items():
            path = "/v1/txn" if "then" in document else "/v3/kv/txn"
            answers: list[tuple[int, object]] = []

            def ask(path: str = path, document: object = document, answers: list[tuple[int, object]] = answers) -> None:
                answers.append(node.ask(path, method="POST", body=json.dumps(document).encode(), timeout=120))

            asking = threading.Thread(target=ask)
            asking.start()
            longest = 0.0
            while asking.is_alive():
                began = cpu_seconds(node.process.pid)
                assert node.ask("/v1/kv/small", method="PUT", body=b"x", timeout=120)[0] in (200, 201)
                longest = max(longest, cpu_seconds(node.process.pid) - began)
            asking.join()
            print(f"beside {name}, a put waits for up to {longest:.2f} s of the node's work")
            assert longest < PATIENCE_SECONDS
            ((status, problem),) = answers
            assert status == 400
            assert "the transaction visits more than 100000 keys or" in str(problem)
            assert problem.get("code") == 3 or problem["applied"] == "no"
            assert node.ask("/v1/kv/written")[0] == 404
        assert node.peak_memory_bytes() - before < 2 * MAX_GROWTH_BYTES
