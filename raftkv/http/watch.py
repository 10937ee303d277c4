"""``GET /v1/watch``: the changes of a key or of a prefix as server-sent events, one for each revision."""

from __future__ import annotations

from itertools import groupby
from operator import attrgetter
from typing import Any

import orjson
from aiohttp import web

from raftkv.errors import RevisionCompacted
from raftkv.http.body import refuse_body
from raftkv.http.items import render_bytes, render_item
from raftkv.http.json_body import ENCODINGS
from raftkv.http.open_ended import OpenEnded
from raftkv.http.problems import INVALID_KEY, INVALID_QUERY, ProblemError
from raftkv.http.renderings import Renderings
from raftkv.http.routing import Call
from raftkv.http.server_sent_events import EventStream, last_event_id, serve_events
from raftkv.http.target import Query
from raftkv.operations import EventKind, KeySpan, Watch, WatchedEvent
from raftkv.service.api import StoreService, WatchService
from raftkv.types import MAX_KEY_BYTES

_revision_of = attrgetter("revision")

_MAX_REVISION = 2**63 - 1
_FLAGS = ("true", "false")
_IGNORED = {"": frozenset[EventKind](), "put": frozenset({EventKind.PUT}), "delete": frozenset({EventKind.DELETE})}


class WatchApi:
    """Handlers of watches.

    Args:
        watches: The node's watches.
        store: For its revisions.
        open_ended: What ends them.
    """

    def __init__(self, watches: WatchService, store: StoreService, open_ended: OpenEnded) -> None:
        self._watches = watches
        self._store = store
        self._open_ended = open_ended
        self._renderings = Renderings()

    async def watch(self, call: Call) -> web.StreamResponse:
        """``GET /v1/watch?key=`` or ``?prefix=``: from now on, from ``from_revision``, or after ``Last-Event-ID``."""
        refuse_body(call.request)
        query = Query(call.query, ("key", "prefix", "from_revision", "encoding", "previous", "ignore"))
        as_base64 = query.choice("encoding", ENCODINGS, ENCODINGS[0]) == "base64"
        watch = _parse(call.request, query)
        compacted = self._store.compacted_revision
        if watch.start and watch.start < compacted:
            raise RevisionCompacted(f"revision {watch.start} is compacted, up to {compacted}")
        watcher = self._watches.open(watch)
        unsent: int | None = None

        def told() -> int:
            return (watcher.position if unsent is None else unsent) - 1

        async def follow(stream: EventStream) -> None:
            nonlocal unsent
            while True:
                unsent = None
                events = await watcher.next()
                unsent = events[0].revision
                messages = [
                    (revision, self._render(revision, list(changes), as_base64=as_base64))
                    for revision, changes in groupby(events, key=_revision_of)
                ]
                await stream.send(messages)

        return await serve_events(call.request, self._open_ended, told, follow)

    def _render(self, revision: int, events: list[WatchedEvent], *, as_base64: bool) -> orjson.Fragment:
        told = tuple((event.event.item.key, event.previous is None) for event in events)

        def render() -> dict[str, Any]:
            return {"revision": revision, "events": [_render_event(event, as_base64=as_base64) for event in events]}

        return self._renderings.get((revision, as_base64, told), render)


def _parse(request: web.BaseRequest, query: Query) -> Watch:
    keys, prefixes = query.all("key"), query.all("prefix")
    if len(keys) + len(prefixes) != 1:
        raise ProblemError(INVALID_QUERY, "exactly one of key and prefix must be given")
    given = (keys or prefixes)[0]
    if len(given) > MAX_KEY_BYTES or (keys and not given):
        raise ProblemError(INVALID_KEY, f"a key has 1 to {MAX_KEY_BYTES} bytes, not {len(given)}")
    resumed = last_event_id(request)
    start = query.integer("from_revision", 0, _MAX_REVISION, 0) if resumed is None else resumed + 1
    return Watch(
        KeySpan.single(given) if keys else KeySpan.prefix(given),
        start,
        _IGNORED[query.choice("ignore", tuple(_IGNORED), "")],
        query.choice("previous", _FLAGS, "false") == "true",
    )


def _render_event(watched: WatchedEvent, *, as_base64: bool) -> dict[str, Any]:
    item = watched.event.item
    document: dict[str, Any] = {"type": watched.event.kind.value}
    if watched.event.kind is EventKind.PUT:
        document |= render_item(item, as_base64=as_base64)
    else:
        document["key"] = render_bytes(item.key, "the key", item.key, as_base64=as_base64)
        document["mod_revision"] = item.mod_revision
    if watched.previous is not None:
        document["previous"] = render_item(watched.previous, as_base64=as_base64)
    return document
