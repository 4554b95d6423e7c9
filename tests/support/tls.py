"""Keys and certificates for tests: a CA, server certificates, client certificates, and wrong ones of each kind.

    fleet = Authority("fleet CA")
    fleet.write_ca(folder / "ca.pem")
    server_cert, server_key = fleet.write_server(folder, names=["localhost"], addresses=["127.0.0.1"])
    key = new_host_key()                       # an identity.host_key.HostKey; write_host_key puts it on disk
    leaf = fleet.issue_client(key.private.public_key(), "web-01")
    fleet.write_client(folder / "agent-cert.pem", key, "web-01")

Wrong variants: another ``Authority`` is the wrong CA; ``names``/``addresses``/``common_name`` make a wrong name;
``not_before``/``not_after`` make one that is expired or not yet valid.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nixfleet_agent.identity.host_key import HostKey, from_private

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def now() -> datetime:
    """The wall clock without fractions, as certificates store it."""
    return datetime.now(timezone.utc).replace(microsecond=0)


class Authority:
    """A certificate authority in memory (ECDSA P-256). ``parent`` makes it an intermediate."""

    def __init__(
        self,
        name: str = "test CA",
        *,
        parent: Authority | None = None,
        ca: bool = True,
        path_length: int | None = None,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
        key: ec.EllipticCurvePrivateKey | None = None,
    ) -> None:
        self.key = key or ec.generate_private_key(ec.SECP256R1())
        self.name = _name(name)
        issuer = parent or self
        builder = _builder(self.name, issuer.name, self.key.public_key(), not_before, not_after, 3650 * DAY)
        self.certificate = builder.add_extension(
            x509.BasicConstraints(ca=ca, path_length=path_length), critical=True
        ).sign(issuer.key, hashes.SHA256())

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def write_ca(self, path: Path) -> Path:
        path.write_bytes(self.pem)
        return path

    def issue_server(
        self,
        names: Sequence[str] = ("localhost",),
        addresses: Sequence[str] = ("127.0.0.1", "::1"),
        *,
        common_name: str = "control plane",
        not_before: datetime | None = None,
        not_after: datetime | None = None,
    ) -> tuple[bytes, bytes]:
        """PEM of a server certificate and of its private key."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_name(common_name), self.name, key.public_key(), not_before, not_after, 30 * DAY)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        general: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
        general += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
        if general:
            builder = builder.add_extension(x509.SubjectAlternativeName(general), critical=False)
        certificate = builder.sign(self.key, hashes.SHA256())
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return certificate.public_bytes(serialization.Encoding.PEM), private

    def write_server(self, folder: Path, **options: object) -> tuple[Path, Path]:
        """``issue_server`` into ``server.pem`` and ``server.key`` of ``folder``."""
        certificate, key = self.issue_server(**options)  # type: ignore[arg-type]
        paths = folder / "server.pem", folder / "server.key"
        paths[0].write_bytes(certificate)
        paths[1].write_bytes(key)
        return paths

    def issue_client(
        self,
        public: Ed25519PublicKey,
        common_name: str,
        *,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
        ca: bool | None = None,
        extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    ) -> x509.Certificate:
        """A client certificate for a host key; ``ca`` adds basic constraints, ``extensions`` are (what, critical)."""
        builder = _builder(_name(common_name), self.name, public, not_before, not_after, 30 * DAY)
        if ca is not None:
            builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(self.key, hashes.SHA256())

    def issue_for_csr(self, csr_pem: str, **options: object) -> x509.Certificate:
        """What a control plane answers to a request: a client certificate for its key and common name."""
        request = x509.load_pem_x509_csr(csr_pem.encode("ascii"))
        assert request.is_signature_valid
        public = request.public_key()
        assert isinstance(public, Ed25519PublicKey)
        common_name = request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        assert isinstance(common_name, str)
        return self.issue_client(public, common_name, **options)  # type: ignore[arg-type]

    def write_client(self, path: Path, key: HostKey, common_name: str, **options: object) -> x509.Certificate:
        """``issue_client`` for a host key, written to ``path``."""
        certificate = self.issue_client(key.private.public_key(), common_name, **options)  # type: ignore[arg-type]
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return certificate


def new_host_key() -> HostKey:
    return from_private(Ed25519PrivateKey.generate())


def openssh_pem(key: HostKey) -> bytes:
    """The private key as `ssh-keygen` writes it."""
    return key.private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


def pkcs8_pem(key: HostKey, passphrase: bytes | None = None) -> bytes:
    protection: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        protection = serialization.BestAvailableEncryption(passphrase)
    return key.private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)


def write_host_key(path: Path, key: HostKey | None = None) -> HostKey:
    """Write ``key`` (a new one without) in OpenSSH form with mode 0600."""
    key = key or new_host_key()
    path.touch(mode=0o600)
    path.write_bytes(openssh_pem(key))
    return key


def pem_of(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey | Ed25519PublicKey,
    not_before: datetime | None,
    not_after: datetime | None,
    life: timedelta,
) -> x509.CertificateBuilder:
    begins = not_before or now() - HOUR
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(not_after or max(now(), begins) + life)
    )
