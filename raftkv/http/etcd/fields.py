"""Reading JSON messages as protobuf's JSON mapping has them: lenient about names, strict about types."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import orjson

from raftkv.http.etcd.errors import GatewayError, invalid

MAX_DEPTH = 64
"""Messages within messages; etcd has no bound but its stack."""

_INTEGER = re.compile(r"[ \t\r\n]*(?:(-?[0-9]{1,20})|null)[ \t\r\n]*", re.ASCII)
"""What a string may hold for a number: the JSON of one."""

_LINE_ENDS = re.compile(r"[\r\n]+")
_INT64 = range(-(2**63), 2**63)
_UINT64 = range(2**64)
_OCTETS = range(256)


class Fields:
    """One message of a request.

    Args:
        document: The parsed JSON value; null is an empty message.
        depth: How many messages it is in.

    Raises:
        GatewayError: It is no object, or too deep.
    """

    def __init__(self, document: Any, depth: int = 0) -> None:
        if document is None:
            document = {}
        if not isinstance(document, dict):
            raise invalid(f"json: cannot unmarshal {_kind(document)} into a message")
        if depth > MAX_DEPTH:
            raise invalid(f"messages are nested more than {MAX_DEPTH} deep")
        self._document = document
        self._depth = depth

    def get(self, name: str) -> Any:
        """Return a field as it was parsed, None when it is not set; of both spellings, etcd takes the camelCase one."""
        camel_case = _camel_case(name)
        return self._document[camel_case] if camel_case in self._document else self._document.get(name)

    def has(self, name: str) -> bool:
        """Whether a field is set."""
        return self.get(name) is not None

    def one_of(self, names: Sequence[str]) -> str | None:
        """Return the field of a ``oneof`` that is set, None for none.

        Args:
            names: Its fields in the order of their numbers. Of several that are set, the last counts, as in protobuf.
        """
        return next((name for name in reversed(names) if self.has(name)), None)

    def bytes(self, name: str) -> bytes:
        """Return a field of bytes, empty when it is not set; base64, which may have line ends, or a list of numbers."""
        value = self.get(name)
        if value is None:
            return b""
        if isinstance(value, list) and all(type(item) is int and item in _OCTETS for item in value):
            return bytes(value)
        if not isinstance(value, str):
            raise _wrong(name, value, "a string of base64")
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            pass
        try:
            return base64.b64decode(_LINE_ENDS.sub("", value), validate=True)
        except (binascii.Error, ValueError):
            raise invalid(f"{name}: illegal base64 data") from None

    def text(self, name: str) -> str:
        """Return a field of text, empty when it is not set."""
        value = self.get(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise _wrong(name, value, "a string")
        return value

    def integer(self, name: str) -> int:
        """Return a 64-bit integer, 0 when it is not set; a number, or a string of one."""
        return self._integer(name, _INT64)

    def unsigned(self, name: str) -> int:
        """Return a 64-bit integer without a sign, 0 when it is not set."""
        return self._integer(name, _UINT64)

    def _integer(self, name: str, numbers: range) -> int:
        value = self.get(name)
        if value is None:
            return 0
        if isinstance(value, str) and (found := _INTEGER.fullmatch(value)) is not None:
            value = int(found[1] or 0)
        if type(value) is not int:
            raise _wrong(name, value, "a 64-bit integer")
        if value not in numbers:
            raise invalid(f"{name}: {value} is no 64-bit integer")
        return value

    def flag(self, name: str) -> bool:
        """Return a boolean, false when it is not set."""
        value = self.get(name)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise _wrong(name, value, "a boolean")
        return value

    def choice(self, name: str, names: Sequence[str], unknown: str) -> int:
        """Return an enumerated value by its number, given by name or number; 0 when it is not set.

        Args:
            name: The field.
            names: The names of the values, in the order of their numbers.
            unknown: The error's sentence for a number that is none of them.
        """
        value = self.get(name)
        if value is None:
            return 0
        if isinstance(value, str):
            if value not in names:
                raise invalid(f"{name}: unknown value {value!r}")
            return names.index(value)
        if type(value) is not int:
            raise _wrong(name, value, "a name or a number")
        if not 0 <= value < len(names):
            raise invalid(unknown)
        return value

    def message(self, name: str) -> Fields | None:
        """Return a message within this one, None when it is not set."""
        value = self.get(name)
        return None if value is None else Fields(value, self._depth + 1)

    def messages(self, name: str) -> list[Fields]:
        """Return the messages of a list."""
        value = self.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise _wrong(name, value, "a list")
        return [Fields(item, self._depth + 1) for item in value]

    def texts(self, name: str) -> list[str]:
        """Return the texts of a list."""
        value = self.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise _wrong(name, value, "a list of strings")
        return value

    def known_choices(self, name: str, names: Sequence[str]) -> list[int]:
        """Return the enumerated values of a list, without numbers that stand for none, which etcd ignores."""
        value = self.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise _wrong(name, value, "a list")
        known = [item for item in value if type(item) is not int or 0 <= item < len(names)]
        return [Fields({name: item}).choice(name, names, f"{name}: unknown value") for item in known]


def parse_message(body: bytes) -> Fields:
    """Read the message of a unary request; an empty body is an empty message, what follows an object is ignored.

    Raises:
        GatewayError: It is no JSON object.
    """
    if not body.strip():
        return Fields({})
    try:
        return Fields(orjson.loads(body))
    except orjson.JSONDecodeError:
        return Fields(_first_value(body))


def _first_value(body: bytes) -> Any:
    try:
        # As Go's parser does, bytes in strings that are not UTF-8 are replaced.
        return json_decoder().raw_decode(body.decode("utf-8", "replace").lstrip(" \t\r\n"))[0]
    except (ValueError, RecursionError) as error:
        raise invalid(f"invalid JSON: {error}") from None


def json_decoder() -> json.JSONDecoder:
    """Return a decoder that finds the end of a value, and takes no more than JSON: Python's takes ``NaN`` too."""
    return json.JSONDecoder(parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


@cache
def _camel_case(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _wrong(name: str, value: Any, wanted: str) -> GatewayError:
    return invalid(f"json: cannot unmarshal {_kind(value)} into {name}, which is {wanted}")


def _kind(value: Any) -> str:
    kinds = {dict: "object", list: "array", str: "string", bool: "bool", int: "number", float: "number"}
    return kinds.get(type(value), "null")
