"""Backup, restart and restore of a store with many keys: ``python -m benchmarks.backup``.

Three nodes on loopback are loaded with keys. Then: how long a backup takes and how many writes a node accepts
meanwhile, compared with the same time before, and while the nodes take snapshots of themselves; how long a node takes
from kill -9 to serving linearizable reads again; and how long a restore takes. Memory is that of the leader at the end,
mapped files left out.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.cluster import BenchmarkCluster
from benchmarks.load import Job, Measured, run_load
from benchmarks.machine import describe_machine
from benchmarks.snapshots import measure_beside_snapshots


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--value-bytes", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=8.0, help="measured time of each load (default: %(default)s)")
    parser.add_argument(
        "--snapshot-seconds",
        type=float,
        default=40.0,
        help="time of the load in which the nodes' own snapshots are watched (default: %(default)s)",
    )
    parser.add_argument("--directory", type=Path, help="where the data goes: the disk that is measured")
    arguments = parser.parse_args()
    print(describe_machine(arguments.directory))
    print(f"setting:  3 nodes, {arguments.keys:,} keys of {arguments.value_bytes} bytes, writes by 64 connections")
    with (
        tempfile.TemporaryDirectory(prefix="raftkv-benchmark-", dir=arguments.directory) as place,
        BenchmarkCluster(3, arguments.directory, restart=True) as cluster,
    ):
        leader = cluster.leader()
        url, keys = cluster.urls[leader], arguments.keys
        run_load(Job(url, "PUT", 64, 0.0, arguments.value_bytes, keys=keys, requests=keys, in_order=True))
        job = Job(url, "PUT", 64, arguments.seconds, arguments.value_bytes, keys)
        before = run_load(job)
        backup = Path(place) / "backup"
        backups = _Repeated(["snapshot", "save", str(backup), "--force", f"--endpoints={url}", "--timeout=60"])
        during = backups.run_beside(job)
        seconds = sorted(backups.seconds)[len(backups.seconds) // 2]
        print(f"backup:   {backup.stat().st_size / 1e6:,.0f} MB in {seconds:.2f} s, median of {len(backups.seconds)}")
        share = during.per_second / before.per_second
        print(f"writes:   {before.per_second:,.0f}/s before, {during.per_second:,.0f}/s beside backups ({share:.0%})")
        print(f"p99:      {before.p99_ms:.0f} ms before, {during.p99_ms:.0f} ms beside backups")
        own = measure_beside_snapshots(cluster, leader, replace(job, seconds=arguments.snapshot_seconds))
        print(f"snapshot: {own.size / 1e6:,.0f} MB in {own.seconds:.2f} s, median of {own.snapshots} of all nodes")
        share = own.during / own.otherwise
        print(
            f"writes:   {own.during:,.0f}/s while some node takes one, {own.otherwise:,.0f}/s otherwise ({share:.0%})"
        )
        memory = cluster.private_bytes(leader)
        print(
            f"restart:  {_restart(cluster, leader):.2f} s from kill -9 to a linearizable read, a new process included"
        )
        began = time.monotonic()
        _raftkv("snapshot", "restore", str(backup), f"--data-dir={place}/restored", "--initial-cluster=n1=127.0.0.1:1")
        print(f"restore:  {time.monotonic() - began:.2f} s to make the data directory of one member")
        print(f"memory:   {memory / 1e6:,.0f} MB of the leader is no mapped file")


class _Repeated:
    """A command that is run again and again beside something else."""

    def __init__(self, arguments: list[str]) -> None:
        self._arguments = arguments
        self._end = threading.Event()
        self.seconds: list[float] = []

    def run_beside(self, job: Job) -> Measured:
        thread = threading.Thread(target=self._repeat)
        thread.start()
        try:
            return run_load(job)
        finally:
            self._end.set()
            thread.join()

    def _repeat(self) -> None:
        while not self._end.is_set():
            began = time.monotonic()
            _raftkv(*self._arguments)
            self.seconds.append(time.monotonic() - began)


def _restart(cluster: BenchmarkCluster, node: int) -> float:
    pid = cluster.pid(node)
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    cluster.wait_until_all_ready(without_pid=pid)
    return time.monotonic() - began


def _raftkv(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "raftkv", *arguments], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
