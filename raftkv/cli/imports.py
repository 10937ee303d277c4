"""``raftkv import``: a directory tree, or lines of JSON, to keys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from itertools import islice
from pathlib import Path

import click

from raftkv.cli.endpoints import key_argument, run_with_client, with_endpoints
from raftkv.cli.failures import EXIT_CODES_HELP, NotDone
from raftkv.cli.item_lines import read_items
from raftkv.cli.tree_files import TreeFile, scan_tree
from raftkv.cli.trees import progress_bar
from raftkv.client import Client, ImportedBatch, ImportStopped
from raftkv.client.imports import DEFAULT_BATCHES_AT_ONCE
from raftkv.errors import UnknownOutcome
from raftkv.operations import MAX_OPERATIONS, PutOperation
from raftkv.types import MAX_VALUE_BYTES

_LINES_AT_ONCE = 16


@click.command("import", epilog=f"{EXIT_CODES_HELP} What was written before an import stopped stays written.")
@click.argument("source", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--prefix", default="", help="Put this before each path or key, literally: mind the slash.")
@click.option(
    "--skip", type=click.IntRange(min=0), default=0, help="Leave out so many items, as they are written already."
)
@click.option(
    "--batch",
    "batch_items",
    type=click.IntRange(min=1, max=MAX_OPERATIONS),
    default=MAX_OPERATIONS,
    show_default=True,
    help="Most items that are written together.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(min=1, max=1024),
    default=DEFAULT_BATCHES_AT_ONCE,
    show_default=True,
    help="Batches under way at the same time.",
)
@with_endpoints
def import_items(
    source: Path,
    prefix: str,
    *,
    skip: int,
    batch_items: int,
    concurrency: int,
    endpoints: str,
    timeout_seconds: float,
) -> None:
    """Write the items of SOURCE, a directory or a file.

    Of a directory every file is written to the key PREFIX + its relative path. Links and special files are skipped and
    named. Sizes and names are checked before the first write.

    A file ("-" for standard input) has an item on each line, as listings have them: {"key": "a", "value": "1"}, with
    "encoding": "base64" for bytes that are not text, and perhaps a "lease" and a "content_type".

    Items are written in batches, in order. Each batch is written as a whole, in one revision, or not at all; the import
    is not atomic as a whole. A batch whose outcome is unknown is sent again, so an import outlives the failure of
    nodes; import to keys that no other client writes. When it stops, it says what was written and with which --skip it
    goes on.
    """

    async def run(client: Client) -> None:
        async def write(items: AsyncIterable[PutOperation], total: int | None) -> int:
            written = 0
            importing = client.import_items(items, skip=skip, batches_at_once=concurrency, batch_items=batch_items)
            async with progress_bar("import", total) as advance, aclosing(importing) as batches:
                async for batch in batches:
                    written += batch.count
                    advance(batch.count)
            return written

        try:
            if source.is_dir():  # noqa: ASYNC240 - nothing else runs yet
                tree = scan_tree(source, key_argument(prefix))
                written = await write(_read_files(tree.files, skip), max(0, len(tree.files) - skip))
                for path in tree.skipped:
                    click.echo(f"skipped {path}: not a regular file", err=True)
                click.echo(f"{written} files imported")
            else:
                with click.open_file(str(source), "rb") as file:
                    written = await write(_read_lines(read_items(file, key_argument(prefix))), None)
                click.echo(f"{written} items imported")
        except ImportStopped as stopped:
            for batch in stopped.batches:
                click.echo(_outcome(batch), err=True)
            click.echo(f"go on with --skip {stopped.position}", err=True)
            raise

    run_with_client(endpoints, timeout_seconds, run)


def _outcome(batch: ImportedBatch) -> str:
    items = f"items {batch.first + 1} to {batch.first + batch.count}"
    if batch.error is None:
        return f"{items}: written at revision {batch.revision}"
    outcome = "outcome unknown" if isinstance(batch.error, UnknownOutcome) else "not written"
    return f"{items}: {outcome}: {batch.error}"


async def _read_lines(items: Iterator[PutOperation]) -> AsyncIterator[PutOperation]:
    while True:
        # A pipe may have nothing for long, and answers must be read meanwhile.
        page, error = await asyncio.to_thread(_take, items)
        for item in page:
            yield item
        if error is not None:
            raise error
        if not page:
            return


def _take(items: Iterator[PutOperation]) -> tuple[list[PutOperation], Exception | None]:
    """Return some items, and the error that comes behind them."""
    page: list[PutOperation] = []
    try:
        for item in islice(items, _LINES_AT_ONCE):
            page.append(item)  # noqa: PERF402 - what came before an error is kept
    except (NotDone, OSError) as error:
        return page, error
    return page, None


async def _read_files(files: Sequence[TreeFile], skip: int) -> AsyncIterator[PutOperation]:
    for number, file in enumerate(files):
        # What is skipped is counted, and not read.
        value = b"" if number < skip else await asyncio.to_thread(_read_value, file.path)
        yield PutOperation(file.key, value)


def _read_value(path: Path) -> bytes:
    with path.open("rb") as file:
        value = file.read(MAX_VALUE_BYTES + 1)
    if len(value) > MAX_VALUE_BYTES:
        raise NotDone(f"{path} has grown beyond the {MAX_VALUE_BYTES} bytes of a value since the import began")
    return value
