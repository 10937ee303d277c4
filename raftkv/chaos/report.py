"""What a run comes to: counts, times, and whether all is well."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from raftkv.chaos.injector import FaultSpan
from raftkv.chaos.workload import PROBE
from raftkv.verification.history import Kind, Operation, Outcome, readable
from raftkv.verification.linearizability import Report, Verdict

_SHOWN_OPERATIONS = 20
_SHOWN_SURPRISES = 3
_SHOWN_REVISIONS = 3


@dataclass(frozen=True, slots=True)
class Gap:
    """A time without a successful write, in seconds from the beginning."""

    started: float
    ended: float

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.ended - self.started


@dataclass(frozen=True, slots=True)
class Summary:
    """A whole run.

    Attributes:
        seed: What its choices came from.
        seconds: How long clients ran.
        history: What clients did and saw.
        spans: What was broken.
        report: The checker's verdict.
        failures: What else was wrong, a sentence each.
    """

    seed: int
    seconds: float
    history: Sequence[Operation]
    spans: Sequence[FaultSpan]
    report: Report
    failures: Sequence[str] = field(default_factory=tuple)

    @property
    def is_proven(self) -> bool:
        """Whether the history is linearizable and nothing else was wrong."""
        return self.report.verdict is Verdict.LINEARIZABLE and not self.failures

    @property
    def is_refuted(self) -> bool:
        """Whether something was certainly wrong."""
        return self.report.verdict is Verdict.VIOLATION or bool(self.failures)

    def outcomes(self) -> dict[Outcome, int]:
        """Return the number of operations with each outcome."""
        counts = Counter(operation.outcome for operation in self.history)
        return {outcome: counts[outcome] for outcome in Outcome}

    def faults(self) -> dict[str, int]:
        """Return how often each kind of fault happened."""
        return dict(sorted(Counter(span.fault.value for span in self.spans).items()))

    def longest_unavailability(self) -> Gap:
        """Return the longest time in which no write of the probe succeeded, although it began one all the time."""
        ends = sorted(
            operation.ended
            for operation in self.history
            if operation.client == PROBE
            and operation.kind is Kind.PUT
            and operation.outcome is Outcome.DONE
            and operation.ended <= self.seconds
        )
        moments = [0.0, *ends, self.seconds]
        gaps = (Gap(before, after) for before, after in itertools.pairwise(moments))
        return max(gaps, key=lambda gap: gap.seconds)

    def latencies(self) -> list[float]:
        """Return the seconds that each successful operation took, shortest first."""
        return sorted(latency for _at, latency in latencies_over_time(self.history))


def latencies_over_time(history: Sequence[Operation]) -> list[tuple[float, float]]:
    """Return start and duration, in seconds, of every operation that was carried out."""
    return [
        (operation.started, operation.ended - operation.started)
        for operation in history
        if operation.outcome in (Outcome.DONE, Outcome.CONDITION_FAILED)
    ]


def percentile(ascending: Sequence[float], percent: float) -> float:
    """Return the value that ``percent`` of the values do not exceed; 0 without values."""
    if not ascending:
        return 0.0
    return ascending[max(0, math.ceil(len(ascending) * percent / 100) - 1)]


def describe(summary: Summary) -> list[str]:
    """Return the lines in which a run is told to people."""
    outcomes, gap, latencies = summary.outcomes(), summary.longest_unavailability(), summary.latencies()
    keys = len({operation.key for operation in summary.history})
    slow = ", ".join(f"p{percent} {1000 * percentile(latencies, percent):.1f} ms" for percent in (50, 99))
    return [
        *_verdict_lines(summary),
        f"operations: {len(summary.history)} on {keys} keys: "
        + ", ".join(f"{count} {outcome.value}" for outcome, count in outcomes.items()),
        "faults: " + (", ".join(f"{name} {count}" for name, count in summary.faults().items()) or "none"),
        f"longest unavailability: {gap.seconds:.2f} s without a write, from {gap.started:.1f} s on",
        f"latency: {slow}, longest {1000 * percentile(latencies, 100):.0f} ms",
    ]


def _verdict_lines(summary: Summary) -> list[str]:
    report = summary.report
    if summary.is_proven:
        return [f"verdict: linearizable ({report.checked} operations checked)"]
    lines = [f"verdict: {'FAILED' if summary.is_refuted else 'undecided'}"]
    lines += [f"  {failure}" for failure in summary.failures]
    if report.verdict is Verdict.UNKNOWN:
        lines.append(f"  the checker reached its bound on key {readable(report.key)}: that is no pass")
    if report.verdict is Verdict.VIOLATION:
        lines.append(f"  no order of the operations on key {readable(report.key)} explains what clients saw; the last:")
        lines += [f"    {operation}" for operation in report.operations[-_SHOWN_OPERATIONS:]]
    return lines


def revision_failures(findings: Sequence[str]) -> list[str]:
    """Return what to say of revisions that contradict the history."""
    unseen = len(findings) - _SHOWN_REVISIONS
    return [f"wrong revision: {finding}" for finding in findings[:_SHOWN_REVISIONS]] + (
        [f"wrong revisions: {unseen} more"] if unseen > 0 else []
    )


def surprise_failures(surprises: Sequence[str]) -> list[str]:
    """Return what to say of answers that were none of raftkv's."""
    return [f"unexpected answer: {surprise}" for surprise in surprises[:_SHOWN_SURPRISES]]
