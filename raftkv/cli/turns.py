"""``raftkv lock`` and ``raftkv elect``: run a command while a lock is held, or for as long as this node leads."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence

import click

from raftkv.cli.endpoints import key_argument, run_with_client, with_endpoints
from raftkv.client import Client, HeldLease, LeaseLost
from raftkv.client.client import DEFAULT_HOLD_SECONDS

_KILLED_AFTER_SECONDS = 5.0
"""A command that goes on for so long after it was told to end is killed."""

_COMMAND_HELP = (
    "The exit code is the command's (128 and the signal's number when a signal ended it), "
    "1 when the turn did not come or was lost."
)

_turn_options = (
    click.option(
        "--ttl",
        "hold_seconds",
        type=click.IntRange(min=1),
        default=DEFAULT_HOLD_SECONDS,
        show_default=True,
        help="Seconds after which others may go on when this process dies.",
    ),
    click.option(
        "--wait",
        "wait_seconds",
        type=click.FloatRange(min=0),
        help="Seconds to wait for the turn; without it, as long as it takes.",
    ),
)


@click.command(epilog=_COMMAND_HELP)
@click.argument("name")
@click.argument("command", metavar="-- COMMAND [ARGUMENTS]…", nargs=-1, required=True, type=click.UNPROCESSED)
@_turn_options[0]
@_turn_options[1]
@with_endpoints
def lock(
    name: str,
    command: Sequence[str],
    *,
    hold_seconds: int,
    wait_seconds: float | None,
    endpoints: str,
    timeout_seconds: float,
) -> None:
    """Run COMMAND while the lock NAME is held.

    COMMAND finds RAFTKV_LOCK_TOKEN, RAFTKV_LEASE and, for the header X-Raftkv-Fence, RAFTKV_FENCE in its environment.
    It is told to end (SIGTERM) when the lock is lost.
    """

    async def run(client: Client) -> int:
        async with client.lock(key_argument(name), seconds=hold_seconds, wait_seconds=wait_seconds) as held:
            variables = {"RAFTKV_LOCK_TOKEN": str(held.token), "RAFTKV_FENCE": held.fence.header}
            return await _run_while_held(command, held.lease, variables)

    sys.exit(run_with_client(endpoints, timeout_seconds, run))


@click.command(epilog=_COMMAND_HELP)
@click.argument("name")
@click.argument("command", metavar="-- COMMAND [ARGUMENTS]…", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--value", default="", help="What to proclaim to whoever asks who leads.")
@_turn_options[0]
@_turn_options[1]
@with_endpoints
def elect(
    name: str,
    command: Sequence[str],
    *,
    value: str,
    hold_seconds: int,
    wait_seconds: float | None,
    endpoints: str,
    timeout_seconds: float,
) -> None:
    """Run COMMAND once elected leader of NAME, for as long as that lasts.

    COMMAND finds RAFTKV_ELECTION_TOKEN and RAFTKV_LEASE in its environment. It is told to end (SIGTERM) when the
    leadership is lost.
    """

    async def run(client: Client) -> int:
        election, proclaimed = key_argument(name), key_argument(value)
        async with client.campaign(election, proclaimed, seconds=hold_seconds, wait_seconds=wait_seconds) as leadership:
            variables = {"RAFTKV_ELECTION_TOKEN": str(leadership.token)}
            return await _run_while_held(command, leadership.lease, variables)

    sys.exit(run_with_client(endpoints, timeout_seconds, run))


async def _run_while_held(command: Sequence[str], lease: HeldLease, variables: Mapping[str, str]) -> int:
    """Run a command, and end it when the lease is lost; return its exit code.

    Raises:
        LeaseLost: The lease was lost, and the command is ended.
        OSError: The command could not be started.
    """
    environment = {**os.environ, **variables, "RAFTKV_LEASE": str(lease.id)}
    process = await asyncio.create_subprocess_exec(*command, env=environment)
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        # Whoever ends this process means the command; the lock is released when that has ended.
        asyncio.get_running_loop().add_signal_handler(signal_number, _pass_on, process, signal_number)
    ended, lost = asyncio.create_task(process.wait()), asyncio.create_task(lease.lost.wait())
    await asyncio.wait({ended, lost}, return_when=asyncio.FIRST_COMPLETED)
    lost.cancel()
    if ended.done():
        return ended.result() if ended.result() >= 0 else 128 - ended.result()
    _pass_on(process, signal.SIGTERM)
    try:
        await asyncio.wait_for(asyncio.shield(ended), _KILLED_AFTER_SECONDS)
    except TimeoutError:
        process.kill()
        await ended
    raise LeaseLost(f"the turn was lost, and {command[0]} was ended: lease {lease.id} has ended, or may have")


def _pass_on(process: asyncio.subprocess.Process, signal_number: signal.Signals) -> None:
    if process.returncode is None:
        process.send_signal(signal_number)
