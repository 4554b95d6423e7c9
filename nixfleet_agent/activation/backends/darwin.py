"""nix-darwin: the system's own ``activate``, started as on other hosts without systemd."""

from __future__ import annotations

from pathlib import Path

from nixfleet_agent.activation.backends.setsid import SetsidBackend


class DarwinBackend(SetsidBackend):
    """macOS has no bootloader entry to write: activating is all there is, whatever the action."""

    method = "darwin"

    def command(self, system: Path, action: str) -> list[str]:
        return [str(system / "activate")]

    def dry_run(self, system: Path) -> list[str] | None:
        return None  # its `activate` does what it says, whatever it is given
