"""Certificates that are renewed while a node runs."""

from __future__ import annotations

import asyncio
import ssl

import pytest
from cryptography.hazmat.primitives import serialization

from raftkv.config import Tls
from raftkv.errors import ConfigurationError
from raftkv.runtime.certificates import Certificates
from raftkv.tls import dialling_context, listening_context
from tests.tls_files import TestAuthority


@pytest.fixture
def authority(tmp_path) -> TestAuthority:
    return TestAuthority.create(tmp_path)


def tls_of(authority: TestAuthority, **others) -> Tls:
    cert, key = authority.certify("n1", "localhost", "127.0.0.1")
    return Tls(cert, key, authority.certificate, **others)


async def shown_by(context: ssl.SSLContext, authority: TestAuthority, dialling: ssl.SSLContext | None = None) -> int:
    """Return the serial number of what a listener shows to a client."""
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        trusting = dialling or dialling_context(authority.certificate, None, None)
        _reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
        try:
            return int(writer.get_extra_info("peercert")["serialNumber"], 16)
        finally:
            writer.close()


async def test_a_renewed_certificate_is_shown_without_a_restart(authority):
    certificates = Certificates(tls_of(authority))
    first = await shown_by(certificates.for_clients, authority)
    assert certificates.refresh() is False
    authority.certify("n1", "localhost", "127.0.0.1")
    assert certificates.refresh() is True
    renewed = await shown_by(certificates.for_clients, authority)
    assert renewed != first
    assert await shown_by(certificates.for_members, authority, certificates.dialling) == renewed
    assert certificates.refresh() is False


async def test_what_cannot_be_used_leaves_the_former_in_use(authority, caplog):
    tls = tls_of(authority)
    certificates = Certificates(tls)
    first = await shown_by(certificates.for_clients, authority)
    key = tls.key.read_bytes()
    authority.certify("n1", "localhost", "127.0.0.1")
    new_key = tls.key.read_bytes()
    tls.key.write_bytes(key)
    assert certificates.refresh() is False
    assert "cannot be used, going on with the former" in caplog.text
    assert await shown_by(certificates.for_clients, authority) == first
    tls.key.unlink()
    assert certificates.refresh() is False
    tls.key.write_bytes(new_key)
    assert certificates.refresh() is True
    assert await shown_by(certificates.for_clients, authority) != first


async def test_a_new_authority_is_trusted_beside_the_former(authority, tmp_path):
    tls = tls_of(authority)
    certificates = Certificates(tls)
    other = TestAuthority.create(tmp_path / "other")
    cert, key = other.certify("n2", "127.0.0.1")
    stranger = listening_context(cert, key, None)
    with pytest.raises(ssl.SSLCertVerificationError):
        await shown_by(stranger, other, certificates.dialling)
    tls.ca.write_bytes(tls.ca.read_bytes() + other.certificate.read_bytes())
    assert certificates.refresh() is True
    assert await shown_by(stranger, other, certificates.dialling)


def test_files_that_are_no_certificates_are_named(authority, tmp_path):
    cert, key = authority.certify("n1", "localhost")
    with pytest.raises(ConfigurationError, match=r"missing\.crt cannot be read: No such file"):
        listening_context(tmp_path / "missing.crt", key, None)
    with pytest.raises(ConfigurationError, match=r"n1.key and .*n1.key are no certificate and its key"):
        listening_context(key, key, None)
    _other_cert, other_key = authority.certify("n2", "localhost")
    with pytest.raises(ConfigurationError, match="are no certificate and its key"):
        listening_context(cert, other_key, None)
    with pytest.raises(ConfigurationError, match=r"n1\.key has no certificates"):
        listening_context(cert, key, key)
    with pytest.raises(ConfigurationError, match="given together, or neither"):
        dialling_context(None, cert, None)


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_a_password(authority, tmp_path):
    cert, key = authority.certify("n1", "localhost")
    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    encrypted = tmp_path / "encrypted.key"
    encrypted.write_bytes(
        loaded.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(ConfigurationError, match="the private key is encrypted"):
        listening_context(cert, encrypted, None)
