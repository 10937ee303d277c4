"""Conditions of reads and writes in the words of RFC 9110: lists, weak ETags, ETags of others, and ``*``."""

from __future__ import annotations

import asyncio

import pytest

from raftkv.store.commands import encoded_size_hint
from raftkv.types import MAX_ENTRY_BYTES
from tests.http.native import Node

FOREIGN = ['"x"', 'W/"2"', '""', '"0"', '"02"', '"-1"', f'"{2**63}"', '"' + "9" * 99 + '"', '"2-gzip"', '"a,2"']
MALFORMED = ["2", '"2', '"2 "', "*, *", "'2'", '"2"x']


@pytest.fixture
async def node():
    async with Node() as running:
        assert await running.put("k", "old") == 2
        yield running


async def ask(node, method, *, if_match=None, if_none_match=None, key="k"):
    headers = {"If-Match": if_match, "If-None-Match": if_none_match}
    body = b"new" if method == "PUT" else None
    given = {name: value for name, value in headers.items() if value is not None}
    return await node.ask(method, f"/v1/kv/{key}", body, given)


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
@pytest.mark.parametrize("tag", [*FOREIGN, *MALFORMED, "", ","])
async def test_what_is_no_etag_of_this_server_matches_nothing(node, method, tag):
    status, problem = await ask(node, method, if_match=tag)
    assert (status, problem["type"]) == (412, "urn:raftkv:problem:precondition-failed")
    assert (problem["mod_revision"], problem["revision"]) == (2, 2)
    assert (await node.ask("GET", "/v1/kv/k"))[1] == b"old"
    assert (await ask(node, "GET", if_match=tag))[0] == 412


@pytest.mark.parametrize(
    ("if_match", "if_none_match", "holds"),
    [
        ('"2"', None, True),
        ('"1", "2"', None, True),
        ('"x" ,\t"2",, W/"9"', None, True),
        ('"1", "3"', None, False),
        ('"1", W/"2"', None, False),
        ("*", '"1"', True),
        ("*", '"2"', False),
        ("*", "*", False),
        ('"2", "3"', '"3"', True),
        ('"2", "3"', 'W/"2"', False),
        ('"2", "3"', "*", False),
        (None, '"1", "3"', True),
        (None, '"2"', False),
        (None, 'W/"2", "9"', False),
        (None, "*", False),
        *((None, foreign, foreign != 'W/"2"') for foreign in FOREIGN),
    ],
)
@pytest.mark.parametrize("method", ["PUT", "DELETE", "GET"])
async def test_lists_match_as_the_standard_says(node, method, if_match, if_none_match, holds):
    status, document = await ask(node, method, if_match=if_match, if_none_match=if_none_match)
    left = (await node.ask("GET", "/v1/kv/k"))[1]
    if not holds:
        assert left == b"old"
        matched_none = method == "GET" and if_match in (None, "*", '"2", "3"')
        assert status == (304 if matched_none else 412)
    elif method == "PUT":
        assert (status, document) == (200, {"revision": 3, "create_revision": 2, "mod_revision": 3, "version": 2})
        assert left == b"new"
    elif method == "DELETE":
        assert (status, document) == (200, {"deleted": 1, "revision": 3})
    else:
        assert (status, document) == (200, b"old")


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_a_key_that_does_not_exist(node, method):
    for if_match in ('"1", "2"', '"x"', "*"):
        status, problem = await ask(node, method, if_match=if_match, key="none")
        assert (status, problem["mod_revision"]) == (412, 0)
    assert (await ask(node, method, if_match="*", if_none_match='"1"', key="none"))[0] == 412
    assert (await ask(node, method, if_none_match='"1", "2"', key="none"))[0] == (201 if method == "PUT" else 200)
    assert (await ask(node, method, if_none_match="*", key="other"))[0] == (201 if method == "PUT" else 200)
    assert (await ask(node, "GET", if_match='"1"', if_none_match="*", key="nowhere"))[0] == 404


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
@pytest.mark.parametrize("tag", MALFORMED)
async def test_a_condition_that_would_be_void_by_a_slip_is_refused(node, method, tag):
    status, problem = await ask(node, method, if_none_match=tag)
    assert (status, problem["type"]) == (400, "urn:raftkv:problem:invalid-precondition")
    assert (await node.ask("GET", "/v1/kv/k"))[1] == b"old"
    assert (await ask(node, "GET", if_none_match=tag))[0] == 200


async def test_a_write_names_a_bounded_number_of_revisions(node):
    tags = [f'"{number}"' for number in range(1, 52)]
    long_key = "k" * 4096
    await node.put(long_key, "old")
    value = bytes(1_572_864)
    sizes, submit = [], node.log.submit

    def measure(command):
        sizes.append(encoded_size_hint(command))
        return submit(command)

    node.log.submit = measure
    headers = {"If-Match": ",".join(tags[:50]), "Idempotency-Key": "i" * 255}
    status, _ = await node.ask("PUT", f"/v1/kv/{long_key}", value, headers)
    assert status == 200
    assert sizes[0] < MAX_ENTRY_BYTES
    status, problem = await ask(node, "PUT", if_match=",".join(tags))
    assert (status, problem["detail"]) == (400, "If-Match of a write may name 50 revisions")


async def test_a_repeated_write_with_a_list_has_its_answer_again(node):
    headers = {"If-Match": '"1", "2"', "Idempotency-Key": "once"}
    first = await node.ask("PUT", "/v1/kv/k", b"new", headers)
    assert first[0] == 200
    assert await node.ask("PUT", "/v1/kv/k", b"new", headers) == first
    other = {**headers, "If-Match": '"1", "3"'}
    assert (await node.ask("PUT", "/v1/kv/k", b"new", other))[0] == 422


async def test_of_writers_with_the_same_list_one_wins(node):
    async def write(number: int) -> int:
        headers = {"If-Match": '"1", "2"'}
        return (await node.ask("PUT", "/v1/kv/k", b"%d" % number, headers))[0]

    statuses = await asyncio.gather(*map(write, range(20)))
    assert sorted(statuses) == [200] + [412] * 19
