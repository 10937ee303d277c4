"""A hundred megabytes where a key would do: refused, at a cost that does not depend on what is sent."""

from __future__ import annotations

import http.client
import threading
from pathlib import Path

import pytest

from tests.process.cluster import ProcessCluster

pytestmark = pytest.mark.process

BODY_BYTES = 100_000_000
PIECE = b"[" * 65_536
MAX_GROWTH_BYTES = 80_000_000


def resident_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


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
        before = resident_bytes(node.process.pid)
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
        assert resident_bytes(node.process.pid) - before < MAX_GROWTH_BYTES
