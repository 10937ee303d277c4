"""The header that each answer has."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from raftkv.http.etcd.fields import Fields
from raftkv.http.etcd.identity import cluster_number
from raftkv.service.api import ClusterService, StoreService
from raftkv.types import Revision

Document = dict[str, Any]
Unary = Callable[[Fields], Awaitable[Document]]


class Headers:
    """Writes headers.

    Args:
        cluster: Whose ids and term they have.
        store: Whose revision.
    """

    def __init__(self, cluster: ClusterService, store: StoreService) -> None:
        self._cluster = cluster
        self._store = store

    def cluster_header(self) -> Document:
        """Return a header without a revision, as answers about the cluster have it."""
        own = self._cluster.own()
        return {
            "cluster_id": str(cluster_number(self._cluster.cluster_id)),
            "member_id": str(self._cluster.own_id()),
            "raft_term": str(own.term),
        }

    def header(self, revision: Revision | None = None) -> Document:
        """Return a header with a revision, the store's unless another is given."""
        return self.cluster_header() | {"revision": str(revision or self._store.revision)}

    def answer(self, document: Document, revision: Revision | None = None) -> Document:
        """Return an answer with its header."""
        return {"header": self.header(revision), **document}
