"""One question to a peer port, on a connection of its own, which ends with the answer."""

from __future__ import annotations

import asyncio
import os
import ssl

from raftkv.config import HostPort
from raftkv.errors import ConfigurationError
from raftkv.runtime.framing import (
    MAX_HANDSHAKE_BYTES,
    BadFrame,
    FrameReader,
    Handshake,
    Presence,
    Probe,
    Question,
    Rejected,
    decode_handshake,
    encode_handshake,
)
from raftkv.service.members import MemberAtAddress
from raftkv.types import ClusterId

_ANSWER_SECONDS = 2.0


class HungUp(BadFrame):
    """A peer closed the connection without an answer."""


async def ask(address: str, question: Question, tls: ssl.SSLContext | None) -> Handshake | str:
    """Return the answer to a question, or why there is none.

    Args:
        address: ``HOST:PORT`` of a peer port.
        question: The question.
        tls: Context for dialling members, None to speak without TLS.
    """
    try:
        host_port = HostPort.parse(address)
        async with asyncio.timeout(_ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection(host_port.host, host_port.port, ssl=tls)
            try:
                writer.write(encode_handshake(question))
                return await read_handshake(reader)
            except (HungUp, ConnectionError):
                return f"it says nothing and hangs up; {hint_of_silence(is_encrypted=tls is not None)}"
            finally:
                writer.close()
    except ssl.SSLError as error:
        return f"TLS failed: {error}"
    except TimeoutError:
        return f"nothing within {_ANSWER_SECONDS:g} s"
    except ConfigurationError as error:
        return str(error)
    except UnicodeError as error:
        return f"no host name: {error}"
    except OSError as error:
        return cause_of(error, is_encrypted=tls is not None)
    except BadFrame as error:
        return str(error)


def hint_of_silence(*, is_encrypted: bool) -> str:
    """Return what to look at when a peer ends a connection without an answer.

    With TLS 1.3 a node that is dialled refuses a certificate after the handshake is complete for the one that dials.
    """
    return "does it refuse the certificate of this node?" if is_encrypted else "is TLS on at one of us only?"


def cause_of(error: OSError, *, is_encrypted: bool) -> str:
    """Return why a peer could not be connected to.

    Args:
        error: The failure.
        is_encrypted: Whether it was dialled with TLS.
    """
    if error.errno is not None and error.errno > 0:
        # The texts of event loops repeat the address.
        cause = os.strerror(error.errno)
    else:
        # uvloop says nothing of a connection that is reset during a TLS handshake.
        cause = error.strerror or str(error) or "the connection broke"
    if is_encrypted and isinstance(error, ConnectionResetError | ConnectionAbortedError):
        cause += "; is TLS on at one of us only?"
    return cause


async def read_handshake(reader: asyncio.StreamReader) -> Handshake:
    """Read one handshake message.

    Raises:
        BadFrame: Something else came.
        HungUp: The connection was closed before.
    """
    frames = FrameReader(MAX_HANDSHAKE_BYTES)
    while data := await reader.read(MAX_HANDSHAKE_BYTES):
        for payload in frames.feed(data):
            return decode_handshake(payload)
    raise HungUp("the connection was closed")


def presence_in(answer: Handshake | str) -> Presence | str:
    """Return which member has answered a probe, or why that is not known.

    Args:
        answer: What ``ask`` returned.
    """
    if isinstance(answer, Rejected):
        return answer.text
    return answer if isinstance(answer, Presence | str) else f"it answers with {type(answer).__name__}"


class AddressProbe:
    """Asks who listens at an address (``raftkv.service.members.Addresses``).

    Args:
        cluster_id: The cluster. Only its members answer.
        tls: Context for dialling members, None to speak without TLS.
    """

    def __init__(self, cluster_id: ClusterId, tls: ssl.SSLContext | None) -> None:
        self._cluster_id = cluster_id
        self._tls = tls

    async def member_at(self, peer_address: str) -> MemberAtAddress | str:
        """Return who listens at an address, or why that is not known."""
        found = presence_in(await ask(peer_address, Probe(self._cluster_id), self._tls))
        return found if isinstance(found, str) else MemberAtAddress(found.name, found.member_id, found.storage_id)
