"""One simulated NixOS machine: store, profile, what runs, what boots next, units, and the programs that change them.

The programs follow the rules of the stand-in for NixOS (``nixfleet_agent.demo.nixos_switch``) and of the agent's own
wrapper and guard scripts, in the same order: lock, checks, boot entry, units, flip, units, exit code.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nixfleet_agent.activation.errors import CommandError
from nixfleet_agent.activation.host import Process
from nixfleet_agent.activation.processes import Finished
from nixfleet_agent.threads.clock import Clock
from tests.simulation.disk import Disk
from tests.simulation.primitives import SimClock
from tests.simulation.programs import PROGRAMS, Call
from tests.simulation.scheduler import Scheduler, Task

#: Exit code of a switch that another one's lock turned away, and what it says.
LOCKED, LOCKED_WORDS = 11, "Could not acquire lock\n"
_SCRIPT = "bin/switch-to-configuration"


@dataclass(frozen=True, slots=True)
class Closure:
    """What a system does when it is fetched, switched to and run; ``name`` is its name in the store.

    ``healthy``: its probes pass. ``seconds``: what a switch takes, half of it before the flip. ``code``: the exit code,
    of which 1 comes before anything is changed and 2, 3 and 4 after. ``dies`` ends the switch half way without one.
    ``inhibitor`` is its kernel. ``boots``: whether the machine comes up with it. ``fetch``: seconds to fetch it, None
    where no cache has it.
    """

    name: str
    healthy: bool = True
    seconds: float = 2.0
    code: int = 0
    dies: bool = False
    inhibitor: str = "linux-1"
    boots: bool = True
    fetch: float | None = 3.0

    @property
    def short(self) -> str:
        return self.name.rpartition("nixos-system-")[2]


@dataclass(slots=True)
class _Unit:
    """A transient unit: its process, and the thread that plays it."""

    process: Process
    task: Task | None = None
    active: bool = True


@dataclass(slots=True)
class Machine:
    """See the module; implements what the agent asks of its machine. ``name`` is also its host name."""

    name: str
    root: Path
    scheduler: Scheduler
    clock: SimClock
    disk: Disk
    closures: Mapping[str, Closure]
    installed: str
    boots: int = 1
    entry: str = ""
    #: Closures that ran since the machine was set up, in order, each with the time and who brought it.
    ran: list[tuple[float, str, str]] = field(default_factory=list)
    #: (time, closure, action, exit code) of each switch that has ended.
    switches: list[tuple[float, str, str, int | None]] = field(default_factory=list)
    #: Told of the record of each switch that begins.
    on_switch: Callable[[Path], None] = lambda record: None
    network_for_nix: bool = True
    locked_until: float = 0.0
    half: bool = False
    #: Who began the last switch.
    last: str = "installer"
    #: Who wrote the boot entry.
    chose_entry: str = "installer"
    _held: bool = False
    _pids: itertools.count[int] = field(default_factory=lambda: itertools.count(1000))
    _units: dict[str, _Unit] = field(default_factory=dict)
    _alive: dict[int, Process] = field(default_factory=dict)

    # -- files --------------------------------------------------------------------------------

    @property
    def store(self) -> Path:
        return self.root / "root"

    @property
    def profile(self) -> Path:
        return self.root / "profiles/system"

    @property
    def current_system(self) -> Path:
        return self.root / "run/current-system"

    @property
    def current(self) -> str:
        """The closure that runs."""
        return os.readlink(self.current_system).rpartition("/")[2]

    @property
    def units(self) -> str:
        """The group of this machine's processes other than the agent."""
        return f"{self.name}/units"

    def install(self) -> None:
        """As the installer leaves it: one system, which runs and boots."""
        for folder in ("root/nix/store", "profiles", "run", "state", "etc"):
            (self.root / folder).mkdir(parents=True)
        self.add(self.installed)
        self.entry = self.installed
        self.point(self.installed)
        self.run_system(self.installed, "installer")

    def add(self, closure: str) -> None:
        """Put a closure into the store."""
        place = self.store / "nix/store" / closure
        if (place / _SCRIPT).exists():
            return
        (place / "bin").mkdir(parents=True, exist_ok=True)
        (place / _SCRIPT).write_text("#!/bin/sh\n")
        (place / _SCRIPT).chmod(0o755)
        kernel = self.closures[closure].inhibitor
        (place / "switch-inhibitors").write_text(json.dumps({"kernel": kernel}))

    def has(self, closure: str) -> bool:
        return (self.store / "nix/store" / closure / _SCRIPT).exists()

    def run_system(self, closure: str, who: str) -> None:
        """The link flips: this is what runs now."""
        temporary = self.current_system.with_name("next")
        temporary.symlink_to(f"/nix/store/{closure}")
        temporary.replace(self.current_system)
        self.ran.append((self.scheduler.now, closure, who))
        self.half = False

    def healthy(self) -> bool:
        """Whether the services of what runs answer."""
        return self.closures[self.current].healthy and not self.half

    def point(self, closure: str) -> None:
        numbers = [int(p.name.split("-")[1]) for p in self.profile.parent.glob("system-*-link")]
        generation = self.profile.with_name(f"system-{max(numbers, default=0) + 1}-link")
        generation.symlink_to(f"/nix/store/{closure}")
        temporary = self.profile.with_name("next")
        temporary.symlink_to(generation.name)
        temporary.replace(self.profile)

    # -- power --------------------------------------------------------------------------------

    def boot_id(self) -> str:
        return f"boot-{self.boots}"

    def power_up(self) -> None:
        """Come up with what the boot loader has, or where that does not boot with what ran before."""
        self.boots += 1
        self.clock.boot()
        self._held = False
        self.half = False
        self._alive.clear()
        self._units.clear()
        wanted = self.entry
        if not (self.has(wanted) and self.closures[wanted].boots):
            older = [closure for _, closure, _ in reversed(self.ran) if self.has(closure) and closure != wanted]
            wanted = next((c for c in older if self.closures[c].boots), self.installed)
        self.run_system(wanted, "boot")

    # -- what the agent asks ------------------------------------------------------------------

    def process(self, pid: int) -> Process | None:
        return self._alive.get(pid)

    def lock_holders(self, lock: Path) -> list[int]:
        return [77] if self._held or self.scheduler.now < self.locked_until else []

    def run(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        clock: Clock,
        timeout: float,
        check: Callable[[], None],
        on_stderr: Callable[[bytes], None] | None = None,
        on_start: Callable[[int], None] | None = None,
    ) -> Finished:
        """Play the program; ``check`` may end it, as may its time."""
        del environment
        program = arguments[0].rpartition("/")[2]
        play = PROGRAMS.get(program)
        if play is None:
            raise CommandError(f"can't run {arguments[0]}: the simulated machine has no such program")
        if on_start is not None:
            on_start(next(self._pids))
        return play(self, Call(list(arguments), self.scheduler.now + timeout, check, on_stderr))

    # -- units --------------------------------------------------------------------------------

    def start_unit(self, name: str, record: Path, command: list[str]) -> None:
        pid = next(self._pids)
        unit = _Unit(Process(pid, pid, f"{pid}"))
        self._units[f"{name}.service"] = unit
        self._alive[pid] = unit.process
        unit.task = self.scheduler.spawn(name, self.units, lambda: self._wrapped(unit, record, command))

    def start_timer(self, name: str, record: Path, delay: float, command: list[str]) -> None:
        """The unit starts after ``delay`` seconds."""
        timer = _Unit(Process(0, 0, ""))
        self._units[f"{name}.timer"] = timer

        def fire() -> None:
            self.scheduler.sleep(delay)
            timer.active = False
            self.start_unit(name, record, command)

        timer.task = self.scheduler.spawn(f"{name}.timer", self.units, fire)

    def stop_unit(self, name: str) -> None:
        """SIGTERM, and its end."""
        unit = self._units.get(name)
        if unit is not None and unit.active and unit.task is not None:
            self.scheduler.end([unit.task])
            self._end(unit)

    def active(self, name: str) -> bool:
        unit = self._units.get(name)
        return unit is not None and unit.active

    def _end(self, unit: _Unit) -> None:
        unit.active = False
        self._alive.pop(unit.process.pid, None)

    def _wrapped(self, unit: _Unit, record: Path, command: list[str]) -> None:
        """What the agent's wrapper does: it records its beginning and its end."""
        process = unit.process
        line = f"pid={process.pid} group={process.group} start={process.start} boot={self.boot_id()}\n"
        try:
            (record / "started.next").write_text(line)
            try:
                self.disk.changes(record / "started")
                os.link(record / "started.next", record / "started")
            except FileExistsError:
                return
            self.scheduler.pause()
            self.on_switch(record)
            words, code = self._command(command)
            (record / "output").write_text(words)
            self.scheduler.pause()
            if code is not None:
                self._place(record, "exit", f"{code}\n")
        except FileNotFoundError:
            return  # the record was withdrawn and removed
        finally:
            self._end(unit)

    def _place(self, record: Path, name: str, line: str) -> None:
        (record / f"{name}.next").write_text(line)
        self.disk.changes(record / name)
        (record / f"{name}.next").replace(record / name)

    def _command(self, command: list[str]) -> tuple[str, int | None]:
        if command[0].endswith("sh") and command[1].endswith("guard.sh"):
            return self._guard(command[3], command[6], command[7:])
        checked = True
        if command[0] == "env":
            checked, command = False, command[2:]
        closure = command[0].split("/nix/store/")[1].split("/")[0]
        return self.switch(closure, command[1], checked=checked, who="agent")

    def _guard(self, unit: str, closure: str, command: list[str]) -> tuple[str, int | None]:
        """What the agent's guard does when its time has come; no agent of a release is waited for here."""
        if unit != "-":
            self.stop_unit(unit)
        target = command[0].split("/nix/store/")[1].split("/")[0]
        for _ in range(30):
            for action in (command[1], "boot", command[1]):
                words, code = self.switch(target, action, checked=False, who="guard")
                if action != "boot" and code in (0, 2, 3, 4, 100):
                    self.point(closure.rpartition("/")[2])
                    return words, code
                if action == "boot" and code != 0:
                    break
            self.scheduler.sleep(10)
        return words, code

    # -- the switch ---------------------------------------------------------------------------

    def switch(self, closure: str, action: str, *, checked: bool, who: str) -> tuple[str, int | None]:
        """``switch-to-configuration``; words and exit code, None where it died."""
        if self._held or self.scheduler.now < self.locked_until:
            return LOCKED_WORDS, LOCKED
        self._held = True
        words, code = "", None
        try:
            words, code = self._switched(self.closures[closure], action, checked=checked, who=who)
        finally:
            self._held = False
            self.switches.append((self.scheduler.now, closure, action, code))
        return words, code

    def _switched(self, target: Closure, action: str, *, checked: bool, who: str) -> tuple[str, int | None]:
        running = self.closures[self.current]
        if checked and action != "boot" and running.inhibitor != target.inhibitor:
            return "Pre-switch check 'switchInhibitors' failed\nPre-switch checks failed\n", 1
        if checked and target.code == 1:
            return "Pre-switch check 'app' failed\nPre-switch checks failed\n", 1
        self.scheduler.sleep(0.1)
        self.entry, self.chose_entry = target.name, who
        if action == "boot":
            return "", 0
        self.half = running.name != target.name
        self.last = who if target.code != 100 else self.last
        self.scheduler.sleep(target.seconds / 2)
        if target.dies and who != "guard":
            return "killed\n", None
        if target.code != 100:
            self.run_system(target.name, who)
        else:
            self.half = False
            return "The new configuration won't take effect until you reboot the system.\n", 100
        self.scheduler.sleep(target.seconds / 2)
        if target.code in (2, 3, 4):
            return "warning: the following units failed: app.service\n", target.code
        return "", 0
