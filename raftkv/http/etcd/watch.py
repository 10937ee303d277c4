"""``/v3/watch``: several watches on one stream, created and cancelled by messages of the request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import orjson

from raftkv.errors import RaftkvError, RevisionCompacted
from raftkv.http.etcd.fields import Fields
from raftkv.http.etcd.headers import Headers
from raftkv.http.etcd.messages import key_value_json
from raftkv.http.etcd.stream import Stream
from raftkv.http.renderings import Renderings
from raftkv.operations import EventKind, KeySpan, Watch, WatchedEvent
from raftkv.service.api import StoreService, WatcherHandle, WatchService
from raftkv.types import MAX_KEY_BYTES, Revision

_FILTERS = ("NOPUT", "NODELETE")
_IGNORED = (EventKind.PUT, EventKind.DELETE)

PROGRESS_SECONDS = 600.0
"""After this time without an event, a watch that wants it is told how far it is."""

_FRAGMENT_BYTES = 1_048_576
_EVENT_OVERHEAD_BYTES = 64

_DUPLICATE = "mvcc: duplicate watch ID provided on the WatchStream"
_EMPTY_RANGE = "mvcc: watcher range is empty"


class WatchStream:
    """The watches of one stream.

    Args:
        stream: The stream.
        watches: Where watches come from.
        store: For its revisions.
        headers: Writes headers.
        renderings: Events that were rendered for other streams.
    """

    def __init__(
        self,
        stream: Stream,
        watches: WatchService,
        store: StoreService,
        headers: Headers,
        renderings: Renderings,
    ) -> None:
        self._stream = stream
        self._watches = watches
        self._store = store
        self._headers = headers
        self._renderings = renderings
        self._running: dict[int, asyncio.Task[None]] = {}
        self._synced: dict[int, WatcherHandle] = {}
        self._next_id = 0

    async def run(self) -> None:
        """Serve the messages of the request, and then go on watching until cancelled.

        Raises:
            GatewayError: A message is wrong.
            RaftkvError: The node is stopping.
        """
        try:
            async for message in self._stream.messages():
                await self._take(message)
            await asyncio.Event().wait()
        finally:
            tasks = list(self._running.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _take(self, message: Fields) -> None:
        create = message.message("create_request")
        cancel = message.message("cancel_request")
        if create is not None:
            await self._create(create)
        elif cancel is not None:
            await self._cancel(cancel.integer("watch_id"))
        elif message.has("progress_request"):
            await self._progress()

    async def _create(self, fields: Fields) -> None:
        watch, fragments, notifies = _parse(fields), fields.flag("fragment"), fields.flag("progress_notify")
        watch_id = fields.integer("watch_id")
        if watch_id in self._running and watch_id:
            await self._refuse(_DUPLICATE)
            return
        if watch.span.end is not None and watch.span.start >= watch.span.end:
            await self._refuse(_EMPTY_RANGE)
            return
        if not watch_id:
            while self._next_id in self._running:
                self._next_id += 1
            watch_id = self._next_id
            self._next_id += 1
        watcher = self._watches.open(watch)
        # The position is taken before the answer goes out: nothing between the two is missed.
        await self._stream.send(self._headers.answer({**_numbered(watch_id), "created": True}))
        self._synced[watch_id] = watcher
        self._running[watch_id] = asyncio.create_task(
            self._follow(watch_id, watcher, fragments=fragments, notifies=notifies)
        )

    async def _refuse(self, reason: str) -> None:
        document = {"watch_id": "-1", "created": True, "canceled": True, "cancel_reason": reason}
        await self._stream.send(self._headers.answer({**document}))

    async def _cancel(self, watch_id: int) -> None:
        task = self._running.pop(watch_id, None)
        if task is None:
            return
        self._synced.pop(watch_id, None)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await self._stream.send(self._headers.answer({**_numbered(watch_id), "canceled": True}))

    async def _progress(self) -> None:
        """Say up to where everything was told, when every watch has told everything."""
        revision = self._store.revision
        if all(watcher.position > revision for watcher in self._synced.values()):
            await self._stream.send(self._headers.answer({"watch_id": "-1"}))

    async def _follow(self, watch_id: int, watcher: WatcherHandle, *, fragments: bool, notifies: bool) -> None:
        with suppress(ConnectionError):
            try:
                while True:
                    events = await self._next(watch_id, watcher) if notifies else await watcher.next()
                    await self._tell(watch_id, events, fragments=fragments)
            except RevisionCompacted:
                document = {"canceled": True, "compact_revision": str(self._store.compacted_revision)}
                self._running.pop(watch_id, None)
                self._synced.pop(watch_id, None)
                await self._stream.send(self._headers.answer({**_numbered(watch_id), **document}))
            except RaftkvError:
                # The node is stopping: the stream as a whole says so.
                return

    async def _next(self, watch_id: int, watcher: WatcherHandle) -> Sequence[WatchedEvent]:
        """Return the next events; say how far the watch is for as long as there are none."""
        while True:
            try:
                async with asyncio.timeout(PROGRESS_SECONDS):
                    return await watcher.next()
            except TimeoutError:
                await self._stream.send(self._headers.answer(_numbered(watch_id), Revision(watcher.position - 1)))

    def _event(self, watched: WatchedEvent) -> orjson.Fragment:
        name = (watched.revision, watched.event.item.key, watched.previous is None)
        return self._renderings.get(name, lambda: _event_json(watched))

    async def _tell(self, watch_id: int, events: Sequence[WatchedEvent], *, fragments: bool) -> None:
        parts = _fragments(events) if fragments else [list(events)]
        for number, part in enumerate(parts, start=1):
            document: dict[str, Any] = {"events": [self._event(event) for event in part]}
            if number < len(parts):
                document["fragment"] = True
            await self._stream.send(self._headers.answer({**_numbered(watch_id), **document}))


def _parse(fields: Fields) -> Watch:
    key, end = fields.bytes("key") or b"\0", fields.bytes("range_end")
    if len(key) > MAX_KEY_BYTES:
        key = key[: MAX_KEY_BYTES + 1]
    span = KeySpan(key, None if end == b"\0" else end) if end else KeySpan.single(key)
    ignored = frozenset(_IGNORED[number] for number in fields.choices("filters", _FILTERS))
    return Watch(span, max(0, fields.integer("start_revision")), ignored, fields.flag("prev_kv"))


def _numbered(watch_id: int) -> dict[str, str]:
    return {"watch_id": str(watch_id)} if watch_id else {}


def _event_json(watched: WatchedEvent) -> dict[str, Any]:
    document: dict[str, Any] = {"kv": key_value_json(watched.event.item)}
    if watched.event.kind is EventKind.DELETE:
        document = {"type": "DELETE", **document}
    if watched.previous is not None:
        document["prev_kv"] = key_value_json(watched.previous)
    return document


def _fragments(events: Sequence[WatchedEvent]) -> list[list[WatchedEvent]]:
    parts: list[list[WatchedEvent]] = [[]]
    size = 0
    for event in events:
        item = event.event.item
        needed = len(item.key) + len(item.value) + _EVENT_OVERHEAD_BYTES
        if parts[-1] and size + needed > _FRAGMENT_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(event)
        size += needed
    return parts
