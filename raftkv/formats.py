"""Numbered formats of what is at rest or travels whole, and the readers of each that this release has.

What a release reads is in its tables. What it writes follows from the cluster version alone: a format that a later
release adds is written only when that version says that every member reads it, because the data travels (snapshots,
backups) or stays when a node is downgraded (journal, store, identity). When the version rises, the store takes its new
format on in that very step, the journal with its next segment, snapshots and backups with the next one that is made. An
identity stays as it was made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from raftkv import __version__
from raftkv.versions import FIRST_VERSION, ClusterVersion

_Raw = TypeVar("_Raw")
_Read = TypeVar("_Read")


class UnknownFormat(ValueError):
    """Data is of a format that this release cannot read. The text names the format and those that it reads."""


@dataclass(frozen=True, slots=True)
class Format(Generic[_Raw, _Read]):
    """One format.

    Attributes:
        read: Turns its raw form into what this release works with.
        since: The lowest cluster version at which it is written.
    """

    read: Callable[[_Raw], _Read]
    since: ClusterVersion = FIRST_VERSION


class Formats(Generic[_Raw, _Read]):
    """The formats of one kind of data.

    Args:
        kind: The kind of data, for messages.
        formats: The formats by number; newer ones have greater numbers.
    """

    def __init__(self, kind: str, formats: Mapping[int, Format[_Raw, _Read]]) -> None:
        self._kind = kind
        self._formats = dict(formats)

    def check(self, number: object, cluster_version: object = None) -> None:
        """Check that a format can be read.

        Args:
            number: The format.
            cluster_version: The cluster's version when the data was written, if the data says so.

        Raises:
            UnknownFormat: It cannot.
        """
        if type(number) is int and number in self._formats:
            return
        known = " and ".join(str(known) for known in sorted(self._formats))
        if type(number) is int and number > max(self._formats):
            reader = f"raftkv {cluster_version}" if type(cluster_version) is str else "the release that wrote it"
            raise UnknownFormat(
                f"{self._kind} format {number} is newer than this release, raftkv {__version__}, which reads {known}; "
                f"{reader} or a later one reads it"
            )
        raise UnknownFormat(f"{self._kind} format {number!r} is unknown, raftkv {__version__} reads {known}")

    def read(self, number: object, raw: _Raw, cluster_version: object = None) -> _Read:
        """Read data of a format.

        Args:
            number: The format.
            raw: The data.
            cluster_version: The cluster's version when the data was written, if the data says so.

        Raises:
            UnknownFormat: This release has no reader for it.
        """
        self.check(number, cluster_version)
        assert type(number) is int, "that was checked"
        return self._formats[number].read(raw)

    def written_at(self, version: ClusterVersion) -> int:
        """Return the newest format that may be written at a cluster version."""
        return max(number for number, each in self._formats.items() if each.since <= version)

    def add(self, number: int, each: Format[_Raw, _Read]) -> None:
        """Add a format."""
        self._formats[number] = each

    def remove(self, number: int) -> None:
        """Remove a format."""
        del self._formats[number]
