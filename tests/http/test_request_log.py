"""The logs of requests: what is in them, and what never is."""

from __future__ import annotations

import asyncio
import json
import logging
from types import SimpleNamespace
from typing import Self

import pytest

from raftkv.errors import NotLeader
from raftkv.http import FrontEnd, FrontEndSettings
from raftkv.http.request_ids import RequestIds
from raftkv.http.request_log import MOST_SLOW_A_SECOND, SlowRequestLog
from raftkv.runtime.logs import JsonFormatter
from raftkv.types import NodeId
from tests.http.http_fakes import FakeClusterService, FakeKeyValueService
from tests.http.http_raw import Raw
from tests.http.http_store import services_of

SECRET = b"the-value-itself"


class Served:
    """A front-end with its log."""

    def __init__(self, caplog, **settings: object) -> None:
        self.kv = FakeKeyValueService()
        self._front_end = FrontEnd(services_of(self.kv, FakeClusterService()), FrontEndSettings(**settings))
        self._caplog = caplog

    async def __aenter__(self) -> Self:
        self._address = await self._front_end.start("127.0.0.1", 0)
        self.client = Raw(self._address)
        await self.client.__aenter__()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.client.__aexit__()
        self.kv.gate.set()
        await self._front_end.stop(1)

    def records(self, name: str) -> list[logging.LogRecord]:
        return [record for record in self._caplog.records if record.name == f"raftkv.http.{name}"]


async def test_a_slow_request_is_logged_without_its_value(caplog):
    async with Served(caplog, slow_request_seconds=0.05) as served:
        await served.client.ask("PUT", "/v1/kv/fast", SECRET)
        served.kv.gate.clear()
        asking = asyncio.create_task(served.client.ask("PUT", "/v1/kv/slow%20key?lease=7", SECRET, X_Request_Id="mine"))
        asyncio.get_running_loop().call_later(0.08, served.kv.gate.set)
        answer = await asking
    (record,) = served.records("slow")
    fields = dict(record.request_fields)
    assert record.levelno == logging.WARNING
    assert fields.pop("seconds") >= 0.05
    assert fields == {
        "id": "mine",
        "remote": "127.0.0.1",
        "method": "PUT",
        "path": "/v1/kv/slow%20key",
        "operation": "put",
        "status": 201,
        "request_bytes": len(SECRET),
        "response_bytes": len(answer.body),
    }
    line = record.getMessage()
    assert line.startswith("slow request: PUT /v1/kv/slow%20key (put) took ")
    assert line.endswith("from 127.0.0.1, request mine")
    assert SECRET.decode() not in caplog.text


async def test_nothing_is_slow_without_a_threshold(caplog):
    async with Served(caplog) as served:
        served.kv.gate.clear()
        asyncio.get_running_loop().call_later(0.05, served.kv.gate.set)
        await served.client.ask("PUT", "/v1/kv/a", b"x")
    assert served.records("slow") == []


def test_many_slow_requests_do_not_fill_the_log(caplog):
    log = SlowRequestLog(0.1)
    request = Request()
    RequestIds("").identify(request)
    for _ in range(3 * MOST_SLOW_A_SECOND):
        log.note(request, SimpleNamespace(status=200), 5.0, 100.0)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == MOST_SLOW_A_SECOND + 1
    assert lines[-1].endswith("the others are not logged")
    log.note(request, SimpleNamespace(status=200), 5.0, 101.0)
    assert len(caplog.records) == MOST_SLOW_A_SECOND + 2


class Request(dict):
    """A request as far as the log looks at it."""

    method, raw_path, remote, headers = "GET", "/v1/kv/a", "10.0.0.7", {}
    content = SimpleNamespace(total_bytes=0)


async def test_the_access_log_has_every_request_whatever_the_level_of_others(caplog):
    # As --log-level error sets it.
    logging.getLogger().setLevel(logging.ERROR)
    async with Served(caplog, access_log=True) as served:
        stored = await served.client.ask("PUT", "/v1/kv/a", SECRET, X_Request_Id="one")
        await served.client.ask("GET", "/v1/kv/a?consistency=stale", X_Request_Id="two")
        served.kv.failure = NotLeader(NodeId("n2"), "http://n2")
        await served.client.ask("DELETE", "/v1/kv/a", X_Request_Id="three")
        await served.client.ask("POST", "/v3/kv/range", b'{"key": "YQ=="}', X_Request_Id="four")
        await served.client.ask("GET", b"/v1/kv/" + b"k" * 3000, X_Request_Id="five")
        await served.client.send(b"BROKEN\r\n\r\n")
        await served.client.read_answer()
    shown = [record.request_fields for record in served.records("access")]
    assert [(each["id"], each["operation"], each["status"]) for each in shown[:5]] == [
        ("one", "put", 201),
        ("two", "get", 200),
        ("three", "delete", 307),
        ("four", "range", 200),
        ("five", "get", 307),
    ]
    assert shown[0]["request_bytes"] == len(SECRET)
    assert len(stored.body) < shown[0]["response_bytes"] < 1000, "with its header"
    assert shown[1]["path"] == "/v1/kv/a", "without its query"
    assert len(shown[4]["path"]) < 600
    assert shown[5]["status"] == 400
    assert all(each["seconds"] >= 0 for each in shown)
    assert SECRET.decode() not in caplog.text


@pytest.mark.parametrize(
    ("method", "target", "operation"),
    [
        ("POST", b"//v3/kv/range", "range"),
        ("POST", b"/%76%33/./kv/range", "range"),
        ("POST", b"http://a.example/v3/kv/range", "range"),
        ("GET", b"http://a.example/v1/kv/a", "get"),
        ("OPTIONS", b"*", "other"),
        ("GET", b"/v1/kv/a#b", "get"),
    ],
)
async def test_operations_are_named_by_the_path_that_is_served(caplog, method, target, operation):
    async with Served(caplog, access_log=True, slow_request_seconds=1e-9) as served:
        await served.client.ask(method, target, b'{"key": "YQ=="}' if method == "POST" else b"")
        metrics = (await served.client.ask("GET", "/metrics")).body.decode()
    assert f'operation="{operation}"' in metrics
    for log in ("slow", "access"):
        assert served.records(log)[0].request_fields["operation"] == operation


async def test_a_request_cannot_forge_lines_of_the_log(caplog):
    async with Served(caplog, access_log=True) as served:
        await served.client.ask("GET", "/v1/kv/a%0Aforged")
        await served.client.ask("GET", b"/v1/kv/a\x1b[31m")
    assert len(served.records("access")) == 2
    for record in served.records("access"):
        assert record.getMessage().isascii()
        assert record.getMessage().isprintable()


def test_records_of_requests_are_json_with_their_fields():
    record = logging.LogRecord("raftkv.http.access", logging.INFO, "", 0, "a line", None, None)
    record.request_fields = {"id": "mine", "status": 200}
    assert json.loads(JsonFormatter().format(record))["request"] == {"id": "mine", "status": 200}
    assert "request" not in json.loads(JsonFormatter().format(logging.makeLogRecord({"msg": "other"})))


@pytest.fixture(autouse=True)
def levels():
    root, access = logging.getLogger(), logging.getLogger("raftkv.http.access")
    before = root.level, access.level
    yield
    root.setLevel(before[0])
    access.setLevel(before[1])
