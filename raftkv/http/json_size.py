"""How much there is to parse in a JSON text, found out before it is parsed.

A parser holds the event loop for as long as it takes, and that grows with the number of values rather than of bytes:
4 MiB of ``[],[],…`` take orjson half a second, 4 MiB of one string four milliseconds.
"""

from __future__ import annotations

import asyncio

MAX_VALUES = 65_536
"""Values of one body: they take 25 ms at most to parse, and any request that is allowed has fewer."""

_STRINGS_AT_A_TIME = 2000


async def has_too_many_values(text: bytes) -> bool:
    """Return whether a text has more than ``MAX_VALUES`` values; the event loop goes on meanwhile.

    Values are counted by the commas and opening brackets outside of strings, of which no value needs more than one.
    What is no JSON gets an answer too; the parser has the last word.
    """
    if _delimiters(text, 0, len(text)) <= MAX_VALUES:
        return False
    found = strings = position = 0
    while found <= MAX_VALUES:
        quote = text.find(b'"', position)
        found += _delimiters(text, position, len(text) if quote < 0 else quote)
        if quote < 0:
            break
        position = quote + 1
        while True:
            end = text.find(b'"', position)
            if end < 0:
                return found > MAX_VALUES
            strings += 1
            if strings % _STRINGS_AT_A_TIME == 0:
                await asyncio.sleep(0)
            since_quote = text[position:end]
            is_escaped = (len(since_quote) - len(since_quote.rstrip(b"\\"))) % 2 == 1
            position = end + 1
            if not is_escaped:
                break
    return found > MAX_VALUES


def _delimiters(text: bytes, begin: int, end: int) -> int:
    return sum(text.count(sign, begin, end) for sign in (b",", b"[", b"{"))
