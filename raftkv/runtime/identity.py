"""Who a data directory belongs to: made once at bootstrap, checked at every start.

The cluster id follows from the initial members, so that nodes bootstrapped with different lists refuse each other.
The storage id is random: a member that lost its disk comes back with another one, and its peers refuse it, because it
has forgotten its votes and acknowledgements and could vote twice (H12k).
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from raftkv.errors import ConfigurationError, CorruptData, ForeignData, UnsupportedVersion
from raftkv.formats import Format, Formats, UnknownFormat
from raftkv.membership import MemberId, initial_member_id
from raftkv.ports import Directory, Randomness
from raftkv.runtime.files import sync_directory
from raftkv.types import ClusterId, Member, NodeId
from raftkv.versions import FIRST_VERSION, ClusterVersion

_FILE_NAME = "identity.json"


@dataclass(frozen=True, slots=True)
class Identity:
    """One data directory's owner.

    Attributes:
        cluster_id: The cluster.
        name: The member.
        member_id: Its id as a member.
        storage_id: This very data directory.
        members: The members that the cluster was bootstrapped with.
        restored_from: The cluster whose backup this cluster began with; empty when it began with nothing.
    """

    cluster_id: ClusterId
    name: NodeId
    member_id: MemberId
    storage_id: str
    members: tuple[Member, ...]
    restored_from: str = ""


def cluster_id_of(members: tuple[Member, ...]) -> ClusterId:
    """Derive a cluster's id from its initial members: 16 hexadecimal digits."""
    return ClusterId(hashlib.sha256(listing_of(members).encode()).hexdigest()[:16])


def listing_of(members: tuple[Member, ...]) -> str:
    """Return members as ``--initial-cluster`` has them, sorted by name."""
    return ",".join(f"{member.name}={member.peer_address}" for member in sorted(members, key=lambda m: m.name))


def store_identity(directory: Directory, identity: Identity, cluster_version: ClusterVersion = FIRST_VERSION) -> None:
    """Write the identity of a data directory.

    Args:
        directory: The data directory.
        identity: Whose it is.
        cluster_version: The cluster's version, which the format follows; a cluster that begins is at the first.
    """
    number = IDENTITY_FORMATS.written_at(cluster_version)
    fields = {"format": number, **asdict(identity), "member_id": f"{identity.member_id:016x}"}
    directory.replace(_FILE_NAME, orjson.dumps(fields))


def has_identity(directory: Directory) -> bool:
    """Whether a data directory belongs to somebody."""
    return _FILE_NAME in directory.names()


def give_up_directory(path: Path) -> None:
    """Remove everything that raftkv keeps in a data directory, whose lock is held, so that its owner can be another.

    The identity goes last: whatever a crash leaves belongs to somebody still.

    Args:
        path: The data directory. It stays, and so does what others put into it: it may be the root of a volume.
    """
    for name in ("journal", "snapshots", "store", "backups"):
        if (path / name).exists():
            shutil.rmtree(path / name)
    sync_directory(path)
    (path / _FILE_NAME).unlink()
    sync_directory(path)


def load_or_create(directory: Directory, name: NodeId, members: tuple[Member, ...], randomness: Randomness) -> Identity:
    """Return the identity of a data directory, made now when the directory is new.

    Args:
        directory: The data directory.
        name: The member that it must belong to.
        members: The members that its cluster must have been bootstrapped with; none when that is not known.
        randomness: Makes the storage id of a new directory.

    Raises:
        ConfigurationError: The directory is new, and no members are given.
        ForeignData: The directory belongs to another member or another cluster.
        CorruptData: The identity is unreadable, or missing beside other data.
    """
    names = directory.names()
    if _FILE_NAME not in names:
        _refuse_data_without_identity(directory)
        if not members:
            raise ConfigurationError(f"{directory.path} is empty, and it is not said which cluster to begin or to join")
        cluster_id = cluster_id_of(members)
        identity = Identity(cluster_id, name, initial_member_id(cluster_id, name), randomness.token(), members)
        store_identity(directory, identity)
        return identity
    identity = read_identity(directory)
    if identity.name != name:
        raise ForeignData(f"{directory.path} belongs to member {identity.name!r}, not to {name!r}")
    if members and listing_of(identity.members) != listing_of(members):
        raise ForeignData(
            f"{directory.path} belongs to cluster {identity.cluster_id} with the members "
            f"{listing_of(identity.members)}; "
            f"the initial cluster given now is {listing_of(members)}. It may be left out once there is data"
        )
    return identity


def _refuse_data_without_identity(directory: Directory) -> None:
    if directory.child("journal").names():
        raise CorruptData(f"{directory.path}/{_FILE_NAME}", 0, "it is missing, and the directory holds a journal")


def read_identity(directory: Directory) -> Identity:
    """Read the identity of a data directory.

    Raises:
        CorruptData: It does not check.
        UnsupportedVersion: It is of a format that this release does not read.
    """
    path = f"{directory.path}/{_FILE_NAME}"
    try:
        fields = orjson.loads(directory.read(_FILE_NAME))
        return IDENTITY_FORMATS.read(fields["format"], fields)
    except UnknownFormat as error:
        raise UnsupportedVersion(f"{path}: {error}; the data was left as it is") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptData(path, 0, f"not an identity ({error})") from error


def _read_2(fields: Mapping[str, Any]) -> Identity:
    members = tuple(Member(NodeId(m["name"]), m["peer_address"]) for m in fields["members"])
    return Identity(
        ClusterId(fields["cluster_id"]),
        NodeId(fields["name"]),
        MemberId(int(fields["member_id"], 16)),
        fields["storage_id"],
        members,
        str(fields.get("restored_from", "")),
    )


IDENTITY_FORMATS: Formats[Mapping[str, Any], Identity] = Formats("identity", {2: Format(_read_2)})
"""Formats of identities, which are never rewritten: a reader stays for as long as its data directories may."""
