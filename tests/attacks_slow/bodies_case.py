"""Answers that a lying control plane gives."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Redirect:
    """Sends the caller elsewhere."""

    status: int
    location: str
