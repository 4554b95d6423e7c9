"""What goes wrong again and again is said when it changes: a log that repeats itself is read by nobody."""

from __future__ import annotations

import logging


class Trouble:
    """One thing that may fail: the first failure and each change of reason at warning, repeats at debug.

    Used by one thread. ``failing`` says what does not work, and the reason follows it; ``over``, where given, is said
    at info when it works again.
    """

    def __init__(
        self, log: logging.Logger | logging.LoggerAdapter[logging.Logger], failing: str, over: str = ""
    ) -> None:
        self._log = log
        self._failing = failing
        self._over = over
        self._kind = ""
        self.reason = ""

    def failed(
        self, reason: object, kind: str = "", *, level: int = logging.WARNING, fields: dict[str, object] | None = None
    ) -> None:
        """It failed. ``kind`` tells one reason from another where the words differ at each try (an age, a size)."""
        before, self._kind = self._kind, kind or str(reason)
        self.reason = str(reason)
        if self._kind != before:
            self._log.log(level, "%s: %s", self._failing, reason, extra=fields)
        else:
            self._log.debug("%s, still: %s", self._failing, reason, extra=fields)

    def over(self, *, fields: dict[str, object] | None = None) -> None:
        """It works (again)."""
        if self._kind and self._over:
            self._log.info("%s", self._over, extra=fields)
        self._kind = self.reason = ""
