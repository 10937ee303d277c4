"""The certificates of a node, which are renewed while it runs."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

from raftkv.config import Tls
from raftkv.errors import ConfigurationError
from raftkv.runtime.certificate_check import AdvertisedHosts, faults_of
from raftkv.tls import dialling_context, expiry_of, listening_context, load_authority, load_pair

logger = logging.getLogger(__name__)

_CHECK_SECONDS = 10.0

_Stamp = tuple[int, int, int]


class Certificates:
    """TLS contexts of one node, which take up what changes in their files; connections that are up stay up.

    Args:
        tls: The files.
        hosts: What the certificate must be for.

    Attributes:
        for_clients: Of the listener for clients.
        for_members: Of the listener for members, who must show a certificate.
        dialling: For connecting to members.

    Raises:
        ConfigurationError: A file cannot be read, or does not fit to the others; or no member could ever accept the
            certificate. What is only wrong for now, or for some, is logged.
    """

    def __init__(self, tls: Tls, hosts: AdvertisedHosts) -> None:
        self._tls = tls
        self._hosts = hosts
        self._stamps = self._look()
        self._check()
        self.for_clients = listening_context(tls.cert, tls.key, tls.client_ca)
        self.for_clients.set_alpn_protocols(["http/1.1"])
        self.for_members = listening_context(tls.cert, tls.key, tls.ca)
        self.dialling = dialling_context(tls.ca, tls.cert, tls.key)
        self._expires_at = expiry_of(tls.cert)

    @property
    def seconds_left(self) -> float:
        """Seconds until the certificate in use ends; negative when it has ended."""
        return self._expires_at - time.time()

    async def run(self) -> None:
        """Take up changes until cancelled."""
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            await self.refresh()

    async def refresh(self) -> bool:
        """Take up what has changed, whole or not at all; return whether something was.

        A certificate that expires stays in use when what replaces it cannot be used, for that is for people to mend.
        """
        stamps = self._look()
        if stamps == self._stamps:
            return False
        self._stamps = stamps
        try:
            # In new contexts first: a certificate whose key has not arrived yet must not take the place of a pair. Some
            # handshakes with long keys would hold the event loop.
            await asyncio.to_thread(self._check)
            self._take_up()
        except ConfigurationError as error:
            logger.error("the certificates have changed and cannot be used, going on with the former: %s", error)  # noqa: TRY400 - people mend a file, not code
            return False
        logger.info("the certificates have changed")
        return True

    def _check(self) -> None:
        faults = faults_of(self._tls, self._hosts)
        for fault in faults:
            if fault.is_final:
                raise ConfigurationError(fault.text)
        for fault in faults:
            logger.warning("%s", fault.text)

    def _take_up(self) -> None:
        tls = self._tls
        expires_at = expiry_of(tls.cert)
        for context in (self.for_clients, self.for_members, self.dialling):
            load_pair(context, tls.cert, tls.key)
        for context in (self.for_members, self.dialling):
            load_authority(context, tls.ca)
        if tls.client_ca is not None:
            load_authority(self.for_clients, tls.client_ca)
        self._expires_at = expires_at

    def _look(self) -> dict[Path, _Stamp | None]:
        files = [self._tls.cert, self._tls.key, self._tls.ca]
        return {file: _stamp(file) for file in [*files, *([self._tls.client_ca] if self._tls.client_ca else [])]}


def _stamp(file: Path) -> _Stamp | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
