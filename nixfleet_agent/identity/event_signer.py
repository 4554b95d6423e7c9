"""Signs events by the host's SSH key, the one that `history --verify` and a control plane check them with."""

from __future__ import annotations

import logging
from pathlib import Path

from nixfleet_agent.identity.host_key import HostKey, HostKeyError, load_host_key
from nixfleet_agent.trouble import Trouble
from nixfleet_agent.trust.canonical import canonical

log = logging.getLogger("nixfleet_agent.event_signer")

_Stamp = tuple[int, int, int, int]


class EventSigner:
    """Used by one thread. The key is read again when its file has changed; what was read is used from memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: _Stamp | None = None
        self._key: HostKey | None = None
        self._trouble = Trouble(log, "events are sent without a signature", "events are signed again")

    def sign(self, event: dict[str, object]) -> str | None:
        """Hex Ed25519 over the canonical bytes (RFC 8785) of ``event``; None while the key can't be used.

        Raises:
            TrustError: the event has no canonical form.
        """
        key = self._current()
        return None if key is None else key.sign(canonical(event)).hex()

    def _current(self) -> HostKey | None:
        stamp = _stamp_of(self._path)
        if self._key is None or stamp != self._stamp:
            try:
                self._key, self._stamp = load_host_key(self._path), stamp
            except HostKeyError as error:
                self._key = None
                self._trouble.failed(error)
            else:
                self._trouble.over()
        return self._key


def _stamp_of(path: Path) -> _Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
