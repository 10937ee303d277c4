"""Names of operations: every route has one, and clients cannot make more."""

from __future__ import annotations

import pytest

from raftkv.http import FrontEnd
from raftkv.http.etcd.paths import etcd_target
from raftkv.http.operation_names import _BELOW, _ETCD, _ETCD_GROUPS, _EXACT, OTHER, operation_of
from tests.http.http_fakes import FakeClusterService, FakeKeyValueService
from tests.http.http_store import services_of


@pytest.fixture
async def front_end():
    front_end = FrontEnd(services_of(FakeKeyValueService(), FakeClusterService()))
    yield front_end
    await front_end.stop(0)


@pytest.mark.parametrize(
    ("method", "target", "operation"),
    [
        ("PUT", "/v1/kv/a/b?lease=7", "put"),
        ("GET", "/v1/kv/a", "get"),
        ("GET", "/v1/kv?prefix=a", "list"),
        ("POST", "/v1/txn", "txn"),
        ("POST", "/v3/kv/range", "range"),
        ("POST", "/v3beta/kv/put", "put"),
        ("GET", "/v3/watch", "watch"),
        ("POST", "//v3/kv/txn", "txn"),
        ("GET", "//v1/kv/a", OTHER),
        ("POST", "/v3/auth/user/add", "auth"),
        ("POST", "/v3/maintenance/hashkv", "maintenance"),
        ("GET", "/readyz/leader?verbose", "health"),
        ("OPTIONS", "/v3/kv/put", OTHER),
        ("OPTIONS", "*", OTHER),
        ("BREW", "/v1/kv/a", OTHER),
        ("GET", "/v1/nothing", OTHER),
        ("POST", "/v3/kv/nothing", OTHER),
    ],
)
def test_operations_are_named_by_method_and_path(method, target, operation):
    assert operation_of(method, etcd_target(target)) == operation


async def test_every_route_has_a_name(front_end):
    router, gateway = front_end._router, front_end._gateway
    routes = [(method, path) for path, methods in router._exact.items() for method in methods]
    routes += [(method, f"{path}x") for path, methods in router._below if "/v3" not in path for method in methods]
    routes += [("POST", f"/v3/{tail}") for tail in (*gateway._unary, *gateway._lasting, *gateway._streams)]
    assert [route for route in routes if operation_of(*route) == OTHER] == []


def test_there_are_few_names():
    names = {*_ETCD.values(), *_ETCD_GROUPS.values(), OTHER}
    for table in (_EXACT, _BELOW):
        for of_path in table.values():
            names |= {of_path} if isinstance(of_path, str) else set(of_path.values())
    assert len(names) < 50
