"""Who a pod is."""

from __future__ import annotations

import pytest

from raftkv.errors import ConfigurationError
from raftkv.settings import build_config

POD = {
    "RAFTKV_NAME": "store-1",
    "RAFTKV_DISCOVER_SERVICE": "store-peers.shop.svc",
    "RAFTKV_DISCOVER_REPLICAS": "3",
}


def test_everything_follows_from_the_pods_name():
    config = build_config({}, POD, {})
    assert (config.name, config.advertise_peer) == ("store-1", "store-1.store-peers.shop.svc:2380")
    assert config.advertise_client == "http://store-1.store-peers.shop.svc:2379"
    assert [member.peer_address for member in config.initial_cluster] == [
        f"store-{ordinal}.store-peers.shop.svc:2380" for ordinal in range(3)
    ]
    assert config.listen_client.is_wildcard
    other = build_config({"listen_peer": "0.0.0.0:7000", "advertise_client": "https://shop.example"}, POD, {})
    assert other.advertise_peer == "store-1.store-peers.shop.svc:7000"
    assert other.advertise_client == "https://shop.example"
    assert (
        len(build_config({}, {**POD, "RAFTKV_DISCOVER_REPLICAS": "1", "RAFTKV_NAME": "a-0"}, {}).initial_cluster) == 1
    )


def test_a_pod_asks_the_others_for_a_cluster_before_it_begins_one():
    config = build_config({}, POD, {})
    assert config.joining.urls == tuple(f"http://store-{other}.store-peers.shop.svc:2379" for other in (0, 2))
    assert config.joining.replaces_lost
    alone = build_config({}, {**POD, "RAFTKV_DISCOVER_REPLICAS": "1", "RAFTKV_NAME": "store-0"}, {})
    assert alone.joining.urls == ()
    assert not alone.joining.replaces_lost


def test_a_pod_that_is_not_among_the_first_joins_them():
    config = build_config({}, {**POD, "RAFTKV_NAME": "store-4"}, {})
    assert config.initial_cluster == ()
    assert len(config.joining.urls) == 3
    assert config.advertise_peer == "store-4.store-peers.shop.svc:2380"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"RAFTKV_NAME": ""}, "needs name"),
        ({"RAFTKV_NAME": "store"}, "no name of a StatefulSet's pod"),
        ({"RAFTKV_JOIN": "http://h:1"}, "exclude each other"),
        ({"RAFTKV_DISCOVER_REPLICAS": "0"}, "must be from 1 to 9"),
        ({"RAFTKV_DISCOVER_SERVICE": "Not a name"}, "is no DNS name"),
        ({"RAFTKV_DISCOVER_SERVICE": ""}, "means nothing without discover-service"),
        ({"RAFTKV_INITIAL_CLUSTER": "store-1=h:1"}, "exclude each other"),
        ({"RAFTKV_ADVERTISE_PEER": "elsewhere:1"}, "but its advertise-peer is elsewhere:1"),
    ],
)
def test_what_contradicts_itself_is_refused(changed, words):
    with pytest.raises(ConfigurationError, match=words):
        build_config({}, {**POD, **changed}, {})
