"""Disk and memory that data takes, at rest and at its peak: ``python -m benchmarks.sizing``.

One node is loaded with values, they are all written a second time, the node takes a snapshot, a backup is saved, the
node is killed and comes back, a second node joins and is sent everything, and the backup is restored. Meanwhile the
data directories are measured several times a second: blocks on the disk, not lengths. Memory is that of the node, with
mapped files apart, which the system takes back when it needs to. The data is what the quota counts: keys, values and
history. docs/sizing.md is made of the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.cluster import BenchmarkCluster, free_ports, is_ready, private_bytes, resident_bytes
from benchmarks.machine import describe_machine
from raftkv.client import Client
from raftkv.client.txn import put

_SAMPLE_SECONDS = 0.2
_LONGEST_SECONDS = 600
_BATCH_BYTES = 400_000
_BATCH_KEYS = 128


class Usage:
    """What a directory takes, by the names in it: now and at most since it was asked last.

    Args:
        directory: The directory.
        memory: Returns the private and the resident memory of its node, in bytes.
    """

    def __init__(self, directory: Path, memory: Callable[[], tuple[int, int]]) -> None:
        self._directory = directory
        self._memory = memory
        self.parts: dict[str, int] = {}
        self.peak = self.peak_private = self.peak_resident = 0
        self.peak_parts: dict[str, int] = {}

    def sample(self) -> None:
        """Measure once."""
        self.parts = _blocks(self._directory)
        total = sum(self.parts.values())
        if total > self.peak:
            self.peak, self.peak_parts = total, self.parts
        try:
            private, resident = self._memory()
        except (OSError, StopIteration, ValueError):
            return  # between two processes
        self.peak_private, self.peak_resident = max(self.peak_private, private), max(self.peak_resident, resident)

    def reset(self) -> None:
        """Forget the peaks."""
        self.peak = self.peak_private = self.peak_resident = 0


def _blocks(directory: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for path in directory.rglob("*"):
        try:
            taken = path.lstat().st_blocks * 512
        except FileNotFoundError:
            continue
        part = path.relative_to(directory).parts[0]
        found[part] = found.get(part, 0) + taken
    return {part: taken for part, taken in found.items() if taken >= 100_000}


@contextmanager
def _watched(usage: Usage) -> Iterator[None]:
    done = threading.Event()
    usage.reset()

    def watch() -> None:
        usage.sample()
        while not done.wait(_SAMPLE_SECONDS):
            usage.sample()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        usage.sample()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=500, help="of values (default: %(default)s)")
    parser.add_argument("--value-bytes", type=int, default=1000)
    parser.add_argument(
        "--keep-revisions", type=int, default=100, help="history: each writes 128 keys or 400 kB (default: %(default)s)"
    )
    parser.add_argument("--directory", type=Path, help="where the data goes")
    arguments = parser.parse_args()
    keys = arguments.megabytes * 1_000_000 // arguments.value_bytes
    print(describe_machine(arguments.directory))
    print(
        f"setting:  1 node, {keys:,} keys of {arguments.value_bytes} bytes: {arguments.megabytes} MB of values, "
        f"{arguments.keep_revisions:,} revisions of history"
    )
    os.environ["RAFTKV_QUOTA_BYTES"] = "0"
    os.environ["RAFTKV_COMPACT_KEEP_REVISIONS"] = str(arguments.keep_revisions)
    with (
        tempfile.TemporaryDirectory(prefix="raftkv-benchmark-", dir=arguments.directory) as place,
        BenchmarkCluster(1, arguments.directory, restart=True) as cluster,
    ):
        _measure(cluster, Path(place), keys, arguments.value_bytes)


def _measure(cluster: BenchmarkCluster, place: Path, keys: int, value_bytes: int) -> None:
    usage = Usage(cluster.directory / "n1", lambda: _memory_of(cluster.pid(0)))
    url = cluster.urls[0]

    def phase(name: str, work: Callable[[], object], measured: Usage = usage) -> None:
        began = time.monotonic()
        with _watched(measured):
            work()
        used = _used_bytes(url)
        print(_line(name, time.monotonic() - began, measured, used), flush=True)

    backup = place / "backup"
    phase("load", lambda: asyncio.run(_write(url, keys, value_bytes)))
    phase("rewrite", lambda: asyncio.run(_write(url, keys, value_bytes)))
    phase("snapshot", lambda: urllib.request.urlopen(_post(f"{url}/v1/snapshot"), timeout=_LONGEST_SECONDS).close())
    phase("backup", lambda: _raftkv("snapshot", "save", str(backup), f"--endpoints={url}", "--timeout=60"))
    print(f"          the backup has {backup.stat().st_size / 1e6:,.0f} MB")
    phase("restart", lambda: _restart(cluster))
    with _joining(place / "joined", url) as (process, peer_url):
        joined = Usage(place / "joined", lambda: _memory_of(process.pid))
        phase("join", lambda: _wait_ready(peer_url), joined)
    restored = Usage(place / "restored-volume", lambda: (0, 0))
    (place / "restored-volume").mkdir()
    phase("restore", lambda: _restore(backup, place / "restored-volume" / "data"), restored)


def _used_bytes(url: str) -> int:
    """Return what the quota counts."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=_LONGEST_SECONDS) as answer:
        found = re.search(r"^raftkv_store_used_bytes (\S+)$", answer.read().decode(), re.MULTILINE)
    assert found is not None
    return int(float(found[1]))


def _line(name: str, seconds: float, usage: Usage, used: int) -> str:
    def shares(parts: dict[str, int]) -> str:
        return ", ".join(f"{part} {taken / 1e6:,.0f}" for part, taken in sorted(parts.items()))

    return (
        f"{name + ':':<10}{seconds:.0f} s; data {used / 1e6:,.0f} MB; "
        f"disk {_total(usage.parts)} MB ({shares(usage.parts)}), "
        f"at most {_total(usage.peak_parts)} MB, {usage.peak / used:.1f} times the data ({shares(usage.peak_parts)}); "
        f"memory at most {usage.peak_private / 1e6:,.0f} MB, {usage.peak_resident / 1e6:,.0f} MB with mapped files"
    )


def _total(parts: dict[str, int]) -> str:
    return f"{sum(parts.values()) / 1e6:,.0f}"


async def _write(url: str, keys: int, value_bytes: int) -> None:
    """Write every key once, in transactions, four of them at a time."""
    size = max(1, min(_BATCH_KEYS, _BATCH_BYTES // value_bytes))
    batches = iter(range(0, keys, size))
    async with Client([url], timeout_seconds=60) as client, asyncio.TaskGroup() as tasks:

        async def work() -> None:
            for first in batches:
                numbers = range(first, min(first + size, keys))
                puts = [put(b"key/%010d" % number, os.urandom(value_bytes)) for number in numbers]
                await client.transaction().then(*puts).commit()

        for _ in range(4):
            tasks.create_task(work())


def _post(url: str) -> urllib.request.Request:
    return urllib.request.Request(url, method="POST")


def _restart(cluster: BenchmarkCluster) -> None:
    pid = cluster.pid(0)
    os.kill(pid, signal.SIGKILL)
    cluster.wait_until_all_ready(without_pid=pid)


@contextmanager
def _joining(data_dir: Path, url: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    port = free_ports(1)
    command = [sys.executable, "-m", "raftkv", "serve", "--name=n2", f"--data-dir={data_dir}", f"--join={url}"]
    command += [f"--listen-client=127.0.0.1:{port}", f"--listen-peer=127.0.0.1:{port + 1}"]
    data_dir.mkdir()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def _wait_ready(url: str) -> None:
    deadline = time.monotonic() + _LONGEST_SECONDS
    while not is_ready(url):
        if time.monotonic() > deadline:
            raise SystemExit("the second node did not get ready")
        time.sleep(_SAMPLE_SECONDS)


def _memory_of(pid: int) -> tuple[int, int]:
    return private_bytes(pid), resident_bytes(pid)


def _restore(backup: Path, data_dir: Path) -> None:
    _raftkv("snapshot", "restore", str(backup), f"--data-dir={data_dir}", "--initial-cluster=n1=127.0.0.1:1")


def _raftkv(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "raftkv", *arguments], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
