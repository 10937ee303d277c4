"""``python -m tests.soak``: the simulation and the kills of real nodes, for as long as one likes, with a tally."""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time

_SLICE_MINUTES = 5.0


def main() -> int:
    """Run slices until the time is over; the exit status is 1 when any failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    tally = {"simulation, 3 nodes": 0, "simulation, 5 nodes": 0, "kills": 0}
    failed = 0
    while time.monotonic() < end:
        minutes = str(min(_SLICE_MINUTES, max(0.1, (end - time.monotonic()) / 60)))
        first = random.SystemRandom().randrange(10**9)
        for nodes in ("3", "5"):
            command = ["-m", "tests.simulation", "--seeds", f"{first}..{first + 10**6}", "--nodes", nodes]
            failed += _run([*command, "--minutes", minutes], {})
            tally[f"simulation, {nodes} nodes"] += 1
        failed += _run(["-m", "pytest", "-q", "-s", "tests/process/test_kills.py"], {"RAFTKV_TEST_KILLS": "200"})
        tally["kills"] += 1
        print(f"slices so far: {tally}, failed: {failed}", flush=True)
    return 1 if failed else 0


def _run(arguments: list[str], environment: dict[str, str]) -> int:
    status = subprocess.run([sys.executable, *arguments], env={**os.environ, **environment}, check=False).returncode
    return 1 if status else 0


if __name__ == "__main__":
    sys.exit(main())
