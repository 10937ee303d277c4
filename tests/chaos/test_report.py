"""What a run comes to, in words and as a picture."""

from __future__ import annotations

import math
from xml.etree import ElementTree as ET

import pytest

from raftkv.chaos.injector import FaultSpan
from raftkv.chaos.report import Summary, describe, percentile, revision_failures, surprise_failures
from raftkv.chaos.schedule import Fault
from raftkv.chaos.timeline import draw
from raftkv.chaos.workload import PROBE
from raftkv.types import NodeId
from raftkv.verification.history import Kind, Operation, Outcome
from raftkv.verification.linearizability import check_history

N1, N2 = NodeId("n1"), NodeId("n2")


def operation(kind: Kind, value: bytes | None, started: float, ended: float, outcome=Outcome.DONE, expected=None):
    return Operation("c1", b"k", kind, value, started, ended, outcome, expected)


GOOD = [
    operation(Kind.PUT, b"1", 0.5, 0.51),
    operation(Kind.GET, b"1", 1.0, 1.004),
    operation(Kind.SWAP, b"2", 1.1, 1.2, expected=b"1"),
    operation(Kind.SWAP, b"3", 1.3, 1.4, Outcome.CONDITION_FAILED, expected=b"1"),
    operation(Kind.PUT, b"4", 2.0, math.inf, Outcome.UNKNOWN),
    operation(Kind.PUT, b"5", 2.5, 2.6, Outcome.REFUSED),
    operation(Kind.DELETE, None, 6.0, 6.1),
    Operation(PROBE, b"probe-1", Kind.PUT, b"p1", 1.3, 1.4, Outcome.DONE),
    Operation(PROBE, b"probe-2", Kind.PUT, b"p2", 3.0, math.inf, Outcome.UNKNOWN),
    Operation(PROBE, b"probe-3", Kind.PUT, b"p3", 6.0, 6.5, Outcome.DONE),
]
BAD = [operation(Kind.PUT, b"1", 0.0, 0.1), operation(Kind.GET, None, 0.2, 0.3)]
SPANS = [
    FaultSpan(Fault.KILL, (N1,), "kill n1 (the leader)", 1.5, 3.0),
    FaultSpan(Fault.PARTITION, (N2,), "cut off n2 & <others>", 4.0, 5.0),
    FaultSpan(Fault.KILL, (N2,), "kill n2", 5.5, 5.5),
]


def summary(history, spans=SPANS, failures=(), max_configurations: int = 1000) -> Summary:
    return Summary(42, 10.0, history, spans, check_history(history, max_configurations), failures)


def test_a_good_run():
    run = summary(GOOD)
    assert (run.is_proven, run.is_refuted) == (True, False)
    assert describe(run) == [
        "verdict: linearizable (9 operations checked)",
        "operations: 10 on 4 keys: 6 done, 1 condition failed, 2 unknown, 1 refused",
        "faults: kill 2, partition 1",
        "longest unavailability: 5.10 s without a write, from 1.4 s on",
        "latency: p50 100.0 ms, p99 500.0 ms, longest 500 ms",
    ]


def test_a_run_that_broke_a_promise_shows_the_operations():
    run = summary(BAD)
    assert (run.is_proven, run.is_refuted) == (False, True)
    text = "\n".join(describe(run))
    assert text.startswith("verdict: FAILED")
    assert "no order of the operations on key k" in text
    assert "0.000000 to 0.100000: c1 put 1: done" in text
    assert "0.200000 to 0.300000: c1 get nothing: done" in text


def test_an_unknown_verdict_is_neither_proof_nor_refutation():
    run = summary(GOOD, max_configurations=1)
    assert (run.is_proven, run.is_refuted) == (False, False)
    assert "undecided" in describe(run)[0]
    assert "that is no pass" in describe(run)[1]


def test_other_failures_count_whatever_the_history_says():
    run = summary(GOOD, failures=["n1 ended by itself"])
    assert (run.is_proven, run.is_refuted) == (False, True)
    assert describe(run)[:2] == ["verdict: FAILED", "  n1 ended by itself"]


def test_a_run_without_a_single_write_was_unavailable_all_the_time():
    run = summary([], spans=[])
    assert run.longest_unavailability().seconds == 10.0
    lines = describe(run)
    assert lines[2:4] == ["faults: none", "longest unavailability: 10.00 s without a write, from 0.0 s on"]


def test_surprises_are_shown_but_not_by_the_thousand():
    assert len(surprise_failures(["an answer of another service"] * 5000)) == 3


def test_revision_findings_are_counted_but_not_shown_by_the_thousand():
    failures = revision_failures(["two writes have revision 7"] * 5000)
    assert failures[0] == "wrong revision: two writes have revision 7"
    assert failures[-1] == "wrong revisions: 4997 more"
    assert len(failures) == 4
    assert revision_failures([]) == []


@pytest.mark.parametrize(("percent", "value"), [(0, 1), (50, 5), (99, 10), (100, 10)])
def test_percentiles(percent, value):
    assert percentile(list(range(1, 11)), percent) == value
    assert percentile([], percent) == 0


def test_the_picture_shows_faults_latencies_and_the_gap():
    picture = ET.fromstring(draw(summary(GOOD), [N1, N2], "a run & its <title>"))
    tag = "{http://www.w3.org/2000/svg}"
    texts = [element.text for element in picture.iter(f"{tag}text")]
    assert {"a run & its <title>", "n1", "n2", "1 ms", "10 s", "no write for 5.10 s"} <= set(texts)
    titles = {title.text: bar for bar in picture.iter(f"{tag}rect") for title in bar.iter(f"{tag}title")}
    kill = titles["1.5 s to 3.0 s: kill n1 (the leader)"]
    cut = titles["4.0 s to 5.0 s: cut off n2 & <others>"]
    assert float(kill.get("width")) == pytest.approx(1.5 * float(cut.get("width")), rel=0.01)
    # A fault of a moment is still to be seen.
    assert float(titles["5.5 s to 5.5 s: kill n2"].get("width")) >= 2
    assert len(list(picture.iter(f"{tag}circle"))) == 5 + 3


def test_the_picture_stays_small_however_long_the_run():
    history = [operation(Kind.PUT, b"%d" % number, number / 5000, number / 5000 + 0.003) for number in range(50_000)]
    run = Summary(42, 10.0, history, SPANS, check_history([]))
    assert len(draw(run, [N1, N2], "long")) < 300_000


def test_a_picture_of_nothing_is_a_picture():
    run = Summary(1, 0.0, [], [], check_history([]))
    assert ET.fromstring(draw(run, [], "empty")).tag.endswith("svg")
