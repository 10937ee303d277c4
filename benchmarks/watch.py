"""Many watchers of one node, and how long each event takes to each of them: ``python -m benchmarks.watch``.

Every watcher watches everything that is written. Lag is counted from the moment at which a write was due, so it holds
the time of the write itself. An event counts as told when this process, which is the client of all watchers and shares
the cores with the nodes, has read it.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import re
import resource
import time
from functools import partial
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import uvloop

from benchmarks.cluster import BenchmarkCluster
from benchmarks.machine import describe_machine
from benchmarks.paced import PREFIX, start_writer

_QUIET_SECONDS = 10.0
"""Events that take longer than this after the last write count as missing."""

_NATIVE = re.compile(rb'"mod_revision":(\d+),"version":\d+,"value":"([0-9.]+)"')
_ETCD = re.compile(rb'"mod_revision":"(\d+)","version":"\d+","value":"([^"]+)"')


class _Watcher(asyncio.Protocol):
    """One connection that reads events."""

    def __init__(self, request: bytes, *, is_etcd: bool) -> None:
        self._request = request
        self._is_etcd = is_etcd
        self._rest = b""
        self.lags: list[float] = []
        self.last = 0
        self.faults = 0
        self.began: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        if not self.began.done():
            self.began.set_result(None)
        data = self._rest + data
        end = data.rfind(b"\n") + 1
        self._rest = data[end:]
        for revision, value in (_ETCD if self._is_etcd else _NATIVE).findall(data, 0, end):
            due = float(base64.b64decode(value) if self._is_etcd else value)
            self.lags.append(now - due)
            number = int(revision)
            self.faults += self.last > 0 and number != self.last + 1
            self.last = number


def _request(url: str, *, is_etcd: bool) -> bytes:
    host = urlsplit(url).netloc
    if not is_etcd:
        return f"GET /v1/watch?prefix={PREFIX} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    key, end = (base64.b64encode(part.encode()).decode() for part in (PREFIX, PREFIX[:-1] + "0"))
    body = json.dumps({"create_request": {"key": key, "range_end": end}})
    return f"POST /v3/watch HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


async def _watch(url: str, count: int, writer_url: str, rate: float, seconds: float, *, is_etcd: bool) -> None:
    loop = asyncio.get_running_loop()
    request, parts = _request(url, is_etcd=is_etcd), urlsplit(url)
    watchers = []
    for _ in range(count):
        make = partial(_Watcher, request, is_etcd=is_etcd)
        _, watcher = await loop.create_connection(make, parts.hostname, parts.port)
        watchers.append(watcher)
    await asyncio.gather(*(watcher.began for watcher in watchers))
    began = time.monotonic()
    writer = start_writer(writer_url, rate, seconds)
    output, _ = await asyncio.to_thread(writer.communicate)
    written, took = int(output), time.monotonic() - began
    deadline = time.monotonic() + _QUIET_SECONDS
    while any(len(watcher.lags) < written for watcher in watchers) and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    lags = sorted(lag for watcher in watchers for lag in watcher.lags)
    missing = sum(written - len(watcher.lags) for watcher in watchers)
    faults = sum(watcher.faults for watcher in watchers)
    p50, p99 = (lags[len(lags) * percent // 100] * 1000 for percent in (50, 99))
    print(
        f"{'etcd' if is_etcd else 'native':>7}{count:>10,}{written:>8,}{written / took:>10.0f}{len(lags):>12,}"
        f"{missing:>9,}{faults:>8,}{p50:>9.1f}{p99:>9.1f}{lags[-1] * 1000:>9.1f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--watchers", type=int, nargs="+", default=[1, 100, 1000])
    parser.add_argument("--rate", type=float, default=200.0, help="writes a second (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=15.0, help="time of each row (default: %(default)s)")
    parser.add_argument("--directory", type=Path, help="where the data goes: the disk that is measured")
    arguments = parser.parse_args()
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    print(describe_machine(arguments.directory))
    print(
        f"setting:  3 nodes, all watchers at one follower, {arguments.rate:g} writes/s, {arguments.seconds:g} s a row"
    )
    print("\n    api  watchers  writes  writes/s   delivered  missing  faults   p50 ms   p99 ms   max ms")
    with BenchmarkCluster(3, arguments.directory) as cluster:
        leader = cluster.leader()
        follower, writer = cluster.urls[(leader + 1) % 3], cluster.urls[leader]
        for is_etcd in (False, True):
            for count in arguments.watchers:
                work = _watch(follower, count, writer, arguments.rate, arguments.seconds, is_etcd=is_etcd)
                uvloop.run(work)


if __name__ == "__main__":
    main()
