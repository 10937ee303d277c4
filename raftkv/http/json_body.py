"""JSON bodies of the native API, read strictly: whatever is unknown, doubled or of a wrong type is refused by name."""

from __future__ import annotations

import base64
import binascii
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from raftkv.http.body import read_body
from raftkv.http.json_size import MAX_VALUES, has_too_many_values
from raftkv.http.problems import INVALID_JSON, ProblemError
from raftkv.http.routing import Call
from raftkv.http.target import Query

MAX_BODY_BYTES = 4_194_304
"""More than the JSON of any command that is small enough: base64 adds a third."""

_ENCODINGS = ("utf8", "base64")


class Members:
    """The members of one JSON object.

    Args:
        document: The parsed value.
        where: What it is, for errors; empty for the body itself.
        allowed: Names that it may have.
        as_base64: Whether keys and values in it are base64 instead of text.

    Raises:
        ProblemError: It is no object, or has other members.
    """

    def __init__(self, document: Any, where: str, allowed: Sequence[str], *, as_base64: bool = False) -> None:
        if not isinstance(document, dict):
            raise _invalid(f"{where or 'the body'} must be a JSON object")
        for name in document:
            if name not in allowed:
                raise _invalid(f"{_path(where, name)} is unknown; known here: {', '.join(allowed)}")
        self._document = document
        self._where = where
        self.as_base64 = as_base64

    def __contains__(self, name: str) -> bool:
        return self._document.get(name) is not None

    @property
    def where(self) -> str:
        """What this object is, for errors."""
        return self._where or "the body"

    def path(self, name: str) -> str:
        """Return how errors name a member."""
        return _path(self._where, name)

    def integer(self, name: str, lowest: int, highest: int, default: int | None = None) -> int:
        """Return a whole number; one without a default must be there."""
        value = self._document.get(name, default)
        if type(value) is not int or not lowest <= value <= highest:
            raise _invalid(f"{self.path(name)} must be a whole number from {lowest} to {highest}")
        return value

    def number(self, name: str, lowest: float, highest: float, default: float) -> float:
        """Return a number."""
        value = self._document.get(name, default)
        if type(value) not in (int, float) or not lowest <= value <= highest:
            raise _invalid(f"{self.path(name)} must be a number from {lowest:g} to {highest:g}")
        return float(value)

    def flag(self, name: str) -> bool:
        """Return a boolean, false when it is not there."""
        value = self._document.get(name, False)
        if not isinstance(value, bool):
            raise _invalid(f"{self.path(name)} must be true or false")
        return value

    def choice(self, name: str, choices: Sequence[str], default: str) -> str:
        """Return one of some words."""
        value = self._document.get(name, default)
        if value not in choices:
            raise _invalid(f"{self.path(name)} must be one of {', '.join(choices)}")
        return str(value)

    def text(self, name: str) -> str:
        """Return a text, which must be there."""
        value = self._document.get(name)
        if not isinstance(value, str):
            raise _invalid(f"{self.path(name)} must be a string")
        return value

    def bytes(self, name: str, default: bytes | None = None) -> bytes:
        """Return a key or a value, from text or from base64; one without a default must be there."""
        if name not in self and default is not None:
            return default
        value = self.text(name)
        try:
            return base64.b64decode(value, validate=True) if self.as_base64 else value.encode()
        except (binascii.Error, ValueError):
            wanted = "base64" if self.as_base64 else "text that UTF-8 can carry"
            raise _invalid(f"{self.path(name)} must be {wanted}") from None

    def child(self, name: str, allowed: Sequence[str]) -> Members:
        """Return an object within this one."""
        return Members(self._document.get(name), self.path(name), allowed, as_base64=self.as_base64)

    def children(self, name: str, allowed: Sequence[str]) -> list[Members]:
        """Return the objects of a list, none when it is not there."""
        value = self._document.get(name, [])
        if not isinstance(value, list):
            raise _invalid(f"{self.path(name)} must be a list")
        return [
            Members(item, f"{self.path(name)}[{number}]", allowed, as_base64=self.as_base64)
            for number, item in enumerate(value)
        ]

    def only(self, names: Sequence[str]) -> str:
        """Return which of some members is there; it must be exactly one."""
        found = [name for name in names if name in self]
        if len(found) != 1:
            raise _invalid(f"{self.where} must have exactly one of {', '.join(names)}")
        return found[0]


async def read_json_body(call: Call, timeout_seconds: float) -> bytes:
    """Read the body of a request that has no query.

    Raises:
        ProblemError: It is too large or too slow, has too many values, or there is a query.
    """
    if call.query:
        Query(call.query, ())
    body = await read_body(call.request, MAX_BODY_BYTES, timeout_seconds)
    if await has_too_many_values(body):
        raise _invalid(f"the body has more than {MAX_VALUES} values")
    return body


def wants_base64(parameters: Query | Members) -> bool:
    """Return whether a query or a body says that keys and values are base64 instead of text.

    Raises:
        ProblemError: ``encoding`` is not valid.
    """
    return parameters.choice("encoding", _ENCODINGS, _ENCODINGS[0]) == "base64"


def parse_members(body: bytes, allowed: Sequence[str]) -> Members:
    """Return the members of a body; an empty one is an empty object.

    Raises:
        ProblemError: It is no JSON object with these members.
    """
    return Members(_parse(body) if body.strip() else {}, "", allowed)


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body.decode(), object_pairs_hook=_without_doubles, parse_constant=_no_constant)
    except RecursionError:
        raise _invalid("the body is nested too deep") from None
    except ValueError as error:
        raise _invalid(f"the body is not JSON: {error}") from None


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        counts = Counter(name for name, _value in pairs)
        doubled = next(name for name, count in counts.items() if count > 1)
        raise _invalid(f"{doubled!r} is there twice")
    return document


def _no_constant(name: str) -> Any:
    raise _invalid(f"{name} is not JSON")


def _path(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _invalid(detail: str) -> ProblemError:
    return ProblemError(INVALID_JSON, detail)
