"""How long one request holds a node: ``python -m benchmarks.stalls``.

Each case is one request, or one flood of small ones, that once held the event loop of every node for seconds. Each
goes to the leader of three nodes, and to an etcd. Meanwhile a small put and a small get are sent, in turns.

The table has, for each case, the longest time for which the loop of the leader and of the slower follower was held, as
the nodes measure it (by the wall clock; in brackets what of it was computing), the longest put and get at the leader,
and the longest put and get at etcd.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from benchmarks.cluster import BenchmarkCluster
from benchmarks.machine import describe_machine
from tests.etcd.peers import EtcdProcess, etcd_program

_OPERATIONS = 128
_NESTED = 64
"""Operations of each nested transaction: etcd, too, has 128 for the outer one and an inner one together."""

_LEASE = 77
_VALUE = base64.b64encode(b"v" * 16).decode()
_TIMEOUT_SECONDS = 120
_SETTLE_SECONDS = 1.0
_HELD = re.compile(rb'raftkv_event_loop_held_max_seconds\{clock="(wall|cpu)"\} (\S+)')


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _key(prefix: str, number: int) -> str:
    return _b64(f"{prefix}/{number:08}".encode())


def _all(prefix: str) -> dict[str, str]:
    return {"key": _b64(f"{prefix}/".encode()), "range_end": _b64(f"{prefix}0".encode())}


class Target:
    """A server that cases are sent to.

    Args:
        url: Its client URL.
    """

    def __init__(self, url: str) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self.address = (host, int(port))

    def connect(self) -> http.client.HTTPConnection:
        """Return a new connection."""
        return http.client.HTTPConnection(*self.address, timeout=_TIMEOUT_SECONDS)

    def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Send a request; return status and body."""
        connection = self.connect()
        try:
            connection.request("POST", path, body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def ask(self, path: str, document: Any) -> tuple[int, bytes]:
        """Send a JSON request; return status and body."""
        return self.post(path, json.dumps(document).encode())

    def exchange(self, request: bytes, is_done: Callable[[bytes], bool]) -> None:
        """Send bytes and read, at the same time, until enough has come or the server closes."""
        received = bytearray()
        with socket.create_connection(self.address, timeout=_TIMEOUT_SECONDS) as connection:
            sender = threading.Thread(target=_send, args=(connection, request))
            sender.start()
            with contextlib.suppress(OSError):
                while not is_done(received) and (piece := connection.recv(1_048_576)):
                    received += piece
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            sender.join()

    def fill(self, prefix: str, count: int, lease: int = 0) -> None:
        """Write keys, in transactions."""
        connection = self.connect()
        for first in range(0, count, _OPERATIONS):
            puts = [
                {"request_put": {"key": _key(prefix, number), "value": _VALUE, "lease": lease}}
                for number in range(first, min(count, first + _OPERATIONS))
            ]
            connection.request("POST", "/v3/kv/txn", json.dumps({"success": puts}).encode())
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 200:
                raise SystemExit(f"writing keys failed: {answer.status} {text[:200]!r}")
        connection.close()


def _send(connection: socket.socket, request: bytes) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(request)


class Probe:
    """A small put and a small get, one after the other, until the context ends.

    Args:
        target: Where they are sent.

    Attributes:
        put_seconds: The longest put.
        get_seconds: The longest get.
        failures: Requests that were not answered with 200.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.put_seconds = self.get_seconds = 0.0
        self.failures = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stopping.set()
        self._thread.join()

    def cell(self) -> str:
        """Return what was measured, in milliseconds."""
        failures = f" {self.failures} failed" if self.failures else ""
        return f"{1000 * self.put_seconds:.0f}/{1000 * self.get_seconds:.0f}{failures}"

    def _run(self) -> None:
        connection = self._target.connect()
        put = json.dumps({"key": _b64(b"probe"), "value": _VALUE}).encode()
        get = json.dumps({"key": _b64(b"probe")}).encode()
        while not self._stopping.wait(0.005):
            self.put_seconds = max(self.put_seconds, self._ask(connection, "/v3/kv/put", put))
            self.get_seconds = max(self.get_seconds, self._ask(connection, "/v3/kv/range", get))
        connection.close()

    def _ask(self, connection: http.client.HTTPConnection, path: str, body: bytes) -> float:
        began = time.monotonic()
        try:
            connection.request("POST", path, body)
            answer = connection.getresponse()
            answer.read()
            self.failures += answer.status != 200
        except (OSError, http.client.HTTPException):
            self.failures += 1
            connection.close()
        return time.monotonic() - began


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        name: Its name.
        size: Its full size: keys, operations, messages.
        run: Does it, and returns what came of it.
        prefix: Of the keys that are written before; cases with the same prefix share them.
        lease: The lease of those keys.
        pauses_follower: Whether a follower is stopped meanwhile, and goes on when it is done: of its time, only that in
            brackets says something.
    """

    name: str
    size: int
    run: Callable[[Target, int], str]
    prefix: str = ""
    lease: int = 0
    pauses_follower: bool = False


def _status(answer: tuple[int, bytes]) -> str:
    return f"{answer[0]}, {len(answer[1])} B"


def _delete_keys(target: Target, _size: int) -> str:
    return _status(target.ask("/v3/kv/deleterange", _all("delete")))


def _revoke(target: Target, _size: int) -> str:
    return _status(target.ask("/v3/lease/revoke", {"ID": _LEASE}))


def _compare(target: Target, _size: int) -> str:
    compares = [{**_all("shared"), "target": "VERSION", "result": "GREATER", "version": "0"}] * 6
    return _status(target.ask("/v3/kv/txn", {"compare": compares}))


def _sorted(target: Target, _size: int) -> str:
    return _status(
        target.ask("/v3/kv/range", {**_all("shared"), "limit": 1, "sort_target": "MOD", "sort_order": "DESCEND"})
    )


def _all_keys(target: Target, _size: int) -> str:
    return _status(target.ask("/v3/kv/range", _all("shared")))


def _count(target: Target, _size: int) -> str:
    return _status(target.ask("/v3/kv/range", {**_all("shared"), "count_only": True}))


def _ranges_in_transaction(target: Target, _size: int) -> str:
    put = {"request_put": {"key": _b64(b"beside ranges"), "value": _VALUE}}
    return _status(target.ask("/v3/kv/txn", {"success": [put, *[{"request_range": _all("shared")}] * 16]}))


def _puts(target: Target, size: int) -> str:
    """Send puts on 100 connections, each without waiting for answers."""
    body = json.dumps({"key": _b64(b"backlog"), "value": _VALUE}).encode()
    request = b"POST /v3/kv/put HTTP/1.1\r\nHost: n\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    number = size // 100
    clients = [
        threading.Thread(
            target=target.exchange, args=(request * number, lambda data: data.count(b"HTTP/1.1 ") >= number)
        )
        for _ in range(100)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    return f"{number} on each of 100 connections"


def _groups(size: int) -> list[dict[str, Any]]:
    half = size // 2
    deletes = [{"request_delete_range": {"key": _key("d", number)}} for number in range(half)]
    puts = [{"request_put": {"key": _key("p", number), "value": _VALUE}} for number in range(half)]
    return [
        {"request_txn": {"success": operations[first : first + _NESTED]}}
        for operations in (deletes, puts)
        for first in range(0, half, _NESTED)
    ]


def _nested(target: Target, size: int) -> str:
    return _status(target.ask("/v3/kv/txn", {"success": _groups(size)}))


def _names(target: Target, size: int) -> str:
    names = b"".join(b'"n%d":0,' % number for number in range(size))
    body = b"{" + names + b'"n%d":0}' % (size - 1)
    answers = [target.post(path, body) for path in ("/v1/txn", "/v3/kv/txn")]
    return " and ".join(map(_status, answers))


def _lists(target: Target, size: int) -> str:
    return _status(target.post("/v3/kv/txn", b'{"success":[' + b",".join([b"[]"] * size) + b"]}"))


def _messages(target: Target, size: int) -> str:
    last = json.dumps({"create_request": {"key": _b64(b"k")}}).encode()
    body = b"{}" * size + last
    request = b"POST /v3/watch HTTP/1.1\r\nHost: n\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    target.exchange(request, lambda data: b"created" in data)
    return "one watch"


def _pipelined(target: Target, size: int) -> str:
    request = b"GET /version HTTP/1.1\r\nHost: n\r\n\r\n"
    target.exchange(request * size, lambda data: data.count(b"HTTP/1.1 ") >= size)
    return "one connection"


def _fill(target: Target, size: int) -> str:
    target.fill("missed", size)
    return "a stopped follower goes on"


CASES: Sequence[Case] = (
    Case("delete a range", 100_000, _delete_keys, prefix="delete"),
    Case("revoke a lease", 200_000, _revoke, prefix="lease", lease=_LEASE),
    Case("six compares of a range", 100_000, _compare, prefix="shared"),
    Case("limit 1, sorted", 100_000, _sorted, prefix="shared"),
    Case("all keys", 100_000, _all_keys, prefix="shared"),
    Case("count", 100_000, _count, prefix="shared"),
    Case("ranges in a transaction", 100_000, _ranges_in_transaction, prefix="shared"),
    Case("puts at once", 100_000, _puts),
    Case("backlog of a follower", 100_000, _fill, pauses_follower=True),
    Case("nested operations", 4_000, _nested),
    Case("too many nested operations", 8_000, _nested),
    Case("names, one doubled", 20_000, _names),
    Case("lists in a body", 1_300_000, _lists),
    Case("messages of a watch", 300_000, _messages),
    Case("requests at once", 50_000, _pipelined),
)


class Nodes:
    """The cluster that is measured.

    Args:
        cluster: It.
    """

    def __init__(self, cluster: BenchmarkCluster) -> None:
        self._cluster = cluster
        self.leader = cluster.leader()

    @property
    def target(self) -> Target:
        """The leader."""
        return Target(self._cluster.urls[self.leader])

    def held(self) -> list[tuple[float, float]]:
        """Return the longest times since the last call, wall and CPU: those of the leader and the worst follower."""
        found = [_held(Target(url)) for url in self._cluster.urls]
        leader = found.pop(self.leader)
        return [leader, max(found)]

    @contextlib.contextmanager
    def paused_follower(self) -> Iterator[None]:
        """Stop one follower for as long as the context lasts; by the wall clock, its loop is held for so long."""
        pid = self._cluster.pid((self.leader + 1) % len(self._cluster.urls))
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def wait_until_level(self) -> None:
        """Wait until every node has applied what the leader has."""
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            members = self._cluster.describe(self.leader)["members"]
            if (
                len({None if member["status"] is None else member["status"]["applied_index"] for member in members})
                == 1
            ):
                return
            time.sleep(0.05)

    def term(self) -> int:
        """Return the term."""
        return int(self._cluster.describe(self.leader)["term"])


def _held(target: Target) -> tuple[float, float]:
    connection = target.connect()
    connection.request("GET", "/metrics")
    found = dict(_HELD.findall(connection.getresponse().read()))
    connection.close()
    return float(found[b"wall"]), float(found[b"cpu"])


def _measure(case: Case, target: Target, size: int) -> tuple[str, Probe, float]:
    with Probe(target) as probe:
        time.sleep(0.2)
        began = time.monotonic()
        try:
            outcome = case.run(target, size)
        except (OSError, http.client.HTTPException) as error:
            outcome = f"{type(error).__name__}: {error}"
        took = time.monotonic() - began
        time.sleep(_SETTLE_SECONDS)
    return outcome, probe, took


class Bench:
    """Runs cases at both.

    Args:
        cluster: The nodes of raftkv.
        etcd: The etcd, None to measure raftkv alone.
    """

    def __init__(self, cluster: BenchmarkCluster, etcd: Target | None) -> None:
        self._cluster = cluster
        self._etcd = etcd
        self._filled: set[tuple[Target, str]] = set()

    def row(self, case: Case, size: int) -> str:
        """Run a case; return its line of the table."""
        nodes = Nodes(self._cluster)
        target = nodes.target
        self._prepare(case, target, size)
        term = nodes.term()
        nodes.held()
        with nodes.paused_follower() if case.pauses_follower else contextlib.nullcontext():
            outcome, probe, took = _measure(case, target, size)
        if case.pauses_follower:
            nodes.wait_until_level()
        leader, follower = nodes.held()
        if nodes.term() != term:
            outcome += ", A NEW LEADER"
        cells = [f"{case.name} ({size})", _held_cell(leader), _held_cell(follower), probe.cell(), "-", ""]
        cells[5] = f"{outcome}; {took:.2f} s"
        if self._etcd is not None and not case.pauses_follower:
            self._prepare(case, self._etcd, size)
            outcome, probe, took = _measure(case, self._etcd, size)
            cells[4] = probe.cell()
            cells[5] += f"; {outcome}; {took:.2f} s"
        return _line(cells)

    def _prepare(self, case: Case, target: Target, size: int) -> None:
        if not case.prefix or (target, case.prefix) in self._filled:
            return
        if case.lease:
            target.ask("/v3/lease/grant", {"ID": case.lease, "TTL": 3600})
        target.fill(case.prefix, size, case.lease)
        self._filled.add((target, case.prefix))
        time.sleep(_SETTLE_SECONDS)


def _held_cell(held: tuple[float, float]) -> str:
    return f"{1000 * held[0]:.0f} ({1000 * held[1]:.0f})"


def _line(cells: Sequence[str]) -> str:
    return f"{cells[0]:32} {cells[1]:>13} {cells[2]:>13} {cells[3]:>13} {cells[4]:>13}  {cells[5]}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", help="parts of the names of the cases to run, with commas between them")
    parser.add_argument("--scale", type=float, default=1.0, help="factor of all sizes (default 1)")
    parser.add_argument("--directory", type=Path, help="where the data goes (default: a temporary directory)")
    parser.add_argument("--without-etcd", action="store_true", help="measure raftkv alone")
    options = parser.parse_args(arguments)
    wanted = [part.strip() for part in (options.cases or "").split(",")]
    cases = [case for case in CASES if any(part in case.name for part in wanted)]
    if not cases:
        parser.error(f"no such case; there are: {', '.join(case.name for case in CASES)}")
    print(describe_machine(options.directory))
    print(
        _line(
            ["ms", "leader held", "follower held", "put/get", "etcd put/get", "outcome; time; outcome and time of etcd"]
        )
    )
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(BenchmarkCluster(3, options.directory))
        etcd = None
        if not options.without_etcd and etcd_program() is not None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.directory)))
            etcd = Target(stack.enter_context(EtcdProcess(directory)).url)
        bench = Bench(cluster, etcd)
        for case in cases:
            print(bench.row(case, max(1, int(case.size * options.scale))), flush=True)


if __name__ == "__main__":
    main()
