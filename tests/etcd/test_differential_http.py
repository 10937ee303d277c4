"""What is not in the messages, at etcd and at raftkv: methods, paths, plain requests, streams, WebSockets, waiting."""

from __future__ import annotations

import asyncio
import http.client
import json
from typing import Any

import aiohttp
import pytest

from tests.etcd.peers import EtcdProcess, RaftkvProcess, ask, needs_etcd
from tests.etcd.requests import b64

pytestmark = [pytest.mark.process, needs_etcd]

SECONDS = 10.0
KEY = b64(b"a")
CREATE = {"create_request": {"key": KEY}}
LEASE = {"ID": "7"}
OBSERVE = "election/observe"
"""etcd waits for the end of its request, which a WebSocket does not have."""

PLAIN = [
    *(("GET", path, body) for path in ("/version", "/health", "/metrics", "/debug/vars") for body in (None, b"{}")),
    *(
        ("GET", path, None)
        for path in ("/version?x=1", "/health?x=1&serializable=maybe", "/metrics?x", "/debug/vars?x")
    ),
    *((method, "/v3/kv/range", b"{}") for method in ("GET", "PUT", "DELETE")),
    *((method, "/v3/nothing", b"{}") for method in ("GET", "PUT", "DELETE", "POST")),
    *(("POST", path, b'{"key": "YQ=="}') for path in ("/v3/kv%2Frange", "/%76%33/kv/range", "/v3/kv/range/")),
    ("POST", "/v3/kv/range?x", b'{"key": "YQ=="}'),
    ("OPTIONS", "/v3/kv/range", None),
    ("GET", "/v3/", None),
]


@pytest.fixture(scope="module")
def urls(tmp_path_factory):
    directory = tmp_path_factory.mktemp("servers")
    with EtcdProcess(directory) as etcd, RaftkvProcess(directory) as raftkv:
        for url in (etcd.url, raftkv.url):
            for number in range(5):
                assert ask(url, "/v3/kv/put", {"key": KEY, "value": b64(b"%d" % number)})[0] == 200
            assert ask(url, "/v3/kv/compaction", {"revision": 3})[0] == 200
            for lease in range(7, 11):
                assert ask(url, "/v3/lease/grant", {"ID": lease, "TTL": 600})[0] == 200
        yield etcd.url, raftkv.url


def plain(url: str, method: str, path: str, body: bytes | None) -> tuple[int, str | None]:
    """Return status and the origins that may read the answer."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=SECONDS)
    try:
        connection.request(method, path, body)
        with connection.getresponse() as answer:
            return answer.status, answer.headers.get("Access-Control-Allow-Origin")
    finally:
        connection.close()


@pytest.mark.parametrize(("method", "path", "body"), PLAIN)
def test_methods_paths_and_plain_requests(urls, method, path, body):
    theirs, ours = (plain(url, method, path, body) for url in urls)
    assert theirs == ours


def told(text: str | bytes) -> Any:
    """Return what must be equal of a frame."""
    document = json.loads(text)
    error = document.get("error")
    if isinstance(error, str):
        return {"error": document["code"]}
    if error is not None:
        return {"stream error": error["grpc_code"], "status": error["http_code"]}
    header = document["result"].pop("header", {})
    return document["result"] | {"revision": header.get("revision")}


STREAMS: list[tuple[str, list[Any], int]] = [
    ("watch", [CREATE], 1),
    *(("watch", [{"create_request": {"key": KEY, "start_revision": start}}], 2) for start in (-5, -1, 1, 2, 3, 5)),
    ("watch", [CREATE, {"cancel_request": {}}, CREATE], 3),
    ("watch", [CREATE, {"cancel_request": {"watch_id": 9}}, {"cancel_request": {"watch_id": "0"}}, CREATE], 3),
    ("watch", [{"create_request": {"key": KEY, "watch_id": 5}}, {"create_request": {"watch_id": 5}}, CREATE], 3),
    ("watch", [{"create_request": {"key": KEY, "range_end": KEY}}, CREATE], 2),
    ("watch", [{"create_request": {"key": KEY, "filters": [7, 0]}}], 1),
    ("watch", [None, {}, {"create_request": None}, {"x": 1}, CREATE], 1),
    ("watch", [{**CREATE, "cancel_request": {}, "progress_request": {}}], 1),
    ("watch", [{"create_request": {"key": b64(b"k" * 5000)}}], 1),
    ("lease/keepalive", [LEASE, LEASE, {"ID": 99}, {}, None, {"ID": -1}], 6),
    (OBSERVE, [{"name": b64(b"led")}], 1),
]
WRONG: list[tuple[str, str, int]] = [
    *(
        (path, message, 2)
        for path in ("watch", "lease/keepalive")
        for message in ("x", "[]", '{"ID": "x", "create_request": []}', '{"ID": 1.5, "create_request": {"key": "%"}}')
    ),
    ("watch", '{"create_request": {"filters": ["X"]}}', 2),
    (OBSERVE, "[]", 3),
    (OBSERVE, '{"name": "%"}', 3),
]


async def chunks(url: str, path: str, messages: list[Any], number: int) -> tuple[str | None, list[Any]]:
    """Return the origins that may read a stream, and its first frames."""
    body = b"".join(json.dumps(message).encode() for message in messages)
    async with (
        asyncio.timeout(SECONDS),
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v3/{path}", data=body) as answer,
    ):
        frames = [told(await answer.content.readline()) for _ in range(number)]
        return answer.headers.get("Access-Control-Allow-Origin"), frames


async def over_websocket(url: str, path: str, messages: list[str], number: int) -> list[Any]:
    """Return the first frames of a stream over a WebSocket."""
    async with (
        asyncio.timeout(SECONDS),
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{url}{path}") as socket,
    ):
        for message in messages:
            await socket.send_str(message)
        return [told(await socket.receive_str()) for _ in range(number)]


@pytest.mark.parametrize(("path", "messages", "number"), STREAMS)
async def test_streams(urls, path, messages, number):
    if path == OBSERVE:
        for url in urls:
            leader = {"name": b64(b"led"), "lease": 10, "value": b64(b"v")}
            assert (await asyncio.to_thread(ask, url, "/v3/election/campaign", leader))[0] == 200
    theirs, ours = [await chunks(url, path, messages, number) for url in urls]
    assert theirs == ours
    if path != OBSERVE:
        frames = [await over_websocket(url, f"/v3/{path}", list(map(json.dumps, messages)), number) for url in urls]
        assert frames[0] == frames[1] == theirs[1]


@pytest.mark.parametrize(("path", "message", "code"), WRONG)
async def test_wrong_messages_of_streams(urls, path, message, code):
    for url in urls if path != OBSERVE else ():
        assert await over_websocket(url, f"/v3/{path}", [message], 1) == [{"error": code}]
    async with aiohttp.ClientSession() as session:
        answers = []
        for url in urls:
            async with session.post(f"{url}/v3/{path}", data=message) as answer:
                answers.append(json.loads(await answer.content.readline()))
    # etcd 3.5 sends the header with the first result, raftkv before it: so the error is in a frame.
    assert answers[0]["code"] == answers[1]["error"]["grpc_code"] == code


@pytest.mark.parametrize(
    "messages",
    [
        [json.dumps(CREATE) + json.dumps(CREATE)],
        ['{"create_request": {', '"key": "YQ=="}}null', '{"create_request": {}}'],
        ["", json.dumps(CREATE), "null", '{"progress_request": {}}'],
    ],
)
async def test_messages_and_frames_need_not_agree(urls, messages):
    for path in ("/v3/watch", "//v3/watch", "/v3beta/watch?x=1"):
        theirs, ours = [await over_websocket(url, path, messages, 2) for url in urls]
        assert theirs == ours


LOCK, CAMPAIGN = "/v3/lock/lock", "/v3/election/campaign"


@pytest.mark.parametrize(
    ("path", "ends", "message"),
    [
        (LOCK, ["lease of waiter"], "mutex: session is expired"),
        (LOCK, ["key of waiter"], "mutex: session is expired"),
        (CAMPAIGN, ["lease of waiter"], None),
        (CAMPAIGN, ["key of waiter"], None),
        (LOCK, ["lease of holder"], ""),
        (LOCK, ["key of holder"], ""),
        (CAMPAIGN, ["lease of holder"], ""),
        (CAMPAIGN, ["key of holder"], ""),
    ],
)
async def test_waiting(urls, path, ends, message):
    """Somebody waits for a lock or an election, and somebody's lease or key goes away."""
    answers = []
    for url in urls:
        answers.append(await waiting(url, path, ends))
    theirs, ours = answers
    if message is None:
        # Known to differ: etcd elects a candidate that is gone.
        assert theirs[0] == 200
        assert (ours[0], ours[1]["message"]) == (500, "election: not leader")
    elif message:
        assert (theirs[0], theirs[1]["code"], theirs[1]["message"]) == (500, 2, message)
        assert (ours[0], ours[1]["code"], ours[1]["message"]) == (500, 2, message)
    else:
        assert theirs[0] == ours[0] == 200
        assert theirs[1].get("key") == ours[1].get("key")


async def waiting(url: str, path: str, ends: list[str]) -> tuple[int, Any]:
    def request(what: str, document: dict[str, Any]) -> Any:
        return asyncio.to_thread(ask, url, what, document)

    name = b"waited"
    for lease in (8, 9):
        await request("/v3/lease/revoke", {"ID": lease})
        assert (await request("/v3/lease/grant", {"ID": lease, "TTL": 600}))[0] == 200
    assert (await request(path, {"name": b64(name), "lease": 8}))[0] == 200
    waiter = asyncio.create_task(request(path, {"name": b64(name), "lease": 9}))
    span = {"key": b64(name + b"/"), "range_end": b64(name + b"0"), "count_only": True}
    while (await request("/v3/kv/range", span))[1].get("count") != "2":
        assert not waiter.done()
    for end in [*ends, "key of holder"]:
        lease = 8 if end.endswith("holder") else 9
        if end.startswith("lease"):
            await request("/v3/lease/revoke", {"ID": lease})
        else:
            await request("/v3/kv/deleterange", {"key": b64(name + b"/%x" % lease)})
    answer = await waiter
    for lease in (8, 9):
        await request("/v3/lease/revoke", {"ID": lease})
    return answer


KNOWN: list[tuple[str, dict[str, Any], tuple[int, int], tuple[int, int]]] = [
    ("kv/put", {"key": KEY, "value": b64(bytes(1_600_000))}, (400, 3), (400, 3)),
    ("kv/put", {"key": KEY, "value": b64(bytes(2_200_000))}, (429, 8), (400, 3)),
    ("kv/put", {"key": KEY, "value": b64(bytes(9_000_000))}, (429, 8), (400, 3)),
    ("kv/put", {"key": b64(bytes(5000))}, (200, 0), (400, 3)),
    ("kv/txn", {"compare": [{"key": KEY, "target": 7}]}, (200, 0), (400, 3)),
    ("kv/txn", {"compare": [{"key": KEY, "result": 7}]}, (200, 0), (400, 3)),
    ("kv/range", {"key": KEY, "sort_order": 7}, (200, 0), (400, 3)),
    ("lease/grant", {"ID": -1, "TTL": 5}, (200, 0), (400, 3)),
    ("maintenance/downgrade", {}, (400, 3), (501, 12)),
]
"""Differences of docs/etcd.md: status and code of etcd, and of raftkv."""


@pytest.mark.parametrize(("path", "document", "theirs", "ours"), KNOWN)
def test_known_differences(urls, path, document, theirs, ours):
    answers = [ask(url, f"/v3/{path}", document) for url in urls]
    found = [(status, answer.get("code", 0) if isinstance(answer, dict) else 0) for status, answer in answers]
    assert found == [theirs, ours]
