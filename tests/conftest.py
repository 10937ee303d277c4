"""What holds for all tests."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from tests.loop_watch import HELD_SECONDS, LoopWatch, holds_in
from tests.process.cluster import LOGS


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect those of the tests marked ``sampled`` that are not for today.

    All run with ``ALL_TESTS=1``, as in ``make soak``, and a test that is named on the command line runs always.
    """
    if os.environ.get("ALL_TESTS") == "1" or any("::" in argument for argument in config.args):
        return
    today = datetime.now(UTC).toordinal()
    others = [item for item in items if not _is_for(today, item)]
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]


def _is_for(today: int, item: pytest.Item) -> bool:
    marker = item.get_closest_marker("sampled")
    return marker is None or (zlib.crc32(item.nodeid.encode()) + today) % marker.kwargs["days"] == 0


@pytest.fixture(autouse=True)
def _event_loop_is_not_held(request: pytest.FixtureRequest) -> Iterator[None]:
    LOGS.clear()
    with LoopWatch() as watch:
        yield
    if request.node.get_closest_marker("holds_loop") is not None:
        return
    if watch.held_seconds > HELD_SECONDS:
        pytest.fail(f"the event loop was held for {1000 * watch.held_seconds:.0f} ms of CPU by {watch.callback}")
    for log in sorted(path for path in LOGS if path.exists()):
        for held in holds_in(log.read_text(errors="replace")):
            pytest.fail(f"{log.name}: {held}")
