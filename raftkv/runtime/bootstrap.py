"""The questions that a node without data asks its configured peers before it begins a cluster.

Members that lost their disks and are started with their old flags would otherwise form an empty cluster under the id
of the old one, while the member that still has the data is away. So every peer is asked, on the peer port. A peer
without data consents, and so does one with data in which the asker never took part: that is the first start of a member
whose peers were faster. A peer that has met the asker before, or has data of another cluster, refuses.

Two wiped members of three must not take each other's consent for enough while the third cannot be reached. So, unless
the state is said to be new, peers that do not answer are waited for.
"""

from __future__ import annotations

import asyncio
import logging

from raftkv.config import InitialClusterState, NodeConfig
from raftkv.errors import ConfigurationError, ForeignData
from raftkv.runtime.framing import (
    BadFrame,
    Confirm,
    Consent,
    Hello,
    Inquiry,
    Rejected,
    Vouch,
    encode_handshake,
)
from raftkv.runtime.handshake_call import ask, read_handshake
from raftkv.runtime.identity import cluster_id_of
from raftkv.runtime.transport import MutualTls
from raftkv.tls import HANDSHAKE_SECONDS
from raftkv.types import Member, NodeId

logger = logging.getLogger(__name__)

_ANSWER_SECONDS = 2.0
_PAUSE_SECONDS = 0.2
_ROUNDS_BETWEEN_WORDS = 50


class Bootstrap:
    """Asks the peers of a node whose data directory is empty, and answers those of them that ask the same.

    Args:
        config: The node's configuration.
        path: Its data directory, for messages.
        tls: Contexts to speak TLS with, None to speak without.
    """

    def __init__(self, config: NodeConfig, path: str, tls: MutualTls | None) -> None:
        self._config = config
        self._path = path
        self._tls = tls
        self._cluster_id = cluster_id_of(config.initial_cluster)
        self._peers = [member for member in config.initial_cluster if member.name != config.name]

    async def ask_peers(self) -> None:
        """Return when the node may begin its cluster.

        Raises:
            ConfigurationError: The state is said to be existing, or the peer address cannot be listened on.
            ForeignData: A peer has data that rules it out.
        """
        state = self._config.initial_cluster_state
        if state is InitialClusterState.EXISTING:
            raise ConfigurationError(
                f"{self._path} is empty, and initial-cluster-state is existing, so no cluster is begun: start this "
                "member with --join, or restore its directory from a backup"
            )
        if not self._peers:
            return
        listen = self._config.listen_peer
        try:
            server = await asyncio.start_server(
                self._answer,
                listen.host,
                listen.port,
                ssl=None if self._tls is None else self._tls.accepting,
                ssl_handshake_timeout=None if self._tls is None else HANDSHAKE_SECONDS,
            )
        except OSError as error:
            raise ConfigurationError(
                f"the peer address {listen} cannot be listened on: {error.strerror or error}"
            ) from error
        try:
            await self._ask_all(waits=state is InitialClusterState.AUTO)
        finally:
            server.close()

    async def _ask_all(self, *, waits: bool) -> None:
        silent = self._peers
        rounds = 0
        while silent:
            answers = await asyncio.gather(*(self._ask(peer) for peer in silent))
            for peer, answer in zip(silent, answers, strict=True):
                if isinstance(answer, Rejected):
                    raise ForeignData(
                        f"{self._path} is empty, and no cluster is begun: {peer.name} refuses this node: {answer.text}"
                    )
            reasons = {peer: answer for peer, answer in zip(silent, answers, strict=True) if isinstance(answer, str)}
            silent = list(reasons)
            if silent and not waits:
                names = ", ".join(peer.name for peer in silent)
                logger.warning("beginning a cluster without an answer of %s: the state is said to be new", names)
                return
            if silent:
                if rounds % _ROUNDS_BETWEEN_WORDS == 1:
                    logger.info(
                        "%s is empty; before a cluster is begun, every peer must answer that it has none either "
                        "(--initial-cluster-state new does not wait for that). No answer of %s",
                        self._path,
                        ", ".join(f"{peer.name} at {peer.peer_address} ({why})" for peer, why in reasons.items()),
                    )
                rounds += 1
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _ask(self, peer: Member) -> Consent | Rejected | str:
        """Return a peer's answer, or why there is none."""
        question = Inquiry(self._cluster_id, self._config.name, peer.name)
        answer = await ask(peer.peer_address, question, None if self._tls is None else self._tls.dialling)
        return answer if isinstance(answer, Consent | Rejected | str) else f"it answers with {type(answer).__name__}"

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one peer that is in the same state, or that has data already."""
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                question = await read_handshake(reader)
                writer.write(encode_handshake(self._answer_to(question)))
                await writer.drain()
        except (OSError, BadFrame, TimeoutError) as error:
            logger.debug("a question was not answered: %s", error)
        finally:
            writer.close()

    def _answer_to(self, question: object) -> Consent | Rejected:
        name = self._config.name
        if isinstance(question, Hello | Confirm | Vouch):
            return Rejected("starting", f"{name} has no data yet, and asks its peers")
        if not isinstance(question, Inquiry):
            raise BadFrame("a connection that begins with neither hello nor inquiry")
        if question.target != name:
            return Rejected("target", f"this is {name}, not {question.target}")
        if question.cluster_id != self._cluster_id:
            return Rejected("cluster", f"{name} has another initial cluster: the initial clusters differ")
        return Consent(NodeId(name))
