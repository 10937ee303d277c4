"""``raftkv chaos``: break a cluster on purpose, and check what clients saw."""

from __future__ import annotations

import asyncio
import ipaddress
import random
import signal
import sys
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any

import click
import orjson
from yarl import URL

from raftkv.chaos.report import Summary, describe
from raftkv.chaos.run import Plan, Run
from raftkv.chaos.schedule import Fault
from raftkv.chaos.timeline import draw
from raftkv.cli.failures import NOT_DONE, UNKNOWN_OUTCOME, failures_as_exit_codes
from raftkv.errors import ConfigurationError
from raftkv.types import NodeId

_ALL_FAULTS = ",".join(fault.value for fault in Fault)
_NO_FAULTS = "none"

_EXIT_CODES_HELP = (
    "Exit codes: 0 the history is linearizable and every node serves again; 1 it is not, or something else failed; "
    "2 wrong usage, or no such cluster; 3 the checker could not decide within its bounds."
)


@click.command(epilog=_EXIT_CODES_HELP)
@click.option(
    "--duration",
    "seconds",
    type=click.FloatRange(min=1, max=86_400),
    default=60.0,
    show_default=True,
    help="Seconds of breaking things.",
)
@click.option(
    "--faults",
    metavar="NAME,NAME,…",
    help=f"What to break: some of {_ALL_FAULTS}; or {_NO_FAULTS}.  [default: all of them, none with --endpoints]",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    default=Path("raftkv-dev-data"),
    show_default=True,
    help="Data directory of a running 'raftkv dev'.",
)
@click.option(
    "--endpoints",
    metavar="URL,URL,…",
    help="Check another cluster instead: nothing is broken but what you break, and --data-dir is not used.",
)
@click.option("--allow-remote", is_flag=True, help="Let --endpoints name other machines than this one.")
@click.option("--clients", type=click.IntRange(1, 256), default=10, show_default=True, help="Clients at a time.")
@click.option(
    "--rate",
    type=click.FloatRange(min=1, max=10_000),
    default=400.0,
    show_default=True,
    help="Operations a second at most, of all clients together.",
)
@click.option(
    "--max-operations",
    type=click.IntRange(1, 5_000_000),
    default=200_000,
    show_default=True,
    help="Operations after which the run ends early.",
)
@click.option(
    "--recovery",
    "recovery_seconds",
    type=click.FloatRange(min=0.1, max=3600),
    default=60.0,
    show_default=True,
    help="Seconds after the last fault in which every node must serve again.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Seed of all choices.  [default: a random one, printed]")
@click.option(
    "--timeline",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("raftkv-chaos.svg"),
    show_default=True,
    help="Where to draw faults and latencies over time.",
)
@click.option(
    "--history",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write every operation, one JSON object a line.  [default: nowhere, or raftkv-chaos.jsonl after a "
    "failure]",
)
@click.option("--keep-keys", is_flag=True, help="Leave the keys of a good run in the cluster.")
def chaos(
    seconds: float,
    faults: str | None,
    data_dir: Path,
    endpoints: str | None,
    clients: int,
    rate: float,
    max_operations: int,
    recovery_seconds: float,
    seed: int | None,
    timeline: Path,
    history: Path | None,
    *,
    allow_remote: bool,
    keep_keys: bool,
) -> None:
    """Break a cluster of 'raftkv dev' while clients use it, and check that it kept its promises.

    Clients put, delete, compare-and-swap and read a few keys below chaos/ at every node. Meanwhile nodes are killed and
    paused, and the links between them are cut, delayed, throttled and reset. In the end everything is mended, every
    node must serve again, and the history of all operations must be linearizable: what every client saw could have
    happened on one copy of the data, one operation after the other.
    """
    with failures_as_exit_codes():
        urls = _parse_endpoints(endpoints, allow_remote=allow_remote)
        plan = Plan(
            seconds=seconds,
            faults=_parse_faults(faults, has_endpoints=bool(urls)),
            data_dir=None if urls else data_dir,
            endpoints=urls,
            clients=clients,
            rate=rate,
            max_operations=max_operations,
            recovery_seconds=recovery_seconds,
            seed=random.SystemRandom().randrange(2**32) if seed is None else seed,
            keep_keys=keep_keys,
        )
        click.echo(f"seed {plan.seed}")
        summary, nodes = asyncio.run(_run(plan))
        for line in describe(summary):
            click.echo(line)
        title = f"raftkv chaos, {summary.seconds:.0f} s, seed {summary.seed}: {summary.report.verdict.value}"
        timeline.write_bytes(draw(summary, nodes, title))
        click.echo(f"timeline: {timeline}")
        if history is None and not summary.is_proven:
            history = Path("raftkv-chaos.jsonl")
        if history is not None:
            _write_history(history, summary)
            click.echo(f"history: {history}")
    if not summary.is_proven:
        sys.exit(NOT_DONE if summary.is_refuted else UNKNOWN_OUTCOME)


async def _run(plan: Plan) -> tuple[Summary, list[NodeId]]:
    run = Run(plan, click.echo)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, run.stop)
    summary = await run.go()
    return summary, [node.name for node in run.nodes]


def _parse_faults(text: str | None, *, has_endpoints: bool) -> tuple[Fault, ...]:
    if text == _NO_FAULTS or (text is None and has_endpoints):
        return ()
    if has_endpoints:
        raise ConfigurationError("--faults: only what 'raftkv dev' runs can be broken; not --endpoints")
    try:
        return tuple(Fault(name.strip()) for name in (text or _ALL_FAULTS).split(","))
    except ValueError as error:
        raise ConfigurationError(f"--faults: {error}; some of {_ALL_FAULTS}, or {_NO_FAULTS}") from None


def _parse_endpoints(text: str | None, *, allow_remote: bool) -> tuple[str, ...]:
    if text is None:
        return ()
    urls = tuple(url.strip() for url in text.split(","))
    for url in urls:
        if not allow_remote and not _is_loopback(url):
            raise ConfigurationError(
                f"--endpoints: {url} is not on this machine; --allow-remote if this load may really go there"
            )
    return urls


def _is_loopback(url: str) -> bool:
    try:
        host = URL(url).host or ""
    except ValueError:
        return False
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _write_history(path: Path, summary: Summary) -> None:
    with path.open("wb") as file:
        for operation in summary.history:
            file.write(orjson.dumps(asdict(operation), default=_encode, option=orjson.OPT_APPEND_NEWLINE))


def _encode(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    assert isinstance(value, bytes)
    return value.decode(errors="backslashreplace")
