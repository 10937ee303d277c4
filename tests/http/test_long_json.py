"""Long arrays of JSON documents, rendered in slices."""

from __future__ import annotations

import asyncio
import weakref

import orjson
import pytest

from raftkv.http.etcd.messages import key_value_json, range_json
from raftkv.http.long_json import ITEMS_AT_ONCE, Items, Rendering, render_json
from raftkv.operations import RangeResult
from raftkv.types import KeyValue, Revision


def keys(number):
    return tuple(KeyValue(b"k%06d" % n, b"v" * 20, Revision(2), Revision(n + 2), 1) for n in range(number))


@pytest.fixture(scope="module")
def many_keys():
    return keys(100_000)


@pytest.mark.parametrize("number", [0, 1, 2, ITEMS_AT_ONCE - 1, ITEMS_AT_ONCE, ITEMS_AT_ONCE + 1, 1000])
async def test_document_is_the_same_as_one_that_is_rendered_at_once(number):
    found = keys(number)
    document = {"header": {"revision": "7"}, "responses": [{"range": {"kvs": Items(found, key_value_json)}}, 1, None]}
    plain = [key_value_json(item) for item in found]
    expected = {"header": {"revision": "7"}, "responses": [{"range": {"kvs": plain}}, 1, None]}
    assert await render_json(document) == orjson.dumps(expected)


async def test_long_range_is_rendered_without_holding_the_loop(many_keys):
    """``tests/conftest.py`` fails the test when a callback of the loop takes too long."""
    text = await render_json(range_json(RangeResult(many_keys, len(many_keys), more=False)))
    assert text.count(b'"key"') == len(many_keys)


async def test_others_go_on_between_slices():
    turns = 0

    async def others():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.ensure_future(others())
    # What is bounded in each of many arrays has a bound in all of them too.
    await render_json([Items(keys(100), key_value_json) for _ in range(20)])
    task.cancel()
    assert turns >= 20 * 100 // ITEMS_AT_ONCE - 1


async def test_items_are_released_as_they_are_rendered():
    class Item:
        pass

    alive: weakref.WeakSet[Item] = weakref.WeakSet()
    left = []

    def render(_item: Item) -> int:
        left.append(len(alive))
        return 1

    def items() -> tuple[Item, ...]:
        made = tuple(Item() for _ in range(1000))
        alive.update(made)
        return made

    assert await render_json(Items(items(), render)) == orjson.dumps([1] * 1000)
    assert left == list(range(1000, 0, -1))


async def test_large_document_is_in_pieces_and_its_size_is_known_before(many_keys):
    rendering = Rendering(range_json(RangeResult(many_keys, len(many_keys), more=False)))
    estimated = await rendering.estimate_bytes()
    pieces = await rendering.pieces()
    size = sum(map(len, pieces))
    assert 0.8 * size < estimated < 1.5 * size
    # Small parts are joined, and no piece is much larger than they are.
    assert all(len(piece) > 20_000 for piece in pieces[:-1])
    assert max(map(len, pieces)) < 200_000


async def test_error_of_an_item_ends_the_rendering():
    def refuse(number):
        if number == 700:
            raise ValueError("not text")
        return number

    with pytest.raises(ValueError, match="not text"):
        await render_json({"items": Items(range(1000), refuse)})
