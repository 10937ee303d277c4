"""What a node measures: what is noted is what Prometheus reads."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families

from raftkv.consensus.journal import Batch, LogState
from raftkv.runtime.journal_writer import JournalWriter
from raftkv.runtime.metrics import Metrics
from raftkv.types import NodeId


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text, _content_type = metrics.exposition("")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return samples(metrics)[name, frozenset(labels.items())]


def test_requests_are_counted_and_timed_but_for_those_that_last():
    metrics = Metrics()
    metrics.observe_request("native", "put", "PUT", 200, 0.01)
    metrics.observe_request("native", "put", "PUT", 200, 0.03)
    metrics.observe_request("native", "watch", "GET", 200, None)
    metrics.observe_request("etcd", "put", "POST", 503, 2.0)
    total, seconds = "raftkv_http_requests_total", "raftkv_http_request_seconds"
    assert value(metrics, total, api="native", operation="put", method="PUT", code="200") == 2
    assert value(metrics, total, api="native", operation="watch", method="GET", code="200") == 1
    assert value(metrics, total, api="etcd", operation="put", method="POST", code="503") == 1
    assert value(metrics, f"{seconds}_sum", api="native", operation="put") == pytest.approx(0.04)
    assert value(metrics, f"{seconds}_count", api="native", operation="put") == 2
    assert value(metrics, f"{seconds}_count", api="native", operation="watch") == 0


def test_a_member_that_does_not_answer_is_counted():
    metrics = Metrics()
    metrics.observe_answer(NodeId("n2"), 0.02)
    metrics.observe_answer(NodeId("n2"), None)
    assert value(metrics, "raftkv_peer_round_trip_seconds_count", peer="n2") == 1
    assert value(metrics, "raftkv_peer_unanswered_total", peer="n2") == 1


def test_both_formats_are_served():
    text, content_type = Metrics().exposition("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert text.endswith(b"# EOF\n")
    _text, content_type = Metrics().exposition("text/html")
    assert content_type.startswith("text/plain")


async def test_each_sync_of_the_journal_is_timed():
    class Log:
        def write(self, _batches):
            return None

        def remove_before(self, _index):
            return None

        def close(self):
            return None

    seconds: list[float] = []
    synced = asyncio.Event()
    writer = JournalWriter(Log(), lambda _position: synced.set(), pytest.fail, seconds.append)
    writer.start()
    writer.write(Batch(b"", 1, LogState.__new__(LogState)))
    await synced.wait()
    await asyncio.to_thread(writer.stop)
    assert len(seconds) == 1
    assert seconds[0] >= 0
