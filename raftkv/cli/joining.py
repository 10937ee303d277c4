"""How a node with an empty data directory becomes a member of a cluster that runs."""

from __future__ import annotations

import asyncio
import logging

from raftkv.client import Client, MemberList, TlsFiles
from raftkv.config import NodeConfig
from raftkv.consensus.segments import recover
from raftkv.errors import ConfigurationError, MemberExists, NotApplied, UnknownOutcome, UnsupportedVersion
from raftkv.membership import ClusterMember, MemberId
from raftkv.runtime.clock import RealRandomness
from raftkv.runtime.files import DataDirectoryLock, RealDirectory
from raftkv.runtime.identity import Identity, give_up_directory, has_identity, read_identity, store_identity
from raftkv.runtime.peer_proof import FindMembers
from raftkv.types import Member, NodeId
from raftkv.versions import SUPPORTED_VERSIONS, ClusterVersion

logger = logging.getLogger(__name__)

_ANSWER_SECONDS = 3.0
"""For each node to say which members its cluster has."""

_FINDER_SECONDS = 2.0
"""The same, while a dialler waits for its verification."""

_CHANGE_SECONDS = 6.0
"""For one node to add or replace this member; then the next one is asked."""

_PAUSE_SECONDS = 0.5
_LOOKS_BEFORE_BOOTSTRAP = 3
_LOOKS_BETWEEN_WORDS = 20


async def join_if_new(config: NodeConfig) -> None:
    """Make an empty data directory that of a member of the cluster to be joined; others are left as they are.

    A node that may also begin a cluster with others looks a few times, and begins one when none runs. If that was
    wrong, because the others were down too, they refuse it; then nothing is in its directory that anybody counts on,
    and the next start joins after all.

    Raises:
        ConfigurationError: The cluster does not let it in, or not without being told to replace a member.
        FatalError: What is in the directory does not check.
    """
    if not config.joining.urls:
        return
    directory = RealDirectory(config.data_dir)
    with DataDirectoryLock(config.data_dir):
        if not has_identity(directory) or _may_have_begun_in_vain(config, directory):
            await _join(config, directory)


def finder_of_members(config: NodeConfig) -> FindMembers | None:
    """Return what asks the cluster to be joined for its members; None when none is named.

    A member that has missed changes of the membership verifies members by that which it does not know yet.
    """
    if not config.joining.urls:
        return None

    async def find_members() -> list[ClusterMember]:
        asked = (_members_at(url, config) for url in config.joining.urls)
        # Whatever is wrong with a URL or a file: any peer can cause this, and it must not end the node.
        found = await asyncio.gather(*asked, return_exceptions=True)
        for url, failure in zip(config.joining.urls, found, strict=True):
            if isinstance(failure, BaseException):
                logger.debug("%s does not say which members its cluster has: %r", url, failure)
        return [member for members in found if isinstance(members, list) for member in members]

    return find_members


async def _members_at(url: str, config: NodeConfig) -> list[ClusterMember]:
    answer = await _ask(url, _tls(config), _FINDER_SECONDS)
    if isinstance(answer, str) or answer.answered_by == config.name:
        return []
    return [
        ClusterMember(MemberId(int(member.id, 16)), member.name, member.peer_address, is_voter=member.votes)
        for member in answer.members
    ]


async def _join(config: NodeConfig, directory: RealDirectory) -> None:
    looks = attempts = 0
    warned_of: set[str] = set()
    while True:
        found, silent = await _look(config)
        answers = list(found.values())
        if answers and silent.keys() - warned_of:
            warned_of |= silent.keys()
            logger.warning("going on without some nodes of the cluster to be joined: %s", "; ".join(silent.values()))
        if answers and has_identity(directory):
            if not _is_another(read_identity(directory), answers):
                return
            give_up_directory(config.data_dir)
        if answers:
            version = _checked_version(config, answers)
            identity = await _enter(config, found, attempts)
            attempts += 1
            if identity is not None:
                store_identity(directory, identity, version)
                logger.info("joined cluster %s as member %016x", identity.cluster_id, identity.member_id)
                return
        looks += 1
        if config.initial_cluster and not answers and looks >= _LOOKS_BEFORE_BOOTSTRAP:
            logger.info("no cluster runs at %s; beginning one", ", ".join(config.joining.urls))
            return
        if not answers and looks % _LOOKS_BETWEEN_WORDS == 1:
            logger.info("waiting for the cluster to be joined: %s", "; ".join(silent.values()))
        await asyncio.sleep(_PAUSE_SECONDS)


def _checked_version(config: NodeConfig, answers: list[MemberList]) -> ClusterVersion:
    """Return the cluster's version; refuse to join before the cluster has a member that can never take part.

    Raises:
        UnsupportedVersion: This release does not support the cluster's version.
    """
    version = max(answer.cluster_version for answer in answers)
    refusal = SUPPORTED_VERSIONS.refusal(config.name, version)
    if refusal is not None:
        raise UnsupportedVersion(refusal)
    return version


def _may_have_begun_in_vain(config: NodeConfig, directory: RealDirectory) -> bool:
    """Whether a directory has nothing in it but what a node makes that never met its cluster."""
    if not config.joining.replaces_lost or directory.child("snapshots").names():
        return False
    log = recover(directory.child("journal"), read_identity(directory).cluster_id, None)
    return log.base_index == 1 and not log.entries


def _is_another(identity: Identity, answers: list[MemberList]) -> bool:
    """Whether the cluster knows this member with other data than it has now."""
    known = [member for answer in answers if (member := answer.named(identity.name)) is not None]
    return any(member.storage_id not in (None, identity.storage_id) for member in known)


async def _look(config: NodeConfig) -> tuple[dict[str, MemberList], dict[str, str]]:
    """Ask every node that is known who belongs to its cluster.

    Returns:
        The answers by URL, and why there is none of the others.
    """
    urls = config.joining.urls
    asked = await asyncio.gather(*(_ask(url, _tls(config), _ANSWER_SECONDS) for url in urls))
    answers = dict(zip(urls, asked, strict=True))
    found = {url: each for url, each in answers.items() if isinstance(each, MemberList)}
    return (
        {url: each for url, each in found.items() if each.answered_by != config.name},
        {url: each for url, each in answers.items() if isinstance(each, str)},
    )


def _tls(config: NodeConfig) -> TlsFiles | None:
    """Return what this node shows to others as a client of theirs."""
    return None if config.tls is None else TlsFiles(config.tls.ca, config.tls.cert, config.tls.key)


async def _ask(url: str, tls: TlsFiles | None, seconds: float) -> MemberList | str:
    async with Client([url], seconds, seconds, tls=tls) as client:
        try:
            return await client.members.list()
        except (NotApplied, UnknownOutcome) as error:
            return str(error)


async def _enter(config: NodeConfig, found: dict[str, MemberList], attempts: int) -> Identity | None:
    """Take the place that this node has in the cluster, or ask for one; None when that has to be looked at again.

    Args:
        config: The node's configuration.
        found: What each URL has answered.
        attempts: How often a place was asked for before. Each time the next URL is asked, since one may hang.
    """
    answers = list(found.values())
    clusters = {answer.cluster_id for answer in answers}
    if len(clusters) > 1:
        raise ConfigurationError(f"the nodes to be joined belong to different clusters: {', '.join(sorted(clusters))}")
    known = [member for answer in answers if (member := answer.named(config.name)) is not None]
    ids = {member.id for member in known}
    has_joined = any(member.storage_id is not None for member in known)
    if len(ids) == 1 and len(known) == len(answers) and not has_joined:
        return _identity(config, answers[0], known[0].id, known[0].peer_address)
    if has_joined and not config.joining.replaces_lost:
        raise ConfigurationError(
            f"{config.name} is a member of cluster {answers[0].cluster_id} already, and {config.data_dir} is empty: "
            f'if its data is lost, run "raftkv member replace {config.name}" first'
        )
    url = list(found)[attempts % len(found)]
    async with Client([url], _CHANGE_SECONDS, _CHANGE_SECONDS, tls=_tls(config)) as client:
        try:
            if has_joined:
                await client.members.replace(config.name, config.advertise_peer)
            elif not known:
                await client.members.add(config.name, config.advertise_peer)
        except MemberExists as error:
            raise ConfigurationError(f"the cluster does not let {config.name} in: {error}") from error
        except (NotApplied, UnknownOutcome) as error:
            # Whatever became of it shows when the cluster is looked at again.
            logger.warning("joining failed, trying again: %s", error)
    return None


def _identity(config: NodeConfig, cluster: MemberList, member_id: str, peer_address: str) -> Identity:
    if peer_address != config.advertise_peer:
        raise ConfigurationError(
            f"the cluster knows {config.name} at {peer_address}, but its advertise-peer is {config.advertise_peer}"
        )
    initial = tuple(Member(NodeId(name), address) for name, address in cluster.initial_members)
    token = RealRandomness().token()
    return Identity(cluster.cluster_id, config.name, MemberId(int(member_id, 16)), token, initial)
