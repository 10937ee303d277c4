from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from raftkv.client import Client
from tests.http.native import Node


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with Node() as running:
        yield running


@pytest.fixture
async def client(node) -> AsyncIterator[Client]:
    async with Client([node.url]) as connected:
        yield connected
