"""Seeds that once broke a promise, and what was wrong: they run for ever."""

from __future__ import annotations

#: Seed, the steps to keep, and the defect that it found.
NAMED: tuple[tuple[int, tuple[int, ...] | None, str], ...] = (
    (28, None, "a deferred release that booted before its successor's switch was a third closure to the successor"),
)
