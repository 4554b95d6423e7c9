"""What Nix's words mean: a table of failure classes, which say whether waiting can help. Pure, from text alone.

The words were read in Nix 2.3 to 2.3x and Lix, and seen in runs of 2.8. Numbers of HTTP and of curl are preferred to
their words, because curl rewords its own from release to release.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nixfleet_agent.text import clip_tail

#: How Nix 2.3 to 2.3x, Lix and Determinate Nix say that no trusted key has signed a path. A substituter's refusal is a
#: warning ("... is not signed by any of the keys in", after 2.8 "..., as it's not signed by any of the keys in"); the
#: error that follows says only that nothing can build the path.
REFUSED_SIGNATURE = (
    "lacks a valid signature",
    "lacks a signature by a trusted key",
    "does not have a valid signature",
    "not signed by any of the keys in",
    "not signed by a trusted key",
    "no signature is trusted",
    "no signatures matched",
    "untrusted signature",
    "signature mismatch",
    "invalid signature",
    "lacks a trusted signature",
)

_LONGEST_DETAIL = 300
_WORDS_LIMIT = 3072
_COLOURS = re.compile(rb"\x1b\[[0-9;]*m")
_TRANSFER = re.compile(r"unable to \w+ '([^'\n]*)': ([^\n]*)")
_HTTP = re.compile(r"HTTP error (\d{3})")
_CURL = re.compile(r"\((?:curl error code=)?(\d{1,3})\b[^)]*\)")
#: Whatever a server put into its answer is no word of Nix's: the body follows, indented.
_BODY = re.compile(r"^ *response body:\n(?:(?:[ \t]+[^\n]*)?(?:\n|\Z))*", re.MULTILINE)
_PREFIX = re.compile(r"(?:warning: )?(?:error: )?")
_DISABLED = re.compile(r"substituter '[^'\n]*' is disabled")


@dataclass(frozen=True, slots=True)
class FailureClass:
    """One row of the table. ``passes``: waiting can help. ``meaning`` says what it is and what to do, for people."""

    kind: str
    passes: bool
    meaning: str


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure of one try: its class, and Nix's own line for it."""

    kind: str
    passes: bool
    meaning: str
    detail: str

    def __str__(self) -> str:
        return f"{self.meaning} ({self.detail})" if self.detail else self.meaning


CREDENTIALS = FailureClass("credentials", True, "a cache refuses this host's credentials: check netrc or its token")
THROTTLED = FailureClass("throttled", True, "a cache asks for fewer requests")
SERVER = FailureClass("server", True, "a cache's server fails")
DNS = FailureClass("dns", True, "a cache's name can't be resolved")
TLS = FailureClass("tls", True, "a cache's certificate is not accepted: check its name, its CA and this host's clock")
NETWORK = FailureClass("network", True, "a cache can't be reached, or the transfer broke off")
DAEMON = FailureClass("daemon", True, "the Nix daemon does not answer")
DATABASE = FailureClass("database", True, "Nix's database or a lock of it is busy")
DISK = FailureClass("disk", True, "the disk is full, of bytes or of inodes: free some")
RESOURCES = FailureClass("resources", True, "the host has no memory, process or file handle left for Nix")
STALLED = FailureClass("stalled", True, "the download stands still")
MISSING = FailureClass("missing", True, "no cache has it, or one that hides it without credentials")
SIGNATURE = FailureClass("signature", False, "a path is not signed by a trusted key")
CONTENT = FailureClass("content", False, "a cache serves other bytes than were signed")
DAMAGED = FailureClass(
    "damaged", False, "Nix's database is damaged: `nix-store --verify --check-contents --repair` repairs the store"
)
UNKNOWN = FailureClass("unknown", False, "Nix failed")

_DNS_CURL, _TLS_CURL = {5, 6}, {35, 51, 53, 54, 58, 59, 60, 64, 66, 77, 80, 82, 83, 90, 91}
_MISC_CURL = {1, 3}

#: In the order in which a line is looked up.
_WORDS: tuple[tuple[FailureClass, tuple[str, ...]], ...] = (
    (DISK, ("no space left on device", "database or disk is full", "disk quota exceeded")),
    (
        DAEMON,
        (
            "cannot connect to socket at",
            "cannot connect to daemon",
            "cannot open connection to remote store",
            "nix daemon disconnected unexpectedly",
            "broken pipe",
        ),
    ),
    (DATABASE, ("' is busy", "database is locked", "database table is locked", "resource temporarily unavailable")),
    (DATABASE, ("cannot get exclusive access", "has become stale")),
    (RESOURCES, ("cannot allocate memory", "std::bad_alloc", "too many open files", "unable to fork")),
    (DNS, ("temporary failure in name resolution", "name or service not known")),
    (
        NETWORK,
        (
            "connection reset by peer",
            "connection timed out",
            "connection refused",
            "network is unreachable",
            "no route to host",
            "unexpected end-of-file",
            "unexpected eof",
            "failed to start ssh connection",
            "usually happens due to networking issues",
        ),
    ),
    (STALLED, ("no new byte and no new path",)),
    (CONTENT, ("hash mismatch", "size mismatch importing path", "bad archive", "input is not a nix archive")),
    (DAMAGED, ("database disk image is malformed", "file is not a database")),
    (
        MISSING,
        (
            "don't know how to build these paths",
            "does not exist in binary cache",
            "no substituter that can build",
            "does not exist and cannot be created",
            "could not be realised",
            "does not appear to be a binary cache",
            "cannot build missing derivation",
        ),
    ),
)
#: What decides when Nix says several things: first what can pass, then what is worse than that a path is not there.
_PRECEDENCE = (
    *(DISK, DATABASE, DAEMON, RESOURCES, CREDENTIALS, THROTTLED, SERVER, DNS, TLS, NETWORK, STALLED),
    *(DAMAGED, SIGNATURE, CONTENT, MISSING, UNKNOWN),
)


def plain_all(raw: bytes) -> str:
    """Nix's words as text, without colours, all of them."""
    return _COLOURS.sub(b"", raw).decode("utf-8", "replace")


def plain(raw: bytes) -> str:
    """The same, their end when they are many."""
    return clip_tail(_COLOURS.sub(b"", raw), _WORDS_LIMIT).strip()


def is_refused_signature(text: str) -> bool:
    """Whether Nix's words mean that a path is not signed by a trusted key."""
    lower = text.lower()
    return any(wording in lower for wording in REFUSED_SIGNATURE)


def classify(text: str) -> Failure:
    """What stands behind the words of a Nix that has failed, colours removed.

    Several caches may each have failed in their own way; one that can get well is reason enough to try again.
    """
    said = _BODY.sub("", text)
    found: dict[str, Failure] = {}
    for line in said.splitlines():
        for row in _classes(line):
            found.setdefault(row.kind, _failure(row, line))
    for row in _PRECEDENCE:
        if row.kind in found:
            return found[row.kind]
    last = next((line for line in reversed(said.splitlines()) if line.strip()), "")
    return _failure(UNKNOWN, last)


def broken_caches(text: str, caches: Sequence[str]) -> list[str]:
    """Those of ``caches`` (URLs) at which a transfer failed in a way that is not the absence of a file."""
    failed = [match[1] for match in _TRANSFER.finditer(_BODY.sub("", text)) if _of_transfer(match[2]) is not MISSING]
    return [cache for cache in caches if any(url.startswith(_origin(cache)) for url in failed)]


def _origin(cache: str) -> str:
    """A cache's address as it begins the addresses of its files: without Nix's own parameters."""
    return cache.partition("?")[0].rstrip("/") + "/"


def _classes(line: str) -> Iterator[FailureClass]:
    if is_refused_signature(line):
        yield SIGNATURE
    if (match := _TRANSFER.search(line)) is not None:
        yield _of_transfer(match[2])
        return
    if _DISABLED.search(line) is not None:
        yield NETWORK
    lower = line.lower()
    yield from (row for row, words in _WORDS if any(wording in lower for wording in words))


def _of_transfer(words: str) -> FailureClass:
    curl, http = _CURL.search(words), _HTTP.search(words)
    if http is not None:
        return _of_status(int(http[1]))
    if curl is None or int(curl[1]) not in (*_DNS_CURL, *_TLS_CURL, *_MISC_CURL):
        return NETWORK
    if int(curl[1]) in _MISC_CURL:
        return UNKNOWN
    return DNS if int(curl[1]) in _DNS_CURL else TLS


def _of_status(status: int) -> FailureClass:
    if status in (401, 403, 407):
        return CREDENTIALS
    if status in (404, 410):
        return MISSING
    if status == 429:
        return THROTTLED
    if status in (408, 425) or status >= 500:
        return SERVER
    # A success whose body broke off: the status came first.
    return NETWORK if status < 400 else UNKNOWN


def _failure(row: FailureClass, line: str) -> Failure:
    detail = _PREFIX.sub("", line.strip(), count=1)
    return Failure(row.kind, row.passes, row.meaning, detail[:_LONGEST_DETAIL])
