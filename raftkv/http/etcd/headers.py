"""The header that each answer has."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from raftkv.http.etcd.fields import Fields
from raftkv.http.etcd.identity import cluster_number
from raftkv.service.api import ClusterService
from raftkv.types import Revision

Document = dict[str, Any]


class ReadDocument(Document):
    """An answer to a request that has changed nothing: where there is no room for it, it may be refused."""


Unary = Callable[[Fields], Awaitable[Document]]


class Headers:
    """Writes headers.

    Args:
        cluster: Whose ids and term they have.
    """

    def __init__(self, cluster: ClusterService) -> None:
        self._cluster = cluster

    def cluster_header(self) -> Document:
        """Return a header without a revision, as answers about the cluster have it."""
        own = self._cluster.own()
        return {
            "cluster_id": str(cluster_number(self._cluster.cluster_id)),
            "member_id": str(self._cluster.own_id()),
            "raft_term": str(own.term),
        }

    def answer(self, document: Document, revision: Revision) -> Document:
        """Return an answer with its header.

        Args:
            document: The answer.
            revision: The revision of the operation that is answered, never the one that the store has by now.
        """
        return {"header": self.cluster_header() | {"revision": str(revision)}, **document}

    def answer_to_read(self, document: Document, revision: Revision) -> ReadDocument:
        """Return the same as one to a request that has changed nothing."""
        return ReadDocument(self.answer(document, revision))
