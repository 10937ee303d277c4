"""``raftkv endpoint``: the status and the health of each node by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click

from raftkv.cli.alarms import alarms_document
from raftkv.cli.endpoints import new_client, run_with_client, split_endpoints, with_endpoints
from raftkv.cli.failures import EXIT_CODES_HELP, NOT_DONE, fail
from raftkv.cli.tables import json_document, print_json, print_table, size_text, with_json
from raftkv.client import Client, EndpointStatus
from raftkv.errors import RaftkvError

_STATUS_COLUMNS = (
    "ENDPOINT",
    "NAME",
    "ID",
    "VERSION",
    "ROLE",
    "LEADER",
    "DB SIZE",
    "IN USE",
    "TERM",
    "INDEX",
    "APPLIED",
    "LAG",
    "ALARMS",
)
_HEALTH_COLUMNS = ("ENDPOINT", "NAME", "HEALTH", "TOOK", "REASON")
_NONE = "-"


@dataclass(frozen=True, slots=True)
class _Probe:
    """The answer of one node; the status is None when there is none, and endpoint or name when they are not known."""

    endpoint: str | None
    name: str | None
    status: EndpointStatus | None
    error: str
    seconds: float

    @property
    def problems(self) -> list[str]:
        return [self.error] if self.status is None else self.status.problems


@click.group(epilog=EXIT_CODES_HELP)
def endpoint() -> None:
    """Show the status and the health of each node by itself: of --endpoints, or of all members with --cluster."""


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--cluster", "every_member", is_flag=True, help="Ask every member that the cluster knows, at its client URL."
    )(with_json(with_endpoints(command)))


@endpoint.command(epilog=EXIT_CODES_HELP)
@_with_options
def health(*, every_member: bool, as_json: bool, endpoints: str, timeout_seconds: float) -> None:
    """Print whether each node serves linearizable reads, and how long it took to answer.

    Exit code 1 when a node does not answer, knows no leader, has no vote, cannot read, or an alarm is active.
    """
    probes = _ask(endpoints, timeout_seconds, every_member=every_member, checks_health=True)
    if as_json:
        _print_json(probes)
    else:
        print_table(_HEALTH_COLUMNS, [_health_row(probe) for probe in probes])
    _require_healthy(probes)


@endpoint.command(epilog=EXIT_CODES_HELP)
@_with_options
def status(*, every_member: bool, as_json: bool, endpoints: str, timeout_seconds: float) -> None:
    """Print what each node says of itself.

    DB SIZE is the disk that the store takes, IN USE the part of it with data. LAG is the number of committed entries
    that the node has not applied, measured against the highest commit index among the answers. Exit code 1 when a node
    does not answer, knows no leader, or an alarm is active.
    """
    probes = _ask(endpoints, timeout_seconds, every_member=every_member, checks_health=False)
    if as_json:
        _print_json(probes)
    else:
        committed = _highest_commit_index(probes)
        print_table(_STATUS_COLUMNS, [_status_row(probe, committed) for probe in probes])
    _require_healthy(probes)


def _ask(endpoints: str, timeout_seconds: float, *, every_member: bool, checks_health: bool) -> list[_Probe]:
    async def run(client: Client) -> list[_Probe]:
        asked_for: list[tuple[str | None, str | None]] = [(url, None) for url in split_endpoints(endpoints)]
        if every_member:
            known = (await client.cluster()).members
            asked_for = [(None if each.status is None else each.status.client_url, each.name) for each in known]
        asked = (_probe(url, name, timeout_seconds, checks_health=checks_health) for url, name in asked_for)
        return list(await asyncio.gather(*asked))

    return run_with_client(endpoints, timeout_seconds, run)


async def _probe(url: str | None, name: str | None, timeout_seconds: float, *, checks_health: bool) -> _Probe:
    if url is None:
        return _Probe(None, name, None, "other members cannot reach it, so its client URL is not known", 0.0)
    began = time.monotonic()
    try:
        async with new_client(url, timeout_seconds) as client:
            found = await client.maintenance.status(checks_health=checks_health)
    except RaftkvError as error:
        return _Probe(url, name, None, str(error).removeprefix(f"{url}: "), time.monotonic() - began)
    return _Probe(url, found.node.name, found, "", time.monotonic() - began)


def _highest_commit_index(probes: Sequence[_Probe]) -> int:
    return max((probe.status.node.commit_index for probe in probes if probe.status is not None), default=0)


def _lag(found: EndpointStatus, committed: int) -> int:
    return max(0, committed - found.node.applied_index)


def _role(found: EndpointStatus) -> str:
    return found.node.role.value if found.votes else "learner"


def _status_row(probe: _Probe, committed: int) -> tuple[str, ...]:
    found = probe.status
    if found is None:
        cells = {"ENDPOINT": probe.endpoint or _NONE, "NAME": probe.name or _NONE, "ROLE": "no answer"}
        return tuple(cells.get(column, _NONE) for column in _STATUS_COLUMNS)
    node = found.node
    return (
        probe.endpoint or _NONE,
        node.name,
        found.id,
        node.version,
        _role(found),
        node.leader or _NONE,
        size_text(found.store.allocated),
        size_text(found.store.used),
        str(node.term),
        str(node.last_index),
        str(node.applied_index),
        str(_lag(found, committed)),
        ", ".join(f"{alarm.kind.label} ({alarm.member})" for alarm in found.alarms) or _NONE,
    )


def _health_row(probe: _Probe) -> tuple[str, ...]:
    verdict = "unhealthy" if probe.problems else "healthy"
    return (
        probe.endpoint or _NONE,
        probe.name or _NONE,
        verdict,
        f"{probe.seconds * 1000:.1f} ms",
        "; ".join(probe.problems) or _NONE,
    )


def _print_json(probes: Sequence[_Probe]) -> None:
    committed = _highest_commit_index(probes)
    print_json(
        {
            "healthy": not any(probe.problems for probe in probes),
            "endpoints": [_json_of(probe, committed) for probe in probes],
        }
    )


def _json_of(probe: _Probe, committed: int) -> dict[str, Any]:
    found = probe.status
    return {
        "endpoint": probe.endpoint,
        "name": probe.name,
        "healthy": not probe.problems,
        "problems": probe.problems,
        "seconds": round(probe.seconds, 6),
        "lag_entries": None if found is None else _lag(found, committed),
        "status": None if found is None else json_document(found) | {"alarms": alarms_document(found.alarms)},
    }


def _require_healthy(probes: Sequence[_Probe]) -> None:
    unhealthy = [probe for probe in probes if probe.problems]
    if unhealthy:
        named = "; ".join(f"{probe.name or probe.endpoint}: {', '.join(probe.problems)}" for probe in unhealthy)
        fail(f"{len(unhealthy)} of {len(probes)} nodes are unhealthy: {named}", NOT_DONE)
