"""``PUT``, ``GET``, ``HEAD`` and ``DELETE`` of single keys, and their preconditions."""

from __future__ import annotations

import asyncio
import random

import pytest

from raftkv.service.api import Condition
from raftkv.types import MAX_KEY_BYTES, MAX_VALUE_BYTES, Consistency


async def test_a_value_comes_back_as_it_was_written(client, kv):
    value = random.Random(7).randbytes(5000) + b"\r\n\0"
    created = await client.ask("PUT", "/v1/kv/a", value)
    assert created.status == 201
    assert created.json() == {"revision": 2, "create_revision": 2, "mod_revision": 2, "version": 1}
    replaced = await client.ask("PUT", "/v1/kv/a", value + b"2")
    assert replaced.status == 200
    assert replaced.json() == {"revision": 3, "create_revision": 2, "mod_revision": 3, "version": 2}
    kv.revision = 9
    got = await client.ask("GET", "/v1/kv/a")
    assert (got.status, got.body) == (200, value + b"2")
    assert got.headers["content-type"] == "application/octet-stream"
    assert got.headers["x-content-type-options"] == "nosniff"
    assert got.headers["cache-control"] == "no-cache"
    for answer, revision in ((replaced, "3"), (got, "9")):
        assert answer.headers["etag"] == '"3"'
        assert answer.headers["x-raftkv-revision"] == revision
        assert answer.headers["x-raftkv-create-revision"] == "2"
        assert answer.headers["x-raftkv-version"] == "2"
        assert answer.headers["server"] == "raftkv"
    assert "x-raftkv-consistency" not in got.headers
    assert kv.reads == [Consistency.LINEARIZABLE]


@pytest.mark.parametrize(
    ("key", "media_type"),
    [
        ("app/config.json", "application/json"),
        ("app/CONFIG.YAML", "application/yaml"),
        ("notes.old.md", "text/markdown; charset=utf-8"),
        ("page.html", "text/html; charset=utf-8"),
        ("logo.svg", "image/svg+xml"),
        ("app.json/key", "application/octet-stream"),
        (".env", "application/octet-stream"),
        ("a/.json", "application/octet-stream"),
        ("json", "application/octet-stream"),
        ("a.", "application/octet-stream"),
        ("a.%FF", "application/octet-stream"),
    ],
)
async def test_value_without_content_type_has_that_of_its_keys_suffix(client, key, media_type):
    await client.ask("PUT", f"/v1/kv/{key}", b"{}")
    for method in ("GET", "HEAD"):
        answer = await client.ask(method, f"/v1/kv/{key}")
        assert answer.headers["content-type"] == media_type
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"] == "sandbox"
        assert "x-raftkv-content-type" not in answer.headers


async def test_a_reader_says_what_a_value_is(client):
    await client.ask("PUT", "/v1/kv/a.txt", b"{}")
    for given in (
        "application/json",
        "application/vnd.a.b%2Bjson",
        "text/plain;charset=utf-8",
        "text/csv;%20header=present",
    ):
        answer = await client.ask("GET", f"/v1/kv/a.txt?content_type={given}")
        assert answer.headers["content-type"] == given.replace("%2B", "+").replace("%20", " ")
    missing = await client.ask("GET", "/v1/kv/b?content_type=application/json")
    assert missing.headers["content-type"] == "application/problem+json"
    for wrong in ("", "json", "a/b/c", "a/b%0d%0aX-Evil:1", "text/%C3%A9", "a/b;c", "a/" + "b" * 128, "image/svg+xml"):
        answer = await client.ask("GET", f"/v1/kv/a.txt?content_type={wrong}")
        assert (answer.status, answer.problem()) == (400, "invalid-query"), wrong


async def test_head_is_get_without_the_body(client):
    await client.ask("PUT", "/v1/kv/a", b"12345")
    got = await client.ask("GET", "/v1/kv/a")
    head = await client.ask("HEAD", "/v1/kv/a")
    assert head.status == 200
    assert head.headers["content-length"] == "5"
    differ = {"date": "", "x-request-id": ""}
    assert head.headers | differ == got.headers | differ
    missing = await client.ask("HEAD", "/v1/kv/b")
    assert missing.status == 404
    assert int(missing.headers["content-length"]) > 0
    assert (await client.ask("GET", "/v1/kv/a")).status == 200  # the connection is still in step


async def test_a_missing_key_is_a_problem_with_the_revision(client):
    missing = await client.ask("GET", "/v1/kv/none")
    assert missing.status == 404
    assert missing.problem() == "key-not-found"
    assert missing.headers["x-raftkv-revision"] == "1"
    assert missing.json()["revision"] == 1


async def test_delete_tells_how_many_keys_it_removed(client, kv):
    await client.ask("PUT", "/v1/kv/a", b"x")
    deleted = await client.ask("DELETE", "/v1/kv/a")
    assert (deleted.status, deleted.json()) == (200, {"deleted": 1, "revision": 3})
    assert deleted.headers["x-raftkv-revision"] == "3"
    again = await client.ask("DELETE", "/v1/kv/a")
    assert (again.status, again.json()) == (200, {"deleted": 0, "revision": 3})
    assert kv.keys == {}


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("a/../b", b"a/../b"),
        ("..", b".."),
        ("./a", b"./a"),
        ("/x", b"/x"),
        ("x/", b"x/"),
        ("x//", b"x//"),
        ("a%2Fb", b"a/b"),
        ("a%2fb", b"a/b"),
        ("%00%ff", b"\x00\xff"),
        ("a+b", b"a+b"),
        ("a%20b", b"a b"),
        ("a%2Bb", b"a+b"),
        ("%25zz", b"%zz"),
        ("%3Fa%23", b"?a#"),
        ("a;b=c&d", b"a;b=c&d"),
        ("http://h/x", b"http://h/x"),
        ("%C3%A9", "é".encode()),
        ("%2e%2E/~!$'()*,:@", b"../~!$'()*,:@"),
    ],
)
async def test_the_path_is_the_key_to_the_byte(client, kv, path, key):
    raw = b"/v1/kv/" + (path.encode() if isinstance(path, str) else path)
    assert (await client.ask("PUT", raw, b"v")).status == 201
    assert list(kv.keys) == [key]
    assert (await client.ask("GET", raw)).body == b"v"
    escaped = "/v1/kv/" + "".join(f"%{byte:02X}" for byte in key)
    assert (await client.ask("GET", escaped)).body == b"v"


@pytest.mark.parametrize(("path", "named"), [("%zz", "%zz"), ("%4", "%4"), ("a%", "%"), ("%%41", "%%4")])
async def test_an_invalid_percent_encoding_is_named(client, kv, path, named):
    answer = await client.ask("PUT", f"/v1/kv/{path}", b"v")
    assert answer.status == 400
    assert answer.problem() == "invalid-encoding"
    assert f"'{named}'" in answer.json()["detail"]
    assert kv.keys == {}


@pytest.mark.parametrize("path", ["é".encode(), b"\xff\xfe", b"%4\xff"])
async def test_bytes_that_no_url_may_contain_are_refused(client, kv, path):
    answer = await client.ask("PUT", b"/v1/kv/" + path, b"v")
    assert (answer.status, answer.problem()) == (400, "malformed-request")
    assert kv.keys == {}


@pytest.mark.parametrize("method", ["PUT", "GET", "DELETE"])
async def test_a_key_has_one_to_4096_bytes(client, kv, method):
    body = b"v" if method == "PUT" else None
    empty = await client.ask(method, "/v1/kv/", body)
    assert (empty.status, empty.problem()) == (400, "invalid-key")
    long = await client.ask(method, "/v1/kv/" + "k" * (MAX_KEY_BYTES + 1), body)
    assert (long.status, long.problem()) == (400, "invalid-key")
    assert "4097" in long.json()["detail"]
    assert not kv.entered.is_set()
    longest = await client.ask(method, "/v1/kv/" + "%ff" * MAX_KEY_BYTES, body)
    assert longest.status in (200, 201, 404)
    assert kv.entered.is_set()


async def test_a_value_has_up_to_the_limit_and_no_more(client, kv):
    largest = bytes(MAX_VALUE_BYTES)
    assert (await client.ask("PUT", "/v1/kv/a", largest)).status == 201
    assert (await client.ask("GET", "/v1/kv/a")).body == largest
    assert (await client.ask("PUT", "/v1/kv/empty")).status == 201
    assert kv.keys[b"empty"].value == b""
    too_large = await client.ask("PUT", "/v1/kv/b", largest + b"x")
    assert (too_large.status, too_large.problem()) == (413, "value-too-large")
    assert str(MAX_VALUE_BYTES) in too_large.json()["detail"]
    assert b"b" not in kv.keys


async def test_create_only(client, kv):
    assert (await client.ask("PUT", "/v1/kv/a", b"1", If_None_Match="*")).status == 201
    failed = await client.ask("PUT", "/v1/kv/a", b"2", If_None_Match="*")
    assert (failed.status, failed.problem()) == (412, "precondition-failed")
    assert failed.headers["etag"] == '"2"'
    assert failed.headers["x-raftkv-revision"] == "2"
    assert failed.json()["mod_revision"] == 2
    assert failed.json()["revision"] == 2
    assert kv.keys[b"a"].value == b"1"


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_compare_and_swap(client, kv, method):
    body = b"new" if method == "PUT" else None
    for if_match in ("*", '"1"'):
        absent = await client.ask(method, "/v1/kv/a", body, If_Match=if_match)
        assert (absent.status, absent.problem()) == (412, "precondition-failed")
        assert "etag" not in absent.headers
        assert absent.json()["mod_revision"] == 0
    etag = (await client.ask("PUT", "/v1/kv/a", b"old")).headers["etag"]
    stale = await client.ask(method, "/v1/kv/a", body, If_Match='"1"')
    assert stale.status == 412
    assert stale.headers["etag"] == etag
    assert kv.keys[b"a"].value == b"old"
    assert (await client.ask(method, "/v1/kv/a", body, If_Match=etag)).status == 200
    await client.ask("PUT", "/v1/kv/a", b"old")
    assert (await client.ask(method, "/v1/kv/a", body, If_Match="*")).status == 200


async def test_the_largest_revision_is_an_etag(client, kv):
    seen = []

    async def put(key: bytes, value: bytes, condition: Condition | None = None, **_options: object) -> object:
        seen.append(condition)
        return kv._refusal(key, condition)

    kv.put = put
    assert (await client.ask("PUT", "/v1/kv/a", b"", If_Match=f'"{2**63 - 1}"')).status == 412
    assert seen == [Condition(2**63 - 1)]


async def test_a_reader_that_is_up_to_date_gets_304(client):
    await client.ask("PUT", "/v1/kv/a", b"12345")
    for tag in ('"2"', "*", 'W/"2"', '"1", "2"', 'W/"1",W/"2"'):
        for method in ("GET", "HEAD"):
            answer = await client.ask(method, "/v1/kv/a", If_None_Match=tag)
            assert answer.status == 304, tag
            assert answer.headers["etag"] == '"2"'
            assert answer.headers["x-raftkv-revision"] == "2"
    assert (await client.ask("GET", "/v1/kv/a", If_None_Match='"1"')).body == b"12345"
    assert (await client.ask("GET", "/v1/kv/a", If_None_Match='"1", x, "a,b"')).status == 200
    assert (await client.ask("GET", "/v1/kv/none", If_None_Match="*")).status == 404


async def test_consistency_is_chosen_by_the_reader(client, kv):
    await client.ask("PUT", "/v1/kv/a", b"1")
    stale = await client.ask("GET", "/v1/kv/a?consistency=stale")
    assert stale.headers["x-raftkv-consistency"] == "stale"
    missing = await client.ask("GET", "/v1/kv/b?consistency=stale")
    assert (missing.status, missing.headers["x-raftkv-consistency"]) == (404, "stale")
    exact = await client.ask("GET", "/v1/kv/a?consistency=linearizable")
    assert "x-raftkv-consistency" not in exact.headers
    assert kv.reads == [Consistency.STALE, Consistency.STALE, Consistency.LINEARIZABLE]
    other = await client.ask("GET", "/v1/kv/a?consistency=eventual")
    assert (other.status, other.problem()) == (400, "invalid-query")
    assert "'eventual'" in other.json()["detail"]


@pytest.mark.parametrize("method", ["PUT", "GET", "HEAD", "DELETE"])
async def test_query_parameters_must_be_known_and_single(client, kv, method):
    body = b"x" if method == "PUT" else None
    for query in ("ttl=3", "consistency=stale&consistency=stale", "consistenc%79=stale&x", "%zz=1", "a=%f"):
        answer = await client.ask(method, f"/v1/kv/a?{query}", body)
        assert answer.status == 400, query
    assert not kv.entered.is_set()


@pytest.mark.parametrize("target", ["/v1/kv/a", "/v1/kv", "/v1/cluster", "/livez", "/readyz", "/v1/version"])
async def test_a_body_where_none_belongs_is_refused(client, target):
    answer = await client.ask("GET", target, b"surprise")
    assert (answer.status, answer.problem()) == (400, "unexpected-body")
    assert (await client.ask("GET", "/version", b"")).status == 200


async def test_a_delete_with_a_body_is_refused(client, kv):
    answer = await client.ask("DELETE", "/v1/kv/a", b"surprise")
    assert (answer.status, answer.problem()) == (400, "unexpected-body")
    assert not kv.entered.is_set()


async def test_a_client_that_leaves_does_not_cut_its_write_short(client, kv):
    kv.gate.clear()
    await client.send(b"PUT /v1/kv/a HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx")
    await kv.entered.wait()
    client.writer.transport.abort()
    kv.gate.set()
    async with asyncio.timeout(5):
        await kv.finished.wait()
    assert kv.keys[b"a"].value == b"x"
