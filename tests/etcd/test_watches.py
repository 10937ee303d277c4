"""Concurrent writers and watchers with different options: each watcher gets every event once, in order, of its kind.

Writers know what their writes did: each has keys of its own, and the header of an answer has the revision. So what a
watcher must get is computed from what was written, not from another watch.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from tests.etcd.peers import EtcdProcess, RaftkvProcess, ask, needs_etcd
from tests.etcd.requests import b64

WRITERS = 4
WRITES = 60
KEYS = 3
SERVERS = [EtcdProcess, RaftkvProcess]

pytestmark = [pytest.mark.process, needs_etcd]

Seen = tuple[int, str, bytes, bytes, bytes | None]
"""Revision, kind, key, value, and the value before if it was asked for."""


def seed() -> int:
    chosen = int(os.environ.get("TEST_SEED", random.SystemRandom().getrandbits(32)))
    print(f"TEST_SEED={chosen}")
    return chosen


def nested(*operations: dict[str, Any]) -> dict[str, Any]:
    """A transaction of one transaction for each operation."""
    return {"success": [{"request_txn": {"success": [operation]}} for operation in operations]}


def put(key: bytes, value: bytes) -> dict[str, Any]:
    return {"request_put": {"key": b64(key), "value": b64(value)}}


def delete(key: bytes) -> dict[str, Any]:
    return {"request_delete_range": {"key": b64(key)}}


@dataclass
class Written:
    """What writers did: events with the value that the key had before the revision."""

    events: list[tuple[int, str, bytes, bytes, bytes | None]] = field(default_factory=list)

    def expected(self, watch: Watch) -> list[Seen]:
        return [
            (revision, kind, key, value, before if watch.wants_previous else None)
            for revision, kind, key, value, before in sorted(self.events, key=lambda event: event[0])
            if kind not in watch.ignored and key.startswith(watch.prefix)
        ]


@dataclass(frozen=True)
class Watch:
    """What one watcher asks for, and which events it must get."""

    prefix: bytes = b"w/"
    ignored: frozenset[str] = frozenset()
    wants_previous: bool = False
    fragments: bool = False

    def request(self, watch_id: int) -> dict[str, Any]:
        filters = [{"PUT": "NOPUT", "DELETE": "NODELETE"}[kind] for kind in sorted(self.ignored)]
        end = self.prefix[:-1] + bytes([self.prefix[-1] + 1])
        request = {"key": b64(self.prefix), "range_end": b64(end), "watch_id": watch_id, "start_revision": 2}
        options = {"filters": filters, "prev_kv": self.wants_previous, "fragment": self.fragments}
        return {"create_request": request | options}

    @property
    def query(self) -> str:
        ignored = "".join(f"&ignore={kind.lower()}" for kind in self.ignored)
        prefix, previous = self.prefix.decode(), "true" if self.wants_previous else "false"
        return f"prefix={prefix}&previous={previous}&from_revision=1{ignored}"


PUTS, DELETES = frozenset({"PUT"}), frozenset({"DELETE"})
WATCHES = [
    Watch(),
    Watch(ignored=PUTS),
    Watch(ignored=DELETES),
    Watch(wants_previous=True),
    Watch(ignored=PUTS, wants_previous=True),
    Watch(ignored=DELETES, wants_previous=True, fragments=True),
    Watch(fragments=True, wants_previous=True),
    Watch(prefix=b"w/1/"),
    Watch(prefix=b"w/2/1", wants_previous=True),
    Watch(prefix=b"w/2/1", ignored=PUTS),
    Watch(prefix=b"w/2/1", ignored=DELETES),
]


class Writer:
    """Writes keys of its own, and notes the events."""

    def __init__(self, session: aiohttp.ClientSession, url: str, number: int, rng: random.Random) -> None:
        self._session = session
        self._url = url
        self._rng = rng
        self._keys = [b"w/%d/%d" % (number, key) for key in range(KEYS)]
        self._values: dict[bytes, bytes] = {}
        self._step = 0
        self.written = Written()

    async def run(self) -> None:
        for _ in range(WRITES):
            await self._write(self._rng.choice(["put", "put", "delete", "both", "both", "large"]))
        for key in self._keys:
            await self._both(key)

    async def _write(self, kind: str) -> None:
        key = self._rng.choice(self._keys)
        if kind == "put":
            await self._transact({"success": [put(key, self._next())]})
        elif kind == "delete":
            await self._transact({"success": [delete(key)]})
        elif kind == "both":
            await self._both(key)
        else:
            values = [self._next().ljust(30_000, b".") for _ in self._keys]
            await self._transact({"success": [put(*each) for each in zip(self._keys, values, strict=True)]})

    async def _both(self, key: bytes) -> None:
        """Put and delete one key in one transaction."""
        await self._transact(nested(put(key, self._next()), delete(key)))

    async def _transact(self, document: dict[str, Any]) -> None:
        async with self._session.post(self._url + "/v3/kv/txn", json=document) as response:
            answer = await response.json()
            assert response.status == 200, answer
        self._note(document["success"], int(answer["header"]["revision"]), dict(self._values))

    def _note(self, operations: list[dict[str, Any]], revision: int, before: dict[bytes, bytes]) -> None:
        for operation in operations:
            ((name, request),) = operation.items()
            if name == "request_txn":
                self._note(request["success"], revision, before)
                continue
            key = base64.b64decode(request["key"])
            if name == "request_put":
                value = base64.b64decode(request["value"])
                # Like etcd, the event of a new key has no value before it.
                previous = before.get(key) if key in self._values else None
                self.written.events.append((revision, "PUT", key, value, previous))
                self._values[key] = value
            elif self._values.pop(key, None) is not None:
                self.written.events.append((revision, "DELETE", key, b"", before.get(key)))

    def _next(self) -> bytes:
        self._step += 1
        return b"%d" % self._step


def seen_at_etcd(event: dict[str, Any]) -> Seen:
    item, previous = event["kv"], event.get("prev_kv")
    return (
        int(item["mod_revision"]),
        event.get("type", "PUT"),
        base64.b64decode(item["key"]),
        base64.b64decode(item.get("value", "")),
        None if previous is None else base64.b64decode(previous["value"]),
    )


def seen_natively(event: dict[str, Any]) -> Seen:
    previous = event.get("previous")
    return (
        event["mod_revision"],
        event["type"].upper(),
        event["key"].encode(),
        event.get("value", "").encode(),
        None if previous is None else previous["value"].encode(),
    )


class Stream:
    """Several watches on one WebSocket."""

    def __init__(self, session: aiohttp.ClientSession, url: str, watches: list[Watch]) -> None:
        self._session = session
        self._url = url
        self._watches = watches
        self.seen: list[list[Seen]] = [[] for _ in watches]

    async def run(self, end: Callable[[], int | None]) -> None:
        """Read until every watch has an event of the last revision, and then all that else was sent."""
        async with self._session.ws_connect(self._url + "/v3/watch", max_msg_size=0) as socket:
            for number, watch in enumerate(self._watches, start=1):
                await socket.send_str(json.dumps(watch.request(number)))
            while not all(seen and seen[-1][0] == end() for seen in self.seen):
                self._take(await socket.receive_json())
            await socket.send_str(json.dumps({"progress_request": {}}))
            while self._take(await socket.receive_json()) != -1:
                pass

    def _take(self, frame: dict[str, Any]) -> int:
        result = frame["result"]
        watch_id = int(result.get("watch_id", 0))
        events = [seen_at_etcd(event) for event in result.get("events", ())]
        if events:
            self.seen[watch_id - 1] += events
            assert events[-1][0] <= int(result["header"]["revision"])
        return watch_id


async def server_sent(session: aiohttp.ClientSession, url: str, watch: Watch) -> AsyncIterator[list[Seen]]:
    """Yield the events of a native watch, and nothing for each heartbeat."""
    async with session.get(f"{url}/v1/watch?{watch.query}", read_bufsize=2**22) as response:
        assert response.status == 200
        async for line in response.content:
            if line.startswith(b"data: "):
                yield [seen_natively(event) for event in json.loads(line[6:])["events"]]


def check(watches: list[Watch], seen: list[list[Seen]], written: Written) -> None:
    for watch, events in zip(watches, seen, strict=True):
        expected = written.expected(watch)
        for number, pair in enumerate(zip(events, expected, strict=False)):
            assert pair[0] == pair[1], f"{watch}: event {number} is {pair[0]!r:.200} and should be {pair[1]!r:.200}"
        assert len(events) == len(expected), watch


async def write_all(session: aiohttp.ClientSession, url: str, rng: random.Random) -> Written:
    writers = [Writer(session, url, number, random.Random(rng.random())) for number in range(WRITERS)]
    async with asyncio.TaskGroup() as tasks:
        for writer in writers:
            tasks.create_task(writer.run())
    return Written([event for writer in writers for event in writer.written.events])


async def write_end(session: aiohttp.ClientSession, url: str, written: Written) -> int:
    """Put and delete keys that do not exist in one transaction, of every watch one; return its revision."""
    keys = [b"w/1/0", b"w/2/1"]
    document = nested(*(operation for key in keys for operation in (put(key, b"end"), delete(key))))
    async with session.post(url + "/v3/kv/txn", json=document) as response:
        revision = int((await response.json())["header"]["revision"])
    for key in keys:
        written.events += [(revision, "PUT", key, b"end", None), (revision, "DELETE", key, b"", None)]
    return revision


@pytest.mark.parametrize("server", SERVERS)
async def test_watchers_of_gateway_get_every_event_once_in_order(tmp_path, server):
    rng = random.Random(seed())
    timeout = aiohttp.ClientTimeout(total=120)
    with server(tmp_path) as running:
        async with aiohttp.ClientSession(timeout=timeout) as session, asyncio.timeout(120):
            end: int | None = None
            # All on one stream, and each on one of its own; and once more when everything is history.
            shared, own = Stream(session, running.url, WATCHES), [Stream(session, running.url, [w]) for w in WATCHES]
            late = Stream(session, running.url, rng.sample(WATCHES, len(WATCHES)))
            async with asyncio.TaskGroup() as tasks:
                for each in (shared, *own):
                    tasks.create_task(each.run(lambda: end))
                written = await write_all(session, running.url, rng)
                # A revision of which every watcher gets something, and that is known before it is written.
                end = max(event[0] for event in written.events) + 1
                assert await write_end(session, running.url, written) == end
            await late.run(lambda: end)
            check(WATCHES, shared.seen, written)
            check(late._watches, late.seen, written)
            for each in own:
                check(each._watches, each.seen, written)


async def test_native_watchers_get_every_event_once_in_order(tmp_path):
    rng = random.Random(seed())
    timeout = aiohttp.ClientTimeout(total=120)
    with RaftkvProcess(tmp_path) as running:
        async with aiohttp.ClientSession(timeout=timeout) as session, asyncio.timeout(120):
            watches = [watch for watch in WATCHES if not watch.fragments]
            seen: list[list[Seen]] = [[] for _ in watches]

            async def read(watch: Watch, into: list[Seen]) -> None:
                async for events in server_sent(session, running.url, watch):
                    into += events
                    if events[-1][0] == end:
                        return

            end: int | None = None
            async with asyncio.TaskGroup() as tasks:
                for each in zip(watches, seen, strict=True):
                    tasks.create_task(read(*each))
                written = await write_all(session, running.url, rng)
                end = max(event[0] for event in written.events) + 1
                assert await write_end(session, running.url, written) == end
            check(watches, seen, written)


@pytest.mark.parametrize("server", SERVERS)
def test_put_and_delete_of_one_transaction_are_two_events(tmp_path, server):
    with server(tmp_path) as running:
        key = b"w/1"
        ask(running.url, "/v3/kv/txn", nested(put(key, b"1"), delete(key)))
        everything = {"request_delete_range": {"key": b64(b"w"), "range_end": b64(b"\0")}}
        ask(running.url, "/v3/kv/put", {"key": b64(key), "value": b64(b"2")})
        for operations in ((everything, put(key, b"3")), (everything, put(key, b"4"), everything)):
            status, answer = ask(running.url, "/v3/kv/txn", nested(*operations))
            assert status == 200, answer
        watch = Watch(wants_previous=True)

        async def read() -> list[Seen]:
            async with aiohttp.ClientSession() as session, asyncio.timeout(20):
                stream = Stream(session, running.url, [watch])
                await stream.run(lambda: 5)
                return stream.seen[0]

        expected = Written(
            [
                (2, "PUT", key, b"1", None),
                (2, "DELETE", key, b"", None),
                (3, "PUT", key, b"2", None),
                (4, "DELETE", key, b"", b"2"),
                (4, "PUT", key, b"3", None),
                (5, "DELETE", key, b"", b"3"),
                (5, "PUT", key, b"4", None),
                (5, "DELETE", key, b"", b"3"),
            ]
        )
        assert asyncio.run(read()) == expected.events
