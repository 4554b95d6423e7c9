"""The client certificate and key in use, shared by all threads and replaced in one step."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from nixfleet_agent.identity.certificate import AgentCertificate, CertificateError, load_certificate
from nixfleet_agent.identity.host_key import HostKey, load_host_key


@dataclass(frozen=True, slots=True)
class Identity:
    """One pair that belongs together; ``generation`` grows by one with each replacement in this process."""

    generation: int
    certificate: AgentCertificate
    key: HostKey


class Credentials:
    """Holds the current ``Identity``; nothing is read before the first ``reload``."""

    def __init__(self, certificate_path: Path, key_path: Path) -> None:
        self.certificate_path = certificate_path
        self.key_path = key_path
        self._lock = threading.Lock()
        self._current: Identity | None = None

    @property
    def generation(self) -> int:
        """Zero while there is no certificate."""
        current = self._current
        return 0 if current is None else current.generation

    def current(self) -> Identity | None:
        """What the next connection presents, or None before the first certificate."""
        return self._current

    def reload(self) -> Identity:
        """Read both files and use them from the next request on; unchanged files keep their generation.

        Raises:
            IdentityError: a file is missing or refused, or they don't belong together. What was in use stays.
        """
        key = load_host_key(self.key_path)
        return self.use(load_certificate(self.certificate_path), key)

    def use(self, certificate: AgentCertificate, key: HostKey) -> Identity:
        """Put a pair in use.

        Raises:
            CertificateError: the certificate is not for this key.
        """
        if not certificate.belongs_to(key.public_raw):
            raise CertificateError(
                f"{self.certificate_path} is for another key than {self.key_path}: remove it and enroll again"
            )
        with self._lock:
            current = self._current
            if current is None or (current.certificate, current.key.public_raw) != (certificate, key.public_raw):
                current = Identity(1 if current is None else current.generation + 1, certificate, key)
                self._current = current
            return current
