"""Watching: every change, each once and in order, across dead connections, dead nodes and changes of the leader."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import orjson

from raftkv.client.answers import Document, Leader, parse_item, parse_leader
from raftkv.client.dispatch import Dispatcher, Request, StreamBroken
from raftkv.client.failures import ClusterChanged, UnexpectedAnswer, error_of_problem
from raftkv.operations import Event, EventKind
from raftkv.types import KeyValue, Revision

SILENCE_SECONDS = 45.0
"""Three missed heartbeats: the node or the way to it is gone."""

_PAUSE_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class WatchedChange:
    """One event of a change.

    Attributes:
        event: What happened.
        previous: The key as it was before, when that was asked for and there was one.
    """

    event: Event
    previous: KeyValue | None


@dataclass(frozen=True, slots=True)
class Change:
    """Everything that one revision changed of what is watched."""

    revision: Revision
    events: tuple[WatchedChange, ...]


class _Interrupted(Exception):
    """The stream ended, and another node may go on with it."""


async def watch_changes(dispatcher: Dispatcher, parameters: str) -> AsyncIterator[Change]:
    """Yield changes for ever.

    Args:
        dispatcher: Finds nodes.
        parameters: The query of the watch.

    Raises:
        RevisionCompacted: What comes next was compacted while no node could be reached.
        ClusterChanged: Another cluster answers than the one that the watch began with.
        NotApplied: No node could be reached in time.
    """
    async for document in _documents(dispatcher, "/v1/watch" + parameters, resumes=True):
        events = tuple(_event(event) for event in document.nested("events"))
        yield Change(document.revision(), events)


async def observe_leaders(dispatcher: Dispatcher, target: str) -> AsyncIterator[Leader]:
    """Yield the leaders of an election for ever.

    Args:
        dispatcher: Finds nodes.
        target: Path and query.

    Raises:
        ClusterChanged: Another cluster answers than the one that it began with.
        NotApplied: No node could be reached in time.
    """
    told: Leader | None = None
    async for document in _documents(dispatcher, target, resumes=False):
        leader = parse_leader(document)
        if leader != told:
            told = leader
            yield leader


async def _documents(dispatcher: Dispatcher, target: str, *, resumes: bool) -> AsyncIterator[Document]:
    """Yield the events of a stream, and of those that follow when it ends."""
    position: int | None = None
    cluster_id: str | None = None
    while True:
        headers = {"Last-Event-ID": str(position)} if resumes and position is not None else {}
        try:
            request = Request("GET", target, headers=headers, is_read=True)
            async with dispatcher.stream(request, SILENCE_SECONDS) as stream:
                if cluster_id not in (None, stream.cluster_id):
                    raise ClusterChanged(f"{stream.source} is of cluster {stream.cluster_id}, not of {cluster_id}")
                cluster_id = stream.cluster_id
                async for message in server_sent_events(stream.lines):
                    if message.data is not None:
                        yield _document(message, stream.source)
                    # Only after the caller has it: what it never saw comes again.
                    position = position if message.id is None else message.id
        except (_Interrupted, StreamBroken):
            await asyncio.sleep(_PAUSE_SECONDS * (0.5 + random.random()))


@dataclass(slots=True)
class Message:
    """One block of a stream: an event, or only an id.

    Attributes:
        id: Where to go on behind it.
        kind: Type of the event.
        data: Its data, None when there is none.
    """

    id: int | None = None
    kind: str = ""
    data: bytes | None = None


async def server_sent_events(lines: AsyncIterator[bytes]) -> AsyncIterator[Message]:
    """Yield the blocks of a stream of server-sent events (WHATWG HTML, section 9.2)."""
    message = Message()
    async for line in lines:
        text = line.rstrip(b"\r\n")
        if not text:
            yield message
            message = Message()
            continue
        name, _, value = text.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"id" and value.isdigit():
            message.id = int(value)
        elif name == b"event":
            message.kind = value.decode("utf-8", "replace")
        elif name == b"data":
            message.data = value if message.data is None else b"%b\n%b" % (message.data, value)


def _document(message: Message, source: str) -> Document:
    try:
        document = Document(orjson.loads(message.data or b""), source)
    except orjson.JSONDecodeError:
        raise UnexpectedAnswer(f"{source}: an event is not JSON") from None
    if message.kind == "error":
        raise _error(document)
    return document


def _error(document: Document) -> Exception:
    error = error_of_problem(document.get("type", str), document.optional("detail", str) or "")
    return _Interrupted() if error is None else error


def _event(document: Document) -> WatchedChange:
    kind = EventKind(document.get("type", str))
    if kind is EventKind.PUT:
        item = parse_item(document)
    else:
        item = KeyValue(document.bytes("key"), b"", Revision(0), document.revision("mod_revision"), 0)
    previous = document.child("previous")
    return WatchedChange(Event(kind, item), None if previous is None else parse_item(previous))


def watch_parameters(selection: Mapping[str, str], *, wants_previous: bool, ignored: EventKind | None) -> str:
    """Return the query of a watch.

    Args:
        selection: What is watched, and from where; percent-encoded.
        wants_previous: Whether events come with the key as it was before.
        ignored: A kind of events to leave out.
    """
    parameters = {**selection, "encoding": "base64", "previous": "true" if wants_previous else "false"}
    if ignored is not None:
        parameters["ignore"] = ignored.value
    return "?" + "&".join(f"{name}={value}" for name, value in parameters.items())
