"""Request ids: each answer names its request, so that a client's error is found again in the log of a node.

A client or a proxy may give a request an id (``X-Request-Id``). Otherwise, and when that could disturb a log, the node
makes one.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping

from aiohttp import web
from multidict import istr

X_REQUEST_ID = istr("X-Request-Id")

_ANSWER_HEADERS = web.RequestKey("answer_headers", dict[str, str])
_VALID = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}")


class RequestIds:
    """Gives each request of a node its id.

    Args:
        prefix: What made ids begin with; another one for each process, so that ids of several nodes differ.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._numbers = itertools.count(1)

    def identify(self, request: web.BaseRequest) -> None:
        """Give a request the id that its client sent, if that is valid, else one that is made."""
        given = request.headers.get(X_REQUEST_ID, "")
        is_valid = _VALID.fullmatch(given) is not None
        request_id = given if is_valid else f"{self._prefix}{next(self._numbers):08x}"
        headers: dict[str, str] = {X_REQUEST_ID: request_id}
        request[_ANSWER_HEADERS] = headers


class IdentifiedRequest(web.BaseRequest):
    """A request with an id and other headers that every answer to it carries, errors and streams too.

    ``_prepare_hook`` is not public; ``tests/http/test_request_ids.py`` fails when an aiohttp calls it no more.
    """

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        response.headers.update(self[_ANSWER_HEADERS])


def request_id_of(request: web.BaseRequest) -> str:
    """Return the id of a request."""
    return request[_ANSWER_HEADERS][X_REQUEST_ID]


def add_answer_headers(request: web.BaseRequest, headers: Mapping[str, str]) -> None:
    """Give whatever answers a request some more headers."""
    request[_ANSWER_HEADERS].update(headers)
