"""Clients that do not read what they asked for: what they hold of a node's memory, and for how long."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import time
from pathlib import Path

import pytest

from tests.process.cluster import NodeProcess, ProcessCluster

pytestmark = pytest.mark.process

CLIENTS = 12
KEYS = 600
VALUE = base64.b64encode(bytes(50_000)).decode()
ANSWER_BYTES = KEYS * len(VALUE)
BUDGET_BYTES = 100_000_000


def resident_bytes(pid: int) -> int:
    """Memory that is no mapped file."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def fill(node: NodeProcess) -> None:
    for first in range(0, KEYS, 20):
        puts = [
            {"request_put": {"key": base64.b64encode(b"k%06d" % number).decode(), "value": VALUE}}
            for number in range(first, first + 20)
        ]
        assert node.ask("/v3/kv/txn", method="POST", body=json.dumps({"success": puts}).encode())[0] == 200


def ask_without_reading(node: NodeProcess, path: str, document: object) -> socket.socket:
    body = json.dumps(document).encode()
    host, port = node.url.removeprefix("http://").split(":")
    connection = socket.socket()
    # The kernel would take some of the answer for the client.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(30)
    connection.connect((host, int(port)))
    connection.sendall(
        b"POST %b HTTP/1.1\r\nHost: n\r\nContent-Length: %d\r\n\r\n%b" % (path.encode(), len(body), body)
    )
    return connection


ALL = {"key": base64.b64encode(b"k").decode(), "range_end": base64.b64encode(b"l").decode()}


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("/v3/kv/range", ALL),
        ("/v3/watch", {"create_request": {**ALL, "start_revision": 1}}),
    ],
    ids=["ranges", "watches"],
)
def test_clients_that_do_not_read_hold_bounded_memory(tmp_path, path, document):
    with ProcessCluster(tmp_path, 1, f"--max-unread-bytes={BUDGET_BYTES}", "--write-timeout-s=5") as cluster:
        (node,) = cluster.nodes
        fill(node)
        before = resident_bytes(node.process.pid)
        with contextlib.ExitStack() as stack:
            for _ in range(CLIENTS):
                stack.enter_context(ask_without_reading(node, path, document))
            highest, deadline = 0, time.monotonic() + 8
            while time.monotonic() < deadline:
                highest = max(highest, resident_bytes(node.process.pid) - before)
                # Small requests are served all the time.
                assert node.ask("/v1/kv/small", method="PUT", body=b"x")[0] in (200, 201)
                time.sleep(0.05)
        print(f"{CLIENTS} clients hold {highest / 1e6:.0f} MB, an answer has {ANSWER_BYTES / 1e6:.0f} MB")
        # What is held for clients, and the values of the ranges that are read at the same time.
        assert highest < BUDGET_BYTES * 3 // 2
        # They are gone by now, and with them what they held.
        assert node.ask("/v3/kv/range", method="POST", body=json.dumps(ALL).encode(), timeout=30)[0] == 200
