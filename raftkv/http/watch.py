"""``GET /v1/watch``: the changes of a key or of a prefix as server-sent events, one for each revision."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Any

import orjson
from aiohttp import web

from raftkv.errors import RevisionCompacted
from raftkv.http.body import refuse_body
from raftkv.http.cors import AllowedOrigins
from raftkv.http.items import render_item, render_strings
from raftkv.http.json_body import wants_base64
from raftkv.http.long_json import ITEMS_AT_ONCE, Items, render_json
from raftkv.http.open_ended import OpenEnded, connection_of
from raftkv.http.problems import INVALID_KEY, INVALID_QUERY, ProblemError
from raftkv.http.renderings import Renderings
from raftkv.http.request_ids import add_answer_headers
from raftkv.http.routing import Call, options_response
from raftkv.http.server_sent_events import LAST_EVENT_ID, EventStream, last_event_id, serve_events
from raftkv.http.target import Query
from raftkv.operations import EventKind, KeySpan, Watch, WatchedEvent
from raftkv.service.api import StoreService, WatchService
from raftkv.types import MAX_KEY_BYTES, ClusterId

_revision_of = attrgetter("revision")

_MEASURED_AT_ONCE = 5000
_RENDERED_BYTES = 128
"""Of an event, besides its key and its value."""

_METHODS = "GET, OPTIONS"
_MAX_REVISION = 2**63 - 1
_IGNORED = {"": frozenset[EventKind](), "put": frozenset({EventKind.PUT}), "delete": frozenset({EventKind.DELETE})}


class WatchApi:
    """Handlers of watches.

    Args:
        watches: The node's watches.
        store: For its revisions.
        cluster_id: The cluster.
        open_ended: What ends them.
        origins: Of pages that may watch.
    """

    def __init__(
        self,
        watches: WatchService,
        store: StoreService,
        cluster_id: ClusterId,
        open_ended: OpenEnded,
        origins: AllowedOrigins,
    ) -> None:
        self._origins = origins
        self._watches = watches
        self._store = store
        self._cluster_id = cluster_id
        self._open_ended = open_ended
        self._renderings = Renderings()

    async def watch(self, call: Call) -> web.StreamResponse:
        """``GET /v1/watch?key=`` or ``?prefix=``: from now on, from ``from_revision``, or after ``Last-Event-ID``."""
        # Of the errors too: a page may read what is wrong.
        add_answer_headers(call.request, self._origins.headers(call.request))
        refuse_body(call.request)
        query = Query(call.query, ("key", "prefix", "from_revision", "encoding", "previous", "ignore"))
        as_base64 = wants_base64(query)
        watch = _parse(call.request, query)
        compacted = self._store.compacted_revision
        if watch.start and watch.start < compacted:
            raise RevisionCompacted(f"revision {watch.start} is compacted, up to {compacted}")
        watcher = self._watches.open(watch)
        connection = connection_of(call.request)
        unsent: int | None = None

        def told() -> int:
            return (watcher.position if unsent is None else unsent) - 1

        async def follow(stream: EventStream) -> None:
            nonlocal unsent
            while True:
                unsent = None
                events = await watcher.next()
                unsent = events[0].revision
                async with connection.budget.streaming(await size_of(events), connection):
                    messages = [
                        (revision, await self._render(revision, list(changes), as_base64=as_base64))
                        for revision, changes in groupby(events, key=_revision_of)
                    ]
                    await stream.send(messages)

        return await serve_events(call.request, self._open_ended, self._cluster_id, told, follow)

    async def preflight(self, call: Call) -> web.StreamResponse:
        """``OPTIONS /v1/watch``: what a browser asks before it lets a page resume a watch by itself."""
        add_answer_headers(call.request, self._origins.preflight_headers(call.request, _METHODS, LAST_EVENT_ID))
        return options_response(_METHODS)

    async def _render(self, revision: int, events: list[WatchedEvent], *, as_base64: bool) -> orjson.Fragment:
        if len(events) > ITEMS_AT_ONCE:
            items = Items(events, partial(_render_event, as_base64=as_base64))
            return orjson.Fragment(await render_json({"revision": revision, "events": items}))
        identities = tuple((event.event.sub_revision, event.previous is None) for event in events)

        def render() -> dict[str, Any]:
            return {"revision": revision, "events": [_render_event(event, as_base64=as_base64) for event in events]}

        return self._renderings.get((revision, as_base64, identities), render)


async def size_of(events: Sequence[WatchedEvent]) -> int:
    """Return about how many bytes events take when they are rendered."""
    size = 0
    for start in range(0, len(events), _MEASURED_AT_ONCE):
        if start:
            await asyncio.sleep(0)
        part = events[start : start + _MEASURED_AT_ONCE]
        items = (item for event in part for item in (event.event.item, event.previous) if item is not None)
        size += sum(2 * item.size + _RENDERED_BYTES for item in items)
    return size


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
        query.flag("previous"),
    )


def _render_event(watched: WatchedEvent, *, as_base64: bool) -> dict[str, Any]:
    item = watched.event.item
    document: dict[str, Any] = {"type": watched.event.kind.value}
    if watched.event.kind is EventKind.PUT:
        document |= render_item(item, as_base64=as_base64)
    else:
        document |= render_strings({"key": item.key}, as_base64=as_base64)
        document["mod_revision"] = item.mod_revision
    if watched.previous is not None:
        document["previous"] = render_item(watched.previous, as_base64=as_base64)
    return document
