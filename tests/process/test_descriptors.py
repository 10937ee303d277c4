"""Clients that open as many connections as they can: the node keeps what it needs of open files for itself."""

from __future__ import annotations

import contextlib
import socket
import urllib.request
from pathlib import Path

import pytest

from tests.process.cluster import NodeProcess, free_ports

pytestmark = pytest.mark.process

FILES = 256
CLIENTS = 2 * FILES


def connect(node: NodeProcess) -> socket.socket | None:
    host, port = node.url.removeprefix("http://").split(":")
    connection = socket.socket()
    connection.settimeout(0.2)
    try:
        connection.connect((host, int(port)))
    except OSError:
        connection.close()
        return None
    return connection


def test_node_rotates_its_journal_while_clients_take_every_connection(tmp_path):
    client, peer = free_ports(2)
    node = NodeProcess(
        "n1",
        tmp_path,
        client,
        peer,
        f"n1=127.0.0.1:{peer}",
        "--snapshot-journal-bytes=4096",
        "--max-unread-bytes=1048576",
    )
    node.command = ["sh", "-c", f'ulimit -n {FILES}; exec "$@"', "sh", *node.command]
    node.start()
    try:
        node.wait_ready()
        writer = socket.create_connection(("127.0.0.1", client), timeout=20)
        with contextlib.ExitStack() as stack:
            stack.enter_context(writer)
            for _ in range(CLIENTS):
                connection = connect(node)
                if connection is not None:
                    stack.enter_context(connection)
            # The journal begins a new segment, and the node takes snapshots: both open files.
            value = bytes(100_000)
            for number in range(400):
                writer.sendall(b"PUT /v1/kv/%d HTTP/1.1\r\nHost: n\r\nContent-Length: 100000\r\n\r\n" % number + value)
                answer = b""
                while b"\r\n\r\n" not in answer:
                    answer += writer.recv(65_536)
                assert answer.startswith(b"HTTP/1.1 201"), answer
                while not answer.endswith(b"}"):
                    answer += writer.recv(65_536)
            assert node.is_running, node.log()
            open_files = len(list(Path(f"/proc/{node.process.pid}/fd").iterdir()))
            assert open_files < FILES - 40
            late = socket.create_connection(("127.0.0.1", client), timeout=20)
            stack.enter_context(late)
            refusal = late.recv(4096)
            assert refusal.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert b"\r\nRetry-After: 5\r\n" in refusal
            assert b"too-many-connections" in refusal
        # With the clients gone, others are let in again.
        node.wait_ready()
        assert node.ask("/v1/kv/399")[0] == 200
        with node.open(urllib.request.Request(f"{node.url}/metrics"), 20) as metrics:
            assert b"raftkv_http_connections " in metrics.read()
    finally:
        node.terminate()
