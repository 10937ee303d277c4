"""Where a request goes: endpoints, and keys as paths."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from urllib.parse import quote, quote_from_bytes

from yarl import URL

from raftkv.errors import InvalidRequest
from raftkv.types import MAX_KEY_BYTES, MAX_VALUE_BYTES


def parse_endpoints(endpoints: Sequence[str]) -> tuple[URL, ...]:
    """Return the origins that endpoints name, each once, in their order.

    Raises:
        InvalidRequest: There are none, or one is not an ``http://`` or ``https://`` URL of a host.
    """
    origins = tuple(dict.fromkeys(_parse_endpoint(endpoint) for endpoint in endpoints))
    if not origins:
        raise InvalidRequest("there is no endpoint to ask")
    return origins


def _parse_endpoint(endpoint: str) -> URL:
    try:
        url = URL(endpoint)
        origin = url.origin() if url.absolute else None
    except ValueError as error:
        host_port = endpoint.partition("://")[2].partition("/")[0]
        if host_port.count(":") > 1 and "[" not in host_port:
            raise InvalidRequest(
                f"the endpoint {endpoint!r}: an IPv6 address must stand in brackets, such as http://[::1]:2379"
            ) from None
        raise InvalidRequest(f"the endpoint {endpoint!r} is not a URL ({error})") from None
    if origin is None or origin.scheme not in ("http", "https"):
        raise InvalidRequest(f"the endpoint {endpoint!r} is not an http:// or https:// URL")
    if url.user is not None or url.raw_path not in ("", "/") or url.raw_query_string or url.raw_fragment:
        raise InvalidRequest(f"the endpoint {endpoint!r} must be a scheme, a host and a port, and nothing more")
    return origin


def key_path(key: bytes) -> str:
    """Return the path of a key, every byte but the unreserved ones of RFC 3986 percent-encoded.

    Raises:
        InvalidRequest: The key is empty or too long.
    """
    if not key:
        raise InvalidRequest("the key is empty")
    if len(key) > MAX_KEY_BYTES:
        raise InvalidRequest(f"the key has {len(key)} bytes; at most {MAX_KEY_BYTES} are allowed")
    return "/v1/kv/" + _segment(key)


def lock_path(name: bytes) -> str:
    """Return the path of a lock."""
    return "/v1/locks/" + _segment(name)


def election_path(name: bytes) -> str:
    """Return the path of an election."""
    return "/v1/elections/" + _segment(name)


def url_text(data: bytes) -> str:
    """Return bytes percent-encoded, every one but the unreserved of RFC 3986."""
    return quote_from_bytes(data, safe="")


def _segment(data: bytes) -> str:
    encoded = url_text(data)
    # As path segments these two mean something else.
    return encoded.replace(".", "%2E") if encoded in (".", "..") else encoded


def check_value(value: bytes) -> None:
    """Refuse a value that every node would refuse, before it travels.

    Raises:
        InvalidRequest: It is too large.
    """
    if len(value) > MAX_VALUE_BYTES:
        raise InvalidRequest(f"the value has {len(value)} bytes; at most {MAX_VALUE_BYTES} are allowed")


def query_string(parameters: Mapping[str, str]) -> str:
    """Return parameters as a query string with its question mark, empty without any."""
    if not parameters:
        return ""
    return "?" + "&".join(f"{name}={quote(value, safe='')}" for name, value in parameters.items())


def base64_text(data: bytes) -> str:
    """Return bytes as base64."""
    return base64.b64encode(data).decode("ascii")
