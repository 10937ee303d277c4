"""The watch over the event loop: how long it was held, and by what."""

from __future__ import annotations

import asyncio
import logging
import threading
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from raftkv.runtime import loop_watch
from raftkv.runtime.loop_watch import LoopWatch
from raftkv.runtime.metrics import Metrics


def held(metrics: Metrics) -> dict[str, float]:
    """Read the metrics; return the longest time by clock."""
    families = text_string_to_metric_families(metrics.exposition("")[0].decode())
    return {
        sample.labels["clock"]: sample.value
        for family in families
        for sample in family.samples
        if sample.name == "raftkv_event_loop_held_max_seconds"
    }


@pytest.fixture
async def metrics():
    metrics = Metrics()
    watch = LoopWatch(metrics)
    metrics.register(watch)
    watching = asyncio.create_task(watch.run())
    await asyncio.sleep(0)
    yield metrics
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


def compute_for(seconds: float) -> None:
    began = time.thread_time()
    while time.thread_time() - began < seconds:
        pass


async def until_noted(metrics: Metrics) -> dict[str, float]:
    async with asyncio.timeout(5):
        while (found := held(metrics))["wall"] < 0.25:  # noqa: ASYNC110 - a reading is what is awaited
            await asyncio.sleep(0.001)
    return found


@pytest.mark.holds_loop
async def test_held_loop_is_measured_and_named(metrics, caplog):
    with caplog.at_level(logging.WARNING, "raftkv.runtime.loop_watch"):
        compute_for(0.3)
        found = await until_noted(metrics)
    assert 0.25 < found["cpu"] <= found["wall"]
    (record,) = caplog.records
    assert record.message.startswith("event loop held for ")
    assert "test_loop_watch.compute_for" in record.message
    assert held(metrics)["wall"] < 0.25, "a reading starts anew"


async def test_time_without_computing_counts_by_the_wall_alone(metrics):
    threading.Event().wait(0.3)
    found = await until_noted(metrics)
    assert found["cpu"] < 0.1


@pytest.mark.holds_loop
async def test_a_loop_held_again_and_again_is_logged_at_a_bounded_rate(metrics, caplog, monkeypatch):
    monkeypatch.setattr(loop_watch, "_SECONDS_BETWEEN_LOGS", 3600.0)
    with caplog.at_level(logging.WARNING, "raftkv.runtime.loop_watch"):
        for _ in range(3):
            compute_for(0.3)
            await until_noted(metrics)
    assert len(caplog.records) == 1
