"""Signed compliance evidence: read, verified against the host's own key, and kept while its files are unchanged."""

from __future__ import annotations

import base64
import binascii
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from nixfleet_agent.errors import AgentError, IdentityError, ProtoError, TrustError
from nixfleet_agent.identity.host_key import load_host_key
from nixfleet_agent.proto.strict_json import loads_strict
from nixfleet_agent.proto.times import parse_time
from nixfleet_agent.reading import read_regular
from nixfleet_agent.trust.canonical import canonical
from nixfleet_agent.trust.verify import SIGNATURE_LIMIT

EVIDENCE_LIMIT = 4 * 1024 * 1024
KEY_LIMIT = 64 * 1024

#: What tells one version of a file from the next: device, inode, size, modification time in nanoseconds.
Identity = tuple[int, int, int, int]


class EvidenceError(AgentError):
    """The evidence can't be used; the message is the probe's reason."""


@dataclass(frozen=True, slots=True)
class Control:
    """One control as the collector judged it; ``articles`` are (framework, its articles, maybe none)."""

    control_id: str
    passed: bool
    articles: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """A file whose signature and host were right."""

    collected_at: datetime
    controls: tuple[Control, ...]


class _Known:
    """One file's last verified content. Whoever asks for this file meanwhile waits for the one verification."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.identities: tuple[Identity | None, ...] = ()
        self.evidence: Evidence | None = None


class EvidenceReader:
    """One per host, shared by its evidence probes: a file is verified once and not again until it changes."""

    def __init__(self, machine_id: str, host_key_file: Path) -> None:
        self._machine_id = machine_id
        self._host_key_file = host_key_file
        self._public_key_file = Path(f"{host_key_file}.pub")
        self._lock = threading.Lock()
        self._known: dict[Path, _Known] = {}

    def read(self, path: Path) -> Evidence:
        """The evidence at ``path``, whose signature is in the file of the same name with ``.sig``.

        Raises:
            EvidenceError: missing, malformed, wrongly signed, or another host's.
        """
        signature_path = Path(f"{path}.sig")
        files = (path, signature_path, self._public_key_file, self._host_key_file)
        with self._lock:
            known = self._known.setdefault(path, _Known())
        with known.lock:
            # Looked at before reading: what changes in between is read again next time, never taken for known.
            identities = tuple(_identity(file) for file in files)
            if known.evidence is None or known.identities != identities:
                known.evidence = self._verified(path, signature_path)
                known.identities = identities
            return known.evidence

    def _verified(self, path: Path, signature_path: Path) -> Evidence:
        try:
            value = loads_strict(_content(path, EVIDENCE_LIMIT), limit=EVIDENCE_LIMIT, what=str(path))
        except (ProtoError, ValueError) as error:
            raise EvidenceError(str(error)) from error
        try:
            # base64(1) breaks its lines at 76 characters, and a signature has 88.
            words = _content(signature_path, SIGNATURE_LIMIT).split()
            signature = base64.b64decode(b"".join(words), validate=True)
        except binascii.Error as error:
            raise EvidenceError(f"{signature_path} is not base64") from error
        if len(signature) != 64:
            raise EvidenceError(f"{signature_path} holds {len(signature)} bytes, an Ed25519 signature has 64")
        key = self._public_key()
        if not any(_verifies(key, signature, form) for form in _signed_forms(value)):
            raise EvidenceError(f"{path} is not signed by this host's key, or was changed since")
        return _evidence(value, path, (self._machine_id, os.uname().nodename))

    def _public_key(self) -> Ed25519PublicKey:
        try:
            line: bytes | None = _content(self._public_key_file, KEY_LIMIT)
        except EvidenceError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            line = None
        try:
            key: object
            if line is None:
                key = load_host_key(self._host_key_file).private.public_key()
            else:
                key = load_ssh_public_key(line.strip())
        except (IdentityError, ValueError, UnsupportedAlgorithm) as error:
            raise EvidenceError(f"no host key to verify evidence with: {error}") from error
        if not isinstance(key, Ed25519PublicKey):
            raise EvidenceError(f"{self._public_key_file} is not an Ed25519 key")
        return key


def _signed_forms(value: Any) -> Iterator[bytes]:
    """The canonical bytes that a collector may have signed: the whole document, or its typed part.

    Collectors that sign what they have parsed leave out the fields that their types do not have. The typed part holds
    every field that is read here, and so its signature covers everything that a probe's result rests on.
    """
    try:
        yield canonical(value)
        typed = _typed_part(value)
        if typed is not None:
            yield canonical(typed)
    except TrustError as error:
        raise EvidenceError(str(error)) from error


def _typed_part(value: Any) -> dict[str, Any] | None:
    """The document as the collector's types write it: `frameworkArticles` always there, what is null left out."""
    controls = value.get("controls") if isinstance(value, dict) else None
    if not isinstance(controls, list) or not all(isinstance(control, dict) for control in controls):
        return None
    typed = {name: value[name] for name in ("schemaVersion", "hostname", "collectedAt") if name in value}
    typed["controls"] = [
        {"frameworkArticles": control.get("frameworkArticles") or {}}
        | {name: control[name] for name in ("controlId", "passed") if name in control}
        | {name: control[name] for name in ("details", "schema") if control.get(name) is not None}
        for control in controls
    ]
    return typed


def _verifies(key: Ed25519PublicKey, signature: bytes, signed: bytes) -> bool:
    try:
        key.verify(signature, signed)
    except InvalidSignature:
        return False
    return True


def names_host(said: object, names: Iterable[str]) -> bool:
    """Whether ``said`` is one of ``names``, in any case of letters; a name without a dot is short for any longer one.

    Collectors write what `hostname` prints: the kernel's name, short or fully qualified as the host was configured.
    Two fully qualified names must be equal: web-01 of one domain is not web-01 of another.
    """
    if not isinstance(said, str) or not said:
        return False
    found = said.lower().rstrip(".")
    for name in names:
        known = name.lower().rstrip(".")
        if found == known or ("." not in known and found.startswith(f"{known}.")):
            return True
        if "." not in found and known.startswith(f"{found}."):
            return True
    return False


def _identity(path: Path) -> Identity | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _content(path: Path, limit: int) -> bytes:
    try:
        raw = read_regular(path, limit)
    except OSError as error:
        raise EvidenceError(f"can't read {path}: {error.strerror or error}") from error
    if len(raw) > limit:
        raise EvidenceError(f"{path} is larger than {limit} bytes")
    return raw


def _evidence(value: Any, path: Path, names: tuple[str, str]) -> Evidence:
    if not isinstance(value, dict):
        raise EvidenceError(f"{path} is not a JSON object")
    version = value.get("schemaVersion")
    if isinstance(version, bool) or version != 1:
        raise EvidenceError(f"{path} has schemaVersion {version!r}, and only 1 is understood")
    if not names_host(value.get("hostname"), names):
        raise EvidenceError(f"{path} is evidence of {value.get('hostname')!r}, and this host is {names[0]!r}")
    controls = value.get("controls")
    if not isinstance(controls, list):
        raise EvidenceError(f"{path} has no list of controls")
    try:
        collected_at = parse_time(value.get("collectedAt"), f"collectedAt of {path}")
    except ProtoError as error:
        raise EvidenceError(str(error)) from error
    return Evidence(collected_at, tuple(_control(entry, path) for entry in controls))


def _control(entry: Any, path: Path) -> Control:
    fields: Mapping[str, Any] = entry if isinstance(entry, dict) else {}
    name, judged, frameworks = (fields.get(key) for key in ("controlId", "passed", "frameworkArticles"))
    # Older collectors write no frameworks: such a control covers none.
    frameworks = {} if frameworks is None else frameworks
    if not isinstance(name, str) or not name or not isinstance(judged, bool) or not isinstance(frameworks, dict):
        raise EvidenceError(f"{path} has a control without controlId, passed or a good frameworkArticles: {name!r}")
    for articles in frameworks.values():
        if not isinstance(articles, list) or not all(isinstance(article, str) for article in articles):
            raise EvidenceError(f"{path}: the articles of control {name!r} are not lists of strings")
    return Control(name, judged, tuple((framework, tuple(articles)) for framework, articles in frameworks.items()))
