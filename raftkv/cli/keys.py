"""``raftkv put``, ``get``, ``del`` and ``ls``."""

from __future__ import annotations

import sys

import click

from raftkv.cli.endpoints import key_argument, run_with_client, with_endpoints
from raftkv.cli.failures import EXIT_CODES_HELP, NotDone
from raftkv.client import Client, Missing
from raftkv.media_types import fault_of_media_type
from raftkv.types import Condition, Consistency, Revision

_STALE_HELP = "Answer from the local state of the node asked, which may lag behind."

_DEFAULT_WAIT_SECONDS = 60.0


@click.command(epilog=EXIT_CODES_HELP)
@click.argument("key")
@click.argument("value", default="-")
@click.option(
    "--if-revision", type=click.IntRange(min=1), help="Only if the key was last written at this revision (its ETag)."
)
@click.option("--if-absent", is_flag=True, help="Only if the key does not exist.")
@click.option(
    "--content-type",
    default="",
    metavar="TYPE",
    help="Store this media type with the value, such as text/plain: reads over HTTP answer with it. "
    "Without it they answer with the type that the suffix of KEY suggests.",
)
@with_endpoints
def put(
    key: str,
    value: str,
    *,
    if_revision: int | None,
    if_absent: bool,
    content_type: str,
    endpoints: str,
    timeout_seconds: float,
) -> None:
    """Write VALUE to KEY and print the revision of the write.

    Without VALUE, or when it is "-", the value is read from standard input.
    """
    if if_absent and if_revision is not None:
        raise click.UsageError("--if-revision and --if-absent exclude each other")
    fault = fault_of_media_type(content_type) if content_type else None
    if fault is not None:
        raise click.BadParameter(f"it {fault}", param_hint="--content-type")
    data = sys.stdin.buffer.read() if value == "-" else key_argument(value)
    condition = Condition(Revision(0)) if if_absent else _condition(if_revision)

    async def run(client: Client) -> None:
        stored = await client.put(key_argument(key), data, condition, content_type=content_type)
        click.echo(stored.mod_revision)

    run_with_client(endpoints, timeout_seconds, run)


@click.command(epilog=EXIT_CODES_HELP)
@click.argument("key")
@click.option("--stale", is_flag=True, help=_STALE_HELP)
@click.option("--revision", type=click.IntRange(min=1), help="As it was at this revision.")
@click.option("--after", type=click.IntRange(min=0), help="Wait until it has changed behind this revision.")
@click.option(
    "--wait",
    "wait_seconds",
    type=click.FloatRange(min=0),
    help="With --after: seconds after which waiting ends; 60 by default.",
)
@with_endpoints
def get(
    key: str,
    *,
    stale: bool,
    revision: int | None,
    after: int | None,
    wait_seconds: float | None,
    endpoints: str,
    timeout_seconds: float,
) -> None:
    """Write the value of KEY to standard output, byte for byte.

    On a terminal a line end follows. A key that does not exist, or that does not change in time, is exit code 1.
    """
    if revision is not None and after is not None:
        raise click.UsageError("--revision and --after exclude each other")
    if wait_seconds is not None and after is None:
        raise click.UsageError("--wait needs --after")
    consistency = Consistency.STALE if stale else Consistency.LINEARIZABLE
    past = None if revision is None else Revision(revision)

    async def run(client: Client) -> None:
        if after is None:
            found = await client.get(key_argument(key), consistency, revision=past)
        else:
            seconds = _DEFAULT_WAIT_SECONDS if wait_seconds is None else wait_seconds
            changed = await client.wait_for_change(key_argument(key), Revision(after), seconds, consistency)
            if changed is None:
                raise NotDone(f"the key {key!r} did not change within {seconds:g} s")
            found = changed
        if isinstance(found, Missing):
            raise NotDone(f"the key {key!r} does not exist")
        _write(found.item.value + (b"\n" if sys.stdout.isatty() else b""))

    run_with_client(endpoints, timeout_seconds, run)


@click.command("del", epilog=EXIT_CODES_HELP)
@click.argument("key")
@click.option(
    "--if-revision", type=click.IntRange(min=1), help="Only if the key was last written at this revision (its ETag)."
)
@click.option(
    "--prefix", "is_prefix", is_flag=True, help="Delete all keys that begin with KEY at once, and print their number."
)
@with_endpoints
def delete(key: str, if_revision: int | None, *, is_prefix: bool, endpoints: str, timeout_seconds: float) -> None:
    """Delete KEY. A key that does not exist is exit code 1.

    With --prefix no key is no failure. A hundred thousand keys take several seconds: with a --timeout that is too short
    the outcome is unknown, and it does no harm to delete again.
    """
    if is_prefix and if_revision is not None:
        raise click.UsageError("--if-revision is about one key, and has no meaning with --prefix")

    async def run(client: Client) -> None:
        if is_prefix:
            click.echo((await client.delete_prefix(key_argument(key))).deleted)
            return
        deleted = await client.delete(key_argument(key), _condition(if_revision))
        if not deleted.deleted:
            raise NotDone(f"the key {key!r} does not exist")

    run_with_client(endpoints, timeout_seconds, run)


@click.command("ls", epilog=EXIT_CODES_HELP)
@click.argument("prefix", default="")
@click.option("--limit", type=click.IntRange(min=1), help="Print at most this many keys.")
@click.option("--long", "is_long", is_flag=True, help="Print mod revision, create revision and version before the key.")
@click.option("--null", is_flag=True, help="End each line with a NUL byte, for keys that contain line ends.")
@click.option("--count", "counts_only", is_flag=True, help="Print how many there are, and nothing else.")
@click.option("--stale", is_flag=True, help=_STALE_HELP)
@with_endpoints
def list_keys(
    prefix: str,
    limit: int | None,
    *,
    is_long: bool,
    null: bool,
    counts_only: bool,
    stale: bool,
    endpoints: str,
    timeout_seconds: float,
) -> None:
    """Print the keys that begin with PREFIX (default: all), in byte order, one a line."""
    if counts_only and (limit is not None or is_long or null):
        raise click.UsageError("--count has no meaning with --limit, --long and --null")
    end = b"\0" if null else b"\n"

    async def run(client: Client) -> None:
        printed = 0
        consistency = Consistency.STALE if stale else Consistency.LINEARIZABLE
        if counts_only:
            click.echo((await client.count(key_argument(prefix), consistency)).count)
            return
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
