"""The bound on how fast a store is copied."""

from __future__ import annotations

import threading
import time

from raftkv.runtime.pacing import Pace


def test_pieces_take_the_time_that_the_rate_says():
    pace = Pace(1_000_000)
    began = time.monotonic()
    for _ in range(5):
        pace(20_000)
    assert time.monotonic() - began >= 0.1


def test_whoever_stops_is_not_kept_waiting():
    pace = Pace(1)
    thread = threading.Thread(target=pace, args=(3600,))
    thread.start()
    pace.lift()
    thread.join(10)
    assert not thread.is_alive()
