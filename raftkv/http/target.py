"""The request target, taken literally: the path below ``/v1/kv/`` is a key, so nothing may normalise it.

Paths and queries are the text that aiohttp hands out: UTF-8 with each other byte as a lone surrogate, which
``surrogateescape`` turns back into exactly the bytes that arrived.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from urllib.parse import unquote_to_bytes

from raftkv.http.problems import INVALID_ENCODING, INVALID_QUERY, INVALID_TARGET, ProblemError, printable

MAX_TARGET_BYTES = 32_768
"""Room for a listing whose prefix and start are both keys of 4096 bytes, each byte percent-encoded."""

_TIME = re.compile(r"(?P<number>[0-9]{1,9}(\.[0-9]{1,9})?)(?P<unit>ms|s|m)?", re.ASCII)
_SECONDS_OF_UNIT = {"ms": 0.001, "s": 1.0, "m": 60.0}
_ABSOLUTE_FORM = re.compile(r"https?://[^/?#]*", re.IGNORECASE)
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2}).{0,2}", re.DOTALL)


def origin_form(target: str) -> str:
    """Return path and query of a request target, without the authority that an absolute form has in front.

    Args:
        target: The target as it stands in the request line (RFC 9112, section 3.2).

    Raises:
        ProblemError: It is in neither form, or has a fragment, which a request target cannot have.
    """
    if "#" in target:
        raise ProblemError(INVALID_TARGET, f"{printable(target)}: '#' must be percent-encoded as %23")
    if target.startswith("/"):
        return target
    authority = _ABSOLUTE_FORM.match(target)
    rest = target[authority.end() :] if authority else ""
    if not rest.startswith("/"):
        raise ProblemError(INVALID_TARGET, f"{printable(target)}: the target must be a path that begins with '/'")
    return rest


def percent_decode(text: str) -> bytes:
    """Return the bytes that a percent-encoded text stands for; ``+`` stands for itself.

    Raises:
        ProblemError: A ``%`` is not followed by two hexadecimal digits (RFC 3986, section 2.1).
    """
    raw = text.encode("utf-8", "surrogateescape")
    if "%" not in text:
        return raw
    bad = _BAD_PERCENT.search(text)
    if bad is not None:
        found = printable(bad.group())
        raise ProblemError(
            INVALID_ENCODING, f"{found!r} is not a percent-encoding: two hexadecimal digits must follow '%'"
        )
    return unquote_to_bytes(raw)


class Query:
    """The parameters of a query string, as HTML forms write them: ``+`` is a space, ``%2B`` a plus.

    Args:
        text: What follows the ``?``, empty when there is none.
        allowed: Names that the request may have.
        repeatable: Those of them that may occur more than once.

    Raises:
        ProblemError: A parameter is unknown, repeated, or not decodable.
    """

    def __init__(self, text: str, allowed: Sequence[str], *, repeatable: Sequence[str] = ()) -> None:
        self._values: dict[str, list[bytes]] = {}
        for pair in filter(None, text.split("&")):
            name, _, value = pair.partition("=")
            decoded_name = _form_decode(name).decode("utf-8", "backslashreplace")
            if decoded_name not in allowed:
                known = ", ".join(allowed) or "none"
                raise ProblemError(INVALID_QUERY, f"unknown query parameter {decoded_name!r}; known here: {known}")
            values = self._values.setdefault(decoded_name, [])
            if values and decoded_name not in repeatable:
                raise ProblemError(INVALID_QUERY, f"query parameter {decoded_name!r} is given more than once")
            values.append(_form_decode(value))

    def all(self, name: str) -> list[bytes]:
        """Return every value of a parameter in order, none when it is absent."""
        return self._values.get(name, [])

    def raw(self, name: str, default: bytes) -> bytes:
        """Return the decoded value of a parameter."""
        values = self._values.get(name)
        return values[0] if values else default

    def choice(self, name: str, choices: Sequence[str], default: str) -> str:
        """Return a parameter that has one of a few values.

        Raises:
            ProblemError: It has another value.
        """
        value = self.raw(name, default.encode()).decode("utf-8", "backslashreplace")
        if value not in choices:
            allowed = ", ".join(repr(choice) for choice in choices)
            raise ProblemError(INVALID_QUERY, f"{name} must be one of {allowed}, not {value!r}")
        return value

    def flag(self, name: str) -> bool:
        """Return a parameter that is ``true`` or ``false``, false when it is absent.

        Raises:
            ProblemError: It has another value.
        """
        return self.choice(name, ("true", "false"), "false") == "true"

    def integer(self, name: str, lowest: int, highest: int, default: int) -> int:
        """Return a parameter that is a decimal number.

        Raises:
            ProblemError: It is not made of ASCII digits alone, or is out of bounds.
        """
        value = self.raw(name, str(default).encode())
        # Compared by length first: digits in any number are no reason to build a huge integer.
        if not value.isdigit() or len(value) > len(str(highest)) or not lowest <= int(value) <= highest:
            shown = value.decode("utf-8", "backslashreplace")
            raise ProblemError(INVALID_QUERY, f"{name} must be a number from {lowest} to {highest}, not {shown!r}")
        return int(value)

    def seconds(self, name: str, highest: float, default: float) -> float:
        """Return a parameter that is a time: a number of seconds, or one with the unit ``ms``, ``s`` or ``m``.

        Raises:
            ProblemError: It is none, or out of bounds.
        """
        values = self._values.get(name)
        if not values:
            return default
        text = values[0].decode("utf-8", "backslashreplace")
        found = _TIME.fullmatch(text)
        seconds = math.inf if found is None else float(found["number"]) * _SECONDS_OF_UNIT[found["unit"] or "s"]
        if seconds > highest:
            raise ProblemError(
                INVALID_QUERY, f"{name} must be a time from 0 to {highest:g} s, such as 30s, not {text!r}"
            )
        return seconds


def _form_decode(text: str) -> bytes:
    return percent_decode(text.replace("+", " "))
