"""What is wrong with a node's own certificate, found by a handshake of the node with itself.

Both sides of it use the node's files, as two members of a cluster do, so whatever a peer would refuse shows here.
OpenSSL reports one fault of a certificate at a time; leaving out the checks of time and of the host tells them apart.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from raftkv.config import HostPort, NodeConfig, Tls
from raftkv.tls import dialling_context, has_alternative_names, listening_context

_NO_CHECK_TIME = ssl.VerifyFlags(0x200000)
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which Python has no name for."""

_MOST_FLIGHTS = 10


@dataclass(frozen=True, slots=True)
class AdvertisedHosts:
    """The hosts that a node's certificate must be for.

    Attributes:
        peer: That of ``--advertise-peer``.
        client: That of ``--advertise-client``.
        has_peers: Whether the node is configured to have other members, who dial it.
    """

    peer: str
    client: str
    has_peers: bool

    @classmethod
    def of(cls, config: NodeConfig) -> AdvertisedHosts:
        """Return those of a configuration."""
        return cls(
            HostPort.parse(config.advertise_peer).host,
            urlsplit(config.advertise_client).hostname or "",
            len(config.initial_cluster) > 1 or bool(config.joining.urls),
        )


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with a certificate.

    Attributes:
        text: What it is, and what follows.
        is_final: Whether neither time nor others can mend it, so that the node must not use the certificate.
    """

    text: str
    is_final: bool


def faults_of(tls: Tls, hosts: AdvertisedHosts) -> list[Fault]:
    """Return what is wrong with a node's certificate.

    An expired certificate is no reason to refuse the start: its replacement is taken up while the node runs, and the
    clock may be wrong.

    Args:
        tls: The files.
        hosts: What the certificate must be for.

    Raises:
        ConfigurationError: A file cannot be read, is no PEM, or the key is not the certificate's.
    """
    untrusted = _refusal(tls, tls.ca, None, checks_time=False)
    if untrusted is not None:
        return [Fault(f"{tls.cert} would be refused by every member that has {tls.ca} ({untrusted})", is_final=True)]
    faults = []
    why = "" if has_alternative_names(tls.cert) else " (it has no subjectAltName, and a common name does not count)"
    if _refusal(tls, tls.ca, hosts.peer, checks_time=False) is not None:
        text = f"{tls.cert} is not for {hosts.peer}, the host of --advertise-peer{why}: members that dial it refuse it"
        faults.append(Fault(text, is_final=hosts.has_peers))
    if _refusal(tls, tls.ca, hosts.client, checks_time=False) is not None:
        text = (
            f"{tls.cert} is not for {hosts.client}, the host of --advertise-client{why}: clients that follow it "
            "refuse it"
        )
        faults.append(Fault(text, is_final=False))
    untimely = _refusal(tls, tls.ca, None, checks_time=True)
    if untimely is not None:
        faults.append(Fault(f"{tls.cert} or {tls.ca}: {untimely}; whoever checks it refuses this node", is_final=False))
    if tls.client_ca is not None:
        stranger = _refusal(tls, tls.client_ca, None, checks_time=False)
        if stranger is not None:
            text = (
                f"{tls.cert} is not certified by {tls.client_ca} ({stranger}): as a client of the others this node is "
                "refused, when it joins them or forwards requests of /v3"
            )
            faults.append(Fault(text, is_final=False))
    return faults


def _refusal(tls: Tls, client_authority: Path, host: str | None, *, checks_time: bool) -> str | None:
    """Return why one side of a handshake refuses the other, None when neither does.

    Args:
        tls: The files of both sides.
        client_authority: By what the dialling side must be certified.
        host: What the listening side is dialled as, None to accept any.
        checks_time: Whether certificates must be valid now.
    """
    listening = listening_context(tls.cert, tls.key, client_authority)
    dialling = dialling_context(tls.ca, tls.cert, tls.key)
    dialling.check_hostname = host is not None
    if not checks_time:
        for context in (listening, dialling):
            context.verify_flags |= _NO_CHECK_TIME
    to_listener, to_dialler = ssl.MemoryBIO(), ssl.MemoryBIO()
    dialler = dialling.wrap_bio(to_dialler, to_listener, server_hostname=host)
    listener = listening.wrap_bio(to_listener, to_dialler, server_side=True)
    try:
        for _ in range(_MOST_FLIGHTS):
            if _advance(dialler) and _advance(listener):
                return None
            _advance(listener)
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    except ssl.SSLError as error:
        return error.reason or str(error)
    return "the handshake does not end"


def _advance(side: ssl.SSLObject) -> bool:
    """Go on with a handshake; return whether it is done on this side."""
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True
