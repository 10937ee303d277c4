"""Finds a smaller schedule of faults that still breaks something."""

from __future__ import annotations

import time

from tests.simulation.faults import Strike
from tests.simulation.world import Outcome, run_plan


def shrink(failed: Outcome, seconds: float) -> Outcome:
    """Leave out faults of a failed run as long as something is violated (delta debugging, Zeller, 2002).

    Larger and larger numbers of smaller and smaller parts are left out. Everything else of the run stays as it was,
    as far as it does not depend on the faults.

    Args:
        failed: A run with a violation.
        seconds: Time after which the best so far is good enough.

    Returns:
        The failed run with the fewest faults that was found, possibly ``failed`` itself.
    """
    deadline = time.monotonic() + seconds
    best, kept, parts = failed, list(failed.strikes), 2
    while len(kept) >= 2 and time.monotonic() < deadline:
        size = -(-len(kept) // parts)
        for first in range(0, len(kept), size):
            fewer: list[Strike] = kept[:first] + kept[first + size :]
            outcome = run_plan(failed.plan, fewer)
            if outcome.violation is not None:
                # What came after the violation had nothing to do with it.
                best, kept, parts = outcome, list(outcome.strikes), max(2, parts - 1)
                break
            if time.monotonic() > deadline:
                break
        else:
            if size == 1:
                break
            parts = min(len(kept), 2 * parts)
    return best
