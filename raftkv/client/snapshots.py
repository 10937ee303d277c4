"""Snapshots that a node takes of itself, as a client asks for them."""

from __future__ import annotations

from dataclasses import dataclass

from raftkv.client.answers import Answer, document_of
from raftkv.types import Index, NodeId, Revision, Term


@dataclass(frozen=True, slots=True)
class TakenSnapshot:
    """A snapshot that a node has of itself.

    Attributes:
        answered_by: The node.
        index: The last log index that it covers.
        term: Term of the entry there.
        revision: The store's revision in it.
        size: Bytes of its data.
        sha256: Hexadecimal digest of its data.
    """

    answered_by: NodeId
    index: Index
    term: Term
    revision: Revision
    size: int
    sha256: str


def parse_taken_snapshot(answer: Answer) -> TakenSnapshot:
    """Read what a node says of a snapshot that it has taken."""
    document = document_of(answer)
    return TakenSnapshot(
        NodeId(document.get("answered_by", str)),
        Index(document.get("index", int)),
        Term(document.get("term", int)),
        document.revision(),
        document.get("bytes", int),
        document.get("sha256", str),
    )
