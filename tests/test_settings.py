"""Configuration: three sources, one set of checks, errors that name what is wrong and where."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from raftkv.config import HostPort, LogFormat, Tls
from raftkv.errors import ConfigurationError
from raftkv.settings import SETTINGS, build_config, parse_initial_cluster, parse_toml, unknown_variables
from raftkv.types import Member


def test_without_anything_a_node_is_a_cluster_of_its_own():
    config = build_config({}, {}, {})
    assert str(config.listen_client) == "127.0.0.1:2379"
    assert str(config.data_dir) == "raftkv-data"
    assert config.advertise_client == "http://127.0.0.1:2379"
    assert config.initial_cluster == (Member("default", "127.0.0.1:2380"),)
    assert not config.is_initial_cluster_given
    assert build_config({"initial_cluster": "default=127.0.0.1:2380"}, {}, {}).is_initial_cluster_given
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
        ("max_connections", "0", "must be at least 1"),
        ("max_connections_per_address", "-1", "must be at least 0"),
        ("max_unread_bytes", "1000", "must be at least 1048576"),
        ("write_timeout_s", "0.5", "must be from 1 to 3600"),
        ("request_timeout_s", "abc", "is not a number of seconds"),
        ("request_timeout_s", "0", "must be more than 0"),
        ("log_format", "xml", "is not text or json"),
        ("log_level", "trace", "is not debug, info, warning or error"),
        ("slow_request_ms", "-1", "must be at least 0"),
        ("access_log", "yes", "is neither true nor false"),
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


def test_origins_are_written_as_browsers_write_them():
    given = "https://UI.example.com:443, http://localhost:3000,http://[::1]:80,*"
    expected = ("https://ui.example.com", "http://localhost:3000", "http://[::1]", "*")
    assert build_config({"watch_origins": given}, {}, {}).watch_origins == expected
    assert build_config({}, {}, {}).watch_origins == ()
    for wrong in (
        "ui.example.com",
        "https://a/",
        "https://a/x",
        "ftp://a",
        "https://",
        "http://a:x",
        "http://u@a",
        "a,",
    ):
        with pytest.raises(ConfigurationError, match=r"--watch-origins: .* is no origin"):
            build_config({"watch_origins": wrong}, {}, {})


def test_unknown_key_is_named_with_what_may_have_been_meant():
    with pytest.raises(ConfigurationError, match=r"n1.toml: unknown key 'data_dirr'; data_dir is one"):
        parse_toml('data_dirr = "/data"', "n1.toml")
    with pytest.raises(ConfigurationError, match=r"unknown key 'zzzz'; the keys are name, "):
        parse_toml("zzzz = 1", "n1.toml")


def test_unknown_variable_is_named_with_what_may_have_been_meant():
    (warning,) = unknown_variables({"RAFTKV_TLS_CLIENTCA": "ca.crt", "RAFTKV_NAME": "n1", "PATH": "/bin"})
    assert warning == (
        "the variable RAFTKV_TLS_CLIENTCA is ignored: no setting has that name; RAFTKV_TLS_CLIENT_CA is one"
    )
    (warning,) = unknown_variables({"RAFTKV_LISTEN_PORT": "1"})
    assert warning.startswith("the variable RAFTKV_LISTEN_PORT is ignored")


@pytest.mark.parametrize("service", ["RAFTKV", "RAFTKV_CLIENT"])
def test_variables_of_commands_and_of_kubernetes_services_are_no_mistake(service):
    of_kubernetes = {
        f"{service}_{name}": "x"
        for name in (
            "SERVICE_HOST",
            "SERVICE_PORT",
            "SERVICE_PORT_CLIENT",
            "PORT",
            "PORT_2379_TCP",
            "PORT_2379_TCP_ADDR",
            "PORT_2379_TCP_PORT",
            "PORT_2379_TCP_PROTO",
        )
    }
    of_commands = {"RAFTKV_CONFIG": "x", "RAFTKV_ENDPOINTS": "x", "RAFTKV_CERT_KEY": "x", "RAFTKV_FENCE": "1"}
    assert unknown_variables(of_kubernetes | of_commands) == []
    assert build_config({}, of_kubernetes, {}) == build_config({}, {}, {})


def test_metrics_have_a_port_of_their_own_or_none():
    assert build_config({}, {}, {}).listen_metrics is None
    assert str(build_config({"listen_metrics": "0.0.0.0:2381"}, {}, {}).listen_metrics) == "0.0.0.0:2381"
    for port in (2379, 2380):
        with pytest.raises(ConfigurationError, match=r"listen-metrics \(.*would share a port"):
            build_config({"listen_metrics": f"0.0.0.0:{port}"}, {}, {})


def test_url_in_place_of_an_address_is_called_one():
    with pytest.raises(ConfigurationError, match=r"'http://10\.0\.0\.1:2380' is a URL: only HOST:PORT"):
        build_config({"initial_cluster": "default=http://10.0.0.1:2380"}, {}, {})


def test_a_file_says_true_and_false_as_toml_does():
    assert parse_toml("access_log = true\nreplace_lost = false", "f") == {"access_log": "true", "replace_lost": "false"}
    assert parse_toml("access_log = 'true'", "f") == {"access_log": "true"}
