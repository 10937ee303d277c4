"""Answers in JSON and text, and the headers that several handlers share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from aiohttp import hdrs, web
from multidict import istr

# istr is folded once here instead of in every answer.
X_REVISION = istr("X-Raftkv-Revision")
X_CREATE_REVISION = istr("X-Raftkv-Create-Revision")
X_VERSION = istr("X-Raftkv-Version")
X_LEASE = istr("X-Raftkv-Lease")
X_CONSISTENCY = istr("X-Raftkv-Consistency")
X_CONTENT_TYPE_OPTIONS = istr("X-Content-Type-Options")


def json_response(document: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return an answer with a JSON document, which no cache may keep unless ``headers`` say otherwise."""
    every = {
        hdrs.CONTENT_TYPE: "application/json",
        hdrs.CACHE_CONTROL: "no-store",
        hdrs.SERVER: "raftkv",
        **(headers or {}),
    }
    return web.Response(status=status, body=orjson.dumps(document), headers=every)


def text_response(text: str, *, status: int = 200) -> web.Response:
    """Return an answer in plain text, which no cache may keep."""
    headers = {hdrs.CACHE_CONTROL: "no-store", hdrs.SERVER: "raftkv"}
    return web.Response(status=status, text=text, headers=headers)
