"""What a node answers, as types; an answer of another shape is refused, never guessed at."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson

from raftkv.client.failures import UnexpectedAnswer
from raftkv.operations import Lease, LeaseTime
from raftkv.types import Index, KeyRange, KeyValue, NodeId, NodeStatus, Revision, Role, Term
from raftkv.versions import ClusterVersion, SupportedVersions

_Field = TypeVar("_Field")


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer, read completely.

    Attributes:
        status: Its status code.
        headers: Its headers; the mapping ignores case.
        body: Its body.
        source: The URL that answered, for messages.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    source: str


@dataclass(frozen=True, slots=True)
class Stored:
    """A put that happened: the revisions of the key now, and the store's revision."""

    revision: Revision
    create_revision: Revision
    mod_revision: Revision
    version: int


@dataclass(frozen=True, slots=True)
class Deleted:
    """A delete that happened: how many keys it removed, and the store's revision."""

    revision: Revision
    deleted: int


@dataclass(frozen=True, slots=True)
class Found:
    """A key that exists, and the store's revision at which it was read."""

    revision: Revision
    item: KeyValue


@dataclass(frozen=True, slots=True)
class Missing:
    """A key that does not exist, and the store's revision at which it did not."""

    revision: Revision


@dataclass(frozen=True, slots=True)
class Counted:
    """A number of keys, and the store's revision at which they were counted."""

    revision: Revision
    count: int


@dataclass(frozen=True, slots=True)
class Leader:
    """Who leads an election.

    Attributes:
        value: What it proclaimed.
        lease: The lease that its leadership ends with.
        token: Its token.
        revision: Revision of what it proclaimed.
    """

    value: bytes
    lease: int
    token: int
    revision: Revision


@dataclass(frozen=True, slots=True)
class MemberView:
    """One member as the answering node sees it; ``status`` is None when the member did not answer it."""

    name: NodeId
    peer_address: str
    status: NodeStatus | None


@dataclass(frozen=True, slots=True)
class ClusterView:
    """The cluster as the answering node sees it; ``leader`` and ``leader_url`` are None while unknown.

    ``cluster_version`` is the feature level that the cluster is at, as far as the answering node has applied.
    """

    cluster_id: str
    answered_by: NodeId
    leader: NodeId | None
    leader_url: str | None
    term: Term
    members: tuple[MemberView, ...]
    cluster_version: ClusterVersion


@dataclass(frozen=True, slots=True)
class StateCheckView:
    """A comparison of the members' stores at one log index.

    ``results`` says of each member ``agrees``, ``differs`` (from a majority), ``disputed`` (no majority has the same)
    or ``unknown`` (not compared); ``is_sound`` whether all agree.
    """

    index: int
    is_sound: bool
    results: dict[NodeId, str]


class Document:
    """A JSON object whose members are read with their types checked.

    Args:
        document: It.
        source: Who sent it, for messages.

    Raises:
        UnexpectedAnswer: It is no object; methods raise it for members that are missing or of another type.
    """

    def __init__(self, document: Any, source: str) -> None:
        if not isinstance(document, dict):
            raise UnexpectedAnswer(f"{source}: the answer is not a JSON object")
        self._document = document
        self._source = source

    def get(self, name: str, kind: type[_Field]) -> _Field:
        """Return a member of a type."""
        value = self._document.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UnexpectedAnswer(f"{self._source}: {name} is missing from the answer, or not {kind.__name__}")
        return value

    def flag(self, name: str) -> bool:
        """Return a boolean."""
        value = self._document.get(name)
        if not isinstance(value, bool):
            raise UnexpectedAnswer(f"{self._source}: {name} is missing from the answer, or not a boolean")
        return value

    def optional(self, name: str, kind: type[_Field]) -> _Field | None:
        """Return a member of a type, None when it is not there."""
        return None if self._document.get(name) is None else self.get(name, kind)

    def nested(self, name: str) -> list[Document]:
        """Return a list of objects."""
        return [Document(item, self._source) for item in self.get(name, list)]

    def child(self, name: str) -> Document | None:
        """Return an object within this one, None when it is not there."""
        value = self._document.get(name)
        return None if value is None else Document(value, self._source)

    def required(self, name: str) -> Document:
        """Return an object within this one, which must be there."""
        return Document(self.get(name, dict), self._source)

    def revision(self, name: str = "revision") -> Revision:
        """Return a revision."""
        return Revision(self.get(name, int))

    def bytes(self, name: str) -> bytes:
        """Return bytes that travelled as base64."""
        return decode_base64(self.get(name, str), f"{self._source}: {name}")


def decode_base64(text: object, source: str) -> bytes:
    """Return bytes that travelled as base64.

    Raises:
        UnexpectedAnswer: They did not.
    """
    try:
        return base64.b64decode(text, validate=True)  # type: ignore[arg-type]  # checked by the call itself
    except (binascii.Error, ValueError, TypeError):
        raise UnexpectedAnswer(f"{source} is not base64") from None


def document_of(answer: Answer) -> Document:
    """Return the JSON object that an answer carries.

    Raises:
        UnexpectedAnswer: It carries none.
    """
    try:
        return Document(orjson.loads(answer.body), answer.source)
    except orjson.JSONDecodeError:
        raise UnexpectedAnswer(f"{answer.source}: the answer ({answer.status}) is not JSON") from None


def parse_stored(answer: Answer) -> Stored:
    """Read the answer to a put."""
    document = document_of(answer)
    return Stored(
        revision=document.revision(),
        create_revision=document.revision("create_revision"),
        mod_revision=document.revision("mod_revision"),
        version=document.get("version", int),
    )


def parse_deleted(answer: Answer) -> Deleted:
    """Read the answer to a delete."""
    document = document_of(answer)
    return Deleted(document.revision(), document.get("deleted", int))


def parse_found(key: bytes, answer: Answer) -> Found:
    """Read the answer to a get of a key that exists."""
    item = KeyValue(
        key=key,
        value=answer.body,
        create_revision=Revision(_header(answer, "X-Raftkv-Create-Revision", r"([0-9]+)")),
        mod_revision=Revision(_header(answer, "ETag", r'"([0-9]+)"')),
        version=_header(answer, "X-Raftkv-Version", r"([0-9]+)"),
        lease=_header(answer, "X-Raftkv-Lease", r"([0-9]+)") if "X-Raftkv-Lease" in answer.headers else 0,
        content_type=answer.headers.get("X-Raftkv-Content-Type", ""),
    )
    return Found(Revision(_header(answer, "X-Raftkv-Revision", r"([0-9]+)")), item)


def _header(answer: Answer, name: str, pattern: str) -> int:
    found = re.fullmatch(pattern, answer.headers.get(name, ""), re.ASCII)
    if found is None:
        raise UnexpectedAnswer(f"{answer.source}: the answer's {name} header is missing or not valid")
    return int(found[1])


def parse_missing(answer: Answer) -> Missing:
    """Read the answer to a get of a key that does not exist."""
    return Missing(document_of(answer).revision())


def parse_page(answer: Answer) -> KeyRange:
    """Read one page of a listing in base64."""
    document = document_of(answer)
    return KeyRange(
        items=tuple(parse_item(item) for item in document.nested("items")),
        revision=document.revision(),
        next_key=None if document.optional("next", str) is None else document.bytes("next"),
    )


def parse_count(answer: Answer) -> Counted:
    """Read a number of keys."""
    document = document_of(answer)
    return Counted(document.revision(), document.get("count", int))


def parse_item(item: Document) -> KeyValue:
    """Read a key with its value."""
    return KeyValue(
        key=item.bytes("key"),
        # Left out of a listing of keys only.
        value=b"" if item.optional("value", str) is None else item.bytes("value"),
        create_revision=item.revision("create_revision"),
        mod_revision=item.revision("mod_revision"),
        version=item.get("version", int),
        lease=item.optional("lease", int) or 0,
        content_type=item.optional("content_type", str) or "",
    )


def parse_cluster(answer: Answer) -> ClusterView:
    """Read a description of the cluster."""
    document = document_of(answer)
    leader = document.optional("leader", str)
    return ClusterView(
        cluster_id=document.get("cluster_id", str),
        answered_by=NodeId(document.get("answered_by", str)),
        leader=None if leader is None else NodeId(leader),
        leader_url=document.optional("leader_url", str),
        term=Term(document.get("term", int)),
        members=tuple(_parse_member(member, answer.source) for member in document.nested("members")),
        cluster_version=parse_version(document.get("cluster_version", str), answer.source),
    )


def parse_state_check(answer: Answer) -> StateCheckView:
    """Read the outcome of a comparison of stores."""
    document = document_of(answer)
    return StateCheckView(
        index=document.get("index", int),
        is_sound=document.flag("sound"),
        results={NodeId(each.get("name", str)): each.get("result", str) for each in document.nested("members")},
    )


def _parse_member(member: Document, source: str) -> MemberView:
    name = NodeId(member.get("name", str))
    peer_address = member.get("peer_address", str)
    status = member.child("status")
    parsed = None if status is None else parse_status(name, peer_address, status, source)
    return MemberView(name, peer_address, parsed)


def parse_status(name: NodeId, peer_address: str, status: Document, source: str) -> NodeStatus:
    """Read what a node says of itself.

    Args:
        name: The node.
        peer_address: Its Raft listener.
        status: What it says.
        source: Who answered, for messages.
    """
    leader = status.optional("leader", str)
    try:
        role = Role(status.get("role", str))
    except ValueError as error:
        raise UnexpectedAnswer(f"{source}: {error}") from None
    return NodeStatus(
        name=name,
        role=role,
        term=Term(status.get("term", int)),
        leader=None if leader is None else NodeId(leader),
        commit_index=Index(status.get("commit_index", int)),
        applied_index=Index(status.get("applied_index", int)),
        last_index=Index(status.get("last_index", int)),
        revision=status.revision(),
        client_url=status.optional("client_url", str),
        peer_address=peer_address,
        version=status.get("version", str),
        cluster_version=parse_version(status.get("cluster_version", str), source),
        supported_versions=SupportedVersions(
            parse_version(status.get("lowest_cluster_version", str), source),
            parse_version(status.get("highest_cluster_version", str), source),
        ),
    )


def parse_version(text: str, source: str) -> ClusterVersion:
    """Read a cluster version.

    Raises:
        UnexpectedAnswer: It is none.
    """
    try:
        return ClusterVersion.parse(text)
    except ValueError as error:
        raise UnexpectedAnswer(f"{source}: {error}") from None


def parse_granted(answer: Answer) -> Lease:
    """Read the answer to a lease that was made."""
    document = document_of(answer)
    return Lease(document.get("id", int), document.get("ttl_seconds", int))


def parse_lease_time(answer: Answer) -> LeaseTime:
    """Read a description of a lease with its keys."""
    document = document_of(answer)
    keys = tuple(decode_base64(key, answer.source) for key in document.get("keys", list))
    return LeaseTime(document.get("ttl_seconds", int), document.get("remaining_seconds", int), keys)


def parse_lease_ids(answer: Answer) -> list[int]:
    """Read a list of leases."""
    return [lease.get("id", int) for lease in document_of(answer).nested("leases")]


def parse_token(answer: Answer) -> int:
    """Read the token of a lock or of a candidacy."""
    return document_of(answer).get("token", int)


def parse_leader(document: Document) -> Leader:
    """Read who leads an election."""
    return Leader(document.bytes("value"), document.get("lease", int), document.get("token", int), document.revision())
