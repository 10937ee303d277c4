"""``python -m tests.soak``: simulation, kills and chaos in turns, and the fuzzers at the same time.

It runs for as long as one likes; a file has the tally of all runs so far.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

_SLICE_MINUTES = 5.0
_KILLS = 200
_CHAOS_SECONDS = 120

_CLUSTERS = (
    {"3 nodes": ["--nodes", "3"], "5 nodes": ["--nodes", "5"]},
    {"3 wired nodes": ["--nodes", "3", "--wired"], "2 nodes": ["--nodes", "2"]},
    {"5 wired nodes": ["--nodes", "5", "--wired"], "1 node": ["--nodes", "1"]},
)
"""Kinds of simulated clusters, with their options."""


class Tally:
    """What was run so far, in this soak and in those before it.

    Args:
        path: The file that remembers.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.counts: Counter[str] = Counter(json.loads(path.read_text()) if path.exists() else {})

    def add(self, counts: dict[str, float]) -> None:
        """Count more, on the disk too."""
        self.counts.update(counts)
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(self.counts, indent=2) + "\n")
        partial.replace(self._path)

    def __str__(self) -> str:
        return ", ".join(f"{name} {count:g}" for name, count in sorted(self.counts.items()))


def main() -> int:
    """Run slices until the time is over; the exit status is 1 when any failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--tally", type=Path, default=Path("soak-tally.json"))
    arguments = parser.parse_args()
    tally = Tally(arguments.tally)
    print(f"so far: {tally}", flush=True)
    end = time.monotonic() + 60 * arguments.minutes
    failed = 0
    fuzzing = subprocess.Popen([sys.executable, "-m", "tests.fuzz", "--seconds", str(60 * arguments.minutes)])
    while (left := end - time.monotonic()) > 0:
        failed += _simulate(tally, min(_SLICE_MINUTES, max(0.1, left / 60)))
        failed += _run_tests(tally, "kills", _KILLS, "tests/process/test_kills.py", "TEST_KILLS")
        chaos = "tests/process/test_chaos.py::test_a_cluster_keeps_its_promises_under_every_fault"
        failed += _run_tests(tally, "seconds of chaos", _CHAOS_SECONDS, chaos, "TEST_CHAOS_SECONDS")
        crash_points = "tests/process/test_crash_points.py"
        failed += _run_tests(tally, "times every crash point", 1, crash_points, "TEST_CRASH_STRIDE")
        failed += _run_tests(tally, "times every test of the simulation", 1, "tests/simulation", "ALL_TESTS")
        print(f"so far: {tally}", flush=True)
    has_findings = fuzzing.wait() != 0
    tally.add({"seconds of fuzzing": 60 * arguments.minutes, "failures in seconds of fuzzing": int(has_findings)})
    print(f"so far: {tally}", flush=True)
    return 1 if failed or has_findings else 0


def _simulate(tally: Tally, minutes: float) -> int:
    """Run all kinds of clusters, two side by side; return how many failed."""
    first = random.SystemRandom().randrange(10**9)
    failed = 0
    with tempfile.TemporaryDirectory() as directory:
        for pair in _CLUSTERS:
            running = {}
            for kind, options in pair.items():
                summary = Path(directory) / f"{kind}.json"
                command = ["-m", "tests.simulation", "--seeds", f"{first}..{first + 10**6}", *options]
                command += ["--minutes", str(minutes / len(_CLUSTERS)), "--summary", str(summary)]
                running[kind, summary] = subprocess.Popen([sys.executable, *command])
            for (kind, summary), process in running.items():
                failed += process.wait() != 0
                if summary.exists():
                    figures = json.loads(summary.read_text())
                    tally.add({f"{name} at {kind}": count for name, count in figures.items()})
    tally.add({"failures of the simulation": failed})
    return failed


def _run_tests(tally: Tally, unit: str, count: int, tests: str, variable: str) -> int:
    command = [sys.executable, "-m", "pytest", "-q", "-s", tests]
    status = subprocess.run(command, env={**os.environ, variable: str(count)}, check=False).returncode
    tally.add({unit: count, f"failures in {unit}": int(status != 0)})
    return int(status != 0)


if __name__ == "__main__":
    sys.exit(main())
