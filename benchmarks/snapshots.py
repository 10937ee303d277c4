"""How many writes a cluster takes while its nodes take snapshots of themselves, compared with the rest of one load."""

from __future__ import annotations

import re
import threading
import time
import urllib.request
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from benchmarks.cluster import BenchmarkCluster
from benchmarks.load import Job, run_load

_SAMPLE_SECONDS = 0.05
_TAKEN = re.compile(r"^(\S+) .*took a snapshot at index \d+, (\d+) bytes, in ([0-9.]+) s")

_Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class BesideSnapshots:
    """What came of it.

    Attributes:
        snapshots: Snapshots that were taken, by any node.
        seconds: How long the median of them took.
        size: Bytes of the last.
        during: Writes a second while at least one was taken.
        otherwise: Writes a second in the rest of the time.
    """

    snapshots: int
    seconds: float
    size: int
    during: float
    otherwise: float


def measure_beside_snapshots(cluster: BenchmarkCluster, leader: int, job: Job) -> BesideSnapshots:
    """Load the leader, and tell the times in which some node takes a snapshot from the others."""
    logs = sorted(cluster.directory.glob("n*/log")) or sorted(cluster.directory.glob("n*/*.log"))
    marks = {log: log.stat().st_size for log in logs}
    samples: list[tuple[float, int]] = []
    ended = threading.Event()
    sampler = threading.Thread(target=_sample, args=(cluster.urls[leader], samples, ended))
    began = time.time()
    sampler.start()
    try:
        run_load(job)
    finally:
        ended.set()
        sampler.join()
    # The load's own warm-up is left out.
    measured = [sample for sample in samples if sample[0] >= began + job.seconds / 5]
    taken = [found for log, mark in marks.items() for found in _taken(log, mark) if found[1] >= measured[0][0]]
    if not taken:
        raise SystemExit("no snapshot was taken: measure for longer")
    intervals = [(begin, end) for begin, end, _size in taken]
    times = sorted(end - begin for begin, end in intervals)
    during, otherwise = _rates(measured, intervals)
    return BesideSnapshots(len(taken), times[len(times) // 2], taken[-1][2], during, otherwise)


def _sample(url: str, samples: list[tuple[float, int]], ended: threading.Event) -> None:
    while not ended.wait(_SAMPLE_SECONDS):
        with urllib.request.urlopen(f"{url}/v1/kv?prefix=none&limit=1&consistency=stale", timeout=10) as answer:
            samples.append((time.time(), int(answer.headers["X-Raftkv-Revision"])))


def _taken(log: Path, mark: int) -> list[tuple[float, float, int]]:
    with log.open("rb") as file:
        file.seek(mark)
        lines = file.read().decode(errors="replace").splitlines()
    found = [match for line in lines if (match := _TAKEN.match(line)) is not None]
    ends = [(datetime.fromisoformat(match[1]).timestamp(), float(match[3]), int(match[2])) for match in found]
    return [(end - seconds, end, size) for end, seconds, size in ends]


def _rates(samples: list[tuple[float, int]], intervals: list[_Interval]) -> tuple[float, float]:
    """Return revisions a second inside of the intervals, and outside."""
    seconds, writes = {True: 0.0, False: 0.0}, {True: 0, False: 0}
    for (time_before, before), (time_after, after) in pairwise(samples):
        middle = (time_before + time_after) / 2
        inside = any(begin <= middle <= end for begin, end in intervals)
        seconds[inside] += time_after - time_before
        writes[inside] += after - before
    return writes[True] / max(seconds[True], 1e-9), writes[False] / max(seconds[False], 1e-9)
