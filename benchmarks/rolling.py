"""Writes while every node is restarted in turn: ``python -m benchmarks.rolling``.

A three-node cluster at its default timing. Clients write without a pause; each node is told to end (SIGTERM), comes
back, and serves again before the next one's turn; the leader hands over. Printed are the writes that failed in the eyes
of a client that repeats what is safe to repeat, the longest time in which no write at all was acknowledged, and the
longest that one client waited for a write.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from benchmarks.cluster import BenchmarkCluster
from benchmarks.machine import describe_machine
from raftkv.client import Client
from raftkv.errors import RaftkvError


@dataclass
class Seen:
    """What the clients saw."""

    acknowledged: list[tuple[bytes, float]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    longest_wait: float = 0.0

    def longest_gap(self) -> float:
        """Longest time between two writes of whichever clients."""
        times = [moment for _key, moment in self.acknowledged]
        return max(later - earlier for earlier, later in pairwise(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="restarts of every node (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--directory", type=Path, help="where the data goes")
    arguments = parser.parse_args()
    print(describe_machine(arguments.directory))
    print(f"setting:  {arguments.nodes} nodes, {arguments.clients} clients, {arguments.rounds} rounds of restarts")
    with BenchmarkCluster(arguments.nodes, arguments.directory, restart=True) as cluster:
        rounds = [asyncio.run(_restart_all(cluster, arguments.clients, number)) for number in range(arguments.rounds)]
    gaps = [seen.longest_gap() * 1000 for seen in rounds]
    print(f"writes:   {sum(len(seen.acknowledged) for seen in rounds)} acknowledged, {_failed(rounds)} failed")
    print("gaps:     " + " ".join(f"{gap:.0f}" for gap in gaps) + " ms without any write, the longest of each round")
    print(f"median:   {statistics.median(gaps):.0f} ms")
    print(
        f"maximum:  {max(gaps):.0f} ms; longest wait of one client {max(s.longest_wait for s in rounds) * 1000:.0f} ms"
    )
    for seen in rounds:
        for failure in seen.failed[:3]:
            print(f"failed:   {failure}")


def _failed(rounds: list[Seen]) -> int:
    return sum(len(seen.failed) for seen in rounds)


async def _restart_all(cluster: BenchmarkCluster, clients: int, number: int) -> Seen:
    seen = Seen()
    stopped = asyncio.Event()
    async with Client(cluster.urls) as client:
        writers = [
            asyncio.create_task(_write(client, f"rolling/{number}/{writer}", seen, stopped))
            for writer in range(clients)
        ]
        for node in range(len(cluster.urls)):
            pid = cluster.pid(node)
            os.kill(pid, signal.SIGTERM)
            await asyncio.to_thread(cluster.wait_until_all_ready, pid)
        stopped.set()
        await asyncio.gather(*writers)
        kept = {item.key async for item in client.list(f"rolling/{number}/".encode(), keys_only=True)}
    lost = [key for key, _moment in seen.acknowledged if key not in kept]
    if lost:
        raise SystemExit(f"{len(lost)} acknowledged writes are gone, such as {lost[0]!r}")
    return seen


async def _write(client: Client, prefix: str, seen: Seen, stopped: asyncio.Event) -> None:
    count = 0
    while not stopped.is_set():
        count += 1
        key = f"{prefix}/{count}".encode()
        began = time.perf_counter()
        try:
            await client.put(key, b"x" * 256)
        except RaftkvError as error:
            seen.failed.append(f"{type(error).__name__}: {error}")
            continue
        now = time.perf_counter()
        seen.longest_wait = max(seen.longest_wait, now - began)
        seen.acknowledged.append((key, now))


if __name__ == "__main__":
    main()
