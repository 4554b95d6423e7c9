"""Certificates on disk: put in place in one step, with the one before kept until the new one has worked."""

from __future__ import annotations

from pathlib import Path

from nixfleet_agent import durable
from nixfleet_agent.identity.certificate import AgentCertificate, CertificateError, load_certificate

#: Anyone may read a certificate; the folder around it is closed.
_MODE = 0o644


def previous_path(path: Path) -> Path:
    """Where the certificate before the one at ``path`` waits until the new one has worked."""
    return path.with_name(path.name + ".previous")


def install(path: Path, new: AgentCertificate, keep: AgentCertificate | None) -> None:
    """Put ``new`` at ``path``, and ``keep``, which has worked until now, beside it.

    A certificate that is kept already stays: the one at ``path`` has then never worked.

    Raises:
        StorageError: the disk refused; what was at ``path`` is still there.
    """
    durable.make_directory(path.parent)
    previous = previous_path(path)
    if keep is not None and not previous.exists():
        durable.write(previous, keep.pem(), _MODE)
    durable.write(path, new.pem(), _MODE)


def kept(path: Path) -> AgentCertificate | None:
    """The certificate to go back to while the one at ``path`` has not worked yet; None without one."""
    try:
        return load_certificate(previous_path(path))
    except CertificateError:
        return None


def is_unverified(path: Path) -> bool:
    """Whether the certificate at ``path`` has still to work once."""
    return previous_path(path).exists()


def go_back(path: Path) -> None:
    """Put the kept certificate back in place.

    Raises:
        StorageError: the disk refused.
    """
    durable.move(previous_path(path), path, sync=True)


def commit(path: Path) -> None:
    """The certificate at ``path`` has worked: the one before is not needed any more.

    Raises:
        StorageError: the disk refused.
    """
    durable.remove(previous_path(path), sync=True)
