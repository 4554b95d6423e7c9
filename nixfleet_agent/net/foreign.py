"""What answers in place of the control plane, by endpoint: said once when it appears, and once when it is gone."""

from __future__ import annotations

import logging
import threading

log = logging.getLogger("nixfleet_agent.net")

#: Endpoints are few; a path that somebody makes up must not fill the memory.
_MOST_ENDPOINTS = 32


class ForeignAnswers:
    """Told by every thread that makes calls; read for `status` and `why`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told: dict[str, str] = {}

    def met(self, endpoint: str, told: str) -> None:
        """Something else answered for ``endpoint``; the same at another endpoint is no news."""
        with self._lock:
            news = told not in self._told.values()
            if endpoint in self._told or len(self._told) < _MOST_ENDPOINTS:
                self._told[endpoint] = told
        if news:
            log.warning("something answers in place of the control plane: %s (%s)", told, endpoint)

    def heard(self, endpoint: str) -> None:
        """The control plane itself answered for ``endpoint``."""
        with self._lock:
            over = self._told.pop(endpoint, None) is not None and not self._told
        if over:
            log.info("the control plane itself answers again")

    def current(self) -> dict[str, str]:
        """What answers now, by endpoint; empty when the control plane does."""
        with self._lock:
            return dict(self._told)
