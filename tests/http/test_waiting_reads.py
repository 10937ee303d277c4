"""``GET /v1/kv/{key}`` as of a revision, and as soon as the key has changed."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

import pytest

from tests.http.native import SECONDS, Node, until


@pytest.fixture
async def node():
    async with Node() as running:
        yield running


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    revision: int
    changed: str | None


async def get(node, query, key="k", method="GET", **headers):
    async with node.session.request(method, f"{node.url}/v1/kv/{key}?{query}", headers=headers) as answer:
        revision = int(answer.headers["X-Raftkv-Revision"])
        return Answer(answer.status, await answer.read(), revision, answer.headers.get("X-Raftkv-Changed"))


async def waiting(node, number=1):
    """Return when so many reads wait."""
    await until(lambda: node.log.watches.number_waiting >= number)


async def test_a_key_is_read_as_it_was(node):
    first = await node.put("k", "1")
    second = await node.put("k", "2")
    _, deleted = await node.ask("DELETE", "/v1/kv/k")
    assert await get(node, f"revision={first}") == Answer(200, b"1", first, None)
    assert await get(node, f"revision={second}&consistency=stale") == Answer(200, b"2", second, None)
    assert (await get(node, f"revision={second}", **{"If-None-Match": f'"{second}"'})).status == 304
    gone = await get(node, f"revision={deleted['revision']}")
    assert (gone.status, gone.revision) == (404, deleted["revision"])
    assert (await get(node, "revision=1")).status == 404
    await node.ask("POST", "/v1/compaction", {"revision": second})
    assert (await node.problem("GET", f"/v1/kv/k?revision={first}")).startswith("revision-compacted: ")
    assert (await node.problem("GET", "/v1/kv/k?revision=99")).startswith("revision-in-future: ")


@pytest.mark.parametrize("consistency", ["linearizable", "stale"])
async def test_a_read_waits_for_the_next_change(node, consistency):
    first = await node.put("k", "1")
    await node.put("other", "x")
    reading = asyncio.create_task(get(node, f"index={first}&wait=10s&consistency={consistency}"))
    await waiting(node)
    await node.put("other", "y")
    second = await node.put("k", "2")
    assert await reading == Answer(200, b"2", second, "true")
    reading = asyncio.create_task(get(node, f"index={second}"))
    await waiting(node)
    _, deleted = await node.ask("DELETE", "/v1/kv/k")
    gone = await reading
    assert (gone.status, gone.revision, gone.changed) == (404, deleted["revision"], "true")
    reading = asyncio.create_task(get(node, f"index={gone.revision}", method="HEAD"))
    await waiting(node)
    third = await node.put("k", "3")
    assert await reading == Answer(200, b"", third, "true")


async def test_a_read_that_is_behind_does_not_wait(node):
    first = await node.put("k", "1")
    second = await node.put("k", "2")
    _, deleted = await node.ask("DELETE", "/v1/kv/other")
    assert await get(node, f"index={first}&wait=10m") == Answer(200, b"2", second, "true")
    assert await get(node, "index=0&wait=10m") == Answer(200, b"2", second, "true")
    assert (await get(node, "index=0&wait=10m", key="none")).changed == "true"
    _, deleted = await node.ask("DELETE", "/v1/kv/k")
    gone = await get(node, f"index={second}&wait=0")
    assert (gone.status, gone.revision, gone.changed) == (404, deleted["revision"], "true")
    # Written and deleted behind the revision: the key is missing as before, and has changed.
    await node.put("brief", "1")
    _, deleted = await node.ask("DELETE", "/v1/kv/brief")
    assert (await get(node, f"index={first}&wait=10m", key="brief")).changed == "true"
    # Of a compacted revision it is not known.
    await node.ask("POST", "/v1/compaction", {"revision": deleted["revision"]})
    assert (await get(node, f"index={first}&wait=10m", key="none")).changed == "true"


async def test_a_read_ends_with_its_time(node):
    first = await node.put("k", "1")
    last = await node.put("other", "x")
    for wait in ("0", "20ms", "0.02", "0.02s", "0m"):
        assert await get(node, f"index={first}&wait={wait}") == Answer(200, b"1", last, "false")
    assert (await get(node, f"index={last}&wait=0", **{"If-None-Match": f'"{first}"'})).status == 304
    none = await get(node, f"index={last}&wait=0", key="none")
    assert (none.status, none.changed) == (404, "false")
    ahead = await get(node, f"index={last + 5}&wait=10ms&consistency=stale")
    assert ahead == Answer(200, b"1", last, "false")
    problem = await node.problem("GET", f"/v1/kv/k?index={last + 1}")
    assert problem.startswith(f"revision-in-future: the store is at revision {last}")


async def test_a_compaction_meanwhile_ends_no_read_of_a_key_that_is_there(node):
    first = await node.put("k", "1")
    reading = asyncio.create_task(get(node, f"index={first}"))
    await waiting(node)
    for number in range(3):
        last = await node.put("other", str(number))
    await node.ask("POST", "/v1/compaction", {"revision": last})
    changed = await node.put("k", "2")
    assert await reading == Answer(200, b"2", changed, "true")


async def test_reads_that_wait_end_when_the_node_stops(node):
    first = await node.put("k", "1")
    reading = asyncio.create_task(node.ask("GET", f"/v1/kv/k?index={first}&wait=10m"))
    await waiting(node)
    assert node.front_end.connections >= 1
    await node.front_end.stop(SECONDS)
    status, problem = await reading
    assert (status, problem["type"]) == (503, "urn:raftkv:problem:shutting-down")


async def test_nothing_is_left_of_a_read_whose_client_is_gone(node):
    first = await node.put("k", "1")
    reading = [asyncio.create_task(get(node, f"index={first}&wait=10m")) for _ in range(5)]
    await waiting(node, 5)
    for each in reading:
        each.cancel()
    await asyncio.gather(*reading, return_exceptions=True)
    await until(lambda: not node.log.watches.number_waiting)


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("revision=0", "invalid-query: revision must be"),
        ("revision=x", "invalid-query: revision must be"),
        ("wait=5", "invalid-query: wait needs index"),
        ("index=1&revision=1", "invalid-query: index and revision exclude each other"),
        ("index=-1", "invalid-query: index must be"),
        *(
            (f"index=1&wait={wait}", "invalid-query: wait must be a time from 0 to 600 s")
            for wait in ("601", "11m", "-1", "5h", "", "1e3", "%D9%A3", "9" * 400, "600.001s")
        ),
    ],
)
async def test_what_is_wrong_with_a_read_is_named(node, query, problem):
    assert (await node.problem("GET", f"/v1/kv/k?{query}")).startswith(problem)


async def test_readers_that_wait_miss_nothing_while_writers_write(node):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    keys = [f"k{number}" for number in range(4)]
    clock = asyncio.get_running_loop().time
    acknowledged: list[tuple[float, str, int]] = []
    polls: list[tuple[str, float, int, Answer]] = []

    async def write(writes: int) -> None:
        for _ in range(writes):
            key = rng.choice(keys)
            if rng.random() < 0.3:
                _, answer = await node.ask("DELETE", f"/v1/kv/{key}")
                is_change = answer["deleted"] == 1
            else:
                _, answer = await node.ask("PUT", f"/v1/kv/{key}", b"v")
                is_change = True
            if is_change:
                acknowledged.append((clock(), key, answer["revision"]))
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)

    async def poll(key: str) -> None:
        known = 1
        while True:
            began = clock()
            answer = await get(node, f"index={known}&wait={rng.choice(['0', '1ms', '5ms', '10s'])}", key=key)
            polls.append((key, began, known, answer))
            assert answer.revision >= known
            known = answer.revision
            if answer.body == b"end":
                return

    polling = [asyncio.create_task(poll(key)) for key in keys * 4]
    await asyncio.gather(*(write(60) for _ in range(4)))
    for key in keys:
        await node.put(key, "end")
    async with asyncio.timeout(4 * SECONDS):
        await asyncio.gather(*polling)
    for key, began, known, answer in polls:
        before = [revision for at, of, revision in acknowledged if of == key and at < began]
        assert answer.revision >= max(before, default=0), "what was acknowledged before a read began is seen"
        unseen = [revision for _at, of, revision in acknowledged if of == key and known < revision <= answer.revision]
        assert answer.changed == "true" or not unseen
