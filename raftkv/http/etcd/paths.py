"""Which paths are etcd's, in whatever way they are written, and the headers of all answers there."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import unquote

from aiohttp import hdrs

from raftkv.http.operation_names import ETCD_PREFIXES

CORS_HEADERS: Mapping[str, str] = {
    hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: "*",
    hdrs.ACCESS_CONTROL_ALLOW_METHODS: "POST, GET, OPTIONS, PUT, DELETE",
    hdrs.ACCESS_CONTROL_ALLOW_HEADERS: "accept, content-type, authorization",
}
"""Pages of any origin may ask, as is etcd's default."""

_PLAIN = frozenset({"/version", "/health", "/metrics", "/debug/vars"})


def is_of_etcd(target: str) -> bool:
    """Whether a request target is one of etcd's, written as it is there."""
    return target.startswith(ETCD_PREFIXES) or target.partition("?")[0] in _PLAIN


def etcd_target(target: str) -> str:
    """Return a request target whose path is one of etcd's as it is written there; any other as it is.

    etcd's clients join their endpoint and a path, which makes ``//v3/kv/range`` of an endpoint that ends with a slash.
    etcd redirects, which turns a ``POST`` into a ``GET`` at most clients. Here the request is served.

    Args:
        target: Path and query.
    """
    path, mark, query = target.partition("?")
    if path.startswith("/v1/") or not ("//" in path or "/." in path or "%" in path):
        return target
    found = _cleaned(unquote(path, errors="replace")) + mark + query
    return found if is_of_etcd(found) else target


def _cleaned(path: str) -> str:
    """Return a path without empty and dot segments; a slash at its end stays."""
    kept: list[str] = []
    segments = path.split("/")
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment not in ("", "."):
            kept.append(segment)
    return "/" + "/".join(kept) + ("/" if kept and segments[-1] in ("", ".", "..") else "")
