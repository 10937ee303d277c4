"""Watches of the native API, read as server-sent events."""

from __future__ import annotations

import asyncio

import pytest

from raftkv.http import server_sent_events
from raftkv.types import ClusterId
from tests.http.native import Events, Node


@pytest.fixture
async def node():
    async with Node() as running:
        yield running


def watch(node: Node, query: str, **headers: str):
    return node.session.get(f"{node.url}/v1/watch?{query}", headers=headers)


async def test_changes_of_a_prefix_arrive_one_event_for_each_revision(node):
    async with watch(node, "prefix=a/") as answer:
        assert answer.status == 200
        assert answer.content_type == "text/event-stream"
        events = Events(answer)
        first = await node.put("a/1", "x")
        await node.put("b", "y")
        puts = [{"put": {"key": "a/2", "value": "z"}}, {"delete": {"key": "a/1"}}]
        _, written = await node.ask("POST", "/v1/txn", {"then": puts})
        kind, document = await events.next()
        assert (kind, events.last_id) == ("message", first)
        assert document == {
            "revision": first,
            "events": [
                {
                    "type": "put",
                    "key": "a/1",
                    "create_revision": first,
                    "mod_revision": first,
                    "version": 1,
                    "value": "x",
                }
            ],
        }
        _, document = await events.next()
        assert events.last_id == written["revision"]
        assert [event["type"] for event in document["events"]] == ["put", "delete"]
        assert document["events"][1] == {"type": "delete", "key": "a/1", "mod_revision": written["revision"]}


async def test_a_watch_resumes_where_it_ended(node):
    revisions = [await node.put("k", str(number)) for number in range(5)]
    async with watch(node, f"key=k&from_revision={revisions[1]}&previous=true") as answer:
        events = Events(answer)
        for number in (1, 2):
            _, document = await events.next()
            assert document["events"][0]["value"] == str(number)
            assert document["events"][0]["previous"]["value"] == str(number - 1)
        seen = events.last_id
    async with watch(node, "key=k&from_revision=2", **{"Last-Event-ID": str(seen)}) as answer:
        events = Events(answer)
        assert [(await events.next())[1]["revision"] for _ in range(2)] == revisions[3:]


async def test_kinds_can_be_left_out_and_heartbeats_move_the_id(node, monkeypatch):
    monkeypatch.setattr(server_sent_events, "HEARTBEAT_SECONDS", 0.02)
    async with watch(node, "key=k&ignore=put") as answer:
        events = Events(answer)
        last = await node.put("k", "1")
        while events.last_id != last:
            line = (await answer.content.readline()).decode()
            if line.startswith("id: "):
                events.last_id = int(line[4:])
        await node.ask("DELETE", "/v1/kv/k")
        assert (await events.next())[1]["events"][0]["type"] == "delete"
        assert events.comments > 0 or events.last_id == last + 1


async def test_heartbeat_behind_a_slow_write_does_not_move_the_id_back(monkeypatch):
    written: asyncio.Queue[bytes] = asyncio.Queue()
    is_read = asyncio.Event()

    async def write_to_slow_client(_request, _response, piece):
        written.put_nowait(piece)
        await is_read.wait()

    monkeypatch.setattr(server_sent_events, "HEARTBEAT_SECONDS", 0)
    monkeypatch.setattr(server_sent_events, "write_piece", write_to_slow_client)
    stream = server_sent_events.EventStream(None, ClusterId("c"))
    sending = asyncio.ensure_future(stream.send([(5, {}), (6, {})]))
    assert await written.get() == b"id: 5\ndata: {}\n\nid: 6\ndata: {}\n\n"
    # The watch says that it has told everything up to 4 until that write has ended.
    async with stream.heartbeats(lambda: 4):
        for _ in range(5):
            await asyncio.sleep(0)
        is_read.set()
        await sending
        assert await written.get() == b": heartbeat\nid: 6\n\n"


async def test_a_watch_of_compacted_history_is_refused_and_one_that_lags_is_ended(node):
    for number in range(6):
        last = await node.put("k", str(number))
    async with watch(node, f"key=k&from_revision={last - 1}") as answer:
        await node.ask("POST", "/v1/compaction", {"revision": last - 1})
        status, problem = await node.ask("GET", f"/v1/watch?key=k&from_revision={last - 3}")
        assert (status, problem["type"]) == (410, "urn:raftkv:problem:revision-compacted")
        assert (await Events(answer).next())[1]["revision"] == last - 1


async def test_the_end_of_a_node_is_told(node):
    async with watch(node, "key=k") as answer:
        events = Events(answer)
        await answer.content.readline()
        node.front_end._open_ended.end()
        kind, document = await events.next()
        assert (kind, document["type"]) == ("error", "urn:raftkv:problem:shutting-down")


async def test_what_is_not_text_is_base64_event_by_event(node):
    async with watch(node, "prefix=k&previous=true") as answer, watch(node, "prefix=k&encoding=base64") as other:
        events, in_base64 = Events(answer), Events(other)
        await node.ask("PUT", "/v1/kv/k%FF", b"v")
        await node.ask("DELETE", "/v1/kv/k%FF")
        await node.put("k", "text")
        put = (await events.next())[1]["events"][0]
        assert (put["key"], put["value"], put["encoding"]) == ("a/8=", "dg==", "base64")
        delete = (await events.next())[1]["events"][0]
        assert (delete["key"], delete["encoding"], delete["previous"]["encoding"]) == ("a/8=", "base64", "base64")
        text = (await events.next())[1]["events"][0]
        assert (text["value"], "encoding" in text) == ("text", False)
        put = (await in_base64.next())[1]["events"][0]
        assert (put["key"], put["value"], "encoding" in put) == ("a/8=", "dg==", False)


@pytest.mark.parametrize(
    ("query", "headers", "problem"),
    [
        ("", {}, "invalid-query: exactly one of key and prefix"),
        ("key=a&prefix=b", {}, "invalid-query: exactly one of key and prefix"),
        ("key=", {}, "invalid-key: "),
        ("key=" + "a" * 4097, {}, "invalid-key: "),
        ("key=a&from_revision=x", {}, "invalid-query: from_revision must be"),
        ("key=a&ignore=both", {}, "invalid-query: ignore must be"),
        ("key=a&previous=1", {}, "invalid-query: previous must be"),
        ("key=a&start=1", {}, "invalid-query: unknown query parameter 'start'"),
        ("key=a", {"Last-Event-ID": "x"}, "invalid-header: Last-Event-ID"),
        ("key=a", {"Last-Event-ID": "9223372036854775807"}, "invalid-header: Last-Event-ID"),
    ],
)
async def test_what_is_wrong_with_a_watch_is_named(node, query, headers, problem):
    assert (await node.problem("GET", f"/v1/watch?{query}", None, headers)).startswith(problem)


async def test_watchers_that_ignore_different_kinds_of_one_transaction_get_their_own(node):
    async with watch(node, "key=k&ignore=delete") as puts, watch(node, "key=k&ignore=put") as deletes:
        readers = [Events(puts), Events(deletes)]
        operations = [
            {"txn": {"then": [each]}} for each in ({"put": {"key": "k", "value": "v"}}, {"delete": {"key": "k"}})
        ]
        for _ in range(3):
            status, _document = await node.ask("POST", "/v1/txn", {"then": operations})
            assert status == 200
            kinds = [[event["type"] for event in (await reader.next())[1]["events"]] for reader in readers]
            assert kinds == [["put"], ["delete"]]
