"""The disk of one host of a demo: where things lie, what it says after the fact, and how the host boots from it."""

from __future__ import annotations

import shutil
from pathlib import Path

from nixfleet_agent.activation.changes import of_rollout
from nixfleet_agent.activation.records import Records
from nixfleet_agent.demo.closures import STORE
from nixfleet_agent.demo.errors import DemoError
from nixfleet_agent.demo.nixos_switch import UNITS
from nixfleet_agent.proto.ids import CLOSURE


class HostDisk:
    """One host's files in ``folder``; nothing here needs an agent, or knows of one."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.config_file = folder / "agent.toml"
        self.state_dir = folder / "state"
        self.boot_entry = folder / "boot-entry"
        self.units = folder / "run" / "units"

    @property
    def store_root(self) -> Path:
        return self.folder / "store"

    @property
    def current_system(self) -> Path:
        return self.folder / "run" / "current-system"

    @property
    def profile(self) -> Path:
        return self.folder / "profiles" / "system"

    @property
    def hooks(self) -> Path:
        return self.folder / "hooks.d"

    @property
    def switch_lock(self) -> Path:
        return self.folder / "run" / "switch-to-configuration.lock"

    @property
    def switch_log(self) -> Path:
        """A line for each call of a switch script, boot and hook, as ``<what> <closure>``."""
        return self.folder / "switch.log"

    def boot(self) -> None:
        """What bootloader and initrd do: ``/run`` is empty at first, and then has the current system and its units."""
        closure = self.booting_closure()
        if closure is None:
            raise DemoError(f"{self.name} does not boot: {self.boot_entry} names no closure")
        system = Path(f"{self.store_root}{STORE}/{closure}")
        shutil.rmtree(self.folder / "run", ignore_errors=True)
        self.units.mkdir(parents=True)
        for unit in (system / UNITS).iterdir():
            shutil.copyfile(unit, self.units / unit.name)
        self.current_system.symlink_to(system)
        with self.switch_log.open("a", encoding="ascii") as log:
            log.write(f"booted {closure}\n")

    def running_closure(self) -> str | None:
        """The basename that ``current-system`` names."""
        try:
            name = self.current_system.readlink().name
        except OSError:
            return None
        return name if CLOSURE.fullmatch(name) else None

    def booting_closure(self) -> str | None:
        """The basename that the boot entry names."""
        try:
            name = self.boot_entry.read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return None
        return name if CLOSURE.fullmatch(name) else None

    def changes(self, rollout_id: str) -> str | None:
        """What the switch of a rollout changed here, as its agent has kept it; None before it has."""
        found = of_rollout(Records(self.state_dir, ""), rollout_id)
        return None if found is None else found.words

    def profile_closure(self) -> str | None:
        """The basename that the profile leads to through its generation."""
        try:
            return (self.profile.parent / self.profile.readlink()).readlink().name
        except OSError:
            return None

    def happened(self) -> list[tuple[str, str]]:
        """(what, closure) of each line of ``switch_log``, oldest first."""
        lines = (line.partition(" ") for line in self.switch_log.read_text(encoding="utf-8").splitlines())
        return [(what, closure) for what, _, closure in lines]

    def undelivered(self) -> list[str]:
        """Names of the events that the control plane has not taken."""
        folders = [self.state_dir / name for name in ("outbound-queue", "outbound-rejected", "outbound-corrupt")]
        return sorted(path.name for folder in folders if folder.is_dir() for path in folder.rglob("*.json"))
