"""The fleet's certificate authority: makes itself, the server's certificate and the agents' from their CSRs.

An agent's certificate binds its host name to the key of its CSR, which is the host's SSH key. Nothing is
backdated, so that a certificate issued after a revocation is told from one issued before by its start alone.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nixfleet_agent import durable
from nixfleet_agent.errors import ConfigError
from nixfleet_agent.local_cp.errors import RequestRefused

CA_LIFETIME = timedelta(days=3650)
SERVER_LIFETIME = timedelta(days=365)
CA_FILE = "fleet-ca.pem"


@dataclass(frozen=True, slots=True)
class Issued:
    """A client certificate as handed out; ``public_raw`` is the 32-byte Ed25519 key it binds."""

    pem: str
    serial: str
    not_before: datetime
    not_after: datetime
    public_raw: bytes


class CertificateAuthority:
    """One self-signed P-256 root: browsers and curl accept it, which an Ed25519 root is not everywhere."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.certificate = certificate
        self._key = key

    @classmethod
    def create(cls, now: datetime, name: str = "NixFleet local fleet CA") -> CertificateAuthority:
        """A new root that is valid from ``now``."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = x509.KeyUsage(
            digital_signature=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        certificate = (
            _builder(subject, subject, key.public_key(), now, CA_LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    @classmethod
    def open(cls, folder: Path, now: datetime) -> CertificateAuthority:
        """The root that is kept in ``folder``, made there the first time: agents go on trusting it after a restart.

        Raises:
            ConfigError: the files are there and are not a certificate and its key.
        """
        certificate_file, key_file = folder / CA_FILE, folder / "fleet-ca.key"
        if not (certificate_file.exists() and key_file.exists()):
            authority = cls.create(now)
            durable.write(key_file, private_pem(authority._key))
            durable.write(certificate_file, authority.pem.encode(), mode=0o644)
            return authority
        try:
            certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
            key = serialization.load_pem_private_key(key_file.read_bytes(), None)
        except ValueError as error:
            raise ConfigError(
                f"{folder} holds a CA that can't be read ({error}): remove both fleet-ca files"
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise ConfigError(f"{key_file} is not the key of {certificate_file}: remove both files")
        return cls(certificate, key)

    @property
    def pem(self) -> str:
        """The root's certificate, as agents get it for ``ca_cert``."""
        return _pem(self.certificate)

    def server(self, names: tuple[str, ...], now: datetime, folder: Path) -> tuple[Path, Path]:
        """Certificate and key files in ``folder`` for a server reached by ``names`` (DNS names, addresses)."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
        certificate = (
            self._leaf(subject, key.public_key(), now, SERVER_LIFETIME, ExtendedKeyUsageOID.SERVER_AUTH)
            .add_extension(alternatives, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        certificate_file, key_file = folder / "server.pem", folder / "server.key"
        durable.write(certificate_file, _pem(certificate).encode(), mode=0o644)
        durable.write(key_file, private_pem(key))
        return certificate_file, key_file

    def issue(self, csr_pem: str, hostname: str, now: datetime, lifetime: timedelta) -> Issued:
        """A client certificate for ``hostname`` and the key of the CSR.

        Raises:
            RequestRefused: not a CSR, badly signed, not an Ed25519 key, or for another name.
        """
        csr = check_csr(csr_pem, hostname)
        public = csr.public_key()
        certificate = self._leaf(csr.subject, public, now, lifetime, ExtendedKeyUsageOID.CLIENT_AUTH).sign(
            self._key, hashes.SHA256()
        )
        return Issued(
            pem=_pem(certificate),
            serial=f"{certificate.serial_number:x}",
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            public_raw=public_bytes(public),
        )

    def _leaf(
        self, subject: x509.Name, public: object, now: datetime, lifetime: timedelta, purpose: x509.ObjectIdentifier
    ) -> x509.CertificateBuilder:
        return (
            _builder(self.certificate.subject, subject, public, now, lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)  # type: ignore[arg-type]
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )


def check_csr(csr_pem: str, hostname: str) -> x509.CertificateSigningRequest:
    """The CSR when it is well signed, carries an Ed25519 key and names exactly ``hostname``.

    Raises:
        RequestRefused: saying which of these does not hold.
    """
    try:
        csr = x509.load_pem_x509_csr(csr_pem.encode("utf-8"))
        valid = csr.is_signature_valid
        public = csr.public_key()
    except (ValueError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise RequestRefused(HTTPStatus.BAD_REQUEST, f"csrPem is not a certificate request: {error}") from error
    names = [attribute.value for attribute in csr.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if not valid:
        raise RequestRefused(HTTPStatus.BAD_REQUEST, "csrPem is not signed by the key that it carries")
    if not isinstance(public, Ed25519PublicKey):
        raise RequestRefused(HTTPStatus.BAD_REQUEST, "csrPem must carry an Ed25519 key, the host's SSH key")
    if names != [hostname]:
        raise RequestRefused(HTTPStatus.FORBIDDEN, f"csrPem names {names!r}, expected {hostname!r}")
    return csr


def public_bytes(public: object) -> bytes:
    """The raw 32 bytes of an Ed25519 public key; empty for a key of another kind."""
    if not isinstance(public, Ed25519PublicKey):
        return b""
    return public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """An unencrypted PKCS#8 PEM; the caller gives the file mode 0600."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _builder(
    issuer: x509.Name, subject: x509.Name, public: object, now: datetime, lifetime: timedelta
) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=public,  # type: ignore[arg-type]
        serial_number=x509.random_serial_number(),
        not_valid_before=now,
        not_valid_after=now + lifetime,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")
