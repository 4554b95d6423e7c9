"""A wall clock that may be off, for a control plane in this process."""

from __future__ import annotations

from datetime import datetime, timedelta

from nixfleet_agent.threads.clock import SystemClock


class OffClock(SystemClock):
    """The control plane's, which may be off."""

    off = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.off
