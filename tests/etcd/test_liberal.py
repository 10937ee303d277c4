"""What etcd answers although it is not quite right: applications send it, and do not start when it is refused."""

from __future__ import annotations

import asyncio
import json

import pytest

from raftkv.http.etcd.paths import etcd_target
from tests.etcd.requests import b64
from tests.etcd.test_gateway import Server, frame


@pytest.fixture
async def server():
    async with Server() as running:
        yield running


PLAIN = ["/version", "/health", "/metrics", "/debug/vars"]


@pytest.mark.parametrize("path", PLAIN)
@pytest.mark.parametrize("query", ["", "?x=1", "?serializable=maybe&serializable=2&%zz=%", "?exclude"])
async def test_plain_requests_may_have_bodies_and_unknown_queries(server, path, query):
    for body in (None, b"{}"):
        async with server.session.get(server.url + path + query, data=body) as answer:
            assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, "*")
            assert path == "/metrics" or json.loads(await answer.read())


async def test_variables_leave_the_command_line_out(server):
    async with server.session.get(server.url + "/debug/vars") as answer:
        variables = await answer.json()
    assert variables["cmdline"] == []
    assert variables["raft.status"]["raftState"].startswith("State")


@pytest.mark.parametrize(
    ("target", "meant"),
    [
        ("/v3/kv/put", "/v3/kv/put"),
        ("//v3/kv/put?a=//b", "/v3/kv/put?a=//b"),
        ("/v3//kv///put", "/v3/kv/put"),
        ("/./v3/kv/../kv/put", "/v3/kv/put"),
        ("/../v3beta/kv/put/", "/v3beta/kv/put/"),
        ("/%76%33/kv%2Fput", "/v3/kv/put"),
        ("//version", "/version"),
        ("//debug/vars", "/debug/vars"),
        ("/v1/kv//v3/kv/put", "/v1/kv//v3/kv/put"),
        ("/v1/kv/a/../b", "/v1/kv/a/../b"),
        ("//v1/kv/a", "//v1/kv/a"),
        ("/livez/%2e", "/livez/%2e"),
        ("//nothing", "//nothing"),
        ("/", "/"),
    ],
)
def test_paths_of_etcd_may_be_written_in_several_ways(target, meant):
    assert etcd_target(target) == meant


async def test_request_at_a_path_with_two_slashes_is_served(server):
    for prefix in ("//v3", "/v3/", "//v3beta"):
        assert (await server.ask(f"{prefix}/kv/put", {"key": b64(b"a")}))[0] == 200
    async with server.session.ws_connect(server.url + "//v3/watch") as socket:
        await socket.send_str('{"create_request": {}}')
        assert (await socket.receive_json(timeout=5))["result"]["created"]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_other_methods_and_paths_are_refused_as_by_etcd(server, method):
    for path, status in (("/v3/kv/put", 405), ("/v3/watch", 405), ("/v3/nothing", 404), ("/v3/", 404)):
        async with server.session.request(method, server.url + path) as answer:
            assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (status, "*")


@pytest.mark.parametrize(
    "body",
    [
        b"null",
        b" null ",
        b"null {",
        b"",
        b"{}",
        b'{"x": "\xff"}',
        b'{"key": null}',
        b'{"key": "YQ==", "key": null}',
        b'{"key": "YQ==", "limit": " 1 ", "revision": "null"}',
        b'{"key": "YQ==\\r\\n"}',
        b'{"key": [97]}',
        b'{"key": "%", "x": {"key": 5}, "key": "YQ=="}',
    ],
)
async def test_messages_that_etcd_reads_are_read(server, body):
    await server.ask("/v3/kv/put", {"key": b64(b"a")})
    status, document = await server.ask("/v3/kv/range", body)
    if (b"YQ==" in body and b'"key": null' not in body) or b"97" in body:
        assert (status, document["count"]) == (200, "1")
    else:
        assert (status, document["message"]) == (400, "etcdserver: key is not provided")


@pytest.mark.parametrize(
    "body", [b"[]", b"5", b'{"key": [256]}', b'{"key": "YQ= ="}', b'{"x": NaN}', b'{"limit": "+1"}']
)
async def test_messages_that_etcd_does_not_read_are_refused(server, body):
    assert (await server.ask("/v3/kv/range", body))[1]["code"] == 3


async def test_empty_messages_in_a_transaction_are_messages(server):
    for name, message in (("success", "key not found"), ("compare", "key is not provided")):
        status, error = await server.ask("/v3/kv/txn", {name: [None]})
        assert (status, error["message"]) == (400, f"etcdserver: {message}")


async def test_camel_case_counts_when_a_field_is_there_in_both_spellings(server):
    await server.ask("/v3/kv/put", {"key": b64(b"a")})
    _, found = await server.ask("/v3/kv/range", b'{"key": "YQ==", "countOnly": true, "count_only": false}')
    assert "kvs" not in found
    _, found = await server.ask("/v3/kv/range", b'{"key": "YQ==", "countOnly": null, "count_only": true}')
    assert "kvs" in found


async def test_of_several_operations_in_one_the_last_by_number_counts(server):
    put, key = {"request_put": {"key": b64(b"a")}}, {"key": b64(b"a")}
    for other, answer in (
        ({"request_range": key}, "response_put"),
        ({"request_delete_range": key}, "response_delete_range"),
        ({"request_txn": {}}, "response_txn"),
        ({"request_txn": None}, "response_put"),
    ):
        _, document = await server.ask("/v3/kv/txn", {"success": [put | other]})
        assert list(document["responses"][0]) == [answer]


@pytest.mark.parametrize(
    ("compare", "succeeded"),
    [
        ({"target": "VERSION", "version": 1}, True),
        ({"target": "VERSION", "version": 1, "value": ""}, False),
        ({"target": "VERSION", "mod_revision": 1, "result": "GREATER"}, True),
        ({"target": "MOD", "mod_revision": 2, "version": 7}, True),
        ({"target": "VALUE", "version": 7}, True),
    ],
)
async def test_operand_of_a_comparison_is_the_last_of_its_target(server, compare, succeeded):
    await server.ask("/v3/kv/put", {"key": b64(b"a")})
    _, document = await server.ask("/v3/kv/txn", {"compare": [{"key": b64(b"a"), **compare}]})
    assert document.get("succeeded", False) is succeeded


async def test_keys_that_are_too_long_to_exist_can_be_asked_for(server):
    long, other = b64(b"k" * 5000), b64(b"k" * 4999)
    assert (await server.ask("/v3/kv/put", {"key": b64(b"k")}))[0] == 200
    assert (await server.ask("/v3/kv/put", {"key": b64(b"l")}))[0] == 200
    for path, request, name, number in (
        ("range", {"key": long}, "count", None),
        ("range", {"key": long, "range_end": b64(b"\0")}, "count", "1"),
        ("range", {"key": b64(b"k"), "range_end": long}, "count", "1"),
        ("range", {"key": other, "range_end": long}, "count", None),
        ("deleterange", {"key": long}, "deleted", None),
        ("txn", {"compare": [{"key": long, "target": "CREATE", "create_revision": 0}]}, "succeeded", True),
    ):
        status, document = await server.ask(f"/v3/kv/{path}", request)
        assert (status, document.get(name)) == (200, number)
    assert (await server.ask("/v3/kv/put", {"key": long}))[1]["message"] == "etcdserver: request is too large"


@pytest.mark.parametrize(
    "path", ["/v3/watch", "/v3/lease/keepalive", "/v3/election/observe", "/v3/maintenance/snapshot"]
)
async def test_pages_of_any_origin_may_read_streams(server, path):
    async with server.stream(path, {"create_request": {}}) as answer:
        assert answer.headers["Access-Control-Allow-Origin"] == "*"


async def test_no_leases_are_no_member_of_the_answer(server):
    assert (await server.ask("/v3/lease/leases", {}))[1].keys() == {"header"}
    await server.ask("/v3/lease/grant", {"ID": 7, "TTL": 60})
    assert (await server.ask("/v3/lease/leases", {}))[1]["leases"] == [{"ID": "7"}]


async def test_unary_errors_and_stopping_have_the_shape_of_etcd(server):
    server.front_end._stopping = True
    status, error = await server.ask("/v3/kv/put", {"key": b64(b"a")})
    assert (status, error["code"], error["message"]) == (503, 14, "etcdserver: server stopped")


async def test_empty_messages_of_streams_are_ignored_or_answered(server):
    async with server.stream("/v3/watch", b"null", {"create_request": None}, {"create_request": {}}) as answer:
        assert await frame(answer) == {"result": {"created": True}}
    async with server.stream("/v3/lease/keepalive", b"null") as answer:
        assert await frame(answer) == {"result": {}}
    async with server.stream("/v3/election/observe", b"null") as answer:
        await server.ask("/v3/election/campaign", {})
        assert (await frame(answer))["result"]["kv"]["version"] == "1"


async def test_of_several_requests_in_one_message_of_a_watch_the_last_counts(server):
    message = {"create_request": {}, "cancel_request": {}, "progress_request": {}}
    async with server.stream("/v3/watch", message) as answer:
        assert await frame(answer) == {"result": {"watch_id": "-1"}}


@pytest.mark.parametrize(("path", "code"), [("watch", 2), ("lease/keepalive", 2), ("election/observe", 3)])
async def test_wrong_messages_of_streams_have_codes_of_etcd(server, path, code):
    for body in (b"[]", b'{"name": "%", "ID": "x", "create_request": {"key": "%"}}'):
        async with server.stream(f"/v3/{path}", body) as answer:
            assert (await frame(answer))["error"]["grpc_code"] == code


async def test_watch_from_a_negative_revision_begins_with_the_first(server):
    await server.ask("/v3/kv/put", {"key": b64(b"a")})
    message = {"create_request": {"key": b64(b"a"), "start_revision": "-1", "filters": [7]}}
    async with server.stream("/v3/watch", message) as answer:
        assert (await frame(answer))["result"]["created"]
        assert (await frame(answer))["result"]["events"][0]["kv"]["mod_revision"] == "2"
    await server.ask("/v3/kv/put", {"key": b64(b"a")})
    await server.ask("/v3/kv/compaction", {"revision": 3})
    async with server.stream("/v3/watch", message) as answer:
        assert (await frame(answer))["result"]["created"]
        assert await frame(answer) == {"result": {"canceled": True, "compact_revision": "3"}}


async def test_body_of_a_stream_may_come_in_any_pieces(server):
    async def pieces():
        for piece in (b'{"ID": "1', b'2"}nu', b"ll{", b'"ID"', b":1", b"7}  ", b'{"ID":"\\u003', b'1"}'):
            yield piece
            await asyncio.sleep(0.01)

    async with server.session.post(server.url + "/v3/lease/keepalive", data=pieces()) as answer:
        told = [await frame(answer) for _ in range(4)]
    assert [one["result"].get("ID") for one in told] == ["12", None, "17", "1"]
