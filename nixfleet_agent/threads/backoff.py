"""How long to wait before the next try: exponential with full jitter, so that a fleet does not return in step."""

from __future__ import annotations

import random


class Backoff:
    """Seconds to wait after each failure in a row; ``reset`` after a success."""

    def __init__(self, initial: float, maximum: float, rng: random.Random | None = None) -> None:
        self._initial = initial
        self._maximum = maximum
        self._rng = rng or random.Random()  # nosec B311 # jitter, no secret
        self._failures = 0

    @property
    def failures(self) -> int:
        """Failures in a row so far."""
        return self._failures

    def next(self, at_least: float = 0.0) -> float:
        """Count one failure; between 0 and the doubled limit, and not under ``at_least`` (a server's Retry-After)."""
        ceiling = min(self._maximum, self._initial * 2.0 ** min(self._failures, 62))
        self._failures += 1
        # A wait of nearly nothing would turn full jitter into a hot loop now and then.
        return max(at_least, self._rng.uniform(0.05 * ceiling, ceiling))

    def reset(self) -> None:
        """The last try succeeded."""
        self._failures = 0
