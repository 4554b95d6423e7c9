"""The trust file as it is on disk now, and the high-water marks that outlive the process.

Marks are raised in memory at once and written by ``flush``, which callers run after anything urgent: an accepted
Dispatch carries its marks in its own record, so that nothing is lost in between.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from nixfleet_agent import durable
from nixfleet_agent.config.model import Config
from nixfleet_agent.config.ownership import unsafe
from nixfleet_agent.errors import ProtoError, StorageError
from nixfleet_agent.proto.strict_json import BODY_LIMIT, loads_strict
from nixfleet_agent.reading import read_regular
from nixfleet_agent.threads.threads import SYSTEM_THREADS, Threads
from nixfleet_agent.trouble import Trouble
from nixfleet_agent.trust.errors import TrustFileError
from nixfleet_agent.trust.marks import ManifestMark, Marks
from nixfleet_agent.trust.roots import TrustRoots, parse_trust

MARKS_FILE = "trust-marks.json"

log = logging.getLogger("nixfleet_agent.trust_store")

_Stamp = tuple[int, int, int, int]


class TrustStore:
    """Shared by all workers that verify; every method may be called from any thread."""

    def __init__(self, config: Config, threads: Threads = SYSTEM_THREADS) -> None:
        """Nothing is read yet: ``trust`` does at its first call, and ``recover_marks`` before anything is verified."""
        self._trust_path = config.trust_file
        self._marks_path = config.state_dir / MARKS_FILE
        self._lock = threading.Lock()
        self._flushing = threads.lock()
        self._stamp: _Stamp | None = None
        self._roots: TrustRoots | None = None
        self._marks = Marks()
        self._written: Marks | None = None
        self._trouble = Trouble(log, "the trust marks are not on disk yet")

    def trust(self) -> TrustRoots:
        """The trust roots; read again when the file has changed.

        Raises:
            TrustFileError: it is missing or invalid, or others may change it. A file that was good once does not
                count any more: whoever damaged it may have wanted to take a key away.
        """
        news: tuple[str, ...] = ()
        with self._lock:
            stamp = _stamp_of(self._trust_path)
            if self._roots is None or stamp != self._stamp:
                self._roots = None
                self._roots = parse_trust(_read(self._trust_path), f"the trust file {self._trust_path}")
                self._stamp, news = stamp, self._roots.warnings
            roots = self._roots
        for warning in news:
            log.warning("%s", warning)
        return roots

    def problem(self) -> str | None:
        """Why nothing can be verified now, for status; None when the file is good."""
        try:
            self.trust()
        except TrustFileError as error:
            return str(error)
        return None

    @property
    def marks(self) -> Marks:
        """The marks as of now."""
        with self._lock:
            return self._marks

    def recover_marks(self, recorded: Iterable[Marks]) -> Marks:
        """Read the marks of the last process, and lift them to what its records of accepted Dispatches prove.

        A file that is missing or damaged is rebuilt from those records (and from verified caches, as they are read):
        it costs a log line and never the agent.
        """
        found = self._read_marks()
        with self._lock:
            self._marks = self._marks.merged(found or Marks())
            self._written = found
            for marks in recorded:
                self._marks = self._marks.merged(marks)
            return self._marks

    def raise_marks(
        self,
        *,
        fleet: datetime | None = None,
        channel: tuple[str, datetime] | None = None,
        manifest: ManifestMark | None = None,
    ) -> Marks:
        """Lift marks to what was just accepted, and return all of them; lower times change nothing."""
        with self._lock:
            channels = dict([channel]) if channel else None
            self._marks = self._marks.raised(fleet=fleet, channels=channels, manifest=manifest)
            return self._marks

    def flush(self) -> None:
        """Write the marks where they have changed since they were last written.

        Raises:
            StorageError: the disk refused; the next call tries again.
        """
        with self._flushing:
            marks = self.marks
            if marks == (self._written or Marks()):
                return
            text = json.dumps({"schemaVersion": 1, **marks.to_json()}, indent=1)
            durable.write(self._marks_path, text.encode("utf-8") + b"\n")
            self._written = marks

    def flush_or_say(self) -> None:
        """``flush`` for workers that have something better to do than to fail: each reason is said once."""
        try:
            self.flush()
        except StorageError as error:
            self._trouble.failed(error)
        else:
            self._trouble.over()

    def _read_marks(self) -> Marks | None:
        try:
            raw = read_regular(self._marks_path, BODY_LIMIT)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.error(
                "can't read %s (%s): rebuilt from accepted Dispatches and caches", self._marks_path, error.strerror
            )
            return None
        try:
            return Marks.parse(loads_strict(raw, limit=BODY_LIMIT, what=str(self._marks_path)))
        except ProtoError as error:
            log.error("%s: rebuilt from accepted Dispatches and verified caches", error)
            return None


def _stamp_of(path: Path) -> _Stamp:
    try:
        status = path.stat()
    except OSError as error:
        raise TrustFileError(f"can't read the trust file {path}: {error.strerror}: put the fleet's there") from error
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


def _read(path: Path) -> bytes:
    if (problem := unsafe(path)) is not None:
        raise TrustFileError(problem)
    try:
        return read_regular(path, BODY_LIMIT)
    except OSError as error:
        raise TrustFileError(f"can't read the trust file {path}: {error.strerror}: put the fleet's there") from error
