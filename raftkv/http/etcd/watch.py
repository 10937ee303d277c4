"""``/v3/watch``: several watches on one stream, created and cancelled by messages of the request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import orjson

from raftkv.errors import RaftkvError, RevisionCompacted, ShuttingDown
from raftkv.http.etcd.fields import Fields
from raftkv.http.etcd.headers import Headers
from raftkv.http.etcd.messages import key_value_json, span_of
from raftkv.http.etcd.stream import Stream, wrong_messages_are_unknown
from raftkv.http.long_json import ITEMS_AT_ONCE
from raftkv.http.open_ended import connection_of
from raftkv.http.renderings import Renderings
from raftkv.http.watch import size_of
from raftkv.operations import EventKind, Watch, WatchedEvent
from raftkv.service.api import StoreService, WatcherHandle, WatchService
from raftkv.types import Revision

_log = logging.getLogger("raftkv.http")

_FILTERS = ("NOPUT", "NODELETE")
_IGNORED = (EventKind.PUT, EventKind.DELETE)

PROGRESS_SECONDS = 600.0
"""After this time without an event, a watch that wants it is told how far it is."""

_MEASURED_AT_ONCE = 5000

_FRAGMENT_BYTES = 1_048_576
_EVENT_OVERHEAD_BYTES = 64

MAX_WATCHES_OF_STREAM = 10_000
"""Each costs memory; a client that needs more opens another stream."""

_ENDED_AT_A_TIME = 500

_TOO_MANY = f"raftkv: a stream has at most {MAX_WATCHES_OF_STREAM} watches"
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
        self._watchers: dict[int, WatcherHandle] = {}
        self._sender = asyncio.Lock()
        self._next_id = 0

    async def run(self) -> None:
        """Serve the messages of the request, and then go on watching until cancelled.

        Raises:
            GatewayError: A message is wrong.
            RaftkvError: The node is stopping.
        """
        try:
            with wrong_messages_are_unknown():
                async for message in self._stream.messages():
                    await self._take(message)
            await asyncio.Event().wait()
        finally:
            tasks = list(self._running.values())
            for first in range(0, len(tasks), _ENDED_AT_A_TIME):
                some = tasks[first : first + _ENDED_AT_A_TIME]
                for task in some:
                    task.cancel()
                await asyncio.gather(*some, return_exceptions=True)

    async def _take(self, message: Fields) -> None:
        name = message.one_of(("create_request", "cancel_request", "progress_request"))
        request = None if name is None else message.message(name)
        if request is None:
            return
        if name == "create_request":
            await self._create(request)
        elif name == "cancel_request":
            await self._cancel(request.integer("watch_id"))
        else:
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
        if len(self._running) >= MAX_WATCHES_OF_STREAM:
            await self._refuse(_TOO_MANY)
            return
        if not watch_id:
            while self._next_id in self._running:
                self._next_id += 1
            watch_id = self._next_id
            self._next_id += 1
        # Revision and position are taken before the answer goes out: nothing between the two is missed.
        revision = self._store.revision
        watcher = self._watches.open(watch)
        await self._stream.send(self._headers.answer({**_numbered(watch_id), "created": True}, revision))
        self._watchers[watch_id] = watcher
        self._running[watch_id] = asyncio.create_task(
            self._follow(watch_id, watcher, fragments=fragments, notifies=notifies)
        )

    async def _refuse(self, reason: str) -> None:
        document = {"watch_id": "-1", "created": True, "canceled": True, "cancel_reason": reason}
        await self._stream.send(self._headers.answer({**document}, self._store.revision))

    async def _cancel(self, watch_id: int) -> None:
        task = self._running.pop(watch_id, None)
        if task is None:
            return
        self._forget(watch_id)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        document = {**_numbered(watch_id), "canceled": True}
        await self._stream.send(self._headers.answer(document, self._store.revision))

    def _forget(self, watch_id: int) -> None:
        self._running.pop(watch_id, None)
        self._watchers.pop(watch_id, None)

    async def _progress(self) -> None:
        """Say up to where everything was sent, when every watch has sent everything."""
        revision = self._store.revision
        # A watcher's position is behind events that it has returned, also while they wait to be written.
        if not self._sender.locked() and all(watcher.position > revision for watcher in self._watchers.values()):
            await self._stream.send(self._headers.answer({"watch_id": "-1"}, revision))

    async def _follow(self, watch_id: int, watcher: WatcherHandle, *, fragments: bool, notifies: bool) -> None:
        with suppress(ConnectionError):
            try:
                while True:
                    await (self._ready(watch_id, watcher) if notifies else watcher.ready())
                    # Of all watches of a stream, one has events in memory: the others could not send theirs yet.
                    async with self._sender:
                        events = await watcher.take()
                        if events:
                            await self._tell(watch_id, events, Revision(watcher.position - 1), fragments=fragments)
                    # Reading history in which there is nothing for this watch must not keep others waiting.
                    await asyncio.sleep(0)
            except RevisionCompacted:
                document = {"canceled": True, "compact_revision": str(self._store.compacted_revision)}
                self._forget(watch_id)
                # As at etcd, this answer has no revision: a client must not go on from one.
                header = {"header": self._headers.cluster_header()}
                await self._stream.send({**header, **_numbered(watch_id), **document})
            except ShuttingDown:
                # The stream as a whole says so.
                return
            except RaftkvError as error:
                await self._give_up(watch_id, str(error))
            except ConnectionError:
                raise
            except Exception as error:  # noqa: BLE001 - the boundary of one watch: a silent one would miss changes
                _log.error("watch %d of a client at %s failed", watch_id, self._stream.request.remote, exc_info=error)
                await self._give_up(watch_id, "an unexpected error, described in the node's log")

    async def _give_up(self, watch_id: int, reason: str) -> None:
        """Cancel a watch that cannot go on; the client may create it again."""
        self._forget(watch_id)
        header = {"header": self._headers.cluster_header()}
        canceled = {"canceled": True, "cancel_reason": f"raftkv: {reason}"}
        await self._stream.send({**header, **_numbered(watch_id), **canceled})

    async def _ready(self, watch_id: int, watcher: WatcherHandle) -> None:
        """Wait for new revisions; say how far the watch is for as long as there are none."""
        while True:
            try:
                async with asyncio.timeout(PROGRESS_SECONDS):
                    await watcher.ready()
                    return
            except TimeoutError:
                # A watch of the future has a position that the store has not reached.
                revision = min(Revision(watcher.position - 1), self._store.revision)
                await self._stream.send(self._headers.answer(_numbered(watch_id), revision))

    def _event(self, watched: WatchedEvent) -> orjson.Fragment:
        name = (watched.revision, watched.event.sub_revision, watched.previous is None)
        return self._renderings.get(name, lambda: _event_json(watched))

    async def _tell(
        self, watch_id: int, events: Sequence[WatchedEvent], revision: Revision, *, fragments: bool
    ) -> None:
        """Send events.

        Args:
            watch_id: The watch.
            events: The events, of whole revisions.
            revision: Up to which revision the watch has seen everything with them.
            fragments: Whether a large answer may be sent in several parts.
        """
        parts = await _fragments(events) if fragments else [list(events)]
        connection = connection_of(self._stream.request)
        for number, part in enumerate(parts, start=1):
            async with connection.budget.streaming(await size_of(part), connection):
                rendered: list[orjson.Fragment] = []
                for start in range(0, len(part), ITEMS_AT_ONCE):
                    if rendered:
                        await asyncio.sleep(0)
                    rendered += [self._event(event) for event in part[start : start + ITEMS_AT_ONCE]]
                document: dict[str, Any] = {"events": rendered}
                if number < len(parts):
                    document["fragment"] = True
                await self._stream.send(self._headers.answer({**_numbered(watch_id), **document}, revision))


def _parse(fields: Fields) -> Watch:
    span = span_of(fields.bytes("key") or b"\0", fields.bytes("range_end"))
    ignored = frozenset(_IGNORED[number] for number in fields.known_choices("filters", _FILTERS))
    # As at etcd, one before the first revision is as old as any, and ends with what is compacted.
    start = fields.integer("start_revision")
    return Watch(span, start if start >= 0 else 1, ignored, fields.flag("prev_kv"))


def _numbered(watch_id: int) -> dict[str, str]:
    return {"watch_id": str(watch_id)} if watch_id else {}


def _event_json(watched: WatchedEvent) -> dict[str, Any]:
    document: dict[str, Any] = {"kv": key_value_json(watched.event.item)}
    if watched.event.kind is EventKind.DELETE:
        document = {"type": "DELETE", **document}
    if watched.previous is not None:
        document["prev_kv"] = key_value_json(watched.previous)
    return document


async def _fragments(events: Sequence[WatchedEvent]) -> list[list[WatchedEvent]]:
    parts: list[list[WatchedEvent]] = [[]]
    size = 0
    for number, event in enumerate(events, start=1):
        if number % _MEASURED_AT_ONCE == 0:
            await asyncio.sleep(0)
        item = event.event.item
        needed = len(item.key) + len(item.value) + _EVENT_OVERHEAD_BYTES
        if parts[-1] and size + needed > _FRAGMENT_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(event)
        size += needed
    return parts
