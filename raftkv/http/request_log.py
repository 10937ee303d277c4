"""The logs of requests: those that took long, and on demand all of them. Paths are logged, and so are keys in them.

Queries, headers and bodies are not, so no value is. The records are written by the log's own thread
(``raftkv.runtime.logs``), also as JSON with a member for each field.
"""

from __future__ import annotations

import logging
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

from raftkv.http.long_json import body_bytes
from raftkv.http.operation_names import OPERATION, OTHER
from raftkv.http.problems import printable
from raftkv.http.request_ids import request_id_of

SLOW_LOGGER = logging.getLogger("raftkv.http.slow")
ACCESS_LOGGER = logging.getLogger("raftkv.http.access")

MOST_SLOW_A_SECOND = 100
"""When everything is slow, such lines say nothing new, and would drive others out of the log."""

_MAX_PATH = 512


class SlowRequestLog:
    """Logs requests that took long.

    Args:
        threshold_seconds: From this time on a request is logged; 0 for none.
    """

    def __init__(self, threshold_seconds: float) -> None:
        self._threshold_seconds = threshold_seconds
        self._second = 0
        self._logged = 0

    def note(self, request: web.BaseRequest, response: web.StreamResponse, seconds: float, now: float) -> None:
        """Log a request if it was slow.

        Args:
            request: The request.
            response: Its answer, before it is sent: a client that reads slowly makes no slow request.
            seconds: Time until the answer was there.
            now: Monotonic time in seconds.
        """
        if not self._threshold_seconds or seconds < self._threshold_seconds or not self._may_log(int(now)):
            return
        fields = _fields(request, response.status, seconds, body_bytes(response))
        SLOW_LOGGER.warning(
            "slow request: %(method)s %(path)s (%(operation)s) took %(seconds).3f s: status %(status)d, "
            "%(request_bytes)d bytes in, %(response_bytes)d bytes out, from %(remote)s, request %(id)s",
            fields,
            extra={"request_fields": fields},
        )

    def _may_log(self, second: int) -> bool:
        if second != self._second:
            self._second, self._logged = second, 0
        self._logged += 1
        if self._logged == MOST_SLOW_A_SECOND + 1:
            SLOW_LOGGER.warning("more than %d slow requests in a second: the others are not logged", MOST_SLOW_A_SECOND)
        return self._logged <= MOST_SLOW_A_SECOND


class AccessLog(AbstractAccessLogger):
    """Logs each request once its answer was sent; aiohttp calls it."""

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Log a request.

        Args:
            request: The request.
            response: Its answer.
            time: Seconds until the answer was sent; for a watch, for how long it lasted.
        """
        # aiohttp's body_length counts the header too.
        fields = _fields(request, response.status, time, response.body_length)
        self.logger.info(
            "%(remote)s %(method)s %(path)s (%(operation)s) %(status)d in %(seconds).3f s, "
            "%(request_bytes)d bytes in, %(response_bytes)d bytes out, request %(id)s",
            fields,
            extra={"request_fields": fields},
        )


def enable_access_log() -> None:
    """Let access records through whatever level other records must have."""
    ACCESS_LOGGER.setLevel(logging.INFO)


def _fields(request: web.BaseRequest, status: int, seconds: float, response_bytes: int) -> dict[str, Any]:
    path = printable(request.raw_path.partition("?")[0])
    return {
        "id": request_id_of(request),
        "remote": request.remote or "-",
        "method": printable(request.method),
        "path": path if len(path) <= _MAX_PATH else f"{path[:_MAX_PATH]}...",
        "operation": request.get(OPERATION, OTHER),
        "status": status,
        "seconds": round(seconds, 6),
        "request_bytes": request.content.total_bytes,
        "response_bytes": response_bytes,
    }
