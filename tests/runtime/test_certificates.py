"""Certificates that are renewed while a node runs."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives import serialization
from prometheus_client.parser import text_string_to_metric_families

from raftkv.config import Tls
from raftkv.errors import ConfigurationError
from raftkv.runtime import certificates as certificates_module
from raftkv.runtime.certificate_check import AdvertisedHosts, faults_of
from raftkv.runtime.certificates import Certificates
from raftkv.runtime.metrics import CertificateCollector, Metrics
from raftkv.settings import build_config
from raftkv.tls import dialling_context, listening_context
from tests.tls_files import TestAuthority, self_signed

HOSTS = AdvertisedHosts("127.0.0.1", "localhost", has_peers=True)


@pytest.fixture
def authority(tmp_path) -> TestAuthority:
    return TestAuthority.create(tmp_path)


def tls_of(authority: TestAuthority, days: int | None = None, **others) -> Tls:
    cert, key = authority.certify("n1", "localhost", "127.0.0.1", days=days)
    return Tls(cert, key, authority.certificate, **others)


async def shown_by(context: ssl.SSLContext, authority: TestAuthority, dialling: ssl.SSLContext | None = None) -> int:
    """Return a digest of what a listener shows to a client."""
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        trusting = dialling or dialling_context(authority.certificate, None, None)
        _reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
        try:
            return hash(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
        finally:
            writer.close()


async def test_a_renewed_certificate_is_shown_without_a_restart(authority):
    certificates = Certificates(tls_of(authority), HOSTS)
    first = await shown_by(certificates.for_clients, authority)
    assert await certificates.refresh() is False
    authority.certify("n1", "localhost", "127.0.0.1")
    assert await certificates.refresh() is True
    renewed = await shown_by(certificates.for_clients, authority)
    assert renewed != first
    assert await shown_by(certificates.for_members, authority, certificates.dialling) == renewed
    assert await certificates.refresh() is False


async def test_what_cannot_be_used_leaves_the_former_in_use(authority, caplog):
    tls = tls_of(authority)
    certificates = Certificates(tls, HOSTS)
    first = await shown_by(certificates.for_clients, authority)
    key = tls.key.read_bytes()
    authority.certify("n1", "localhost", "127.0.0.1")
    new_key = tls.key.read_bytes()
    tls.key.write_bytes(key)
    assert await certificates.refresh() is False
    assert "cannot be used, going on with the former" in caplog.text
    assert await shown_by(certificates.for_clients, authority) == first
    tls.key.unlink()
    assert await certificates.refresh() is False
    tls.key.write_bytes(new_key)
    assert await certificates.refresh() is True
    assert await shown_by(certificates.for_clients, authority) != first


async def test_a_new_authority_is_trusted_beside_the_former(authority, tmp_path):
    tls = tls_of(authority)
    certificates = Certificates(tls, HOSTS)
    other = TestAuthority.create(tmp_path / "other")
    cert, key = other.certify("n2", "127.0.0.1")
    stranger = listening_context(cert, key, None)
    with pytest.raises(ssl.SSLCertVerificationError):
        await shown_by(stranger, other, certificates.dialling)
    tls.ca.write_bytes(tls.ca.read_bytes() + other.certificate.read_bytes())
    assert await certificates.refresh() is True
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


DAY = 86_400


def gauge(certificates: Certificates) -> float:
    metrics = Metrics()
    metrics.register(CertificateCollector(certificates))
    text, _content_type = metrics.exposition("")
    (family,) = [
        family
        for family in text_string_to_metric_families(text.decode())
        if family.name == "raftkv_certificate_expiry_seconds"
    ]
    return family.samples[0].value


async def test_the_time_until_a_certificate_ends_is_measured_and_follows_a_renewal(authority):
    tls = tls_of(authority, days=3)
    certificates = Certificates(tls, HOSTS)
    assert gauge(certificates) == pytest.approx(3 * DAY, abs=120)
    authority.certify("n1", "localhost", "127.0.0.1", days=90)
    assert await certificates.refresh() is True
    assert gauge(certificates) == pytest.approx(90 * DAY, abs=120)


def test_an_ended_certificate_has_less_than_no_time_left(authority):
    assert gauge(Certificates(tls_of(authority, days=-2), HOSTS)) == pytest.approx(-2 * DAY, abs=120)


async def test_what_is_in_use_is_measured_while_its_replacement_cannot_be_used(authority):
    tls = tls_of(authority, days=3)
    certificates = Certificates(tls, HOSTS)
    key = tls.key.read_bytes()
    authority.certify("n1", "localhost", "127.0.0.1", days=90)
    tls.key.write_bytes(key)
    assert await certificates.refresh() is False
    assert gauge(certificates) == pytest.approx(3 * DAY, abs=120)


def texts_of(tls: Tls, hosts: AdvertisedHosts = HOSTS) -> list[tuple[str, bool]]:
    return [(fault.text.replace(f"{tls.cert.parent}/", ""), fault.is_final) for fault in faults_of(tls, hosts)]


def test_sound_certificate_has_no_fault(authority):
    assert texts_of(tls_of(authority, client_ca=authority.certificate)) == []


def test_certificate_of_another_authority_is_refused(authority, tmp_path):
    other = TestAuthority.create(tmp_path / "other")
    tls = Tls(*other.certify("n1", "127.0.0.1", "localhost"), authority.certificate)
    ((text, is_final),) = texts_of(tls)
    assert is_final
    assert "would be refused by every member" in text
    assert "unable to get local issuer certificate" in text
    with pytest.raises(ConfigurationError, match="would be refused by every member"):
        Certificates(tls, HOSTS)


@pytest.mark.parametrize("has_peers", [True, False])
def test_certificate_for_other_hosts_is_refused_when_peers_dial_it(authority, has_peers):
    tls = Tls(*authority.certify("n1", "elsewhere.example", days=-1), authority.certificate)
    hosts = AdvertisedHosts("127.0.0.1", "n1.example", has_peers)
    assert texts_of(tls, hosts) == [
        ("n1.crt is not for 127.0.0.1, the host of --advertise-peer: members that dial it refuse it", has_peers),
        ("n1.crt is not for n1.example, the host of --advertise-client: clients that follow it refuse it", False),
        ("n1.crt or ca.crt: certificate has expired; whoever checks it refuses this node", False),
    ]


def test_certificate_with_a_common_name_alone_is_refused(tmp_path):
    """OpenSSL takes a common name for a host name by default, but the acceptor of a connection does not."""
    cert, key = self_signed(tmp_path, "localhost")
    hosts = AdvertisedHosts("localhost", "localhost", has_peers=True)
    reason = "it has no subjectAltName, and a common name does not count"
    (peer, is_final), (client, is_final_for_clients) = texts_of(Tls(cert, key, cert), hosts)
    assert (
        peer
        == f"self.crt is not for localhost, the host of --advertise-peer ({reason}): members that dial it refuse it"
    )
    assert client.startswith(f"self.crt is not for localhost, the host of --advertise-client ({reason}): clients")
    assert (is_final, is_final_for_clients) == (True, False)


def test_certificate_that_is_not_valid_yet_is_named(authority):
    now = datetime.now(UTC)
    issued = authority.authority.issue_cert(
        "127.0.0.1", "localhost", not_before=now + timedelta(1), not_after=now + timedelta(2)
    )
    cert = authority.directory / "later.pem"
    issued.private_key_and_cert_chain_pem.write_to_path(cert)
    ((text, is_final),) = texts_of(Tls(cert, cert, authority.certificate))
    assert "certificate is not yet valid" in text
    assert not is_final


def test_certificate_that_clients_would_not_need_but_this_node_does_is_named(authority, tmp_path):
    other = TestAuthority.create(tmp_path / "other")
    ((text, is_final),) = texts_of(tls_of(authority, client_ca=other.certificate))
    assert "is not certified by other/ca.crt" in text
    assert not is_final


async def test_faults_are_logged_at_the_start_and_at_a_renewal(authority, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(certificates_module, "_CHECK_SECONDS", 0.01)
    tls = tls_of(authority, days=-1)
    certificates = Certificates(tls, HOSTS)
    assert "certificate has expired" in caplog.text
    before = await shown_by(certificates.for_clients, authority, _unchecked())
    caplog.clear()
    logged = asyncio.Event()
    monkeypatch.setattr(
        certificates_module.logger,
        "error",
        lambda text, error: (
            logged.set() if "going on with the former" in text and "every member" in str(error) else None
        ),
    )
    renewing = asyncio.create_task(certificates.run())
    cert, key = TestAuthority.create(tmp_path / "other").certify("n1", "127.0.0.1", "localhost")
    tls.key.write_bytes(key.read_bytes())
    tls.cert.write_bytes(cert.read_bytes())
    async with asyncio.timeout(8):
        await logged.wait()
    assert await shown_by(certificates.for_clients, authority, _unchecked()) == before
    renewing.cancel()


def _unchecked() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def test_hosts_are_those_that_are_advertised():
    files = {"tls_cert": "a", "tls_key": "b", "tls_ca": "c", "listen_peer": "[::1]:2380"}
    config = build_config({**files, "advertise_client": "https://[::2]", "join": "https://h:1"}, {}, {})
    assert AdvertisedHosts.of(config) == AdvertisedHosts("::1", "::2", has_peers=True)
    alone = build_config({**files, "advertise_client": "https://n1.example:2379"}, {}, {})
    assert AdvertisedHosts.of(alone) == AdvertisedHosts("::1", "n1.example", has_peers=False)
