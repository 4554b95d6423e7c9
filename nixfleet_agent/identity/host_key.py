"""The host's SSH Ed25519 key: read from its one file, used from memory, never written anywhere."""

from __future__ import annotations

import base64
import hashlib
import stat
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nixfleet_agent.errors import EXIT_CONFIG, IdentityError
from nixfleet_agent.reading import read_regular

#: A private key file is a few hundred bytes; anything far larger is some other file.
_SIZE_LIMIT = 64 * 1024
_OPENSSH = b"-----BEGIN OPENSSH PRIVATE KEY-----"
_PUBLIC_PREFIXES = (b"ssh-", b"ecdsa-", b"sk-")


class HostKeyError(IdentityError):
    """The host key can't be used; the message names the file and the remedy."""

    exit_code = EXIT_CONFIG


@dataclass(frozen=True, slots=True)
class HostKey:
    """A loaded key. ``public_raw`` is the 32-byte Ed25519 public key; the private half never shows in a repr."""

    private: Ed25519PrivateKey = field(repr=False)
    public_raw: bytes

    @property
    def fingerprint(self) -> str:
        """Base64 of SHA-256 over the raw public key: the form that bootstrap tokens name."""
        return fingerprint_of(self.public_raw)

    @property
    def public_openssh(self) -> str:
        """``ssh-ed25519 AAAA...`` without a comment."""
        public = self.private.public_key()
        return public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode("ascii")

    def sign(self, data: bytes) -> bytes:
        """The 64-byte Ed25519 signature of ``data``."""
        return self.private.sign(data)


def fingerprint_of(public_raw: bytes) -> str:
    """Base64 of SHA-256 over a raw 32-byte Ed25519 public key."""
    return base64.b64encode(hashlib.sha256(public_raw).digest()).decode("ascii")


def from_private(private: Ed25519PrivateKey) -> HostKey:
    """Wrap a key that is in memory already."""
    raw = private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return HostKey(private, raw)


def load_host_key(path: Path) -> HostKey:
    """Read an unencrypted Ed25519 private key in OpenSSH or PKCS#8 PEM form.

    Raises:
        HostKeyError: missing, unreadable, encrypted, of another algorithm, or not a private key.
    """
    raw = _read(path)
    if raw.lstrip().startswith(_PUBLIC_PREFIXES):
        raise HostKeyError(f"{path} is the public half of a key: point client_key at the private key beside it")
    try:
        if _OPENSSH in raw:
            private: object = serialization.load_ssh_private_key(raw, password=None)
        else:
            private = serialization.load_pem_private_key(raw, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise HostKeyError(_refusal(path, raw, error)) from error
    if not isinstance(private, Ed25519PrivateKey):
        found = type(private).__name__.lstrip("_").removesuffix("PrivateKey")
        raise HostKeyError(
            f"{path} is an {found} key, and only Ed25519 works: use the host's ssh_host_ed25519_key"
            " (made by `ssh-keygen -A`)"
        )
    return from_private(private)


def permission_warnings(*paths: Path | None) -> list[str]:
    """One line for each of these secret files that others than its owner can read or write; missing files are not."""
    warnings = []
    for path in dict.fromkeys(paths):
        if path is None:
            continue
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except OSError:
            continue
        if mode & 0o077:
            warnings.append(f"{path} can be read or changed by others (mode {mode:04o}): run `chmod 600 {path}`")
    return warnings


def _read(path: Path) -> bytes:
    try:
        raw = read_regular(path, _SIZE_LIMIT)
    except FileNotFoundError as error:
        raise HostKeyError(f"{path} does not exist: `ssh-keygen -A` makes the host's keys") from error
    except OSError as error:
        raise HostKeyError(f"can't read {path}: {error.strerror}: the agent must run as root") from error
    if len(raw) > _SIZE_LIMIT:
        raise HostKeyError(f"{path} is too large for a private key: check client_key")
    return raw


def _refusal(path: Path, raw: bytes, error: Exception) -> str:
    # Both loaders report a missing pass phrase as TypeError; PKCS#8 says it in the label too.
    if isinstance(error, TypeError) or b"ENCRYPTED" in raw:
        return f"{path} is encrypted, and nobody types a pass phrase at boot: remove it with `ssh-keygen -p -f {path}`"
    if b"PRIVATE KEY" not in raw:
        return f"{path} is not a private key in OpenSSH or PEM form: check client_key"
    return f"{path} is damaged ({str(error)[:200]}): restore it, or make a new one with `ssh-keygen -A`"
