"""Transactions, safeguards and compaction through the native API."""

from __future__ import annotations

import base64

import pytest

from tests.http.native import Node


@pytest.fixture
async def node():
    async with Node() as running:
        yield running


async def test_a_transaction_takes_the_branch_that_its_conditions_choose(node):
    await node.put("c", "9")
    first = await node.put("a", "1")
    document = {
        "if": [{"key": "a", "mod_revision": {"equal": first}}, {"key": "b", "version": {"equal": 0}}],
        "then": [
            {"put": {"key": "b", "value": "2", "previous": True}},
            {"put": {"key": "a", "value": "3", "previous": True}},
            {"get": {"prefix": ""}},
            {"delete": {"key": "c", "previous": True}},
        ],
        "else": [{"get": {"key": "a"}}],
    }
    status, answer = await node.ask("POST", "/v1/txn", document)
    assert status == 200
    assert answer["succeeded"]
    assert answer["revision"] == first + 1
    put_b, put_a, got, deleted = answer["results"]
    assert put_b == {"put": {}}
    assert put_a["put"]["previous"]["value"] == "1"
    assert [(item["key"], item["value"]) for item in got["get"]["items"]] == [("a", "3"), ("b", "2"), ("c", "9")]
    assert (got["get"]["count"], got["get"]["more"]) == (3, False)
    assert deleted["delete"]["deleted"] == 1
    assert deleted["delete"]["previous"][0]["value"] == "9"
    status, answer = await node.ask("POST", "/v1/txn", document)
    assert (status, answer["succeeded"], answer["revision"]) == (200, False, first + 1)
    (got,) = answer["results"]
    assert [item["value"] for item in got["get"]["items"]] == ["3"]


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ({"key": "a", "value": {"equal": "1"}}, True),
        ({"key": "a", "value": {"greater": "1"}}, False),
        ({"key": "a", "value": {"less": "2"}}, True),
        ({"key": "a", "version": {"not_equal": 1}}, False),
        ({"prefix": "", "lease": {"equal": 0}}, True),
        ({"prefix": "", "value": {"equal": "1"}}, False),
        ({"from": "a", "to": "b", "create_revision": {"greater": 1}}, True),
        ({"from": "b", "value": {"equal": "2"}}, True),
    ],
)
async def test_conditions(node, condition, holds):
    await node.put("a", "1")
    await node.put("b", "2")
    assert (await node.ask("POST", "/v1/txn", {"if": [condition]}))[1]["succeeded"] is holds


async def test_a_transaction_carries_bytes_as_base64_and_reads_the_past(node):
    key = base64.b64encode(b"\xff\x00").decode()
    put = {"put": {"key": key, "value": base64.b64encode(b"\x80").decode()}}
    _, written = await node.ask("POST", "/v1/txn", {"encoding": "base64", "then": [put]})
    await node.ask("DELETE", "/v1/kv/%FF%00")
    get = {"get": {"key": key, "revision": written["revision"]}}
    _, answer = await node.ask("POST", "/v1/txn", {"encoding": "base64", "then": [get]})
    assert answer["results"][0]["get"]["items"][0]["value"] == base64.b64encode(b"\x80").decode()
    plain = {"get": {"from": "", "revision": written["revision"]}}
    status, answer = await node.ask("POST", "/v1/txn", {"then": [{"put": {"key": "k", "value": ""}}, plain]})
    (item,) = answer["results"][1]["get"]["items"]
    assert (status, item["key"], item["value"], item["encoding"]) == (200, key, "gA==", "base64")


async def test_nested_transactions_and_all_that_a_get_can_ask(node):
    for number in range(5):
        await node.put(f"k{number}", str(9 - number))
    get = {"get": {"prefix": "k", "limit": 2, "sort_by": "value", "order": "descending", "keys_only": True}}
    count = {"get": {"prefix": "k", "count_only": True}}
    nested = {"txn": {"if": [{"key": "k0", "version": {"equal": 1}}], "then": [get], "else": [count]}}
    _, answer = await node.ask("POST", "/v1/txn", {"then": [nested, count]})
    inner = answer["results"][0]["txn"]
    assert inner["succeeded"]
    assert [item["key"] for item in inner["results"][0]["get"]["items"]] == ["k0", "k1"]
    assert "value" not in inner["results"][0]["get"]["items"][0]
    assert (inner["results"][0]["get"]["count"], inner["results"][0]["get"]["more"]) == (5, True)
    assert answer["results"][1]["get"] == {"items": [], "count": 5, "more": False}


def nested(depth: int) -> dict[str, object]:
    return {"then": [{"txn": nested(depth - 1)}]} if depth else {}


def grouped(groups: int, of: int) -> dict[str, object]:
    """So many transactions of so many reads, in one."""
    return {"then": [{"txn": {"then": [{"get": {"key": "a"}}] * of}}] * groups}


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        (b"", None),
        (b"[]", "invalid-json: the body must be a JSON object"),
        (b"{", "invalid-json: the body is not JSON"),
        (b"{'a': 1}", "invalid-json: the body is not JSON"),
        (b'{"if": [], "if": []}', "invalid-json: 'if' is there twice"),
        (b'{"then": NaN}', "invalid-json: NaN is not JSON"),
        (b"[" * 60_000, "invalid-json: the body is nested too deep"),
        (b'{"then": ' * 5000 + b"1" + b"}" * 5000, "invalid-json: "),
        (b'{"if": [{"key": "a", "version": {"equal": ' + b"9" * 5000 + b"}}]}", "invalid-json: "),
        (b"\xff", "invalid-json: the body is not JSON"),
        ({"than": []}, "invalid-json: than is unknown; known here: encoding, if, then, else"),
        ({"encoding": "hex"}, "invalid-json: encoding must be one of utf8, base64"),
        ({"encoding": 5}, "invalid-json: encoding must be one of utf8, base64"),
        ({"encoding": []}, "invalid-json: encoding must be one of utf8, base64"),
        ({"encoding": "base64", "then": [{"put": {"key": "%", "value": ""}}]}, "invalid-json: then[0].put.key must be"),
        ({"then": {}}, "invalid-json: then must be a list"),
        ({"then": ["x"]}, "invalid-json: then[0] must be a JSON object"),
        ({"then": [{}]}, "invalid-json: then[0] must have exactly one of put, get, delete, txn"),
        ({"then": [{"put": {"key": "a"}}]}, "invalid-json: then[0].put.value must be a string"),
        ({"then": [{"put": {"key": "", "value": ""}}]}, "invalid-key: then[0].put.key has 0 bytes"),
        ({"then": [{"put": {"key": "a" * 4097, "value": ""}}]}, "invalid-key: then[0].put.key has 4097 bytes"),
        ({"then": [{"put": {"key": "a", "value": "\ud800"}}]}, "invalid-json: then[0].put.value must be text that"),
        (
            {"then": [{"put": {"key": "a", "value": "v", "keep_value": True}}]},
            "invalid-json: then[0].put.value and then[0].put.keep_value exclude each other",
        ),
        ({"then": [{"put": {"key": "a", "keep_value": True}}]}, "key-missing: "),
        ({"then": [{"put": {"key": "a", "value": "", "lease": 5}}]}, "lease-not-found: "),
        (
            {"then": [{"put": {"key": "a", "value": "", "lease": -1}}]},
            "invalid-json: then[0].put.lease must be a whole",
        ),
        ({"then": [{"put": {"key": "a", "value": "", "lease": 1.0}}]}, "invalid-json: then[0].put.lease must be a"),
        ({"then": [{"put": {"key": "a", "value": "", "lease": True}}]}, "invalid-json: then[0].put.lease must be a"),
        ({"then": [{"put": {"key": "a", "value": "", "previous": 1}}]}, "invalid-json: then[0].put.previous must be"),
        ({"then": [{"get": {"key": "a", "prefix": "b"}}]}, "invalid-json: then[0].get must have exactly one of key"),
        ({"then": [{"get": {"key": "a", "to": "b"}}]}, "invalid-json: then[0].get.to needs then[0].get.from"),
        ({"then": [{"get": {"key": "a", "revision": 1000}}]}, "revision-in-future: "),
        ({"if": [{"key": "a"}]}, "invalid-json: if[0] must have exactly one of version, "),
        ({"if": [{"key": "a", "version": {}}]}, "invalid-json: if[0].version must have exactly one of equal, "),
        ({"if": [{"key": "a", "value": {"equal": 1}}]}, "invalid-json: if[0].value.equal must be a string"),
        (
            {"then": [{"put": {"key": "a", "value": ""}}, {"delete": {"prefix": ""}}], "else": []},
            None,
        ),
        ({"then": [{"put": {"key": "a", "value": ""}}] * 2}, "duplicate-key: "),
        ({"else": [{"put": {"key": "a", "value": ""}}, {"delete": {"key": "a"}}]}, "duplicate-key: "),
        ({"then": [{"get": {"key": "a"}}] * 129}, "invalid-json: then has 129 parts; 128 are allowed"),
        (grouped(65, 63), None),
        (grouped(65, 64), "invalid-json: the transaction and those nested in it have more than 4224 parts"),
        (nested(16), None),
        (nested(17), "invalid-json: "),
        ({"then": [{"put": {"key": "a", "value": "x" * 1_572_864}}]}, "value-too-large: "),
        (b" " * 4_194_305, "value-too-large: "),
    ],
)
async def test_what_is_wrong_is_named_and_nothing_is_written(node, document, problem):
    if problem is None:
        assert (await node.ask("POST", "/v1/txn", document))[0] == 200
        return
    found = await node.problem("POST", "/v1/txn", document)
    assert found.startswith(problem)
    assert len(found) < 400
    assert node.log.machine.revision == 1


async def test_compaction_ends_history(node):
    for number in range(5):
        await node.put("a", str(number))
    assert await node.ask("POST", "/v1/compaction", {"revision": 4}) == (200, {"compacted_revision": 4})
    get = {"then": [{"get": {"key": "a", "revision": 3}}]}
    assert (await node.problem("POST", "/v1/txn", get)).startswith("revision-compacted: ")
    assert (await node.problem("POST", "/v1/compaction", {"revision": 4})).startswith("revision-compacted: ")
    assert (await node.problem("POST", "/v1/compaction", {"revision": 99})).startswith("revision-in-future: ")
    assert (await node.problem("POST", "/v1/compaction", {})).startswith("invalid-json: revision must be a whole")
    assert (await node.problem("POST", "/v1/compaction?x=1", {})).startswith("invalid-query: ")


async def test_an_idempotency_key_makes_a_write_happen_once(node):
    headers = {"Idempotency-Key": "k1"}
    first = await node.ask("PUT", "/v1/kv/a", b"1", headers)
    assert await node.ask("PUT", "/v1/kv/a", b"1", headers) == first
    assert (await node.problem("PUT", "/v1/kv/a", b"2", headers)).startswith("idempotency-key-reused: ")
    assert (await node.problem("PUT", "/v1/kv/b", b"1", headers)).startswith("idempotency-key-reused: ")
    assert (await node.problem("PUT", "/v1/kv/a", b"1", {**headers, "If-Match": '"2"'})).startswith(
        "idempotency-key-reused: "
    )
    await node.put("a", "3")
    assert await node.ask("PUT", "/v1/kv/a", b"1", headers) == first
    assert (await node.ask("GET", "/v1/kv/a"))[1] == b"3"
    body = {"then": [{"delete": {"key": "a"}}]}
    headers = {"Idempotency-Key": "k2"}
    once = await node.ask("POST", "/v1/txn", body, headers)
    await node.put("a", "4")
    assert await node.ask("POST", "/v1/txn", body, headers) == once
    assert (await node.ask("GET", "/v1/kv/a"))[0] == 200
    headers = {"Idempotency-Key": "k3"}
    once = await node.ask("DELETE", "/v1/kv/a", headers=headers)
    assert once[1]["deleted"] == 1
    assert await node.ask("DELETE", "/v1/kv/a", headers=headers) == once


@pytest.mark.parametrize(
    ("headers", "problem"),
    [
        ({"Idempotency-Key": ""}, "invalid-header: Idempotency-Key must have 1 to 255 bytes, not 0"),
        ({"Idempotency-Key": "x" * 256}, "invalid-header: Idempotency-Key must have 1 to 255 bytes, not 256"),
        ({"X-Raftkv-Fence": "lock"}, "invalid-header: X-Raftkv-Fence must be the lock's name"),
        ({"X-Raftkv-Fence": ":5"}, "invalid-header: X-Raftkv-Fence must be the lock's name"),
        ({"X-Raftkv-Fence": "lock:0"}, "invalid-header: X-Raftkv-Fence: a token is a number from 1"),
        ({"X-Raftkv-Fence": "lock:-1"}, "invalid-header: X-Raftkv-Fence must be"),
        ({"X-Raftkv-Fence": "lock:" + "9" * 30}, "invalid-header: X-Raftkv-Fence must be"),
        ({"X-Raftkv-Fence": "%zz:1"}, "invalid-encoding: "),
        ({"X-Raftkv-Fence": "lock:1"}, "fence-lost: "),
    ],
)
async def test_safeguards_that_are_wrong_are_refused_for_every_write(node, headers, problem):
    for method, path, body in [
        ("PUT", "/v1/kv/a", b"x"),
        ("DELETE", "/v1/kv/a", None),
        ("POST", "/v1/txn", {"then": [{"put": {"key": "a", "value": "x"}}]}),
        ("POST", "/v1/leases", {"ttl_seconds": 5}),
    ]:
        assert (await node.problem(method, path, body, headers)).startswith(problem), (method, path)
    assert node.log.machine.revision == 1
