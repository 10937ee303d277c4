"""Throughput and latency of a three-node cluster on loopback: ``python -m benchmarks.quick``.

Every write is synced with fdatasync on a majority before it is acknowledged. Nodes and load generator share the
machine's cores, so the figures say more about changes of the code than about what a cluster of machines can do.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from benchmarks.cluster import BenchmarkCluster
from benchmarks.load import Job, Measured, run_load
from benchmarks.machine import describe_machine

CONNECTIONS = (1, 16, 64, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="measured time of each row (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rows are medians of this many (default: %(default)s)")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--value-bytes", type=int, default=256)
    parser.add_argument("--directory", type=Path, help="where the data goes: the disk that is measured")
    arguments = parser.parse_args()
    print(describe_machine(arguments.directory))
    print(
        f"setting:  {arguments.nodes} nodes, {arguments.value_bytes}-byte values, requests to the leader, "
        f"median of {arguments.rounds} rounds of {arguments.seconds:g} s"
    )
    with BenchmarkCluster(arguments.nodes, arguments.directory) as cluster:
        url = cluster.urls[cluster.leader()]
        for method in ("PUT", "GET"):
            print(f"\n{method:<5}{'connections':>12}{'requests/s':>12}{'p50 ms':>9}{'p99 ms':>9}{'errors':>8}")
            for connections in CONNECTIONS:
                job = Job(url, method, connections, arguments.seconds, arguments.value_bytes)
                _print_row(connections, [run_load(job) for _ in range(arguments.rounds)])


def _print_row(connections: int, rounds: list[Measured]) -> None:
    per_second = statistics.median(measured.per_second for measured in rounds)
    p50 = statistics.median(measured.p50_ms for measured in rounds)
    p99 = statistics.median(measured.p99_ms for measured in rounds)
    errors = sum(measured.errors for measured in rounds)
    print(f"{'':<5}{connections:>12}{per_second:>12,.0f}{p50:>9.2f}{p99:>9.2f}{errors:>8}", flush=True)


if __name__ == "__main__":
    main()
