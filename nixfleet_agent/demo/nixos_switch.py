r"""The stand-in for NixOS's switch-to-configuration, set up for one closure; the script itself lies beside this module.

    Switch().script(SUCCEED)                             # flips the link, exits 0
    Switch(flavour="perl", checks={"disk": "false"})     # a pre-switch check that refuses
    Switch(bootloader="kill -9 $$")                      # dies in its bootloader step
    units({"app.service": "1", "db.service": "2\nFails=dependency"})

What the script does on its own: takes the lock, asks the pre-switch checks (unless ``NIXOS_NO_CHECK=1``) and the switch
inhibitors, writes the boot entry, stops units, activates, starts units, and ends with 0, 1, 2, 3, 4, 11 or 100.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources

SCRIPT = "switch-to-configuration.sh"
UNITS = "etc/systemd/system"


def _none() -> Mapping[str, str]:
    return {}


@dataclass(frozen=True, slots=True)
class Switch:
    """How one closure's script behaves; every value is shell.

    Args:
        flavour: whose words it uses: ``ng`` (the Rust program of NixOS 24.11 and later) or ``perl``.
        checks: pre-switch checks by name; one that fails refuses the switch.
        bootloader: what the bootloader step does before the entry is written.
        reload: what ``systemctl daemon-reload`` does; a failure ends in exit code 3.
    """

    flavour: str = "ng"
    checks: Mapping[str, str] = field(default_factory=_none)
    bootloader: str = ":"
    reload: str = ":"

    def script(self, activate: str) -> str:
        """The whole script; ``activate`` is the closure's activation, which flips the link (``flip "$self"``)."""
        checks = "; ".join(f"( {command} ) || refuse {name}" for name, command in self.checks.items()) or ":"
        settings = [
            f"flavour={self.flavour}",
            f"pre_switch_checks() {{\n{checks}\n}}",
            f"bootloader() {{\n{self.bootloader}\n}}",
            f"daemon_reload() {{\n{self.reload}\n}}",
        ]
        return _template().replace("#@settings@", "\n".join(settings)).replace("#@activate@", activate)


@functools.cache
def _template() -> str:
    return (resources.files("nixfleet_agent.demo") / SCRIPT).read_text(encoding="utf-8")


def units(definitions: Mapping[str, str]) -> dict[str, str]:
    """The closure's files for units of these definitions, by unit name."""
    return {f"{UNITS}/{name}": f"{text}\n" for name, text in definitions.items()}


def inhibitors(**values: str) -> dict[str, str]:
    """The closure's ``switch-inhibitors``; an underscore in a name stands for a dash."""
    return {"switch-inhibitors": json.dumps({name.replace("_", "-"): value for name, value in values.items()}) + "\n"}
