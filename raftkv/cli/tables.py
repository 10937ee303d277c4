"""Answers as tables for people, as lines with tabs for other programs, and as JSON."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
import orjson
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

with_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
"""Adds the option that ``print_json`` is for."""

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_UNIT = 1024


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under the names of their columns.

    On a terminal that is as a table, or as one block for each row when the table is wider than the terminal; elsewhere
    as lines with tabs between the cells.
    """
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            click.echo("\t".join(row))
        return
    console = Console()
    if _table_width(columns, rows) > console.width:
        click.echo("\n".join(_block(columns, row) for row in rows), nl=False)
        return
    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _table_width(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Return the width of a table: that of its longest cells, each with a space on both sides and lines between."""
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    return sum(width + 3 for width in widths) + 1


def _block(columns: Sequence[str], row: Sequence[str]) -> str:
    """Return a row as lines with one cell each, the first one as their title."""
    width = max(map(len, columns))
    lines = [f"  {column:<{width}}  {cell}" for column, cell in zip(columns[1:], row[1:], strict=True)]
    return "\n".join((row[0], *lines, ""))


def print_json(document: dict[str, Any]) -> None:
    """Print a document for other programs."""
    click.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2))


def json_document(view: DataclassInstance) -> dict[str, Any]:
    """Return a dataclass as it is to be printed as JSON, with versions as people write them."""

    def written(fields: list[tuple[str, Any]]) -> Any:
        names = dict(fields)
        return f"{names['major']}.{names['minor']}" if names.keys() == {"major", "minor"} else names

    document: dict[str, Any] = asdict(view, dict_factory=written)
    return document


def size_text(size: int) -> str:
    """Return a number of bytes for people, such as ``1.5 MiB``."""
    number, unit = float(size), 0
    while number >= _UNIT and unit < len(_UNITS) - 1:
        number, unit = number / _UNIT, unit + 1
    return f"{number:.1f} {_UNITS[unit]}" if unit else f"{size} B"
