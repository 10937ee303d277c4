"""TLS handshakes of accepted connections, counted among those that are not verified yet."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from raftkv.tls import HANDSHAKE_SECONDS

if TYPE_CHECKING:
    from raftkv.runtime.transport import Transport

logger = logging.getLogger(__name__)


class TlsHandshake(asyncio.Protocol):
    """An accepted connection whose TLS handshake is under way: it counts as unverified, and can give way.

    An event loop that accepts with TLS neither bounds these connections nor reports them. So the connection is accepted
    without TLS, and given back to the loop as a socket. Nothing is read from it before that, so that nothing which was
    sent before the handshake can count as encrypted.

    Attributes:
        host: The address that it comes from.
        has_greeted: Whether it has said hello: not yet.

    Args:
        owner: The transport.
        context: For the listening side.
        become: Makes the protocol of the connection after the handshake.
    """

    has_greeted = False

    def __init__(
        self, owner: Transport, context: ssl.SSLContext, become: Callable[[TlsHandshake], asyncio.Protocol]
    ) -> None:
        self.host = ""
        self._owner = owner
        self._context = context
        self._become = become
        self._socket: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake."""
        accepted = cast("asyncio.Transport", transport)
        self.host = str((accepted.get_extra_info("peername") or ("",))[0])
        try:
            self._socket = socket.socket(fileno=os.dup(accepted.get_extra_info("socket").fileno()))
        except OSError as error:
            # No more files can be open, or the connection is gone.
            logger.debug("no TLS with %s: %s", self.host, error)
            return
        finally:
            accepted.abort()
        if not self._owner.admit(self):
            self._socket.close()
            return
        self._task = asyncio.get_running_loop().create_task(self._encrypt())

    def abort(self) -> None:
        """Close at once."""
        if self._task is not None:
            self._task.cancel()
        if self._socket is not None:
            self._socket.close()

    async def _encrypt(self) -> None:
        assert self._socket is not None
        # It belongs to the event loop from here on.
        accepted, self._socket = self._socket, None
        accepted.setblocking(False)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self._become(self), accepted, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_SECONDS
            )
        except Exception as error:  # noqa: BLE001 - whatever a stranger makes of TLS, it must not end the node
            logger.debug("no TLS with %s: %r", self.host, error)
        finally:
            self._owner.arrivals.discard(self)
