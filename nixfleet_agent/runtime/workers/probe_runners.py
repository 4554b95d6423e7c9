"""The probe runners under the name that the workers' documentation gives them; they live in ``probes.runners``."""

from __future__ import annotations

from nixfleet_agent.probes.runners import run

__all__ = ["run"]
