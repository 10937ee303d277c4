"""Backup, restart and restore of a store with many keys: ``python -m benchmarks.backup``.

Three nodes on loopback are loaded with keys. Then, pair by pair, how many writes they accept alone, while all of them
take snapshots of themselves, and while a backup is saved; how long a node takes from kill -9, and from SIGTERM, to
serving linearizable reads again; and how long a restore takes. Memory is that of the leader, mapped files left out.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.beside import measure_beside
from benchmarks.cluster import BenchmarkCluster
from benchmarks.load import Job, run_load
from benchmarks.machine import describe_machine

_ON_DEMAND_ONLY = {"RAFTKV_SNAPSHOT_JOURNAL_BYTES": str(1 << 40)}
_LONGEST_SECONDS = 300


def main() -> None:
    arguments = _parse()
    print(describe_machine(arguments.directory))
    print(f"setting:  3 nodes, {arguments.keys:,} keys of {arguments.value_bytes} bytes, writes by 64 connections")
    os.environ.update(_ON_DEMAND_ONLY)
    with (
        tempfile.TemporaryDirectory(prefix="raftkv-benchmark-", dir=arguments.directory) as place,
        BenchmarkCluster(3, arguments.directory, restart=True) as cluster,
    ):
        _measure(arguments, cluster, Path(place))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--value-bytes", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=30.0, help="measured time of each load (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=3, help="loads alone and beside (default: %(default)s each)")
    parser.add_argument("--restarts", type=int, default=3, help="restarts of each kind (default: %(default)s)")
    parser.add_argument("--directory", type=Path, help="where the data goes: the disk that is measured")
    return parser.parse_args()


def _measure(arguments: argparse.Namespace, cluster: BenchmarkCluster, place: Path) -> None:
    leader = cluster.leader()
    url, keys = cluster.urls[leader], arguments.keys
    run_load(Job(url, "PUT", 64, 0.0, arguments.value_bytes, keys=keys, requests=keys, in_order=True))
    # What the load has left in memory is written by now, and not while something is measured.
    os.sync()
    job = Job(url, "PUT", 64, arguments.seconds, arguments.value_bytes, keys)
    own = measure_beside(job, arguments.pairs, lambda: _take_snapshots(cluster))
    print(
        f"snapshot: {statistics.median(own.seconds):.2f} s until all three nodes had one, median of {len(own.seconds)}"
    )
    print(own.describe("snapshots"), flush=True)
    backup = place / "backup"
    save = ["snapshot", "save", str(backup), "--force", f"--endpoints={url}", "--timeout=60"]
    saved = measure_beside(job, arguments.pairs, lambda: _raftkv(*save))
    size, seconds = backup.stat().st_size, statistics.median(saved.seconds)
    print(f"backup:   {size / 1e6:,.0f} MB in {seconds:.2f} s, median of {len(saved.seconds)}")
    print(saved.describe("backups"), flush=True)
    private, resident = cluster.private_bytes(leader), cluster.resident_bytes(leader)
    print(f"memory:   {private / 1e6:,.0f} MB of the leader is no mapped file, of {resident / 1e6:,.0f} MB in all")
    for signal_number, name in ((signal.SIGKILL, "kill -9"), (signal.SIGTERM, "SIGTERM")):
        times = [_restart(cluster, leader, signal_number) for _ in range(arguments.restarts)]
        print(f"restart:  {_median_of(times)} from {name} to a linearizable read of a new process")
    times = [_restore(backup, place / f"restored-{number}") for number in range(arguments.restarts)]
    print(f"restore:  {_median_of(times)} to make the data directory of one member")


def _take_snapshots(cluster: BenchmarkCluster) -> None:
    with ThreadPoolExecutor(len(cluster.urls)) as pool:
        list(pool.map(_take_snapshot, cluster.urls))


def _take_snapshot(url: str) -> None:
    request = urllib.request.Request(f"{url}/v1/snapshot", method="POST")
    urllib.request.urlopen(request, timeout=_LONGEST_SECONDS).close()


def _restart(cluster: BenchmarkCluster, node: int, signal_number: signal.Signals) -> float:
    pid = cluster.pid(node)
    began = time.monotonic()
    os.kill(pid, signal_number)
    cluster.wait_until_all_ready(without_pid=pid)
    return time.monotonic() - began


def _restore(backup: Path, data_dir: Path) -> float:
    began = time.monotonic()
    _raftkv("snapshot", "restore", str(backup), f"--data-dir={data_dir}", "--initial-cluster=n1=127.0.0.1:1")
    return time.monotonic() - began


def _median_of(times: list[float]) -> str:
    each = ", ".join(f"{seconds:.2f}" for seconds in times)
    return f"{statistics.median(times):.2f} s ({each})"


def _raftkv(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "raftkv", *arguments], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
