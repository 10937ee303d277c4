"""Content types that are stored with values, over the native API and etcd's, on one node over a real store."""

from __future__ import annotations

import base64
from collections.abc import Mapping

import pytest

from raftkv.errors import InvalidRequest
from raftkv.operations import MAX_TRANSACTION_BYTES, PutOperation, Transaction
from tests.http.http_raw import Raw
from tests.http.native import Events, Node

STORED = "X-Raftkv-Content-Type"


@pytest.fixture
async def node():
    async with Node() as running:
        yield running


async def put(node: Node, path: str, content_type: str | None = None, **headers: str) -> int:
    """Write a value; return the revision."""
    headers |= {} if content_type is None else {"Content-Type": content_type}
    status, document = await node.ask("PUT", path, b"{}", {name.replace("_", "-"): headers[name] for name in headers})
    assert status in (200, 201), document
    return document["revision"]


async def headers_of(node: Node, path: str, method: str = "GET", **headers: str) -> Mapping[str, str]:
    sent = {name.replace("_", "-"): headers[name] for name in headers}
    async with node.session.request(method, node.url + path, headers=sent) as answer:
        return answer.headers


async def types_of(node: Node, path: str, method: str = "GET") -> tuple[str, str | None]:
    """Return the content type of an answer, and the one that it says is stored."""
    headers = await headers_of(node, path, method)
    return headers["Content-Type"], headers.get(STORED)


async def test_value_comes_back_with_the_content_type_it_was_put_with(node):
    for key, content_type in (
        ("a", "text/plain; charset=utf-8"),
        ("a.json", "application/vnd.x+json"),
        ("page", 'TEXT/html;Charset="utf-8"'),
        ("bytes.json", "application/octet-stream"),
        ("empty", "x/" + "y" * 127),
    ):
        revision = await put(node, f"/v1/kv/{key}", content_type)
        for path in (key, f"{key}?consistency=stale", f"{key}?revision={revision}", f"{key}?index={revision - 1}"):
            for method in ("GET", "HEAD"):
                headers = await headers_of(node, f"/v1/kv/{path}", method)
                assert (headers["Content-Type"], headers[STORED]) == (content_type, content_type), path
                assert headers["X-Content-Type-Options"] == "nosniff"
                assert headers["Content-Security-Policy"] == "sandbox"


async def test_put_answers_with_the_content_type_that_it_stored(node):
    for content_type, stored in (("text/plain", "text/plain"), ("application/x-www-form-urlencoded", None)):
        headers = {"Content-Type": content_type}
        async with node.session.put(node.url + "/v1/kv/a", data=b"1", headers=headers) as answer:
            assert (answer.headers["Content-Type"], answer.headers.get(STORED)) == ("application/json", stored)


async def test_each_revision_has_its_own_content_type(node):
    revisions = [await put(node, "/v1/kv/a.txt", content_type) for content_type in ("a/1", None, "a/3")]
    seen = [await types_of(node, f"/v1/kv/a.txt?revision={revision}") for revision in revisions]
    assert seen == [("a/1", "a/1"), ("text/plain; charset=utf-8", None), ("a/3", "a/3")]


async def test_unchanged_value_and_problem_have_no_content_type_of_the_value(node):
    revision = await put(node, "/v1/kv/a", "text/html")
    unchanged = await headers_of(node, "/v1/kv/a", If_None_Match=f'"{revision}"')
    assert ("Content-Type" in unchanged, unchanged[STORED]) == (False, "text/html")
    failed = await headers_of(node, "/v1/kv/a", If_Match='"1"')
    assert failed["Content-Type"] == "application/problem+json"


async def test_put_without_content_type_takes_it_away(node):
    await put(node, "/v1/kv/a.json", "text/html")
    await put(node, "/v1/kv/a.json")
    assert await types_of(node, "/v1/kv/a.json") == ("application/json", None)
    await put(node, "/v1/kv/b", "text/html")
    await node.ask("DELETE", "/v1/kv/b")
    await put(node, "/v1/kv/b")
    assert await types_of(node, "/v1/kv/b") == ("application/octet-stream", None)


@pytest.mark.parametrize(
    "content_type", ["application/x-www-form-urlencoded", "Application/X-WWW-Form-Urlencoded; charset=UTF-8"]
)
async def test_what_clients_call_every_body_is_no_content_type(node, content_type):
    await put(node, "/v1/kv/a.json", content_type)
    assert await types_of(node, "/v1/kv/a.json") == ("application/json", None)
    # One who means it says so in the query.
    await put(node, f"/v1/kv/a.json?content_type={content_type.replace(' ', '%20')}", content_type)
    assert await types_of(node, "/v1/kv/a.json") == (content_type, content_type)


async def test_content_type_of_the_query_goes_before_that_of_the_header(node):
    await put(node, "/v1/kv/a?content_type=image/png", "text/plain")
    assert await types_of(node, "/v1/kv/a") == ("image/png", "image/png")
    assert await types_of(node, "/v1/kv/a?content_type=image/gif") == ("image/gif", "image/png")


@pytest.mark.parametrize(
    ("content_type", "fault"),
    [
        ("text", "Content-Type must be a media type such as application/json, perhaps with parameters, not 'text'"),
        ("a/b, c/d", "Content-Type must be a media type"),
        ("text/é", "Content-Type must be a media type"),
        ("text/\xff", "Content-Type must be a media type"),
        ("*/*", "Content-Type must be one media type, not the range of types '*/*'"),
        ("a/b; c=" + "d" * 249, "Content-Type has 256 characters; at most 255 are allowed"),
        ("", "Content-Type is empty"),
        ("a/b\r\nContent-Type: c/d", ""),
    ],
)
async def test_bad_content_type_is_refused_and_writes_nothing(node, content_type, fault):
    host, port = node.url.removeprefix("http://").split(":")
    async with Raw((host, int(port))) as raw:
        head = f"PUT /v1/kv/a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Type: {content_type}\r\n\r\n"
        await raw.send(head.encode("latin-1") + b"v")
        answer = await raw.read_answer()
    assert answer.status == 400
    assert answer.json()["detail"].startswith(fault)
    if fault:
        assert (answer.problem(), answer.json()["applied"]) == ("invalid-header", "no")
    assert node.log.machine.revision == 1


async def test_bad_content_type_of_the_query_is_refused(node):
    problem = await node.problem("PUT", "/v1/kv/a?content_type=text", b"v")
    assert problem.startswith("invalid-query: content_type must be a media type such as")
    assert node.log.machine.revision == 1


async def test_conditional_put_stores_the_content_type(node):
    revision = await put(node, "/v1/kv/a", "a/1", If_None_Match="*")
    assert await types_of(node, "/v1/kv/a") == ("a/1", "a/1")
    # Several revisions make it a transaction to the store.
    await put(node, "/v1/kv/a", "a/2", If_Match=f'"{revision}", "99"')
    assert await types_of(node, "/v1/kv/a") == ("a/2", "a/2")
    assert (await node.ask("PUT", "/v1/kv/a", b"", {"If-Match": '"1"', "Content-Type": "a/3"}))[0] == 412
    assert await types_of(node, "/v1/kv/a") == ("a/2", "a/2")


async def test_put_with_a_lease_stores_the_content_type(node):
    lease = (await node.ask("POST", "/v1/leases", {"ttl_seconds": 60}))[1]["id"]
    await put(node, f"/v1/kv/a?lease={lease}", "a/1")
    headers = await headers_of(node, "/v1/kv/a")
    assert (headers["X-Raftkv-Lease"], headers["Content-Type"]) == (str(lease), "a/1")


async def test_idempotency_key_stands_for_the_content_type_too(node):
    first = await put(node, "/v1/kv/a", "a/1", Idempotency_Key="k")
    await put(node, "/v1/kv/a", "a/2")
    assert await put(node, "/v1/kv/a", "a/1", Idempotency_Key="k") == first
    assert await types_of(node, "/v1/kv/a") == ("a/2", "a/2")
    for other in ("a/2", None):
        headers = {"Idempotency-Key": "k"} | ({} if other is None else {"Content-Type": other})
        assert (await node.ask("PUT", "/v1/kv/a", b"{}", headers))[0] == 422
    # What is not stored is not part of the request either.
    bare = await put(node, "/v1/kv/b", None, Idempotency_Key="l")
    assert await put(node, "/v1/kv/b", "application/x-www-form-urlencoded", Idempotency_Key="l") == bare


async def test_listing_shows_content_types_with_values(node):
    await put(node, "/v1/kv/a", "a/1")
    await put(node, "/v1/kv/b")
    for encoding in ("utf8", "base64"):
        _, page = await node.ask("GET", f"/v1/kv?encoding={encoding}")
        assert [item.get("content_type") for item in page["items"]] == ["a/1", None]
        assert "content_type" not in page["items"][1]
    _, page = await node.ask("GET", "/v1/kv?keys_only=true")
    assert [item for item in page["items"] if "content_type" in item] == []


async def test_transaction_takes_and_shows_content_types(node):
    form = "application/x-www-form-urlencoded"
    await put(node, "/v1/kv/a", "a/1")
    parts = [
        {"put": {"key": "a", "value": "1", "content_type": form, "previous": True}},
        {"put": {"key": "b", "value": "2"}},
        {"get": {"prefix": ""}},
        {"get": {"prefix": "", "keys_only": True}},
    ]
    status, document = await node.ask("POST", "/v1/txn", {"then": parts})
    assert status == 200, document
    first, _, both, bare = document["results"]
    assert first["put"]["previous"]["content_type"] == "a/1"
    assert [item.get("content_type") for item in both["get"]["items"]] == [form, None]
    assert [item for item in bare["get"]["items"] if "content_type" in item] == []
    assert await types_of(node, "/v1/kv/a") == (form, form)
    keep = {"then": [{"put": {"key": "a", "keep_value": True}}, {"put": {"key": "b", "value": "3"}}]}
    assert (await node.ask("POST", "/v1/txn", keep))[0] == 200
    assert await types_of(node, "/v1/kv/a") == (form, form)
    _, document = await node.ask("POST", "/v1/txn", {"then": [{"delete": {"prefix": "", "previous": True}}]})
    assert document["results"][0]["delete"]["previous"][0]["content_type"] == form


@pytest.mark.parametrize(
    ("part", "fault"),
    [
        ({"value": "", "content_type": 7}, "then[0].put.content_type must be a string"),
        ({"value": "", "content_type": "text"}, "then[0].put.content_type must be a media type"),
        ({"value": "", "content_type": ""}, "then[0].put.content_type is empty"),
        ({"keep_value": True, "content_type": "a/b"}, "then[0].put.content_type needs then[0].put.value"),
    ],
)
async def test_bad_content_type_of_a_transaction_is_refused(node, part, fault):
    problem = await node.problem("POST", "/v1/txn", {"then": [{"put": {"key": "a", **part}}]})
    assert problem.startswith(f"invalid-json: {fault}")


async def test_size_of_a_transaction_counts_content_types(node):
    content_type = "x/" + "y" * 127
    value = "v" * (MAX_TRANSACTION_BYTES - 1)
    assert (await node.ask("POST", "/v1/txn", {"then": [{"put": {"key": "a", "value": value}}]}))[0] == 200
    put = {"key": "a", "value": value, "content_type": content_type}
    assert (await node.ask("POST", "/v1/txn", {"then": [{"put": put}]}))[0] == 413
    put["value"] = value[len(content_type) :]
    assert (await node.ask("POST", "/v1/txn", {"then": [{"put": put}]}))[0] == 200


async def test_watch_shows_content_types(node):
    await put(node, "/v1/kv/a", "a/1")
    await put(node, "/v1/kv/a")
    await put(node, "/v1/kv/a", "a/3")
    await node.ask("DELETE", "/v1/kv/a")
    async with node.session.get(node.url + "/v1/watch?key=a&from_revision=2&previous=true") as answer:
        events = Events(answer)
        seen = [(await events.next())[1]["events"][0] for _ in range(4)]
    assert [event.get("content_type") for event in seen] == ["a/1", None, "a/3", None]
    assert [event.get("previous", {}).get("content_type") for event in seen] == [None, "a/1", None, "a/3"]


async def test_etcds_api_shows_no_content_type_and_takes_it_away(node):
    key = base64.b64encode(b"a.json").decode()
    revision = await put(node, "/v1/kv/a.json", "text/html")
    _, found = await node.ask("POST", "/v3/kv/range", {"key": key})
    assert found["kvs"] == [
        {
            "key": key,
            "create_revision": str(revision),
            "mod_revision": str(revision),
            "version": "1",
            "value": base64.b64encode(b"{}").decode(),
        }
    ]
    assert (await node.ask("POST", "/v3/kv/put", {"key": key, "ignore_value": True}))[0] == 200
    assert await types_of(node, "/v1/kv/a.json") == ("text/html", "text/html")
    assert (await node.ask("POST", "/v3/kv/put", {"key": key, "value": ""}))[0] == 200
    assert await types_of(node, "/v1/kv/a.json") == ("application/json", None)


async def test_etcds_hash_of_the_history_covers_content_types():
    hashes = set()
    for content_type in ("a/1", "a/2", ""):
        async with Node() as node:
            await node.log.kv.put(b"a", b"", content_type=content_type)
            hashes.add((await node.log.store.hash(0)).value)
    assert len(hashes) == 3


async def test_service_refuses_what_no_member_could_apply():
    async with Node() as node:
        keep = PutOperation(b"a", None, content_type="a/b")
        for write in (
            node.log.kv.put(b"a", b"", content_type="x" * 256),
            node.log.store.put(PutOperation(b"a", b"", content_type="text")),
            node.log.store.transact(Transaction((), (), (PutOperation(b"a", b"", content_type="a/\n"),))),
            node.log.store.put(keep),
        ):
            with pytest.raises(InvalidRequest, match="content type"):
                await write
        assert node.log.machine.revision == 1
