"""Certificates on disk: put in place in one step, with the one before kept until it expires.

Beside the certificate lie ``.previous``, the pair to go back to; ``.proven``, which names the certificate that has
worked; and ``.unverified``, an answer to an enrollment whose issuer is not known here yet. All of them lie where the
file really is: a link, as impermanence and certbot make it, is followed, and what it leads to is replaced.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256

from nixfleet_agent import durable
from nixfleet_agent.errors import StorageError
from nixfleet_agent.identity.certificate import SIZE_LIMIT, AgentCertificate, CertificateError, load_certificate

#: Anyone may read a certificate; the folder around it is closed.
_MODE = 0o644


def previous_path(path: Path) -> Path:
    """Where the certificate before the one at ``path`` is kept until it expires."""
    return _beside(path, ".previous")


def install(path: Path, new: AgentCertificate, keep: AgentCertificate | None) -> None:
    """Put ``new`` at ``path``, and ``keep``, which has worked until now, beside it.

    A certificate that is kept already stays where the one at ``path`` has never worked.

    Raises:
        StorageError: the disk refused; what was at ``path`` is still there.
    """
    real = _real(path)
    durable.make_directory(real.parent)
    if keep is not None and not is_unverified(path):
        durable.write(previous_path(path), keep.pem(), _MODE)
    _replace(real, new)


def kept(path: Path) -> AgentCertificate | None:
    """The certificate to go back to; None without one."""
    try:
        return load_certificate(previous_path(path))
    except CertificateError:
        return None


def is_unverified(path: Path) -> bool:
    """Whether the certificate at ``path`` has still to work once, and there is one to go back to."""
    if not previous_path(path).exists():
        return False
    try:
        proven = _beside(path, ".proven").read_text("ascii").strip()
        return proven != _fingerprint(load_certificate(path))
    except (OSError, UnicodeError, CertificateError):
        return True


def go_back(path: Path) -> None:
    """Put the kept certificate back in place of one that does not work.

    Raises:
        StorageError: the disk refused.
        CertificateError: the kept certificate can't be read.
    """
    _replace(_real(path), load_certificate(previous_path(path)))
    durable.remove(previous_path(path), sync=True)


def exchange(path: Path, present: AgentCertificate, kept_one: AgentCertificate) -> None:
    """Use the kept certificate, which works, and keep the present one, which is refused now and may not be for ever.

    Raises:
        StorageError: the disk refused; at worst both files hold the one that works.
    """
    _replace(_real(path), kept_one)
    durable.write(previous_path(path), present.pem(), _MODE)
    commit(path, kept_one)


def commit(path: Path, certificate: AgentCertificate) -> None:
    """``certificate``, which is at ``path``, has worked. The one before stays to go back to.

    Raises:
        StorageError: the disk refused.
    """
    if previous_path(path).exists():
        durable.write(_beside(path, ".proven"), _fingerprint(certificate).encode("ascii") + b"\n")


def forget_previous(path: Path) -> None:
    """There is nothing to go back to any more: the kept certificate has expired, or is none.

    Raises:
        StorageError: the disk refused.
    """
    durable.remove(previous_path(path), sync=True)
    durable.remove(_beside(path, ".proven"))


def keep_unverified(path: Path, pem: str) -> Path:
    """Keep an answer that a token was spent for; where it lies (raises StorageError)."""
    place = _beside(path, ".unverified")
    durable.make_directory(place.parent)
    durable.write(place, pem.encode("utf-8", "surrogatepass"), _MODE)
    return place


def unverified_answer(path: Path) -> str | None:
    """The answer that ``keep_unverified`` kept; None without one, or where it can't be read."""
    try:
        with _beside(path, ".unverified").open("rb") as file:
            return file.read(SIZE_LIMIT + 1).decode("utf-8", "surrogatepass")
    except (OSError, UnicodeError):
        return None


def drop_unverified(path: Path) -> None:
    """A certificate is installed: what was kept is not needed (raises StorageError)."""
    durable.remove(_beside(path, ".unverified"))


def _replace(real: Path, certificate: AgentCertificate) -> None:
    """In one step; into a mount point, which nothing can be renamed over, in place."""
    try:
        durable.write(real, certificate.pem(), _MODE)
    except StorageError as error:
        if error.errno != errno.EBUSY:
            raise
        durable.overwrite(real, certificate.pem())


def _real(path: Path) -> Path:
    """What a link leads to: replacing the link itself would leave the file that outlasts a boot as it was."""
    with suppress(OSError, RuntimeError):  # a loop of links: opening it will say so
        return path.resolve()
    return path


def _beside(path: Path, suffix: str) -> Path:
    real = _real(path)
    return real.with_name(real.name + suffix)


def _fingerprint(certificate: AgentCertificate) -> str:
    return certificate.leaf.fingerprint(SHA256()).hex()
