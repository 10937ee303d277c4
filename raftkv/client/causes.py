"""Why endpoints did not serve a request, in words for people."""

from __future__ import annotations

import os
import ssl

import aiohttp
from yarl import URL

_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG"})
"""What OpenSSL says of an answer that is not TLS."""

_HINT = {
    "http": "if it speaks TLS, its URL begins with https://; if this is a peer port, name the client port",
    "https": "if its --tls-client-ca asks clients for certificates, give one that it accepts",
}
"""What to look at when a connection ends without an answer, by the scheme of its URL."""

NO_ANSWER = "no answer in time"
NOT_ASKED = "not asked, the time was over"


class Causes:
    """The latest reason of each endpoint why it did not serve a request."""

    def __init__(self) -> None:
        self._by_endpoint: dict[URL, str] = {}

    def __bool__(self) -> bool:
        """Whether any endpoint was asked."""
        return bool(self._by_endpoint)

    def note(self, endpoint: URL, cause: str) -> None:
        """Take note of a reason.

        Args:
            endpoint: The endpoint that was asked.
            cause: The reason. It begins with the URL of the node that gave it, which the endpoint may have named.
        """
        name = str(endpoint)
        self._by_endpoint[endpoint] = cause if cause.startswith(name) else f"{name}: sent on to {cause}"

    def note_once(self, endpoint: URL, cause: str) -> None:
        """Take note of a reason that says less than any other."""
        if endpoint not in self._by_endpoint:
            self.note(endpoint, cause)

    def __str__(self) -> str:
        """Return every endpoint with its reason."""
        return "; ".join(self._by_endpoint.values())


def cause_of_no_connection(error: aiohttp.ClientError) -> str:
    """Return why a node could not be connected to."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        fault = error.certificate_error
        reason = fault.verify_message if isinstance(fault, ssl.SSLCertVerificationError) else str(fault)
        return f"its certificate is not accepted: {reason}"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return f"the host name {error.host} cannot be resolved"
    if not isinstance(error, aiohttp.ClientConnectorError):
        return "no connection in time"
    cause = error.os_error
    if isinstance(cause, ssl.SSLError):
        if cause.reason in _NO_TLS:
            return "it does not speak TLS; for plain HTTP the URL begins with http://"
        return f"TLS failed: {cause.reason or cause}"
    # The texts of asyncio repeat the address; with several addresses there is no number.
    return os.strerror(cause.errno) if cause.errno else str(cause)


def cause_of_loss(error: Exception, url: URL) -> str:
    """Return why a connection broke on which a request was sent."""
    if isinstance(error, aiohttp.ServerDisconnectedError) or (isinstance(error, OSError) and url.scheme == "http"):
        return f"the connection broke: the node closed it; {_HINT[url.scheme]}"
    return f"the connection broke: {error or type(error).__name__}"
