"""Time from kill -9 of the leader to the next accepted write: ``python -m benchmarks.failover``.

A three-node cluster at its default timing, or another one with flags. Each run kills the leader and then tries to
write, without a pause, through the nodes that are left, until a write is acknowledged. The killed node is started
again before the next run.
"""

from __future__ import annotations

import argparse
import http.client
import os
import random
import signal
import statistics
import time
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.cluster import BenchmarkCluster
from benchmarks.machine import describe_machine

_ATTEMPT_SECONDS = 5.0
_GIVE_UP_SECONDS = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="leaders to kill (default: %(default)s)")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--heartbeat-ms", type=int, default=100)
    parser.add_argument("--election-timeout-ms", type=int, default=1000)
    parser.add_argument("--directory", type=Path, help="where the data goes")
    arguments = parser.parse_args()
    os.environ["RAFTKV_HEARTBEAT_MS"] = str(arguments.heartbeat_ms)
    os.environ["RAFTKV_ELECTION_TIMEOUT_MS"] = str(arguments.election_timeout_ms)
    print(describe_machine(arguments.directory))
    print(
        f"setting:  {arguments.nodes} nodes, heartbeat {arguments.heartbeat_ms} ms, "
        f"election timeout {arguments.election_timeout_ms} ms, {arguments.runs} kills"
    )
    with BenchmarkCluster(arguments.nodes, arguments.directory, restart=True) as cluster:
        times = [_measure_one(cluster, run) for run in range(arguments.runs)]
    ordered = sorted(times)
    print("each:     " + " ".join(f"{value * 1000:.0f}" for value in times) + " ms")
    print(f"median:   {statistics.median(times) * 1000:.0f} ms")
    print(f"p99:      {ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] * 1000:.0f} ms")
    print(f"maximum:  {ordered[-1] * 1000:.0f} ms")


def _measure_one(cluster: BenchmarkCluster, run: int) -> float:
    leader = cluster.leader()
    assert _try_to_write(cluster.urls[leader], run), "the leader does not accept writes"
    # A kill at a random moment of the heartbeat's period.
    time.sleep(random.random() * 0.2)
    pid = cluster.pid(leader)
    os.kill(pid, signal.SIGKILL)
    killed = time.perf_counter()
    others = [url for number, url in enumerate(cluster.urls) if number != leader]
    while not any(_try_to_write(url, run) for url in others):
        if time.perf_counter() - killed > _GIVE_UP_SECONDS:
            raise SystemExit("no write was accepted after the kill")
    accepted = time.perf_counter()
    cluster.wait_until_all_ready(without_pid=pid)
    return accepted - killed


def _try_to_write(url: str, run: int) -> bool:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=_ATTEMPT_SECONDS)
    try:
        connection.request("PUT", f"/v1/kv/failover/{run}", body=b"x" * 256)
        return connection.getresponse().status in (200, 201)
    except OSError:
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    main()
