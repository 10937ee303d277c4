"""TLS contexts from files in PEM, for whoever listens and whoever dials."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raftkv.errors import ConfigurationError

HANDSHAKE_SECONDS = 5.0
"""Who has not finished a handshake by then is dropped."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Files in PEM that a client uses.

    Attributes:
        authority: Certificates by which nodes must be certified, None for those that the system trusts.
        certificate: What the client shows to nodes that ask for a certificate, None for nothing.
        key: The certificate's private key, not encrypted.
    """

    authority: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


def listening_context(certificate: Path, key: Path, authority: Path | None) -> ssl.SSLContext:
    """Return a context for a listener.

    Args:
        certificate: Its certificate, with any between it and the authority's after it.
        key: The certificate's private key, not encrypted.
        authority: Certificates that whoever connects must be certified by; None to ask for no certificate.

    Raises:
        ConfigurationError: A file cannot be read, is no PEM, or the key is not the certificate's.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load_pair(context, certificate, key)
    if authority is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        load_authority(context, authority)
    return context


def dialling_context(authority: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """Return a context for connecting; whoever is connected to must have a certificate for the name that was dialled.

    The name must be in its subjectAltName; a common name does not count.

    Args:
        authority: Certificates that it must be certified by; None for those that the system trusts.
        certificate: What to show to who asks for a certificate, None for nothing.
        key: The certificate's private key, not encrypted.

    Raises:
        ConfigurationError: A file cannot be read, is no PEM, or the key is not the certificate's; or one of
            certificate and key is missing.
    """
    if (certificate is None) != (key is None):
        raise ConfigurationError("a certificate and its key are given together, or neither")
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH) if authority is None else _trusting(authority)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Otherwise OpenSSL takes a common name for a host when there is no subjectAltName. A node that is dialled does not.
    context.hostname_checks_common_name = False
    if certificate is not None and key is not None:
        load_pair(context, certificate, key)
    return context


def _trusting(authority: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    load_authority(context, authority)
    return context


def load_pair(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Let a context use a certificate from now on.

    Raises:
        ConfigurationError: A file cannot be read, is no PEM, or the key is not the certificate's.
    """
    _require_readable(certificate, key)
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except ssl.SSLError as error:
        raise ConfigurationError(f"{certificate} and {key} are no certificate and its key: {error}") from error


def load_authority(context: ssl.SSLContext, authority: Path) -> None:
    """Let a context trust who is certified by an authority, too.

    Raises:
        ConfigurationError: The file cannot be read, or has no certificates.
    """
    _require_readable(authority)
    try:
        context.load_verify_locations(authority)
    except ssl.SSLError as error:
        raise ConfigurationError(f"{authority} has no certificates: {error}") from error


def expiry_of(certificate: Path) -> float:
    """Return when a certificate ends (its notAfter), in seconds since 1970. Of several in a file it is the first.

    Raises:
        ConfigurationError: The file cannot be read, or is no PEM.
    """
    _require_readable(certificate)
    try:
        return ssl.cert_time_to_seconds(_decode_certificate(certificate)["notAfter"])
    except ssl.SSLError as error:
        raise ConfigurationError(f"{certificate} is no certificate: {error}") from error


def has_alternative_names(certificate: Path) -> bool:
    """Whether a certificate has a subjectAltName. Of several in a file it is the first.

    Raises:
        ConfigurationError: The file cannot be read, or is no PEM.
    """
    _require_readable(certificate)
    try:
        return bool(_decode_certificate(certificate).get("subjectAltName"))
    except ssl.SSLError as error:
        raise ConfigurationError(f"{certificate} is no certificate: {error}") from error


def _decode_certificate(certificate: Path) -> dict[str, Any]:
    # The standard library decodes the certificate of a verified peer only, which an expired one never is. This function
    # of CPython, made for its tests, decodes any.
    decoded: dict[str, Any] = ssl._ssl._test_decode_cert(certificate)  # type: ignore[attr-defined]  # noqa: SLF001
    return decoded


def _require_readable(*files: Path) -> None:
    for file in files:
        try:
            file.open("rb").close()
        except OSError as error:
            raise ConfigurationError(f"{file} cannot be read: {error.strerror or error}") from error


def _no_password() -> str:
    raise ConfigurationError("the private key is encrypted; give one that is not, readable by raftkv alone")
