"""How a node's configuration is given: each setting declared once, with its flag, variable and TOML key.

A setting has one name and three sources, in this order: the flag ``--data-dir``, the variable
``RAFTKV_DATA_DIR``, the TOML key ``data_dir``; then its default. Everything here is a pure function of
mappings: reading the command line, the environment and the file is left to the caller.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from raftkv.config import (
    HostPort,
    InitialClusterState,
    Joining,
    Limits,
    LogFormat,
    LogLevel,
    NodeConfig,
    Replacing,
    RequestLogging,
    Retention,
    Storage,
    Timing,
    Tls,
)
from raftkv.discovery import Ports, identity_of_pod
from raftkv.errors import ConfigurationError
from raftkv.types import NODE_NAME, Member, NodeId
from raftkv.versions import ClusterVersion

ENVIRONMENT_PREFIX = "RAFTKV_"

_DNS_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_MAX_DNS_NAME = 253

_Choice = TypeVar("_Choice", bound=Enum)


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as people give it.

    Attributes:
        flag: Its flag without the dashes in front, such as ``data-dir``.
        metavar: The form of its value.
        help: What it does, in one sentence.
        default: Its default, as shown to people.
        parse: Turns its text into a value.
    """

    flag: str
    metavar: str
    help: str
    default: str
    parse: Callable[[str], Any]

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return ENVIRONMENT_PREFIX + self.key.upper()

    @property
    def key(self) -> str:
        """Its key in the TOML file."""
        return self.flag.replace("-", "_")


def _parse_integer(text: str) -> int:
    if re.fullmatch(r"-?[0-9]{1,18}", text) is None:
        raise ConfigurationError(f"{text!r} is not a whole number")
    return int(text)


def _parse_seconds(text: str) -> float:
    if re.fullmatch(r"[0-9]{1,18}(\.[0-9]{1,9})?", text) is None:
        raise ConfigurationError(f"{text!r} is not a number of seconds")
    return float(text)


def _parse_version(text: str) -> ClusterVersion:
    try:
        return ClusterVersion.parse(text)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error


def _parse_name(text: str) -> NodeId:
    if NODE_NAME.fullmatch(text) is None:
        raise ConfigurationError(
            f"{text!r} is not a member's name: up to 63 letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit"
        )
    return NodeId(text)


def _one_of(choices: type[_Choice]) -> Callable[[str], _Choice]:
    """Return the parser of a setting that has one of a few values."""
    *others, last = (choice.value for choice in choices)

    def parse(text: str) -> _Choice:
        try:
            return choices(text)
        except ValueError:
            raise ConfigurationError(f"{text!r} is not {', '.join(others)} or {last}") from None

    return parse


def _parse_path(text: str) -> Path:
    if "\0" in text:
        raise ConfigurationError("a path cannot contain a NUL")
    return Path(text)


def _parse_peer(text: str) -> str:
    address = HostPort.parse(text)
    if address.is_wildcard:
        raise ConfigurationError(f"{text!r} is no address that other members could connect to")
    return str(address)


def _parse_client_url(text: str) -> str:
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise ConfigurationError(f"{text!r} is not a URL ({error})") from None
    if parts.scheme not in ("http", "https"):
        raise ConfigurationError(f"{text!r} is not an http:// or https:// URL")
    if "@" in parts.netloc or parts.path not in ("", "/") or "?" in text or "#" in text:
        raise ConfigurationError(f"{text!r} must be a scheme, a host and a port, and nothing more")
    has_port = re.search(r":[0-9]+$", parts.netloc) is not None
    default_port = _DEFAULT_PORTS[parts.scheme]
    address = HostPort.parse(parts.netloc if has_port else f"{parts.netloc}:{default_port}")
    if address.is_wildcard:
        raise ConfigurationError(f"{text!r} is no address that clients could connect to")
    return f"{parts.scheme}://{address}" if has_port else f"{parts.scheme}://{parts.netloc.lower()}"


def _parse_client_urls(text: str) -> tuple[str, ...]:
    return tuple(_parse_client_url(item.strip()) for item in text.split(","))


def _parse_origins(text: str) -> tuple[str, ...]:
    return tuple(item.strip() if item.strip() == "*" else _parse_origin(item.strip()) for item in text.split(","))


def _parse_origin(text: str) -> str:
    """Return an origin as browsers write it: in lower case, and without the port that its scheme stands for."""
    try:
        parts = urlsplit(text.lower())
        port = parts.port
    except ValueError as error:
        raise ConfigurationError(f"{text!r} is no origin ({error})") from None
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or text.lower() != f"{parts.scheme}://{parts.netloc}":
        raise ConfigurationError(f"{text!r} is no origin, which is http:// or https://, a host, and perhaps a port")
    if "@" in parts.netloc:
        raise ConfigurationError(f"{text!r} is no origin: it has a user")
    if port == _DEFAULT_PORTS[parts.scheme]:
        return f"{parts.scheme}://{parts.netloc.rpartition(':')[0]}"
    return f"{parts.scheme}://{parts.netloc}"


def _parse_flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ConfigurationError(f"{text!r} is neither true nor false")
    return text == "true"


def _parse_dns_name(text: str) -> str:
    if len(text) > _MAX_DNS_NAME or _DNS_NAME.fullmatch(text) is None:
        raise ConfigurationError(f"{text!r} is no DNS name")
    return text


def parse_initial_cluster(text: str) -> tuple[Member, ...]:
    """Return the members that ``n1=HOST:PORT,n2=HOST:PORT`` lists, in that order.

    Raises:
        ConfigurationError: The list is malformed.
    """
    members = []
    for item in text.split(","):
        name, equals, address = item.strip().partition("=")
        if not equals:
            raise ConfigurationError(f"{item.strip()!r} is not NAME=HOST:PORT")
        members.append(Member(_parse_name(name), _parse_peer(address)))
    return tuple(members)


SETTINGS: tuple[Setting, ...] = (
    Setting("name", "NAME", "This member's name, unique in its cluster.", "default", _parse_name),
    Setting("data-dir", "DIR", "Directory of this member's data.", "./raftkv-data", _parse_path),
    Setting("listen-client", "HOST:PORT", "Where to listen for clients.", "127.0.0.1:2379", HostPort.parse),
    Setting(
        "advertise-client",
        "URL",
        "URL at which clients reach this node.",
        "http:// (https:// with TLS) and listen-client",
        _parse_client_url,
    ),
    Setting(
        "listen-metrics",
        "HOST:PORT",
        "Where to serve /livez, /readyz, /health and /metrics, and nothing else, in plain HTTP too.",
        "none",
        HostPort.parse,
    ),
    Setting("listen-peer", "HOST:PORT", "Where to listen for other members.", "127.0.0.1:2380", HostPort.parse),
    Setting(
        "advertise-peer",
        "HOST:PORT",
        "Address at which other members reach this node.",
        "listen-peer",
        _parse_peer,
    ),
    Setting(
        "initial-cluster",
        "NAME=HOST:PORT,…",
        "Every member's name and advertised peer address, this one's too.",
        "this node alone",
        parse_initial_cluster,
    ),
    Setting(
        "initial-cluster-state",
        "auto|new|existing",
        "Whether a node with an empty data directory begins its cluster: auto when every configured peer answers that "
        "it never met this member, new without waiting for peers that cannot be reached, existing never.",
        "auto",
        _one_of(InitialClusterState),
    ),
    Setting(
        "join",
        "URL,URL,…",
        "Client URLs of members of a running cluster that this node joins on its first start.",
        "none",
        _parse_client_urls,
    ),
    Setting(
        "replace-lost",
        "true|false",
        "With join: when this node is a member already and its data directory is empty, replace that member.",
        "false",
        _parse_flag,
    ),
    Setting(
        "discover-service",
        "DNS-NAME",
        "Headless service of the Kubernetes StatefulSet that this pod, called by its name, belongs to; addresses and "
        "members follow from it.",
        "none",
        _parse_dns_name,
    ),
    Setting(
        "discover-replicas",
        "NUMBER",
        "With discover-service: members that the cluster begins with.",
        "1",
        _parse_integer,
    ),
    Setting("heartbeat-ms", "MS", "Period of the leader's heartbeat.", "100", _parse_integer),
    Setting(
        "election-timeout-ms",
        "MS",
        "Silence after which a follower campaigns: a random time between this and twice this.",
        "1000",
        _parse_integer,
    ),
    Setting(
        "min-free-bytes",
        "BYTES",
        "With less free disk than this, writes are refused.",
        "67108864",
        _parse_integer,
    ),
    Setting(
        "snapshot-journal-bytes",
        "BYTES",
        "Journal growth after which a snapshot is taken.",
        "33554432",
        _parse_integer,
    ),
    Setting(
        "snapshot-bytes-per-s",
        "BYTES",
        "Bound on the rate at which a snapshot is sent to a member that lags behind.",
        "67108864",
        _parse_integer,
    ),
    Setting(
        "snapshot-catch-up-bytes",
        "BYTES",
        "Bound on the log that is kept for members that catch up or lag behind.",
        "268435456",
        _parse_integer,
    ),
    Setting(
        "quota-bytes",
        "BYTES",
        "Size of the data at which puts and leases are refused; 0 for no bound.",
        "2147483648",
        _parse_integer,
    ),
    Setting("max-pending-proposals", "N", "Writes that may wait; more are refused.", "20000", _parse_integer),
    Setting(
        "max-connections",
        "N",
        "Clients that may be connected; fewer where the system allows too few open files.",
        "10000",
        _parse_integer,
    ),
    Setting(
        "max-connections-per-address",
        "N",
        "Clients of one address that may be connected; 0 for three quarters of all.",
        "0",
        _parse_integer,
    ),
    Setting(
        "max-unread-bytes",
        "BYTES",
        "Bytes of large answers and of streams that clients may leave unread, all together; then they are refused.",
        "134217728",
        _parse_integer,
    ),
    Setting(
        "write-timeout-s",
        "SECONDS",
        "Time after which a client that reads nothing is cut off.",
        "30.0",
        _parse_seconds,
    ),
    Setting(
        "request-timeout-s",
        "SECONDS",
        "Time after which a request's outcome is called unknown.",
        "5.0",
        _parse_seconds,
    ),
    Setting(
        "compact-keep-revisions",
        "N",
        "Revisions of history that are kept; 0 for no bound.",
        "100000",
        _parse_integer,
    ),
    Setting("compact-keep-s", "SECONDS", "Age of history that is kept; 0 for no bound.", "0", _parse_seconds),
    Setting(
        "idempotency-keep-s",
        "SECONDS",
        "Time for which a write with an Idempotency-Key is recognised when it is sent again.",
        "300",
        _parse_integer,
    ),
    Setting(
        "idempotency-max-bytes",
        "BYTES",
        "Bound on the results kept for that. Beyond it, writes with a new Idempotency-Key are refused. 0 for none.",
        "536870912",
        _parse_integer,
    ),
    Setting(
        "corrupt-check-s",
        "SECONDS",
        "Time between two comparisons of the members' stores at one index, made by the leader; 0 for none.",
        "14400",
        _parse_seconds,
    ),
    Setting(
        "autopilot-voters",
        "N",
        "Voters that there are to be: members beyond wait, and take the place of a voter that stays away; 0 for all.",
        "0",
        _parse_integer,
    ),
    Setting(
        "autopilot-dead-after-s",
        "SECONDS",
        "With autopilot-voters: time after which a voter that cannot be reached is replaced.",
        "600",
        _parse_seconds,
    ),
    Setting(
        "tls-cert",
        "FILE",
        "Certificate (PEM) of this node: with it, tls-key and tls-ca, clients and members are spoken with over TLS.",
        "none",
        _parse_path,
    ),
    Setting("tls-key", "FILE", "Private key (PEM) of tls-cert.", "none", _parse_path),
    Setting(
        "tls-ca",
        "FILE",
        "Certificates (PEM) by which every member must be certified; whoever is can speak as a member.",
        "none",
        _parse_path,
    ),
    Setting(
        "tls-client-ca",
        "FILE",
        "Certificates (PEM) by which clients must be certified; without it they need no certificate.",
        "none",
        _parse_path,
    ),
    Setting(
        "max-cluster-version",
        "MAJOR.MINOR",
        "While any member has this set, the cluster's version does not rise above it, so a downgrade stays possible.",
        "none",
        _parse_version,
    ),
    Setting(
        "watch-origins",
        "ORIGIN,…|*",
        "Origins, such as https://ui.example.com, whose pages may watch keys with a browser (CORS); * for any.",
        "none",
        _parse_origins,
    ),
    Setting("log-format", "text|json", "How log records are written to standard error.", "text", _one_of(LogFormat)),
    Setting(
        "log-level",
        "debug|info|warning|error",
        "Lowest level of log records that are written.",
        "info",
        _one_of(LogLevel),
    ),
    Setting(
        "slow-request-ms",
        "MS",
        "Time from which on a request is logged, without its value; 0 to log none.",
        "1000",
        _parse_integer,
    ),
    Setting("access-log", "true|false", "Whether every request is logged, without its value.", "false", _parse_flag),
)
"""Every setting of a node, in the order of ``--help``."""

_BY_KEY = {setting.key: setting for setting in SETTINGS}

CONFIG_VARIABLE = f"{ENVIRONMENT_PREFIX}CONFIG"
"""Names the configuration file."""

_OF_COMMANDS = ("ENDPOINTS", "CACERT", "CERT", "CERT_KEY", "LEASE", "FENCE", "LOCK_TOKEN", "ELECTION_TOKEN")
"""Variables that commands read, or set for the programs that they run: a node may inherit them."""

_SERVICE_HOST = "_SERVICE_HOST"


def parse_toml(text: str, source: str) -> dict[str, str]:
    """Return the settings of a TOML file as texts by key.

    Args:
        text: The file's content.
        source: The file's name, for messages.

    Raises:
        ConfigurationError: It is not TOML, has an unknown key, or a value of another type than it takes.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{source}: not TOML: {error}") from error
    settings = {}
    for key, value in document.items():
        if key not in _BY_KEY:
            similar = get_close_matches(key, _BY_KEY, n=1)
            hint = f"{similar[0]} is one" if similar else f"the keys are {', '.join(_BY_KEY)}"
            raise ConfigurationError(f"{source}: unknown key {key!r}; {hint}")
        settings[key] = _text_of(value, _BY_KEY[key], source)
    return settings


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Return a warning for each variable that looks like a setting and is none.

    They do not keep a node from starting: Kubernetes sets variables for each service of a namespace, such as
    ``RAFTKV_SERVICE_HOST`` and ``RAFTKV_PORT_2379_TCP`` for one that is called raftkv, and other programs may have
    their own. Those of Kubernetes are recognised by the service's host, which is always among them.

    Args:
        environment: The process environment.
    """
    known = {CONFIG_VARIABLE, *(ENVIRONMENT_PREFIX + name for name in _OF_COMMANDS)}
    known |= {setting.variable for setting in SETTINGS}
    services = [name.removesuffix(_SERVICE_HOST) for name in environment if name.endswith(_SERVICE_HOST)]
    parts = (_SERVICE_HOST, "_SERVICE_PORT", "_PORT")
    of_services = tuple(service + part for service in services for part in parts)
    warnings = []
    for name in sorted(environment):
        if not name.startswith(ENVIRONMENT_PREFIX) or name in known or name.startswith(of_services):
            continue
        similar = get_close_matches(name, known, n=1)
        hint = f"; {similar[0]} is one" if similar else ""
        warnings.append(f"the variable {name} is ignored: no setting has that name{hint}")
    return warnings


def _text_of(value: object, setting: Setting, source: str) -> str:
    if isinstance(value, bool) and setting.parse is _parse_flag:
        return str(value).lower()
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ConfigurationError(f"{source}: {setting.key} must be a text or a number")
    return str(value)


def build_config(
    flags: Mapping[str, str | None],
    environment: Mapping[str, str],
    file_settings: Mapping[str, str],
    file_source: str = "the configuration file",
) -> NodeConfig:
    """Build a node's configuration: flags before environment before file before defaults.

    Args:
        flags: Texts by TOML key; None for a flag that was not given.
        environment: The process environment. An empty variable counts as unset. Variables that name no
            setting are ignored; ``unknown_variables`` has them.
        file_settings: What ``parse_toml`` returned.
        file_source: The file's name, for messages.

    Raises:
        ConfigurationError: A value is malformed, or two contradict each other.
    """
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        given = _lookup(setting, flags, environment, file_settings, file_source)
        if given is not None:
            values[setting.key] = _parse(setting, *given)
    return _assemble(values)


def _lookup(
    setting: Setting,
    flags: Mapping[str, str | None],
    environment: Mapping[str, str],
    file_settings: Mapping[str, str],
    file_source: str,
) -> tuple[str, str] | None:
    flag = flags.get(setting.key)
    if flag is not None:
        return flag, f"--{setting.flag}"
    if environment.get(setting.variable):
        return environment[setting.variable], setting.variable
    if setting.key in file_settings:
        return file_settings[setting.key], f"{file_source}: {setting.key}"
    return None


def _parse(setting: Setting, text: str, source: str) -> Any:
    if not text:
        raise ConfigurationError(f"{source}: the value is empty")
    try:
        return setting.parse(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"{source}: {error}") from None


_TLS_KEYS = ("tls_cert", "tls_key", "tls_ca")
_AUTOPILOT_KEYS = ("autopilot_voters", "autopilot_dead_after_s")
_LIMITS_KEYS = (
    "max_pending_proposals",
    "request_timeout_s",
    "max_connections",
    "max_connections_per_address",
    "max_unread_bytes",
    "write_timeout_s",
)
_RETENTION_KEYS = ("compact_keep_revisions", "compact_keep_s", "idempotency_keep_s", "idempotency_max_bytes")
_STORAGE_KEYS = (
    "min_free_bytes",
    "snapshot_journal_bytes",
    "snapshot_bytes_per_s",
    "snapshot_catch_up_bytes",
    "quota_bytes",
    "corrupt_check_s",
)


def _assemble(values: Mapping[str, Any]) -> NodeConfig:
    if "discover_service" in values:
        values = _discovered(values)
    elif "discover_replicas" in values:
        raise ConfigurationError("discover-replicas means nothing without discover-service")
    elif "join" in values and "initial_cluster" in values:
        raise ConfigurationError("join and initial-cluster exclude each other")
    joining = Joining(values.get("join", ()), values.get("replace_lost", False))
    name = values.get("name", NodeId("default"))
    listen_client = values.get("listen_client", HostPort("127.0.0.1", 2379))
    listen_peer = values.get("listen_peer", HostPort("127.0.0.1", 2380))
    advertise_client = values.get("advertise_client")
    if advertise_client is None:
        advertise_client = f"{_scheme(values)}://{_reachable('client', listen_client)}"
    advertise_peer = values.get("advertise_peer")
    if advertise_peer is None:
        advertise_peer = _reachable("peer", listen_peer)
    return NodeConfig(
        name=name,
        data_dir=values.get("data_dir", Path("raftkv-data")),
        listen_client=listen_client,
        advertise_client=advertise_client,
        listen_peer=listen_peer,
        advertise_peer=advertise_peer,
        initial_cluster=values.get("initial_cluster", () if joining.urls else (Member(name, advertise_peer),)),
        joining=joining,
        initial_cluster_state=values.get("initial_cluster_state", InitialClusterState.AUTO),
        timing=Timing(**_group(values, "heartbeat_ms", "election_timeout_ms")),
        storage=Storage(**_group(values, *_STORAGE_KEYS)),
        limits=Limits(**_group(values, *_LIMITS_KEYS)),
        retention=Retention(**_group(values, *_RETENTION_KEYS)),
        replacing=Replacing(
            **{key.removeprefix("autopilot_"): values[key] for key in _AUTOPILOT_KEYS if key in values}
        ),
        tls=_tls(values),
        max_cluster_version=values.get("max_cluster_version"),
        log_format=values.get("log_format", LogFormat.TEXT),
        log_level=values.get("log_level", LogLevel.INFO),
        request_logging=RequestLogging(**_group(values, "slow_request_ms", "access_log")),
        listen_metrics=values.get("listen_metrics"),
        is_initial_cluster_given="initial_cluster" in values,
        watch_origins=values.get("watch_origins", ()),
    )


def _discovered(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what follows from a pod's name; what is given beside it wins, but for the members."""
    for setting in ("initial_cluster", "join"):
        if setting in values:
            raise ConfigurationError(f"discover-service and {setting.replace('_', '-')} exclude each other")
    if "name" not in values:
        raise ConfigurationError("discover-service needs name: the pod's (metadata.name)")
    listen_client = values.get("listen_client", HostPort("0.0.0.0", 2379))  # noqa: S104 - a pod's own address
    listen_peer = values.get("listen_peer", HostPort("0.0.0.0", 2380))  # noqa: S104 - likewise
    replicas = values.get("discover_replicas", 1)
    pod = identity_of_pod(
        values["name"],
        values["discover_service"],
        replicas,
        Ports(listen_client.port, listen_peer.port),
        _scheme(values),
    )
    return {
        "replace_lost": bool(pod.others),
        "advertise_client": f"{_scheme(values)}://{pod.host}:{listen_client.port}",
        "advertise_peer": f"{pod.host}:{listen_peer.port}",
        **values,
        "listen_client": listen_client,
        "listen_peer": listen_peer,
        "initial_cluster": pod.members,
        "join": pod.others,
    }


def _scheme(values: Mapping[str, Any]) -> str:
    return "https" if "tls_cert" in values else "http"


def _tls(values: Mapping[str, Any]) -> Tls | None:
    given = [key for key in (*_TLS_KEYS, "tls_client_ca") if key in values]
    missing = [key.replace("_", "-") for key in _TLS_KEYS if key not in values]
    if not given:
        return None
    if missing:
        raise ConfigurationError(f"{given[0].replace('_', '-')} means nothing without {' and '.join(missing)}")
    return Tls(values["tls_cert"], values["tls_key"], values["tls_ca"], values.get("tls_client_ca"))


def _reachable(side: str, listen: HostPort) -> str:
    if listen.is_wildcard:
        raise ConfigurationError(
            f"listen-{side} ({listen}) is no address that others could connect to, so advertise-{side} must be given"
        )
    return str(listen)


def _group(values: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: values[key] for key in keys if key in values}
