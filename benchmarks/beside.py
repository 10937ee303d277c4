"""How many writes a cluster takes beside something else, compared with the time before: pair by pair."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.load import Job, Measured, run_load


@dataclass(frozen=True, slots=True)
class Beside:
    """What came of it.

    Attributes:
        alone: The loads with nothing beside them.
        beside: The loads beside which it was done, again and again.
        seconds: How long it took each time.
    """

    alone: list[Measured]
    beside: list[Measured]
    seconds: list[float]

    @property
    def share(self) -> float:
        """Writes beside it as a share of those alone: the median of the pairs."""
        pairs = zip(self.beside, self.alone, strict=True)
        return statistics.median(beside.per_second / alone.per_second for beside, alone in pairs)

    def describe(self, what: str) -> str:
        """Return lines for people."""
        rates = [statistics.median(each.per_second for each in loads) for loads in (self.alone, self.beside)]
        p99s = [statistics.median(each.p99_ms for each in loads) for loads in (self.alone, self.beside)]
        pairs = ", ".join(
            f"{beside.per_second / alone.per_second:.0%}" for beside, alone in zip(self.beside, self.alone, strict=True)
        )
        return (
            f"writes:   {rates[0]:,.0f}/s alone, {rates[1]:,.0f}/s beside {what}\n"
            f"share:    {self.share:.0%}, median of {pairs}\n"
            f"p99:      {p99s[0]:.0f} ms alone, {p99s[1]:.0f} ms beside {what}"
        )


def measure_beside(job: Job, pairs: int, action: Callable[[], None]) -> Beside:
    """Run a load alone and beside an action, in turns.

    Args:
        job: The load.
        pairs: How often.
        action: What is done beside it, again and again; the time measured is all of it.
    """
    result = Beside([], [], [])
    for _ in range(pairs):
        result.alone.append(_run(job))
        ended = threading.Event()
        thread = threading.Thread(target=_repeat, args=(action, ended, result.seconds))
        thread.start()
        try:
            result.beside.append(_run(job))
        finally:
            ended.set()
            thread.join()
    return result


def _run(job: Job) -> Measured:
    measured = run_load(job)
    if measured.errors:
        raise SystemExit(f"{measured.errors} of {measured.requests} writes failed: nothing is measured")
    return measured


def _repeat(action: Callable[[], None], ended: threading.Event, seconds: list[float]) -> None:
    while not ended.is_set():
        began = time.monotonic()
        action()
        seconds.append(time.monotonic() - began)
