"""Answers in JSON and text, and the headers that several handlers share."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import orjson
from aiohttp import hdrs, web
from multidict import istr

from raftkv.http.clients import SMALL_BYTES, SendBudget
from raftkv.http.long_json import Pieces, Rendering, render_json

# istr is folded once here instead of in every answer.
X_REVISION = istr("X-Raftkv-Revision")
X_CREATE_REVISION = istr("X-Raftkv-Create-Revision")
X_VERSION = istr("X-Raftkv-Version")
X_LEASE = istr("X-Raftkv-Lease")
X_CONTENT_TYPE = istr("X-Raftkv-Content-Type")
X_CHANGED = istr("X-Raftkv-Changed")
X_CONSISTENCY = istr("X-Raftkv-Consistency")
X_CLUSTER_ID = istr("X-Raftkv-Cluster-Id")
CONTENT_SECURITY_POLICY = istr("Content-Security-Policy")
X_CONTENT_TYPE_OPTIONS = istr("X-Content-Type-Options")


def json_response(document: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return an answer with a JSON document, which no cache may keep unless ``headers`` say otherwise."""
    return _json_response(orjson.dumps(document), status, headers)


async def long_json_response(document: Any, *, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return the same for a document with long arrays, which may be ``raftkv.http.long_json.Items``."""
    return _json_response(await render_json(document), 200, headers)


async def render_body(document: Any, budget: SendBudget, *, may_be_refused: bool) -> bytes | Pieces:
    """Return a document with long arrays as the body of an answer, and count it against the budget while it is made.

    Args:
        document: The document.
        budget: What clients have not read yet, and its bound.
        may_be_refused: Whether it is the answer to a read. What was written must be told, however large the answer is.

    Raises:
        BuffersFull: There is no room for it.
    """
    rendering = Rendering(document)
    size = await rendering.estimate_bytes()
    if may_be_refused:
        budget.require_room_for(size)
    with budget.holding(size) if size > SMALL_BYTES else nullcontext():
        pieces = await rendering.pieces()
    if may_be_refused:
        budget.require_room_for(sum(map(len, pieces)))
    return pieces[0] if len(pieces) == 1 else Pieces(pieces)


def rendered_response(body: bytes | Pieces, *, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return an answer with a JSON document that is rendered already."""
    return _json_response(body, 200, headers)


def _json_response(text: bytes | Pieces, status: int, headers: Mapping[str, str] | None) -> web.Response:
    every = {
        hdrs.CONTENT_TYPE: "application/json",
        hdrs.CACHE_CONTROL: "no-store",
        hdrs.SERVER: "raftkv",
        **(headers or {}),
    }
    return web.Response(status=status, body=text, headers=every)


def text_response(text: str, *, status: int = 200) -> web.Response:
    """Return an answer in plain text, which no cache may keep."""
    headers = {hdrs.CACHE_CONTROL: "no-store", hdrs.SERVER: "raftkv"}
    return web.Response(status=status, text=text, headers=headers)
