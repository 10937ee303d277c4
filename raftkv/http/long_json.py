"""JSON documents with long arrays, rendered in slices between which the event loop goes on.

A large document is never in memory as a whole besides its parts: items are released as they are rendered, and what is
rendered is sent in pieces.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web
from aiohttp.payload import Payload

from raftkv.types import KeyValue

if TYPE_CHECKING:
    from aiohttp.abc import AbstractStreamWriter

ITEMS_AT_ONCE = 250
"""Items of long arrays that are rendered in one iteration of the event loop."""

_BYTES_AT_ONCE = 1_048_576

_PIECE_BYTES = 65_536

_ITEM_BYTES = 128
"""About what an item takes besides its key and value: numbers, names and quotes."""

_MEASURED_AT_ONCE = 5000

_MARK = b"\x00"
"""Stands around the number of an array in a document's skeleton; JSON has no such byte."""


class Items:
    """An array whose items are rendered, once, when the document is.

    Args:
        items: The items.
        render: Returns the document of one.
    """

    def __init__(self, items: Sequence[Any], render: Callable[[Any], Any]) -> None:
        self.items = items
        self.render = render


async def render_json(document: Any) -> bytes:
    """Return a document as JSON; a long one takes several iterations of the event loop.

    Args:
        document: What ``orjson`` takes, with ``Items`` for long arrays, which are empty afterwards.

    Raises:
        Exception: What rendering an item raises.
    """
    return b"".join(await Rendering(document).pieces())


class Rendering:
    """The rendering of one document.

    Args:
        document: What ``render_json`` takes.
    """

    def __init__(self, document: Any) -> None:
        self._arrays: list[Items] = []
        self._skeleton = orjson.dumps(document, default=self._mark)
        self._room = ITEMS_AT_ONCE
        self._bytes = 0

    async def estimate_bytes(self) -> int:
        """Return about how many bytes the arrays will have."""
        size = 0
        for array in self._arrays:
            for number, item in enumerate(array.items, start=1):
                size += _ITEM_BYTES
                if isinstance(item, KeyValue):
                    size += item.size * 4 // 3
                if number % _MEASURED_AT_ONCE == 0:
                    await asyncio.sleep(0)
        return size

    async def pieces(self) -> list[bytes]:
        """Return the document in pieces; call this once.

        Raises:
            Exception: What rendering an item raises.
        """
        whole = _Joined()
        for number, part in enumerate(self._skeleton.split(_MARK)):
            if number % 2:
                await self._render(self._arrays[int(part)], whole)
            else:
                whole.add(part)
        return whole.pieces()

    def _mark(self, value: Any) -> orjson.Fragment:
        """Return what stands for an array in the skeleton; ``orjson`` asks for what it does not know."""
        if not isinstance(value, Items):
            raise TypeError(f"{type(value).__name__} has no form in JSON")
        self._arrays.append(value)
        return orjson.Fragment(b"%b%d%b" % (_MARK, len(self._arrays) - 1, _MARK))

    async def _render(self, array: Items, whole: _Joined) -> None:
        """Add an array to the document, and empty it."""
        items, render = deque(array.items), array.render
        array.items = ()
        whole.add(b"[")
        page: list[bytes] = []
        while items:
            text = orjson.dumps(render(items.popleft()))
            page.append(text)
            self._room -= 1
            self._bytes += len(text)
            if self._room <= 0 or self._bytes >= _BYTES_AT_ONCE:
                whole.add(b",".join(page))
                # The next page begins with a comma.
                page = [b""] if items else []
                self._room, self._bytes = ITEMS_AT_ONCE, 0
                await asyncio.sleep(0)
        whole.add(b",".join(page))
        whole.add(b"]")


class _Joined:
    """Pieces of a document, of which small ones are joined."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._small: list[bytes] = []
        self._small_bytes = 0

    def add(self, part: bytes) -> None:
        self._small.append(part)
        self._small_bytes += len(part)
        if self._small_bytes >= _PIECE_BYTES:
            self._flush()

    def pieces(self) -> list[bytes]:
        if self._small:
            self._flush()
        return self._pieces

    def _flush(self) -> None:
        self._pieces.append(b"".join(self._small))
        self._small, self._small_bytes = [], 0


class Pieces(Payload):
    """The body of an answer in pieces, each of which is released when it is written."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        super().__init__(None, content_type="application/json")
        self._pieces = deque(pieces)
        self._size = sum(map(len, self._pieces))

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return what is not written yet as text."""
        return b"".join(self._pieces).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write the body as the client reads it."""
        while self._pieces:
            await writer.write(self._pieces.popleft())


def body_bytes(response: web.StreamResponse) -> int:
    """Return the size of an answer's body, 0 when it has none or is a stream."""
    body = response.body if isinstance(response, web.Response) else None
    if isinstance(body, Pieces):
        return body.size or 0
    return len(body) if isinstance(body, bytes) else 0
