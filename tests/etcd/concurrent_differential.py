"""Concurrent clients that send the same requests to etcd and to raftkv, and compare the answers field by field.

    python -m tests.etcd.concurrent_differential --requests 10000 --clients 32

Each client works in a range of keys of its own, where both servers must answer alike whatever the other clients do.
Revisions are compared by what they stand for: the first time that one of each server is seen at the same place of an
answer they become a pair, and from then on each must come with the other. Requests name revisions by such pairs.
Headers must not go back, and must rise with each write. A watch of each client on its range must get the same events
from both.

Some requests go to keys that all clients share. There answers cannot be compared, so the history of each server is
checked: linearizable, and with revisions that are those of the operations (``raftkv.verification``).
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from raftkv.verification.linearizability import Verdict, check_history
from raftkv.verification.revisions import check_revisions
from tests.etcd.concurrent import ConcurrentClients
from tests.etcd.peers import EtcdProcess
from tests.etcd.requests import Requests, attributes_in_order, b64, by_key
from tests.process.cluster import ProcessCluster

_SHARED_SHARE = 0.2
_QUEUES_SHARE = 0.08
_FUTURE = 10**12
_LAST_KEY = b"zzz"
_REVISIONS = frozenset({"mod_revision", "create_revision", "rev"})
_MOST_DIFFERENCES = 20
_SECONDS = 60.0

Answer = tuple[int, Any]


@dataclass(frozen=True)
class Named:
    """A revision in a request: that of an earlier write of the same client.

    Attributes:
        write: Which of its writes.
        is_text: Whether it is sent as a string.
    """

    write: int
    is_text: bool = False


class Difference(Exception):
    """Two answers that are not alike."""


class RangeRequests(Requests):
    """Requests in one range of keys, of which nothing depends on other clients.

    Args:
        seed: Fixes them.
        number: The client.
    """

    WEIGHTS = (30, 30, 10, 30, 0, 4, 3, 3, 0, 6)

    def __init__(self, seed: int, number: int) -> None:
        self.prefix = b"own/%03d/" % number
        super().__init__(f"{seed} {number}", self.prefix, [100_000 + 10 * number + lease for lease in range(1, 4)])
        self.writes = 0

    def draw(self) -> tuple[str, object]:
        if self._rng.random() >= _QUEUES_SHARE:
            path, document = super().draw()
            return path, _without_serializable(document)
        # One lease for each name, so nothing waits.
        lease = self._lease()
        kind = "lock" if self._rng.random() < 0.5 else "election"
        name = self.prefix + b"%b/%d" % (kind.encode(), lease)
        leader = {
            "name": b64(name),
            "key": b64(name + b"/%x" % lease),
            "lease": str(lease),
            "rev": self._some_revision(0),
        }
        return self._rng.choice(
            [
                (f"/v3/{kind}/{'lock' if kind == 'lock' else 'campaign'}", {"name": b64(name), "lease": lease}),
                ("/v3/lock/unlock", {"key": leader["key"]}),
                ("/v3/election/leader", {"name": b64(name)}),
                ("/v3/election/proclaim", {"leader": leader, "value": b64(b"proclaimed")}),
                ("/v3/election/resign", {"leader": leader}),
            ]
        )

    def last(self) -> tuple[str, object]:
        """Return the request after which there is none."""
        return "/v3/kv/put", {"key": b64(self.prefix + _LAST_KEY)}

    def span(self) -> dict[str, str]:
        """Return its range of keys."""
        return {"key": b64(self.prefix), "range_end": b64(self._end)}

    def _some_revision(self, lowest: int | None = None) -> Any:
        if self._rng.random() < 0.03:
            return _FUTURE
        write = self.writes - 1 - self._rng.choice([0, 0, 1, 5, 20])
        return Named(write) if write >= 0 else 0

    def _number(self, number: Any) -> object:
        is_text = self._rng.random() < 0.5
        if isinstance(number, Named):
            return Named(number.write, is_text)
        return str(number) if is_text else number


def _without_serializable(document: object) -> object:
    """Return a request whose answer a follower may not give from an older state."""
    if not isinstance(document, dict):
        return [_without_serializable(item) for item in document] if isinstance(document, list) else document
    return {name: _without_serializable(item) for name, item in document.items() if name != "serializable"}


@dataclass
class Client:
    """One client, its answers, and which revisions belong together.

    Attributes:
        urls: The servers, etcd first.
        session: What it sends requests with.
        requests: Draws them.
        errors: Requests that both servers answered with the same error.
        events: What its watches got, of etcd first.
    """

    urls: tuple[str, str]
    session: aiohttp.ClientSession
    requests: RangeRequests
    errors: int = 0
    events: tuple[list[Any], list[Any]] = field(default_factory=lambda: ([], []))
    _pairs: tuple[dict[int, int], dict[int, int]] = field(default_factory=lambda: ({}, {}))
    _headers: list[int] = field(default_factory=lambda: [0, 0])
    _writes: list[tuple[int, int]] = field(default_factory=list)

    async def ask(self, path: str, document: object) -> None:
        """Send a request to both servers.

        Raises:
            Difference: They do not answer alike.
        """
        answers = await asyncio.gather(*(self._ask(side, path, document) for side in (0, 1)))
        try:
            self._compare(path, document, answers)
        except Difference as difference:
            shown = [json.dumps(self._resolved(document, side), default=repr)[:700] for side in (0, 1)]
            raise Difference(
                f"{path}: {difference}\n  etcd   {shown[0]}\n      -> {answers[0]!s:.700}\n"
                f"  raftkv {shown[1]}\n      -> {answers[1]!s:.700}"
            ) from None

    async def watch(self, side: int, has_begun: asyncio.Event) -> None:
        """Take the events of its range from one server, up to the last request's."""
        body = json.dumps({"create_request": self.requests.span()})
        last = b64(self.requests.prefix + _LAST_KEY)
        async with self.session.post(self.urls[side] + "/v3/watch", data=body) as answer:
            async for line in answer.content:
                result = json.loads(line)["result"]
                if result.get("created"):
                    has_begun.set()
                self.events[side].extend(result.get("events", []))
                if self.events[side] and self.events[side][-1]["kv"]["key"] == last:
                    return

    def compare_events(self) -> None:
        """Compare what the watches got.

        Raises:
            Difference: It is not alike.
        """
        self._walk(*self.events, "events")
        in_order = [ours for _theirs, ours in sorted(self._pairs[0].items())]
        if in_order != sorted(in_order):
            raise Difference("the revisions of the two servers are not in the same order")

    async def _ask(self, side: int, path: str, document: object) -> Answer:
        body = document if isinstance(document, bytes) else json.dumps(self._resolved(document, side)).encode()
        # aiohttp warns of large bodies that are bytes.
        async with self.session.post(self.urls[side] + path, data=io.BytesIO(body)) as answer:
            text = await answer.read()
        try:
            return answer.status, json.loads(text)
        except ValueError:
            return answer.status, None

    def _resolved(self, document: object, side: int) -> Any:
        if isinstance(document, Named):
            number = self._writes[document.write][side]
            return str(number) if document.is_text else number
        if isinstance(document, dict):
            return {name: self._resolved(item, side) for name, item in document.items()}
        return [self._resolved(item, side) for item in document] if isinstance(document, list) else document

    def _compare(self, path: str, request: object, answers: Sequence[Answer]) -> None:
        (status, theirs), (other, ours) = answers
        if status != other:
            raise Difference(f"statuses {status} and {other}")
        if not isinstance(theirs, dict) or not isinstance(ours, dict):
            return
        if "error" in theirs:
            self._compare_errors(theirs, ours)
            self.errors += 1
            return
        self._compare_headers(path, theirs, ours)
        orders = [attributes_in_order(document, request) for document in (theirs, ours)]
        self._walk(*orders, "order", is_revision=_sorts_by_revision(request))
        if path.endswith("timetolive"):
            theirs, ours = _rounded(theirs), _rounded(ours)
        self._walk(by_key(theirs), by_key(ours), "")

    def _compare_errors(self, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
        if theirs["code"] != ours.get("code"):
            raise Difference("codes")
        # Sentences about the syntax of JSON are each parser's own.
        if theirs["message"] != ours["message"] and theirs["message"].startswith(("etcdserver", "election", "mutex")):
            raise Difference("messages")

    def _compare_headers(self, path: str, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
        revisions = [int(document.get("header", {}).get("revision", 0)) for document in (theirs, ours)]
        has_written = [path == "/v3/kv/put" or _has_written(document) for document in (theirs, ours)]
        for side in (0, 1):
            if not revisions[side]:
                continue
            if revisions[side] < self._headers[side] + has_written[side]:
                raise Difference(f"the revision after {self._headers[side]} of server {side} is {revisions[side]}")
            self._headers[side] = revisions[side]
        if all(has_written):
            self._bind(*revisions, "header")
            self._writes.append((revisions[0], revisions[1]))
            self.requests.writes = len(self._writes)

    def _walk(self, theirs: Any, ours: Any, where: str, outer: Any = None, *, is_revision: bool = False) -> None:
        """Compare two parts of answers."""
        if is_revision and isinstance(theirs, str) and isinstance(ours, str):
            self._bind(int(theirs), int(ours), where)
        elif isinstance(theirs, dict) and isinstance(ours, dict):
            if theirs.keys() != ours.keys():
                raise Difference(f"members of {where or 'the answer'}")
            outer = outer or (theirs.get("header"), ours.get("header"))
            for name, value in theirs.items():
                if name == "header":
                    self._compare_distance(value, ours[name], outer, where)
                else:
                    self._walk(value, ours[name], f"{where}.{name}", outer, is_revision=name in _REVISIONS)
        elif isinstance(theirs, list) and isinstance(ours, list):
            if len(theirs) != len(ours):
                raise Difference(f"{len(theirs)} and {len(ours)} items of {where}")
            for number, (one, other) in enumerate(zip(theirs, ours, strict=True)):
                self._walk(one, other, f"{where}[{number}]", outer, is_revision=is_revision)
        elif theirs != ours:
            raise Difference(f"{where}: {theirs!r} and {ours!r}")

    def _compare_distance(self, theirs: Any, ours: Any, outer: Any, where: str) -> None:
        """Compare how far the revisions of parts of a transaction are behind its own."""
        behind = [
            int(outside.get("revision", 0)) - int(inside["revision"]) if "revision" in inside else None
            for inside, outside in ((theirs, outer[0]), (ours, outer[1]))
        ]
        if behind[0] != behind[1]:
            raise Difference(f"header of {where}")

    def _bind(self, theirs: int, ours: int, where: str) -> None:
        """Let two revisions belong together, unless they belong to others."""
        if self._pairs[0].setdefault(theirs, ours) != ours or self._pairs[1].setdefault(ours, theirs) != theirs:
            raise Difference(f"revisions {theirs} and {ours} at {where} do not belong together")


def _sorts_by_revision(request: object) -> bool:
    target = request.get("sort_target", request.get("sortTarget")) if isinstance(request, dict) else None
    return target in (2, 3, "CREATE", "MOD")


def _rounded(document: dict[str, Any]) -> dict[str, Any]:
    """Return what is left of a lease, without the seconds that two processes take differently."""
    kept = document | {"TTL": int(document.get("TTL", "0")) > 0}
    return kept | {"keys": sorted(document["keys"])} if "keys" in document else kept


def _has_written(document: Any) -> bool:
    """Whether a delete or a transaction has changed something."""
    parts = document.get("responses", [])
    if document.get("deleted", "0") != "0":
        return True
    return any("response_put" in part or _has_written(next(iter(part.values()))) for part in parts)


@dataclass
class Outcome:
    """What a run found.

    Attributes:
        differences: One text for each.
        requests: Requests that were compared.
        errors: How many of them both servers answered with the same error.
        shared: Operations on shared keys, of each server.
    """

    differences: list[str]
    requests: int = 0
    errors: int = 0
    shared: int = 0


class Run:
    """One run.

    Args:
        etcd: URL of etcd.
        raftkv: URLs of raftkv; each client asks one of them.
        seed: Fixes what the clients ask, not how their requests interleave.
        clients: Their number.
        requests: About how many requests of all of them together are compared.
    """

    def __init__(self, etcd: str, raftkv: Sequence[str], seed: int, clients: int, requests: int) -> None:
        self._urls = [(etcd, raftkv[number % len(raftkv)]) for number in range(clients)]
        self._seed = seed
        # Those on shared keys come on top.
        self._requests_each = round(requests / clients / (1 - _SHARED_SHARE)) + 1
        self._shared = [ConcurrentClients([url], seed, 0) for url in (etcd, raftkv[0])]
        self._outcome = Outcome([])

    async def run(self) -> Outcome:
        """Return what was found."""
        connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None, sock_read=_SECONDS)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            for shared in self._shared:
                shared.use(session)
            await asyncio.gather(*(self._client(number, session) for number in range(len(self._urls))))
        for name, shared in zip(("etcd", "raftkv"), self._shared, strict=True):
            self._outcome.differences += [f"{name}: {finding}" for finding in check_revisions(shared.history)]
            report = check_history(shared.history)
            if report.verdict is not Verdict.LINEARIZABLE:
                self._outcome.differences.append(f"{name}: the shared keys are not linearizable: {report}")
        self._outcome.shared = len(self._shared[1].history)
        return self._outcome

    async def _client(self, number: int, session: aiohttp.ClientSession) -> None:
        rng = random.Random(f"{self._seed} shared {number}")
        client = Client(self._urls[number], session, RangeRequests(self._seed, number))
        begun = asyncio.Event(), asyncio.Event()
        watching = [asyncio.create_task(client.watch(side, begun[side])) for side in (0, 1)]
        await asyncio.gather(*(each.wait() for each in begun))
        for step in range(self._requests_each):
            if len(self._outcome.differences) >= _MOST_DIFFERENCES:
                break
            if rng.random() < _SHARED_SHARE:
                await self._share(number, step, rng)
            else:
                self._outcome.requests += 1
                await self._try(client.ask(*client.requests.draw()), number, step)
        await self._try(client.ask(*client.requests.last()), number, self._requests_each)
        await asyncio.gather(*watching)
        self._outcome.errors += client.errors
        try:
            client.compare_events()
        except Difference as difference:
            self._outcome.differences.append(f"client {number}: {difference}")

    async def _share(self, number: int, step: int, rng: random.Random) -> None:
        """Do the same on shared keys of both servers; what is found there differs."""
        state = rng.getrandbits(64)
        urls = self._urls[number]
        await asyncio.gather(
            *(
                shared.step(number, url, step, random.Random(state))
                for shared, url in zip(self._shared, urls, strict=True)
            )
        )

    async def _try(self, asking: Any, number: int, step: int) -> None:
        try:
            await asking
        except Difference as difference:
            self._outcome.differences.append(f"client {number}, request {step}: {difference}")


def compare(directory: Path, seed: int, clients: int, requests: int, nodes: int) -> Outcome:
    """Start fresh servers, and compare them.

    Args:
        directory: Where their files are.
        seed: Fixes what the clients ask.
        clients: Their number.
        requests: Requests of all of them together.
        nodes: Members of raftkv's cluster.
    """
    with EtcdProcess(directory) as etcd, ProcessCluster(directory, nodes) as raftkv:
        return asyncio.run(Run(etcd.url, [node.url for node in raftkv.nodes], seed, clients, requests).run())


def main() -> int:
    """Compare, print what was found, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.etcd.concurrent_differential", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000, help="requests of all clients together (10000)")
    parser.add_argument("--clients", type=int, default=32, help="concurrent clients (32)")
    parser.add_argument("--nodes", type=int, default=3, help="members of raftkv's cluster (3)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32), help="(random)")
    arguments = parser.parse_args()
    print(f"--seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        found = compare(Path(directory), arguments.seed, arguments.clients, arguments.requests, arguments.nodes)
    print("\n".join(found.differences))
    print(
        f"{found.requests} requests of {arguments.clients} clients, "
        f"{found.errors} of them answered with the same error, and "
        f"{found.shared} operations on shared keys: {len(found.differences)} differences"
    )
    return 1 if found.differences else 0


if __name__ == "__main__":
    sys.exit(main())
