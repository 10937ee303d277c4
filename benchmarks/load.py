"""A load generator: keeps N connections busy with one request each, and measures every answer.

It speaks HTTP/1.1 by hand, since a full client would use more processor time than the server that it measures. It
runs in a process of its own: ``python -m benchmarks.load`` reads a job as JSON from standard input and prints the
result as JSON.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import cast
from urllib.parse import urlsplit

import uvloop

_EXTRA_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Job:
    """What to do.

    Attributes:
        url: The node to ask.
        method: PUT or GET.
        connections: Connections, each with one request under way.
        seconds: How long to measure, after a warm-up of a fifth of it.
        value_bytes: Size of each value.
        keys: Keys are drawn at random from this many.
        requests: Stop after this many requests instead; 0 for no such bound.
        in_order: Take the keys one after the other instead.
    """

    url: str
    method: str
    connections: int
    seconds: float
    value_bytes: int = 256
    keys: int = 10_000
    requests: int = 0
    in_order: bool = False


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of it: requests a second, and milliseconds of latency."""

    requests: int
    per_second: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    errors: int


def run_load(job: Job) -> Measured:
    """Run a job in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.load"],
        input=json.dumps(asdict(job)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=None if job.requests else job.seconds * 2 + _EXTRA_SECONDS,
    )
    return Measured(**json.loads(result.stdout))


class _Session:
    def __init__(self, job: Job) -> None:
        self.job = job
        parts = urlsplit(job.url)
        self.host, self.port = str(parts.hostname), int(parts.port or 80)
        self.random = random.Random(1)
        self.value = bytes(self.random.randrange(256) for _ in range(job.value_bytes))
        self.measure_from = 0.0
        self.stop_at = 0.0
        self.started = 0
        self.latencies: list[float] = []
        self.errors = 0
        self.last_answer = 0.0

    def next_request(self) -> bytes:
        self.started += 1
        key = self.started % self.job.keys if self.job.in_order else self.random.randrange(self.job.keys)
        head = f"{self.job.method} /v1/kv/benchmark/{key:08d} HTTP/1.1\r\nHost: {self.host}\r\n"
        if self.job.method == "PUT":
            return f"{head}Content-Length: {len(self.value)}\r\n\r\n".encode() + self.value
        return f"{head}\r\n".encode()

    def may_start(self, now: float) -> bool:
        return now < self.stop_at and (not self.job.requests or self.started < self.job.requests)

    def record(self, began: float, now: float, status: bytes) -> None:
        if began < self.measure_from:
            return
        self.last_answer = now
        if status not in (b"200", b"201"):
            self.errors += 1
        self.latencies.append(now - began)


class _Connection(asyncio.Protocol):
    def __init__(self, session: _Session) -> None:
        self.session = session
        self.buffer = b""
        self.began = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def ask(self) -> None:
        now = time.perf_counter()
        if not self.session.may_start(now):
            self.transport.close()
            return
        self.began = now
        self.transport.write(self.session.next_request())

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.buffer[:end].lower()
        at = head.find(b"content-length: ")
        length = int(head[at + 16 :].split(b"\r\n", 1)[0])
        if len(self.buffer) < end + 4 + length:
            return
        status = self.buffer[9:12]
        self.buffer = b""
        self.session.record(self.began, time.perf_counter(), status)
        self.ask()

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None:
            self.session.errors += 1
        self.done.set_result(None)


async def _run(job: Job) -> Measured:
    loop = asyncio.get_running_loop()
    session = _Session(job)
    connections = []
    for _ in range(job.connections):
        _, protocol = await loop.create_connection(lambda: _Connection(session), session.host, session.port)
        connections.append(protocol)
    now = time.perf_counter()
    session.measure_from = now if job.requests else now + job.seconds / 5
    session.stop_at = session.measure_from + (float("inf") if job.requests else job.seconds)
    for connection in connections:
        connection.ask()
    await asyncio.gather(*(connection.done for connection in connections))
    latencies = sorted(session.latencies)
    if not latencies:
        raise SystemExit("no request was answered")
    elapsed = session.last_answer - session.measure_from
    return Measured(
        len(latencies),
        len(latencies) / elapsed,
        latencies[len(latencies) // 2] * 1000,
        latencies[len(latencies) * 99 // 100] * 1000,
        latencies[-1] * 1000,
        session.errors,
    )


def main() -> None:
    job = Job(**json.load(sys.stdin))
    print(json.dumps(asdict(uvloop.run(_run(job)))))


if __name__ == "__main__":
    main()
