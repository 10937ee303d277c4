"""``raftkv watch``."""

from __future__ import annotations

import base64
from typing import Any

import click
import orjson

from raftkv.cli.endpoints import key_argument, run_with_client, with_endpoints
from raftkv.cli.failures import EXIT_CODES_HELP
from raftkv.client import Change, Client, WatchedChange
from raftkv.operations import EventKind
from raftkv.types import KeyValue, Revision


@click.command(epilog=EXIT_CODES_HELP)
@click.argument("key")
@click.option("--prefix", "is_prefix", is_flag=True, help="Watch all keys that begin with KEY.")
@click.option("--from-revision", type=click.IntRange(min=1), help="Begin with the changes of this revision.")
@click.option("--previous", is_flag=True, help="Print keys as they were before, too.")
@click.option("--changes", type=click.IntRange(min=1), help="End after this many changes.")
@with_endpoints
def watch(
    key: str,
    *,
    is_prefix: bool,
    from_revision: int | None,
    previous: bool,
    changes: int | None,
    endpoints: str,
    timeout_seconds: float,
) -> None:
    """Print every change of KEY as a line of JSON: its revision, and what it did to which keys.

    The watch goes on, without a gap or a repetition, when the node that serves it ends. Keys and values that are not
    text are printed as {"base64": …}.
    """
    watched = key_argument(key)

    async def run(client: Client) -> None:
        left = changes
        async for change in client.watch(
            key=None if is_prefix else watched,
            prefix=watched if is_prefix else None,
            from_revision=None if from_revision is None else Revision(from_revision),
            wants_previous=previous,
        ):
            click.echo(orjson.dumps(_document(change)))
            left = None if left is None else left - 1
            if left == 0:
                return

    run_with_client(endpoints, timeout_seconds, run)


def _document(change: Change) -> dict[str, Any]:
    return {"revision": change.revision, "events": [_event(event) for event in change.events]}


def _event(change: WatchedChange) -> dict[str, Any]:
    event = change.event
    document: dict[str, Any] = {"type": event.kind.value, "key": _text(event.item.key)}
    if event.kind is EventKind.PUT:
        document |= _attributes(event.item)
    if change.previous is not None:
        document["previous"] = _attributes(change.previous)
    return document


def _attributes(item: KeyValue) -> dict[str, Any]:
    document: dict[str, Any] = {
        "value": _text(item.value),
        "create_revision": item.create_revision,
        "mod_revision": item.mod_revision,
        "version": item.version,
    }
    document |= {"lease": item.lease} if item.lease else {}
    return document | ({"content_type": item.content_type} if item.content_type else {})


def _text(data: bytes) -> str | dict[str, str]:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}
