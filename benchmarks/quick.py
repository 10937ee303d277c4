"""Throughput and latency of a three-node cluster on loopback: ``python -m benchmarks.quick``.

Every write is synced with fdatasync on a majority before it is acknowledged. Nodes and load generator share the
machine's cores, so the figures say more about changes of the code than about what a cluster of machines can do.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from benchmarks.bare import BareServer
from benchmarks.cluster import BenchmarkCluster
from benchmarks.load import Job, Measured, run_load
from benchmarks.machine import describe_machine

CONNECTIONS = (1, 16, 64, 256)
KEYS = 10_000


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
    with BareServer() as bare:
        job = Job(bare.url, "PUT", max(CONNECTIONS), arguments.seconds, arguments.value_bytes)
        ceiling = statistics.median(run_load(job).per_second for _ in range(arguments.rounds))
    print(f"bare:     {ceiling:,.0f} requests/s of an aiohttp server that does nothing, {max(CONNECTIONS)} connections")
    with BenchmarkCluster(arguments.nodes, arguments.directory) as cluster:
        url = cluster.urls[cluster.leader()]
        # Every key exists before the first read.
        run_load(Job(url, "PUT", 64, 0.0, arguments.value_bytes, keys=KEYS, requests=KEYS, in_order=True))
        for method in ("PUT", "GET"):
            print(f"\n{method:<5} connections  requests/s  of bare   p50 ms   p99 ms  errors")
            for connections in CONNECTIONS:
                job = Job(url, method, connections, arguments.seconds, arguments.value_bytes, KEYS)
                _print_row(connections, ceiling, [run_load(job) for _ in range(arguments.rounds)])


def _print_row(connections: int, ceiling: float, rounds: list[Measured]) -> None:
    per_second = statistics.median(measured.per_second for measured in rounds)
    p50 = statistics.median(measured.p50_ms for measured in rounds)
    p99 = statistics.median(measured.p99_ms for measured in rounds)
    errors = sum(measured.errors for measured in rounds)
    share = per_second / ceiling
    print(f"{connections:>17}{per_second:>12,.0f}{share:>9.0%}{p50:>9.2f}{p99:>9.2f}{errors:>8}", flush=True)


if __name__ == "__main__":
    main()
