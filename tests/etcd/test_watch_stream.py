"""Watch streams over a real store and a client that reads when the test lets it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import Any

import pytest

from raftkv.http.etcd import watch
from raftkv.http.etcd.fields import Fields
from raftkv.http.etcd.headers import Headers
from raftkv.http.etcd.watch import WatchStream
from raftkv.http.renderings import Renderings
from raftkv.service.watches import Watcher
from raftkv.store.commands import Compact, Put
from raftkv.types import Revision
from tests.etcd.requests import b64
from tests.http.http_fakes import FakeClusterService
from tests.http.http_store import InstantLog


class SlowClient:
    """A stream whose frames of events are written only when ``reads`` is set."""

    def __init__(self) -> None:
        self.request = None
        self.reads = asyncio.Event()
        self.frames: list[dict[str, Any]] = []
        self.blocked = asyncio.Event()
        self._messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def ask(self, message: dict[str, Any]) -> None:
        self._messages.put_nowait(message)

    async def messages(self) -> AsyncIterator[Fields]:
        while True:
            yield Fields(await self._messages.get())

    async def send(self, result: dict[str, Any]) -> None:
        if "events" in result and not self.reads.is_set():
            self.blocked.set()
            await self.reads.wait()
        self.frames.append(result)

    async def frame(self, number: int) -> dict[str, Any]:
        async with asyncio.timeout(5):
            while len(self.frames) <= number:  # noqa: ASYNC110 - another task of the same loop appends
                await asyncio.sleep(0)
        return self.frames[number]


class Unlimited:
    """A budget that always has room."""

    @asynccontextmanager
    async def streaming(self, _size: int, _connection: object) -> AsyncIterator[None]:
        yield


@pytest.fixture(autouse=True)
def _connection_without_limits(monkeypatch):
    monkeypatch.setattr(watch, "connection_of", lambda _request: SimpleNamespace(budget=Unlimited()))


@asynccontextmanager
async def streaming(client: SlowClient, log: InstantLog):
    stream = WatchStream(client, log.watches, log.store, Headers(FakeClusterService()), Renderings())
    running = asyncio.create_task(stream.run())
    try:
        yield
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def test_progress_waits_for_events_that_are_not_written_yet():
    log, client = InstantLog(), SlowClient()
    async with streaming(client, log):
        client.ask({"create_request": {"key": b64(b"k")}})
        await client.frame(0)
        await log.submit(Put(b"k", b"1"))
        await asyncio.wait_for(client.blocked.wait(), 5)
        client.ask({"progress_request": {}})
        client.ask({"create_request": {"key": b64(b"other"), "watch_id": 7}})
        created = await client.frame(1)
        assert created["watch_id"] == "7", "a progress answer went out before the events that it covers"
        client.reads.set()
        told = await client.frame(2)
        assert (told["header"]["revision"], len(told["events"])) == ("2", 1)
        client.ask({"progress_request": {}})
        assert (await client.frame(3))["watch_id"] == "-1"


async def test_watches_of_one_stream_hold_the_events_of_one_while_the_client_does_not_read(monkeypatch):
    taken: list[Watcher] = []
    take = Watcher.take

    async def counted(self):
        events = await take(self)
        taken.append(self)
        return events

    monkeypatch.setattr(Watcher, "take", counted)
    log, client = InstantLog(), SlowClient()
    async with streaming(client, log):
        await log.submit(Put(b"k", b"v" * 60_000))
        for number in range(1, 201):
            client.ask({"create_request": {"key": b64(b"k"), "watch_id": number, "start_revision": 1}})
        await client.frame(199)
        await client.blocked.wait()
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(taken) == 1
        client.reads.set()
        told = [(await client.frame(200 + number))["watch_id"] for number in range(200)]
        assert sorted(map(int, told)) == list(range(1, 201))


async def test_header_of_events_has_revision_up_to_which_watch_has_seen_everything():
    log, client = InstantLog(), SlowClient()
    async with streaming(client, log):
        client.ask({"create_request": {"key": b64(b"k")}})
        await client.frame(0)
        await log.submit(Put(b"k", b"1"))
        await asyncio.wait_for(client.blocked.wait(), 5)
        await log.submit(Put(b"k", b"2"))
        client.reads.set()
        assert [(await client.frame(number))["header"]["revision"] for number in (1, 2)] == ["2", "3"]


async def test_header_of_compacted_watch_has_no_revision():
    log, client = InstantLog(), SlowClient()
    for number in range(3):
        await log.submit(Put(b"k", b"%d" % number))
    await log.submit(Compact(Revision(4)))
    async with streaming(client, log):
        client.ask({"create_request": {"key": b64(b"k"), "start_revision": 2}})
        assert (await client.frame(0))["header"]["revision"] == "4"
        ended = await client.frame(1)
        assert (ended["canceled"], ended["compact_revision"]) == (True, "4")
        assert "revision" not in ended["header"]


async def test_progress_of_watch_of_the_future_does_not_exceed_store(monkeypatch):
    monkeypatch.setattr(watch, "PROGRESS_SECONDS", 0.01)
    log, client = InstantLog(), SlowClient()
    async with streaming(client, log):
        client.ask({"create_request": {"key": b64(b"k"), "start_revision": 50, "progress_notify": True}})
        assert (await client.frame(1))["header"]["revision"] == "1"


async def test_watch_that_fails_unexpectedly_is_cancelled_with_reason_and_logged_once(monkeypatch, caplog):
    log, client = InstantLog(), SlowClient()
    client.request = SimpleNamespace(remote="10.0.0.9")

    def fail(*_arguments: object) -> None:
        raise ZeroDivisionError("a defect")

    client.reads.set()
    async with streaming(client, log):
        client.ask({"create_request": {"key": b64(b"k"), "watch_id": 3}})
        client.ask({"create_request": {"key": b64(b"other"), "watch_id": 4}})
        await client.frame(1)
        with monkeypatch.context() as patched:
            patched.setattr(watch, "_event_json", fail)
            await log.submit(Put(b"k", b"1"))
            ended = await client.frame(2)
        assert (ended["watch_id"], ended["canceled"]) == ("3", True)
        assert ended["cancel_reason"] == "raftkv: an unexpected error, described in the node's log"
        assert "revision" not in ended["header"]
        # The others go on, and the number is free again.
        await log.submit(Put(b"other", b"1"))
        assert len((await client.frame(3))["events"]) == 1
        client.ask({"create_request": {"key": b64(b"k"), "watch_id": 3, "start_revision": 2}})
        assert (await client.frame(4))["created"]
        assert len((await client.frame(5))["events"]) == 1
    assert caplog.text.count("ZeroDivisionError: a defect") == 1
