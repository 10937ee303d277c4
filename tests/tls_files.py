"""Certificates for tests, made on the spot."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


@dataclass(frozen=True)
class TestAuthority:
    """An authority, and what it certifies.

    Attributes:
        directory: Where its files are.
    """

    __test__ = False

    directory: Path
    authority: trustme.CA

    @classmethod
    def create(cls, directory: Path) -> TestAuthority:
        """Make an authority; its certificate is ``ca.crt``."""
        directory.mkdir(parents=True, exist_ok=True)
        authority = trustme.CA()
        authority.cert_pem.write_to_path(directory / "ca.crt")
        return cls(directory, authority)

    def bundle(self, other: TestAuthority) -> Path:
        """Make a file with the certificates of this authority and another."""
        file = self.directory / "bundle.crt"
        file.write_bytes(self.certificate.read_bytes() + other.certificate.read_bytes())
        return file

    @property
    def certificate(self) -> Path:
        """The authority's own certificate."""
        return self.directory / "ca.crt"

    def certify(self, name: str, *hosts: str, days: int | None = None) -> tuple[Path, Path]:
        """Make a certificate for some hosts, again if there is one; return it and its key.

        Args:
            name: Its common name, and that of its files.
            hosts: Names and addresses that it is for.
            days: From now until it ends; a negative number for one that has ended, None for years.
        """
        now = datetime.now(UTC)
        ends = {} if days is None else {"not_before": now - timedelta(400), "not_after": now + timedelta(days)}
        issued = self.authority.issue_cert(*hosts, common_name=name, **ends)
        certificate, key = self.directory / f"{name}.crt", self.directory / f"{name}.key"
        issued.private_key_pem.write_to_path(key)
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        return certificate, key


def self_signed(directory: Path, common_name: str, *names: x509.GeneralName) -> tuple[Path, Path]:
    """Make a certificate that is its own authority, with any names, and with no subjectAltName without names.

    Args:
        directory: Where its files and its key's come to be.
        common_name: Its common name.
        names: Its alternative names.
    """
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(1))
        .not_valid_after(now + timedelta(1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate, key_file = directory / "self.crt", directory / "self.key"
    certificate.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate, key_file
