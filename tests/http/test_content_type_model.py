"""Random writes of several clients with content types, against a model of the values and types of each revision."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp
from hypothesis import event, given, settings
from hypothesis import strategies as st

from tests.http.native import Node

KEYS = ("a", "a.json", "b/page.html")
GUESSED = {"a": "application/octet-stream", "a.json": "application/json", "b/page.html": "text/html; charset=utf-8"}
FORM = "application/x-www-form-urlencoded"

keys = st.sampled_from(KEYS)
values = st.sampled_from(["", "1", "\x03a/b", "text"])
content_types = st.sampled_from(["", "a/b", "text/plain; charset=utf-8", FORM, "x/" + "y" * 127])


@dataclass(frozen=True)
class Write:
    """One write of a client.

    Attributes:
        way: How it is sent.
        key: The key.
        value: The value, where there is one.
        content_type: The content type that is sent, empty for none.
    """

    way: str
    key: str
    value: str
    content_type: str


WAYS = ["header", "query", "absent", "listed", "once", "txn", "txn-keep", "etcd", "etcd-keep", "delete", "delete-all"]
writes = st.builds(Write, st.sampled_from(WAYS), keys, values, content_types)
State = dict[str, tuple[str, str]]
"""Values and content types by key."""


def after(state: State, write: Write) -> State:
    """Return what a write that was applied makes of a state."""
    state = dict(state)
    if write.way == "delete-all":
        return {}
    if write.way == "delete":
        del state[write.key]
    elif write.way in ("txn-keep", "etcd-keep"):
        assert write.key in state
    elif write.way == "etcd":
        state[write.key] = (write.value, "")
    else:
        in_header = write.way not in ("query", "txn")
        state[write.key] = (write.value, "" if in_header and write.content_type == FORM else write.content_type)
    return state


class Client:
    """One client, which sends one write after the other."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._session = session

    async def _send(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        sent = {name.replace("_", "-"): text for name, text in headers.items() if text}
        data = body.encode() if isinstance(body, str) else None
        document = None if isinstance(body, str) else body
        async with self._session.request(method, self._url + path, data=data, json=document, headers=sent) as answer:
            return answer.status, await answer.json(content_type=None)

    async def apply(self, write: Write, number: int) -> int | None:
        """Send a write; return its revision, None when it changed nothing."""
        path = f"/v1/kv/{write.key}"
        encoded = base64.b64encode(write.key.encode()).decode()
        kept = {"content_type": write.content_type} if write.content_type else {}
        match write.way:
            case "query":
                query = f"?content_type={quote(write.content_type, safe='')}" if write.content_type else ""
                answer = await self._send("PUT", path + query, write.value)
            case "header":
                answer = await self._send("PUT", path, write.value, Content_Type=write.content_type)
            case "absent":
                headers = {"If_None_Match": "*", "Content_Type": write.content_type}
                answer = await self._send("PUT", path, write.value, **headers)
            case "listed":
                headers = {"If_None_Match": '"99999", "99998"', "Content_Type": write.content_type}
                answer = await self._send("PUT", path, write.value, **headers)
            case "once":
                headers = {"Idempotency_Key": str(number), "Content_Type": write.content_type}
                first = await self._send("PUT", path, write.value, **headers)
                answer = await self._send("PUT", path, write.value, **headers)
                assert first == answer
            case "txn":
                put = {"key": write.key, "value": write.value, **kept}
                answer = await self._send("POST", "/v1/txn", {"then": [{"put": put}]})
            case "txn-keep":
                put = {"key": write.key, "keep_value": True}
                answer = await self._send("POST", "/v1/txn", {"then": [{"put": put}]})
            case "etcd":
                body = {"key": encoded, "value": base64.b64encode(write.value.encode()).decode()}
                answer = await self._send("POST", "/v3/kv/put", body)
            case "etcd-keep":
                answer = await self._send("POST", "/v3/kv/put", {"key": encoded, "ignore_value": True})
            case "delete":
                answer = await self._send("DELETE", path)
            case _:
                # An empty prefix deletes everything.
                body = {"then": [{"delete": {"prefix": ""}}]}
                answer = await self._send("POST", "/v1/txn", body)
        return self._revision(write, *answer)

    @staticmethod
    def _revision(write: Write, status: int, document: Any) -> int | None:
        if status in (409, 412) or (write.way == "etcd-keep" and status == 400):
            return None
        assert status in (200, 201), (write, status, document)
        deleted = document.get("deleted", 1)
        if write.way == "delete-all":
            deleted = document["results"][0]["delete"]["deleted"]
        return int(document.get("revision") or document["header"]["revision"]) if deleted else None


async def check(node: Node, session: aiohttp.ClientSession, history: list[tuple[int, State]]) -> None:
    """Compare everything that can be read with the model: each revision's values, types, events and listings."""
    for revision, state in history:
        for key in KEYS:
            async with session.get(f"{node.url}/v1/kv/{key}?revision={revision}") as answer:
                assert (answer.status == 200) == (key in state)
                if key in state:
                    value, content_type = state[key]
                    assert await answer.text() == value
                    assert answer.headers["Content-Type"] == (content_type or GUESSED[key])
                    assert answer.headers.get("X-Raftkv-Content-Type", "") == content_type
    async with session.get(f"{node.url}/v1/kv") as answer:
        items = (await answer.json())["items"]
    assert {item["key"]: (item["value"], item.get("content_type", "")) for item in items} == history[-1][1]


async def play(plans: list[list[Write]]) -> None:
    async with Node() as node:
        session = node.session
        applied: dict[int, Write] = {}

        async def work(number: int, plan: list[Write]) -> None:
            client = Client(node.url, session)
            for position, write in enumerate(plan):
                revision = await client.apply(write, 1000 * number + position)
                if revision is not None:
                    assert revision not in applied
                    applied[revision] = write

        await asyncio.gather(*(work(number, plan) for number, plan in enumerate(plans)))
        history: list[tuple[int, State]] = [(1, {})]
        for revision in sorted(applied):
            history.append((revision, after(history[-1][1], applied[revision])))
        assert [revision for revision, _state in history] == list(range(1, node.log.machine.revision + 1))
        event(f"content types: {len({found for _, state in history for _, found in state.values()})}")
        await check(node, session, history)
        compacted = history[len(history) // 2][0]
        if compacted > 1:
            await node.ask("POST", "/v1/compaction", {"revision": compacted})
            while node.log.machine.purge():
                pass
            await check(node, session, [each for each in history if each[0] >= compacted])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(writes, max_size=12), min_size=2, max_size=4))
def test_every_revision_has_the_content_types_of_the_model(plans):
    asyncio.run(play(plans))
