"""From method and literal path to a handler."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from aiohttp import hdrs, web

from raftkv.http.problems import METHOD_NOT_ALLOWED, NO_SUCH_RESOURCE, ProblemError, printable


@dataclass(slots=True)
class Call:
    """One request on its way to a handler.

    Attributes:
        request: The request.
        tail: The path below the route's prefix, still percent-encoded; empty for an exact route.
        query: What follows the ``?``, still encoded; empty when there is nothing.
    """

    request: web.BaseRequest
    tail: str
    query: str


Handler = Callable[[Call], Awaitable[web.StreamResponse]]
Methods = Mapping[str, Handler]


class Router:
    """Routes that are exact paths, and routes for everything below a prefix.

    Args:
        exact: Handlers by method, for each path.
        below: Handlers by method, for each prefix; prefixes end with ``/`` and none begins with another.
    """

    def __init__(self, exact: Mapping[str, Methods], below: Mapping[str, Methods]) -> None:
        self._exact = exact
        self._below = tuple(below.items())

    async def dispatch(self, request: web.BaseRequest, target: str) -> web.StreamResponse:
        """Answer a request.

        Args:
            request: The request.
            target: Its path and query, literally as they arrived.

        Raises:
            ProblemError: No such path, or not with this method; or what the handler raises.
        """
        path, _, query = target.partition("?")
        methods, tail = self._find(path)
        handler = methods.get(request.method)
        if handler is None:
            return self._other_method(request, methods, path)
        return await handler(Call(request, tail, query))

    def allowed_anywhere(self) -> str:
        """Return the ``Allow`` header of the server as a whole."""
        every = {method for methods in (*self._exact.values(), *dict(self._below).values()) for method in methods}
        return _allow(every)

    def _find(self, path: str) -> tuple[Methods, str]:
        for prefix, methods in self._below:
            if path.startswith(prefix):
                return methods, path[len(prefix) :]
        exact = self._exact.get(path)
        if exact is None:
            raise ProblemError(NO_SUCH_RESOURCE, f"nothing is served at {printable(path)}")
        return exact, ""

    def _other_method(self, request: web.BaseRequest, methods: Methods, path: str) -> web.Response:
        allow = _allow(methods)
        if request.method == hdrs.METH_OPTIONS:
            return options_response(allow)
        detail = f"{request.method} is not supported at {printable(path)}; allowed: {allow}"
        raise ProblemError(METHOD_NOT_ALLOWED, detail, headers={hdrs.ALLOW: allow})


def options_response(allow: str) -> web.Response:
    """Return the answer to ``OPTIONS``."""
    return web.Response(status=204, headers={hdrs.ALLOW: allow, hdrs.SERVER: "raftkv"})


def _allow(methods: Mapping[str, Handler] | set[str]) -> str:
    return ", ".join(sorted({*methods, hdrs.METH_OPTIONS}))
