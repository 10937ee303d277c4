"""Configuration: three sources, one set of checks, errors that name what is wrong and where."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from raftkv.config import HostPort, LogFormat, Tls
from raftkv.errors import ConfigurationError
from raftkv.settings import SETTINGS, build_config, parse_initial_cluster, parse_toml
from raftkv.types import Member


def test_without_anything_a_node_is_a_cluster_of_its_own():
    config = build_config({}, {}, {})
    assert str(config.listen_client) == "127.0.0.1:2379"
    assert str(config.data_dir) == "raftkv-data"
    assert config.advertise_client == "http://127.0.0.1:2379"
    assert config.initial_cluster == (Member("default", "127.0.0.1:2380"),)
    assert (config.timing.heartbeat_ms, config.timing.election_timeout_ms) == (100, 1000)


def test_flags_win_over_the_environment_which_wins_over_the_file():
    file_settings = parse_toml('name = "file"\nheartbeat_ms = 11\nrequest_timeout_s = 2.5\n', "f")
    environment = {
        "RAFTKV_NAME": "environment",
        "RAFTKV_HEARTBEAT_MS": "22",
        "RAFTKV_UNKNOWN": "x",
        "RAFTKV_LOG_FORMAT": "",
    }
    config = build_config({"name": "flag"}, environment, file_settings)
    assert config.name == "flag"
    assert config.timing.heartbeat_ms == 22
    assert config.limits.request_timeout_s == 2.5
    assert config.log_format is LogFormat.TEXT


def test_every_setting_has_a_variable_and_a_key_of_its_own():
    assert (
        len({setting.variable for setting in SETTINGS}) == len({setting.key for setting in SETTINGS}) == len(SETTINGS)
    )
    for setting in SETTINGS:
        assert setting.variable == "RAFTKV_" + setting.flag.upper().replace("-", "_")


def test_what_is_listened_on_is_advertised_unless_nobody_could_reach_it():
    members = {"initial_cluster": "default=10.0.0.1:2380"}
    config = build_config(
        {
            **members,
            "listen_client": "0.0.0.0:1",
            "advertise_client": "http://Example.COM:80/",
            "listen_peer": "[::]:2",
            "advertise_peer": "10.0.0.1:2380",
        },
        {},
        {},
    )
    assert config.advertise_client == "http://example.com:80"
    assert str(config.listen_peer) == "[::]:2"
    with pytest.raises(ConfigurationError, match="so advertise-client must be given"):
        build_config({"listen_client": "0.0.0.0:1"}, {}, {})
    with pytest.raises(ConfigurationError, match="so advertise-peer must be given"):
        build_config({"listen_peer": "[::]:1"}, {}, {})


@pytest.mark.parametrize(
    ("flag", "text", "message"),
    [
        ("listen_client", "", "--listen-client: the value is empty"),
        ("listen_client", "localhost", "there is no port"),
        ("listen_client", "localhost:x", "'x' is not a port number"),
        ("listen_client", "localhost:0", "the port must be from 1 to 65535"),
        ("listen_client", "localhost:" + "9" * 5000, "the port must be"),
        ("listen_client", ":80", "there is no host"),
        ("listen_client", "::1:80", "must stand in brackets"),
        ("listen_client", "[::z]:80", "is not an IPv6 address"),
        ("listen_client", "a_b!:80", "is not a host name"),
        ("listen_client", "127.0.0.1:2380", "would share a port"),
        ("advertise_client", "ftp://a", "is not an http"),
        ("advertise_client", "http://[::1", "is not a URL"),
        ("advertise_client", "http://u@h:1", "nothing more"),
        ("advertise_client", "http://h:1/path", "nothing more"),
        ("advertise_client", "http://0.0.0.0:1", "no address that clients could connect to"),
        ("advertise_peer", "0.0.0.0:1", "no address that other members"),
        ("initial_cluster", "n1", "is not NAME=HOST:PORT"),
        ("initial_cluster", "n1=127.0.0.1:1", "'default' is not in initial-cluster, which has: n1"),
        ("initial_cluster", "default=127.0.0.1:9", "initial-cluster says that 'default' is at 127.0.0.1:9"),
        ("initial_cluster", "default=127.0.0.1:2380,default=127.0.0.1:9", "the name 'default' more than once"),
        ("initial_cluster", "default=127.0.0.1:2380,b=127.0.0.1:2380", "the address '127.0.0.1:2380' more than once"),
        ("name", "-x", "is not a member's name"),
        ("name", "x" * 64, "is not a member's name"),
        ("data_dir", "a\0b", "cannot contain a NUL"),
        ("heartbeat_ms", "1.5", "is not a whole number"),
        ("heartbeat_ms", "0", "must be at least 1"),
        ("election_timeout_ms", "300", "must be more than three times"),
        ("min_free_bytes", "-1", "must be at least 0"),
        ("snapshot_journal_bytes", "1", "must be at least 4096"),
        ("snapshot_bytes_per_s", "1", "must be at least 65536"),
        ("autopilot_voters", "-1", "must be at least 0"),
        ("max_pending_proposals", "0", "must be at least 1"),
        ("request_timeout_s", "abc", "is not a number of seconds"),
        ("request_timeout_s", "0", "must be more than 0"),
        ("log_format", "xml", "is not text or json"),
    ],
)
def test_what_is_wrong_is_named(flag, text, message):
    with pytest.raises(ConfigurationError, match=message):
        build_config({flag: text}, {}, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name", "f: not TOML"),
        ("nam = 'x'", "f: unknown key 'nam'"),
        ("name = true", "f: name must be a text or a number"),
        ("name = ['a']", "f: name must be a text or a number"),
    ],
)
def test_a_wrong_file_is_named(text, message):
    with pytest.raises(ConfigurationError, match=message):
        parse_toml(text, "f")


def test_a_wrong_value_in_the_environment_or_the_file_is_named_by_its_source():
    with pytest.raises(ConfigurationError, match="RAFTKV_HEARTBEAT_MS: 'x' is not a whole number"):
        build_config({}, {"RAFTKV_HEARTBEAT_MS": "x"}, {})
    with pytest.raises(ConfigurationError, match=r"my\.toml: heartbeat_ms: 'x' is not"):
        build_config({}, {}, {"heartbeat_ms": "x"}, "my.toml")


def test_members_are_listed_in_order_and_ipv6_keeps_its_brackets():
    members = parse_initial_cluster("b=[::1]:2, a=host:1")
    assert members == (Member("b", "[::1]:2"), Member("a", "host:1"))
    assert HostPort.parse("[0:0::1]:2").host == "::1"


TLS = {"tls_cert": "n1.crt", "tls_key": "n1.key", "tls_ca": "ca.crt"}


def test_with_certificates_everything_is_advertised_with_https():
    config = build_config(TLS, {}, {})
    assert config.advertise_client == "https://127.0.0.1:2379"
    assert config.tls == Tls(Path("n1.crt"), Path("n1.key"), Path("ca.crt"))
    assert build_config({**TLS, "tls_client_ca": "c.crt"}, {}, {}).tls.client_ca == Path("c.crt")
    pod = {"RAFTKV_NAME": "store-1", "RAFTKV_DISCOVER_SERVICE": "store-peers", "RAFTKV_DISCOVER_REPLICAS": "2"}
    discovered = build_config(TLS, pod, {})
    assert discovered.advertise_client == "https://store-1.store-peers:2379"
    assert discovered.joining.urls == ("https://store-0.store-peers:2379",)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tls_cert": "c"}, "tls-cert means nothing without tls-key and tls-ca"),
        ({"tls_cert": "c", "tls_key": "k"}, "tls-cert means nothing without tls-ca"),
        ({"tls_client_ca": "c"}, "tls-client-ca means nothing without tls-cert and tls-key and tls-ca"),
        ({**TLS, "advertise_client": "http://10.0.0.1:2379"}, "to https:// only, not to http://10.0.0.1:2379"),
        ({**TLS, "join": "http://10.0.0.2:2379"}, "to https:// only, not to http://10.0.0.2:2379"),
    ],
)
def test_half_of_tls_is_refused(given, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        build_config(given, {}, {})
