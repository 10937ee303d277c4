"""``raftkv export``: keys to a directory tree."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from raftkv.cli.endpoints import key_argument, run_with_client, with_endpoints
from raftkv.cli.failures import EXIT_CODES_HELP, NotDone
from raftkv.cli.tree_files import plan_export
from raftkv.client import Client, Missing
from raftkv.ports import PRIVATE_DIRECTORY

_Item = TypeVar("_Item")


@click.command("export", epilog=EXIT_CODES_HELP)
@click.argument("prefix")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Write into a directory that is not empty, over files of these names.")
@click.option(
    "--concurrency",
    type=click.IntRange(min=1, max=1024),
    default=32,
    show_default=True,
    help="Requests under way at the same time.",
)
@with_endpoints
def export_tree(
    prefix: str, directory: Path, *, overwrite: bool, concurrency: int, endpoints: str, timeout_seconds: float
) -> None:
    """Write every key that begins with PREFIX to a file below DIRECTORY, named by the rest of the key.

    Keys that are no safe paths are refused before the first file is written. Each file appears complete or not
    at all. Files and directories that are made are readable by their owner alone.
    """

    async def run(client: Client) -> None:
        _require_usable(directory, overwrite=overwrite)
        encoded_prefix = key_argument(prefix)
        keys = [item.key async for item in client.list(encoded_prefix, keys_only=True)]
        plan = plan_export(keys, encoded_prefix, directory)

        async def fetch(key: bytes) -> None:
            found = await client.get(key)
            if isinstance(found, Missing):
                raise NotDone(f"the key {key!r} was deleted during the export")
            await asyncio.to_thread(_write_file, plan[key], found.item.value)

        _make_private(directory)
        await _for_each(plan, fetch, concurrency, "export")
        click.echo(f"{len(plan)} files exported")

    run_with_client(endpoints, timeout_seconds, run)


async def _for_each(
    items: Iterable[_Item], handle: Callable[[_Item], Awaitable[None]], concurrency: int, label: str
) -> None:
    """Handle all items, a few at a time; the first error ends it, with what is under way cancelled."""
    pending = list(reversed(list(items)))
    async with progress_bar(label, len(pending)) as advance:

        async def work() -> None:
            while pending:
                await handle(pending.pop())
                advance(1)

        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(min(concurrency, len(pending))):
                    workers.create_task(work())
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None


@asynccontextmanager
async def progress_bar(label: str, total: int | None) -> AsyncIterator[Callable[[int], None]]:
    """Show how far a command is while the context lasts, on a terminal.

    Args:
        label: What it does.
        total: Items that there are, None when their number is not known.

    Returns:
        What to call with the number of items that are done since.
    """
    if not sys.stderr.isatty():
        yield lambda _count: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=total)
        yield lambda count: progress.advance(task, count)


def _write_file(path: Path, value: bytes) -> None:
    _make_private(path.parent)
    # A temporary file is its owner's alone, and so stays the exported one.
    with NamedTemporaryFile(dir=path.parent, prefix=".raftkv-", delete=False) as file:
        partial = Path(file.name)
        try:
            file.write(value)
            file.flush()
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _make_private(directory: Path) -> None:
    """Make a directory and its parents where they are missing, for their owner alone."""
    if not directory.exists():
        _make_private(directory.parent)
        directory.mkdir(mode=PRIVATE_DIRECTORY, exist_ok=True)


def _require_usable(directory: Path, *, overwrite: bool) -> None:
    if directory.exists() and not directory.is_dir():
        raise NotDone(f"{directory} is not a directory")
    if not overwrite and directory.is_dir() and any(directory.iterdir()):
        raise NotDone(f"{directory} is not empty; --overwrite writes into it all the same")
