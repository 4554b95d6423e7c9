"""Whether this host's certificate is let in: what calls that presented it met, by generation.

A refused certificate shows as a TLS alert, or as one of a few statuses, of the control plane or of what terminates TLS
before it. Nobody's word for it is believed beyond this: the pair before is tried then, and the bootstrap token.
"""

from __future__ import annotations

import threading

from nixfleet_agent.net.verdict import Verdict

#: nginx answers 495 and 496, and 400 without the right page, where the certificate is bad or missing.
REFUSING = frozenset({400, 401, 403, 495, 496})


class Welcome:
    """Told by every thread that makes calls; asked by the one that keeps the certificate."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._refusal: tuple[int, str] | None = None

    def refused(self, generation: int, told: str) -> None:
        """A call that presented the certificate of ``generation`` was refused."""
        with self._lock:
            if self._refusal is None or self._refusal[0] != generation:
                self._refusal = (generation, told)

    def answered(self, generation: int, status: int, verdict: Verdict, told: str) -> None:
        """One was answered: a 2xx lets it in, and a few statuses turn it away."""
        if status in REFUSING and not (status == 400 and verdict is Verdict.ERROR):  # which is about what was sent
            self.refused(generation, told)
        elif verdict is Verdict.ANSWER:
            self._let_in(generation)

    def _let_in(self, generation: int) -> None:
        with self._lock:
            if self._refusal is not None and self._refusal[0] == generation:
                self._refusal = None

    def refusal(self, generation: int) -> str | None:
        """What was said first when ``generation`` was refused, if it has not been let in since."""
        with self._lock:
            return self._refusal[1] if self._refusal is not None and self._refusal[0] == generation else None
