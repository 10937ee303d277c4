from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from raftkv.store.backend import Backend
from raftkv.store.lmdb_backend import LmdbBackend
from raftkv.store.memory_backend import MemoryBackend
from tests.simulation.disk import VirtualDisk


@pytest.fixture(params=["lmdb", "memory"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    made = LmdbBackend(tmp_path, 1_048_576) if request.param == "lmdb" else MemoryBackend(VirtualDisk().root)
    yield made
    made.close()
