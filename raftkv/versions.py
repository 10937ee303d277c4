"""Cluster versions: the feature level that all members of a cluster have agreed on, and the levels of this release.

A cluster version says which commands and formats may be written. It is replicated state, it only rises, and the leader
raises it when every member supports the next one (``raftkv.service.upgrade``). A release supports a range of them, so
that members of two releases can run side by side; ``docs/upgrade.md`` is the operator's view.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_PATTERN = re.compile(r"(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class ClusterVersion:
    """A feature level, ordered by major and then by minor number.

    Attributes:
        major: Major number of the release that introduced it.
        minor: Minor number of that release.
    """

    major: int
    minor: int

    @classmethod
    def parse(cls, text: str) -> ClusterVersion:
        """Read ``MAJOR.MINOR``.

        Raises:
            ValueError: The text is no cluster version.
        """
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is no cluster version, which is MAJOR.MINOR")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        """Return ``MAJOR.MINOR``."""
        return f"{self.major}.{self.minor}"


@dataclass(frozen=True, slots=True)
class SupportedVersions:
    """The cluster versions that a node can run at.

    Attributes:
        lowest: The oldest one.
        highest: The newest one.
    """

    lowest: ClusterVersion
    highest: ClusterVersion

    def includes(self, version: ClusterVersion) -> bool:
        """Return whether a node with this range can run at a cluster version."""
        return self.lowest <= version <= self.highest

    def refusal(self, subject: str, version: ClusterVersion) -> str | None:
        """Return why a node cannot take part in a cluster, None when it can.

        Args:
            subject: The node, for the text.
            version: The cluster's version.
        """
        if self.includes(version):
            return None
        return f"the cluster is at version {version}, and {subject} supports {self}"

    def __str__(self) -> str:
        """Return the range for people."""
        if self.lowest == self.highest:
            return f"version {self.lowest} only"
        return f"versions {self.lowest} to {self.highest}"


@dataclass(frozen=True, slots=True)
class AnnouncedVersions:
    """What a member says of itself to the others.

    Attributes:
        supported: The cluster versions that it supports.
        held: The cluster's version shall not rise above this one while the member says so, None for no such wish.
    """

    supported: SupportedVersions
    held: ClusterVersion | None = None

    @property
    def ceiling(self) -> ClusterVersion:
        """The highest cluster version that it agrees to."""
        return self.supported.highest if self.held is None else min(self.held, self.supported.highest)

    @classmethod
    def parse(cls, lowest: str, highest: str, held: str) -> AnnouncedVersions:
        """Read what a member says of itself on the wire; an empty ``held`` stands for None.

        Raises:
            ValueError: It is no range of versions.
        """
        supported = SupportedVersions(ClusterVersion.parse(lowest), ClusterVersion.parse(highest))
        if supported.lowest > supported.highest:
            raise ValueError(f"a range of versions from {lowest} to {highest}")
        return cls(supported, ClusterVersion.parse(held) if held else None)


FIRST_VERSION = ClusterVersion(0, 1)
"""What a new cluster begins at on every node, until its leader raises it."""

SUPPORTED_VERSIONS = SupportedVersions(FIRST_VERSION, FIRST_VERSION)
"""The cluster versions of this release."""

OWN_VERSIONS = AnnouncedVersions(SUPPORTED_VERSIONS)
"""What a node of this release announces without a wish of its operator."""
