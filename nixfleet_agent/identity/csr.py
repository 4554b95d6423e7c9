"""Certificate signing requests: the host key asks for a certificate in the host's name."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from nixfleet_agent.errors import IdentityError
from nixfleet_agent.identity.host_key import HostKey

#: The upper bound of X.520 on a common name.
_LONGEST_NAME = 64


def make_csr(key: HostKey, machine_id: str) -> str:
    """A PEM request with the common name ``machine_id``, signed by ``key`` (PKCS #10, Ed25519).

    Raises:
        IdentityError: the name does not fit into a certificate.
    """
    if not 1 <= len(machine_id) <= _LONGEST_NAME:
        raise IdentityError(f"machine_id must have 1 to {_LONGEST_NAME} characters to fit into a certificate")
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, machine_id)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key.private, None)
    return request.public_bytes(Encoding.PEM).decode("ascii")
