from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from raftkv.http import FrontEnd
from tests.http.http_fakes import FakeClusterService, FakeKeyValueService
from tests.http.http_raw import Raw
from tests.http.http_store import services_of


@pytest.fixture
def kv() -> FakeKeyValueService:
    return FakeKeyValueService()


@pytest.fixture
def cluster() -> FakeClusterService:
    return FakeClusterService()


@pytest.fixture
async def address(kv, cluster) -> AsyncIterator[tuple[str, int]]:
    front_end = FrontEnd(services_of(kv, cluster))
    yield await front_end.start("127.0.0.1", 0)
    kv.gate.set()
    await front_end.stop(1)


@pytest.fixture
async def client(address) -> AsyncIterator[Raw]:
    async with Raw(address) as raw:
        yield raw
