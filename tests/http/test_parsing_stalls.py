"""Requests made to keep a parser busy: the watchdog of ``tests/conftest.py`` fails what holds the event loop.

Each client runs in a thread without a loop, so that only the front-end's own work is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Callable

import pytest

from raftkv.http.etcd.watch import MAX_WATCHES_OF_STREAM
from raftkv.http.json_body import MAX_BODY_BYTES
from tests.etcd.requests import b64
from tests.http.native import Node
from tests.loop_watch import IS_TRACED, LoopWatch

SECONDS = 60
GOAL_SECONDS = 0.05


@pytest.fixture
async def node():
    async with Node() as running:
        yield running


async def exchange(node: Node, request: bytes, is_done: Callable[[bytes], bool]) -> bytes:
    """Send bytes and read, at the same time, until enough has come; return what has."""
    return await asyncio.to_thread(_exchange, node, request, is_done)


def _exchange(node: Node, request: bytes, is_done: Callable[[bytes], bool]) -> bytes:
    host, port = node.url.removeprefix("http://").split(":")
    received = bytearray()
    with socket.create_connection((host, int(port)), timeout=SECONDS) as connection:
        sender = threading.Thread(target=_send, args=(connection, request))
        sender.start()
        try:
            while not is_done(received) and (piece := connection.recv(1_048_576)):
                received += piece
        finally:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            sender.join()
    return bytes(received)


def _send(connection: socket.socket, request: bytes) -> None:
    # A request that is refused before its end is cut off.
    with contextlib.suppress(OSError):
        connection.sendall(request)


def post(path: str, body: bytes) -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: n\r\nContent-Length: %d\r\n\r\n%b" % (path.encode(), len(body), body)


def repeated(piece: bytes) -> bytes:
    """A body as large as may be, of one list."""
    number = (MAX_BODY_BYTES - 20) // (len(piece) + 1)
    return b'{"a":[' + b",".join([piece] * number) + b"]}"


def names(last: bytes) -> bytes:
    return b"{" + b"".join(b'"%x":0,' % number for number in range(400_000)) + last + b"}"


BODIES = {
    "numbers": repeated(b"1"),
    "lists": repeated(b"[]"),
    "objects": repeated(b'{"a":1}'),
    "names": names(b'"z":0')[-MAX_BODY_BYTES:],
    "fewer names, one doubled": b"{" + b"".join(b'"%x":0,' % n for n in range(65_000)) + b'"fde7":0}',
    "many digits": b'{"a":' + b"9" * (MAX_BODY_BYTES - 10) + b"}",
    "deep": b"[" * 60_000,
    "escapes": b'{"key":"' + b"\\n" * (MAX_BODY_BYTES // 2 - 10) + b'"}',
    "escaped quotes": b'{"key":"' + b'\\",' * (MAX_BODY_BYTES // 3 - 10) + b'"}',
    "backslashes": b'{"key":"' + b"," * 70_000 + b"\\\\" * ((MAX_BODY_BYTES - 70_020) // 2) + b'"}',
}


@pytest.mark.parametrize("path", ["/v1/txn", "/v3/kv/txn"])
@pytest.mark.parametrize("name", BODIES)
async def test_no_body_is_parsed_for_long(node, path, name):
    received = await exchange(node, post(path, BODIES[name]), lambda data: b"\r\n\r\n" in data)
    assert int(received.split(b" ")[1]) in (200, 400)


def transaction(*, native: bool) -> bytes:
    """The largest transaction: puts, and deletes of other keys."""
    groups = []
    for group in range(64):
        numbers = range(64 * group, 64 * group + 64)
        if native:
            puts = [{"put": {"key": f"p{number}", "value": "v"}} for number in numbers]
            deletes = [{"delete": {"key": f"d{number}"}} for number in numbers]
            groups.append({"txn": {"then": puts if group % 2 else deletes}})
        else:
            puts = [{"request_put": {"key": b64(b"p%d" % number), "value": b64(b"v")}} for number in numbers]
            deletes = [{"request_delete_range": {"key": b64(b"d%d" % number)}} for number in numbers]
            groups.append({"request_txn": {"success": puts if group % 2 else deletes}})
    return json.dumps({"then" if native else "success": groups}).encode()


@pytest.mark.parametrize("path", ["/v1/txn", "/v3/kv/txn"])
async def test_largest_transaction_is_answered_without_a_stall(node, path):
    body = transaction(native=path == "/v1/txn")
    with LoopWatch() as watch:
        received = await exchange(node, post(path, body), lambda data: b"\r\n\r\n" in data)
    assert received.split(b" ")[1] == b"200"
    assert IS_TRACED or watch.held_seconds < GOAL_SECONDS, watch.callback


def stream(*messages: bytes) -> bytes:
    body = b"".join(messages)
    head = b"POST /v3/watch HTTP/1.1\r\nHost: n\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"%x\r\n%b\r\n" % (len(body), body)


@pytest.mark.parametrize("message", [b"{}", b"{} \n", b'{"cancel_request":{"watch_id":5}}'])
async def test_many_messages_of_a_stream_are_taken_in_slices(node, message):
    last = json.dumps({"create_request": {"key": b64(b"k")}}).encode()
    received = await exchange(node, stream(message * 300_000, last), lambda data: b"created" in data)
    assert b'"created":true' in received


async def test_messages_of_a_stream_come_in_pieces(node):
    message = json.dumps({"create_request": {"key": b64(b"}" * 3000)}}).encode()
    pieces = b"".join(b"1\r\n%c\r\n" % sign for sign in message * 3)
    head = b"POST /v3/watch HTTP/1.1\r\nHost: n\r\nTransfer-Encoding: chunked\r\n\r\n"
    received = await exchange(node, head + pieces, lambda data: data.count(b"created") == 3)
    assert received.count(b'"created":true') == 3


async def test_watches_of_a_stream_are_bounded(node):
    message = json.dumps({"create_request": {"key": b64(b"k")}}).encode()
    request = stream(message * (MAX_WATCHES_OF_STREAM + 2))
    received = await exchange(node, request, lambda data: data.count(b"cancel_reason") == 2)
    assert received.count(b'"created":true') == MAX_WATCHES_OF_STREAM + 2
    assert received.count(b"raftkv: a stream has at most") == 2


async def test_many_frames_of_a_socket_are_taken_in_slices(node):
    head = (
        b"GET /v3/watch HTTP/1.1\r\nHost: n\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    last = json.dumps({"create_request": {"key": b64(b"k")}}).encode()
    frames = b"\x81\x82\0\0\0\0{}" * 100_000 + b"\x81" + bytes([0x80 | len(last)]) + bytes(4) + last
    received = await exchange(node, head + frames, lambda data: b"created" in data)
    assert b'"created":true' in received


async def test_many_requests_at_once_are_answered_in_slices(node):
    number = 50_000
    request = b"GET /livez/x HTTP/1.1\r\nHost: n\r\n\r\n" * number
    received = await exchange(node, request, lambda data: data.count(b"HTTP/1.1 ") == number)
    assert received.count(b"HTTP/1.1 ") == number


async def test_header_of_many_fields_is_refused(node):
    request = b"GET /livez HTTP/1.1\r\nHost: n\r\n" + b"a:b\r\n" * 1_000_000 + b"\r\n"
    received = await exchange(node, request, lambda data: b"\r\n\r\n" in data)
    assert received.split(b" ")[1] in (b"400", b"431")


async def test_body_of_many_chunks_is_read_in_slices(node):
    head = b"POST /v1/txn HTTP/1.1\r\nHost: n\r\nTransfer-Encoding: chunked\r\n\r\n"
    request = head + b"1\r\n \r\n" * 200_000 + b"0\r\n\r\n"
    received = await exchange(node, request, lambda data: b"\r\n\r\n" in data)
    assert received.split(b" ")[1] == b"200"
