"""Memory of a node with 100,000 keys of 256 bytes after 1,000,000 writes: ``python -m benchmarks.memory``.

The data is mapped, so its pages count as resident memory although the system may take them back at any time; the
second figure leaves them out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.cluster import BenchmarkCluster
from benchmarks.load import Job, run_load
from benchmarks.machine import describe_machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--writes", type=int, default=1_000_000)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--value-bytes", type=int, default=256)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--directory", type=Path, help="where the data goes")
    arguments = parser.parse_args()
    print(describe_machine(arguments.directory))
    with BenchmarkCluster(arguments.nodes, arguments.directory) as cluster:
        leader = cluster.leader()
        job = Job(
            cluster.urls[leader], "PUT", 256, 0.0, arguments.value_bytes, arguments.keys, requests=arguments.writes
        )
        measured = run_load(job)
        print(
            f"load:     {measured.requests:,} writes of {arguments.value_bytes} bytes to {arguments.keys:,} keys, "
            f"{measured.per_second:,.0f}/s, {measured.errors} errors"
        )
        for node in range(arguments.nodes):
            role = "leader" if node == leader else "follower"
            print(
                f"n{node + 1} {role:<9} {cluster.resident_bytes(node) / 1e6:.0f} MB resident, "
                f"{cluster.private_bytes(node) / 1e6:.0f} MB of it not mapped from files"
            )


if __name__ == "__main__":
    main()
