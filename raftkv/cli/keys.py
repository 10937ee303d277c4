"""``raftkv put``, ``get``, ``del`` and ``ls``."""

from __future__ import annotations

import sys

import click

from raftkv.cli.endpoints import key_argument, run_with_client, with_endpoints
from raftkv.cli.failures import EXIT_CODES_HELP, NotDone
from raftkv.client import Client, Missing
from raftkv.types import Condition, Consistency, Revision

_STALE_HELP = "Answer from the local state of the node asked, which may lag behind."


@click.command(epilog=EXIT_CODES_HELP)
@click.argument("key")
@click.argument("value", default="-")
@click.option(
    "--if-revision", type=click.IntRange(min=1), help="Only if the key was last written at this revision (its ETag)."
)
@click.option("--if-absent", is_flag=True, help="Only if the key does not exist.")
@with_endpoints
def put(
    key: str, value: str, if_revision: int | None, *, if_absent: bool, endpoints: str, timeout_seconds: float
) -> None:
    """Write VALUE to KEY and print the revision of the write.

    Without VALUE, or when it is "-", the value is read from standard input.
    """
    if if_absent and if_revision is not None:
        raise click.UsageError("--if-revision and --if-absent exclude each other")
    data = sys.stdin.buffer.read() if value == "-" else key_argument(value)
    condition = Condition(Revision(0)) if if_absent else _condition(if_revision)

    async def run(client: Client) -> None:
        stored = await client.put(key_argument(key), data, condition)
        click.echo(stored.mod_revision)

    run_with_client(endpoints, timeout_seconds, run)


@click.command(epilog=EXIT_CODES_HELP)
@click.argument("key")
@click.option("--stale", is_flag=True, help=_STALE_HELP)
@with_endpoints
def get(key: str, *, stale: bool, endpoints: str, timeout_seconds: float) -> None:
    """Write the value of KEY to standard output, byte for byte.

    On a terminal a line end follows. A key that does not exist is exit code 1.
    """

    async def run(client: Client) -> None:
        found = await client.get(key_argument(key), Consistency.STALE if stale else Consistency.LINEARIZABLE)
        if isinstance(found, Missing):
            raise NotDone(f"the key {key!r} does not exist")
        _write(found.item.value + (b"\n" if sys.stdout.isatty() else b""))

    run_with_client(endpoints, timeout_seconds, run)


@click.command("del", epilog=EXIT_CODES_HELP)
@click.argument("key")
@click.option(
    "--if-revision", type=click.IntRange(min=1), help="Only if the key was last written at this revision (its ETag)."
)
@with_endpoints
def delete(key: str, if_revision: int | None, *, endpoints: str, timeout_seconds: float) -> None:
    """Delete KEY. A key that does not exist is exit code 1."""

    async def run(client: Client) -> None:
        deleted = await client.delete(key_argument(key), _condition(if_revision))
        if not deleted.deleted:
            raise NotDone(f"the key {key!r} does not exist")

    run_with_client(endpoints, timeout_seconds, run)


@click.command("ls", epilog=EXIT_CODES_HELP)
@click.argument("prefix", default="")
@click.option("--limit", type=click.IntRange(min=1), help="Print at most this many keys.")
@click.option("--long", "is_long", is_flag=True, help="Print mod revision, create revision and version before the key.")
@click.option("--null", is_flag=True, help="End each line with a NUL byte, for keys that contain line ends.")
@click.option("--stale", is_flag=True, help=_STALE_HELP)
@with_endpoints
def list_keys(
    prefix: str, limit: int | None, *, is_long: bool, null: bool, stale: bool, endpoints: str, timeout_seconds: float
) -> None:
    """Print the keys that begin with PREFIX (default: all), in byte order, one a line."""
    end = b"\0" if null else b"\n"

    async def run(client: Client) -> None:
        printed = 0
        consistency = Consistency.STALE if stale else Consistency.LINEARIZABLE
        async for item in client.list(key_argument(prefix), keys_only=True, consistency=consistency):
            head = f"{item.mod_revision}\t{item.create_revision}\t{item.version}\t" if is_long else ""
            _write(head.encode() + item.key + end)
            printed += 1
            if printed == limit:
                break

    run_with_client(endpoints, timeout_seconds, run)


def _condition(revision: int | None) -> Condition | None:
    return None if revision is None else Condition(Revision(revision))


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
