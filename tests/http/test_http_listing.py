"""``GET /v1/kv``."""

from __future__ import annotations

import base64
from urllib.parse import quote, urlencode

import pytest

from raftkv.types import Consistency, KeyValue, Revision
from tests.http.native import Events, Node


@pytest.fixture
def filled(kv):
    for number in range(250):
        key = b"k/%03d" % number
        kv.keys[key] = KeyValue(key, b"v%d" % number, Revision(2), Revision(number + 2), 1)
    kv.revision = 251
    return kv


async def test_a_page_and_the_way_on(client, filled):
    first = await client.ask("GET", "/v1/kv?prefix=k/&limit=2")
    assert first.status == 200
    assert first.headers["x-raftkv-revision"] == "251"
    assert first.headers["content-type"] == "application/json"
    assert first.headers["cache-control"] == "no-cache"
    assert first.json() == {
        "revision": 251,
        "items": [
            {"key": "k/000", "value": "v0", "create_revision": 2, "mod_revision": 2, "version": 1},
            {"key": "k/001", "value": "v1", "create_revision": 2, "mod_revision": 3, "version": 1},
        ],
        "next": "k/002",
    }
    second = await client.ask("GET", "/v1/kv?prefix=k/&limit=2&start=k/002")
    assert [item["key"] for item in second.json()["items"]] == ["k/002", "k/003"]


@pytest.mark.parametrize("encoding", ["utf8", "base64"])
async def test_following_next_visits_every_key_once(client, filled, encoding):
    filled.keys["k/é +&=%?#".encode()] = KeyValue("k/é +&=%?#".encode(), b"", Revision(1), Revision(1), 1)
    prefix = "k/" if encoding == "utf8" else base64.b64encode(b"k/").decode()
    query = {"prefix": prefix, "limit": "7", "encoding": encoding, "keys_only": "true"}
    seen = []
    while True:
        page = (await client.ask("GET", "/v1/kv?" + urlencode(query))).json()
        seen += [item["key"] for item in page["items"]]
        assert all("value" not in item for item in page["items"])
        if page["next"] is None:
            break
        query["start"] = page["next"]
    decode = str.encode if encoding == "utf8" else base64.b64decode
    assert [decode(key) for key in seen] == sorted(filled.keys)


async def test_defaults_and_limits(client, filled):
    everything = (await client.ask("GET", "/v1/kv")).json()
    assert len(everything["items"]) == 100
    assert everything["next"] == "k/100"
    assert len((await client.ask("GET", "/v1/kv?limit=1000")).json()["items"]) == 250
    assert (await client.ask("GET", "/v1/kv?prefix=none")).json()["items"] == []
    head = await client.ask("HEAD", "/v1/kv?")
    assert head.status == 200
    assert int(head.headers["content-length"]) > 1000


async def test_a_lease_is_shown_when_there_is_one(client, kv):
    kv.keys[b"a"] = KeyValue(b"a", b"", Revision(2), Revision(2), 1, lease=77)
    assert (await client.ask("GET", "/v1/kv")).json()["items"][0]["lease"] == 77


async def test_stale(client, kv):
    answer = await client.ask("GET", "/v1/kv?consistency=stale")
    assert answer.headers["x-raftkv-consistency"] == "stale"
    assert kv.reads == [Consistency.STALE]


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("limit=0", "'0'"),
        ("limit=1001", "'1001'"),
        ("limit=-1", "'-1'"),
        ("limit=%2B5", "'+5'"),
        ("limit=5.0", "'5.0'"),
        ("limit=", "''"),
        ("limit=%D9%A3", "'٣'"),
        ("limit=%C2%B2", "'²'"),
        ("limit=" + "9" * 5000, "'999"),
        ("keys_only=yes", "'yes'"),
        ("keys_only=True", "'True'"),
        ("keys_only", "''"),
        ("encoding=hex", "'hex'"),
        ("consistency=", "''"),
        ("consistency=%ff", "'\\\\xff'"),
        ("prefx=a", "'prefx'"),
        ("%ff=a", "'\\\\xff'"),
        ("prefix=a&prefix=a", "'prefix' is given more than once"),
        ("encoding=base64&prefix=a", "prefix is not base64: 'a'"),
        ("encoding=base64&start=ab+/", "%2B"),
        ("prefix=" + "p" * 4097, "4097"),
        ("start=" + "p" * 4097, "4097"),
    ],
)
async def test_bad_parameters_are_named(client, kv, query, named):
    answer = await client.ask("GET", "/v1/kv?" + query)
    assert (answer.status, answer.problem()) == (400, "invalid-query")
    assert named in answer.json()["detail"]
    assert not kv.entered.is_set()


async def test_a_bad_percent_encoding_in_the_query_is_named(client):
    answer = await client.ask("GET", "/v1/kv?prefix=%g1")
    assert (answer.status, answer.problem()) == (400, "invalid-encoding")
    assert "'%g1'" in answer.json()["detail"]


async def test_plus_is_a_space_and_empty_pairs_are_nothing(client, kv):
    kv.keys[b"a b"] = KeyValue(b"a b", b"", Revision(2), Revision(2), 1)
    for query in ("prefix=a+", "prefix=a%20", "&prefix=a+&", "prefix=a+&limit=1"):
        assert [item["key"] for item in (await client.ask("GET", f"/v1/kv?{query}")).json()["items"]] == ["a b"]
    assert (await client.ask("GET", "/v1/kv?prefix=a%2B")).json()["items"] == []


async def test_the_longest_prefix_and_start_fit_into_the_target(client):
    longest = quote(b"\xff" * 4096)
    assert (await client.ask("GET", f"/v1/kv?prefix={longest}&start={longest}")).status == 200


async def test_what_is_not_text_is_base64_item_by_item(client, kv):
    kv.keys[b"a/\xff"] = KeyValue(b"a/\xff", b"text", Revision(2), Revision(2), 1)
    kv.keys[b"b c"] = KeyValue(b"b c", b"\xfe", Revision(2), Revision(2), 1, lease=7)
    kv.keys[b"c"] = KeyValue(b"c", "é".encode(), Revision(2), Revision(2), 1)
    numbers = {"create_revision": 2, "mod_revision": 2, "version": 1}
    page = (await client.ask("GET", "/v1/kv")).json()
    assert page["items"] == [
        {"key": "YS//", "value": "dGV4dA==", "encoding": "base64", **numbers},
        {"key": "YiBj", "value": "/g==", "encoding": "base64", "lease": 7, **numbers},
        {"key": "c", "value": "é", **numbers},
    ]
    assert page["next"] is None
    assert "next_encoding" not in page
    keys = (await client.ask("GET", "/v1/kv?keys_only=true")).json()["items"]
    assert [(item["key"], item.get("encoding")) for item in keys] == [("YS//", "base64"), ("b c", None), ("c", None)]
    kv.keys[b"0"] = KeyValue(b"0", b"", Revision(2), Revision(2), 1)
    page = (await client.ask("GET", "/v1/kv?limit=1")).json()
    assert (page["next"], page["next_encoding"]) == ("YS//", "base64")
    start = quote(base64.b64decode(page["next"]))
    page = (await client.ask("GET", f"/v1/kv?limit=1&start={start}")).json()
    assert (page["items"][0]["key"], page["next"]) == ("YS//", "b c")
    page = (await client.ask("GET", "/v1/kv?limit=2&encoding=base64")).json()
    assert [(item["key"], item["value"]) for item in page["items"]] == [("MA==", ""), ("YS//", "dGV4dA==")]
    assert page["next"] == base64.b64encode(b"b c").decode()
    assert not {"encoding", "next_encoding"} & {*page, *page["items"][0]}


async def test_keys_are_counted_without_listing_them():
    async with Node() as node:
        for key in ("a", "k/1", "k/2", "k/3%FF", "l"):
            revision = await node.put(key, "v")
        for query, count in (("", 5), ("&prefix=k/", 3), ("&prefix=k/&start=k/2", 2), ("&prefix=none", 0)):
            for consistency in ("linearizable", "stale"):
                answer = await node.ask("GET", f"/v1/kv?count_only=true{query}&consistency={consistency}")
                assert answer == (200, {"revision": revision, "count": count})
        assert (await node.ask("GET", "/v1/kv?count_only=false"))[1]["next"] is None
        for query in ("limit=5", "keys_only=true"):
            problem = await node.problem("GET", f"/v1/kv?count_only=true&{query}")
            assert problem.startswith("invalid-query: count_only counts every key")


async def test_every_key_with_a_prefix_is_deleted_in_one_revision():
    async with Node() as node:
        many = 3000
        for page in range(0, many, 100):
            puts = [{"put": {"key": f"k/{number}", "value": ""}} for number in range(page, page + 100)]
            await node.ask("POST", "/v1/txn", {"then": puts})
        revision = await node.put("l", "")
        async with node.session.get(f"{node.url}/v1/watch?prefix=k/") as watching:
            answer = await node.ask("DELETE", "/v1/kv?prefix=k/", None, {"Idempotency-Key": "once"})
            assert answer == (200, {"deleted": many, "revision": revision + 1})
            _, change = await Events(watching).next()
            assert (change["revision"], len(change["events"])) == (revision + 1, many)
        assert await node.ask("DELETE", "/v1/kv?prefix=k/", None, {"Idempotency-Key": "once"}) == answer
        assert (await node.ask("GET", "/v1/kv?count_only=true"))[1]["count"] == 1
        assert await node.ask("DELETE", "/v1/kv?prefix=k/") == (200, {"deleted": 0, "revision": revision + 1})
        assert (await node.ask("DELETE", "/v1/kv?prefix=bA==&encoding=base64"))[1]["deleted"] == 1


@pytest.mark.parametrize(
    ("query", "headers", "problem"),
    [
        ("", {}, "invalid-query: the prefix must not be empty"),
        ("?prefix=", {}, "invalid-query: the prefix must not be empty"),
        ("?prefix=a&limit=1", {}, "invalid-query: unknown query parameter 'limit'"),
        ("?prefix=" + "p" * 4097, {}, "invalid-query: prefix has 4097 bytes"),
        ("?prefix=a", {"If-Match": "*"}, "invalid-precondition: If-Match is about one key"),
        ("?prefix=a", {"If-None-Match": '"1"'}, "invalid-precondition: If-None-Match is about one key"),
        ("?prefix=a", {"X-Raftkv-Fence": "l:1"}, "fence-lost: "),
    ],
)
async def test_what_is_wrong_with_a_deletion_of_a_prefix_is_named(query, headers, problem):
    async with Node() as node:
        await node.put("a", "")
        assert (await node.problem("DELETE", f"/v1/kv{query}", None, headers)).startswith(problem)
        assert (await node.ask("GET", "/v1/kv/a"))[0] == 200
