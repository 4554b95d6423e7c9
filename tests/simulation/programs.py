"""The programs that an agent runs on a simulated machine, as far as it asks them anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nixfleet_agent.activation.errors import CommandError
from nixfleet_agent.activation.processes import Finished
from tests.simulation.scheduler import NEVER

if TYPE_CHECKING:
    from tests.simulation.machine import Machine


@dataclass(frozen=True, slots=True)
class Call:
    """One program: its words, until when it may run, and who may end it."""

    words: list[str]
    until: float
    check: Callable[[], None]
    on_stderr: Callable[[bytes], None] | None

    def after(self, option: str) -> str | None:
        return self.words[self.words.index(option) + 1] if option in self.words else None


_DONE = Finished(0, b"", b"")


def _take(machine: Machine, call: Call, seconds: float) -> None:
    """Let the program run for ``seconds``; raises CommandError at its limit, and what ``check`` raises."""
    until = machine.scheduler.now + seconds
    while (left := until - machine.scheduler.now) > 0:
        if machine.scheduler.now >= call.until:
            raise CommandError(f"{call.words[0]} did not end in time")
        call.check()
        machine.scheduler.block(NEVER, min(left, 0.5, max(call.until - machine.scheduler.now, 0.001)))
    call.check()


def _nix_store(machine: Machine, call: Call) -> Finished:
    closure = next(word for word in call.words if word.startswith("/nix/store/")).rpartition("/")[2]
    _take(machine, call, 0.05)
    if "--dry-run" in call.words:
        return _DONE
    root = Path(call.after("--add-root") or "")
    if not machine.has(closure):
        if call.after("substitute") == "false" or machine.closures[closure].fetch is None:
            return Finished(1, b"", f"error: don't know how to build these paths:\n  {closure}\n".encode())
        if not machine.network_for_nix:
            _take(machine, call, 2.0)
            words = f"error: unable to download 'https://cache/{closure}.narinfo': Couldn't resolve host name (6)\n"
            return Finished(1, b"", words.encode())
        _fetch(machine, call, machine.closures[closure].fetch or 0.0)
        machine.add(closure)
    machine.disk.changes(root)
    root.unlink(missing_ok=True)
    root.symlink_to(f"/nix/store/{closure}")
    return _DONE


def _fetch(machine: Machine, call: Call, seconds: float) -> None:
    for part in range(4):
        _take(machine, call, seconds / 4)
        if call.on_stderr is not None:
            progress = {"action": "result", "id": 1, "type": 105, "fields": [part + 1, 4, 1, 0]}
            call.on_stderr(b"@nix " + json.dumps(progress).encode() + b"\n")


def _nix_env(machine: Machine, call: Call) -> Finished:
    _take(machine, call, 0.05)
    machine.point(call.words[-1].rpartition("/")[2])
    return _DONE


def _nix(machine: Machine, call: Call) -> Finished:
    return Finished(0, b"substituters = https://cache\n", b"")


def _systemd_run(machine: Machine, call: Call) -> Finished:
    _take(machine, call, 0.02)
    unit = next(word for word in call.words if word.startswith("--unit=")).partition("=")[2]
    delays = [word for word in call.words if word.startswith("--on-active=")]
    delay = float(delays[0].partition("=")[2].rstrip("s")) if delays else 0.0
    command = call.words[call.words.index("--") + 1 :]
    taken = next((n for n in (f"{unit}.service", f"{unit}.timer") if machine.active(n)), None)
    if taken is not None:
        words = f"Failed to start transient unit: Unit {taken} was already loaded or has a fragment file.\n"
        return Finished(1, b"", words.encode())
    # sh wrapper.sh run RECORD 0 COMMAND...
    if delay:
        machine.start_timer(unit, Path(command[3]), delay, command[5:])
    else:
        machine.start_unit(unit, Path(command[3]), command[5:])
    return _DONE


def _systemctl(machine: Machine, call: Call) -> Finished:
    verb, name = call.words[1], call.words[-1]
    _take(machine, call, 0.01)
    if verb == "is-active":
        return Finished(0, b"active\n", b"") if machine.active(name) else Finished(3, b"inactive\n", b"")
    if verb == "stop" and not machine.active(name):  # one that has ended is not kept
        return Finished(5, b"", f"Failed to stop {name}: Unit {name} not loaded.\n".encode())
    if verb == "stop":
        machine.stop_unit(name)
    return _DONE


PROGRAMS: Mapping[str, Callable[[Machine, Call], Finished]] = {
    "nix-store": _nix_store,
    "nix-env": _nix_env,
    "nix": _nix,
    "systemd-run": _systemd_run,
    "systemctl": _systemctl,
}
