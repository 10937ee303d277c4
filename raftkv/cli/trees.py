"""``raftkv import`` and ``raftkv export``: a directory tree to keys and back."""

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
from raftkv.cli.tree_files import TreeFile, plan_export, scan_tree
from raftkv.client import Client, Missing
from raftkv.types import MAX_VALUE_BYTES

_Item = TypeVar("_Item")

_concurrency = click.option(
    "--concurrency",
    type=click.IntRange(min=1, max=1024),
    default=32,
    show_default=True,
    help="Requests under way at the same time.",
)


@click.command("import", epilog=EXIT_CODES_HELP)
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--prefix", default="", help="Put this before each path, literally: mind the slash.")
@_concurrency
@with_endpoints
def import_tree(directory: Path, prefix: str, *, concurrency: int, endpoints: str, timeout_seconds: float) -> None:
    """Write every file below DIRECTORY to the key PREFIX + its relative path.

    Links and special files are skipped and counted. A write whose outcome is unknown is sent again, so an import
    outlives the failure of nodes; import to a prefix that nobody else writes to. Sizes and names are checked before
    the first write.
    """

    async def run(client: Client) -> None:
        tree = scan_tree(directory, key_argument(prefix))

        async def store(file: TreeFile) -> None:
            value = await asyncio.to_thread(_read_value, file.path)
            await client.put(file.key, value)

        await _for_each(tree.files, store, concurrency, "import")
        for path in tree.skipped:
            click.echo(f"skipped {path}: not a regular file", err=True)
        click.echo(f"{len(tree.files)} files imported")

    run_with_client(endpoints, timeout_seconds, run)


@click.command("export", epilog=EXIT_CODES_HELP)
@click.argument("prefix")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Write into a directory that is not empty, over files of these names.")
@_concurrency
@with_endpoints
def export_tree(
    prefix: str, directory: Path, *, overwrite: bool, concurrency: int, endpoints: str, timeout_seconds: float
) -> None:
    """Write every key that begins with PREFIX to a file below DIRECTORY, named by the rest of the key.

    Keys that are no safe paths are refused before the first file is written. Each file appears complete or not
    at all.
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

        directory.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - nothing else runs yet
        await _for_each(plan, fetch, concurrency, "export")
        click.echo(f"{len(plan)} files exported")

    run_with_client(endpoints, timeout_seconds, run)


async def _for_each(
    items: Iterable[_Item], handle: Callable[[_Item], Awaitable[None]], concurrency: int, label: str
) -> None:
    """Handle all items, a few at a time; the first error ends it, with what is under way cancelled."""
    pending = list(reversed(list(items)))
    async with _progress(label, len(pending)) as advance:

        async def work() -> None:
            while pending:
                await handle(pending.pop())
                advance()

        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(min(concurrency, len(pending))):
                    workers.create_task(work())
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None


@asynccontextmanager
async def _progress(label: str, total: int) -> AsyncIterator[Callable[[], None]]:
    if not sys.stderr.isatty():
        yield lambda: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=total)
        yield lambda: progress.advance(task)


def _read_value(path: Path) -> bytes:
    with path.open("rb") as file:
        value = file.read(MAX_VALUE_BYTES + 1)
    if len(value) > MAX_VALUE_BYTES:
        raise NotDone(f"{path} has grown beyond the {MAX_VALUE_BYTES} bytes of a value since the import began")
    return value


def _write_file(path: Path, value: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=path.parent, prefix=".raftkv-", delete=False) as file:
        partial = Path(file.name)
        try:
            file.write(value)
            file.flush()
            # A temporary file is private; an exported one is as readable as the directory's owner makes files.
            partial.chmod(0o644)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _require_usable(directory: Path, *, overwrite: bool) -> None:
    if directory.exists() and not directory.is_dir():
        raise NotDone(f"{directory} is not a directory")
    if not overwrite and directory.is_dir() and any(directory.iterdir()):
        raise NotDone(f"{directory} is not empty; --overwrite writes into it all the same")
