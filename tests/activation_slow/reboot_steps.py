"""One step in the life of a host that a machine's reboot comes between: ``reboot_steps STEP [ARGUMENT]``, on one disk.

``prepare KIND`` makes the host and two systems, ``boot`` is what an initrd does, and ``forward``, ``resume`` and
``rollback`` are the pipeline's, by the systemd backend. Each prints how it came out and where the host is, as JSON.
``deferred`` is one look of the reboot worker at a host whose release waits for its boot; it prints what that waits for.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nixfleet_agent.activation.context import Context
from nixfleet_agent.activation.machine import SystemMachine
from nixfleet_agent.activation.model import ROLLBACK_AND_HALT, Forward, Rollback
from nixfleet_agent.activation.pipeline import Pipeline
from nixfleet_agent.config.model import MaintenanceConfig, RebootConfig
from nixfleet_agent.demo.nixos_switch import Switch, inhibitors, units
from nixfleet_agent.operator.hold import HoldStore
from nixfleet_agent.operator.maintenance import MaintenanceGate
from nixfleet_agent.operator.run_now import RunNowStore
from nixfleet_agent.runtime.platform import Platform
from nixfleet_agent.runtime.workers.reboot import RebootWorker
from nixfleet_agent.state_machine import RolloutRecord, State
from nixfleet_agent.telemetry.status import RolloutsView, StatusBoard
from nixfleet_agent.threads.clock import SystemClock
from tests.runtime.parts import config, services
from tests.support.nix import Nixery, NixHost

DISK = Path("/var/lib/reboot-test")
CLOSURES = DISK / "closures.json"
#: Made by a bootloader step that waits for the plug to be pulled; the second time it does not.
IN_BOOTLOADER = DISK / "in-bootloader"
ROLLOUT = "stable@abc1"
_PULLED = f"[ -e {IN_BOOTLOADER} ] || {{ : >{IN_BOOTLOADER}; sync; sleep 600; }}"


def prepare(kind: str) -> None:
    """``bus``: another D-Bus. ``bus-pulled`` and ``live-pulled``: with a bootloader step that is cut short."""
    coming = "broker" if kind.startswith("live") else "dbus"
    switch = Switch(bootloader=_PULLED) if kind.endswith("pulled") else Switch()
    with Nixery(DISK / "ci") as nixery:
        old = nixery.system("old", files={**inhibitors(dbus_implementation="broker"), **units({"app.service": "1"})})
        files = {**inhibitors(dbus_implementation=coming), **units({"app.service": "2"})}
        new = nixery.system("new", files=files, switch=switch)
        host = nixery.host("web-01")
        host.boot(old)
        host.nix("nix-store", "--realise", f"/nix/store/{new}")
        host.bootloader.write_text(f"{old}\n")
    CLOSURES.write_text(json.dumps([old, new]))


def tell(step: str) -> dict[str, Any]:
    old, new = json.loads(CLOSURES.read_text())
    host = NixHost(DISK / "ci/hosts/web-01", "substituters =\n")
    host.configure(backend="systemd")
    outcome: object = None
    if step == "boot":
        booted = host.boots()
        assert booted is not None
        host.run_system(booted)
    else:
        log = logging.getLogger("reboot-steps")
        clock = SystemClock()
        wait = threading.Event().wait
        context = Context(
            host.activation, host.state_dir, clock, lambda: None, wait, log, base_environment=host.environment
        )  # type: ignore[arg-type]
        pipeline = Pipeline(context)
        forward = Forward(ROLLOUT, new, old, ROLLBACK_AND_HALT)
        if step == "forward":
            outcome = pipeline.forward(forward, lambda method: None)
        elif step == "resume":
            outcome = pipeline.resume(forward, lambda method: None, True)
        else:
            outcome = pipeline.rollback(Rollback(ROLLOUT, old, new, True, new))
    names = {old: "old", new: "new"}
    return {
        "outcome": type(outcome).__name__,
        "fields": asdict(outcome) if outcome is not None else {},  # type: ignore[call-overload]
        "runs": names[host.running()],
        "boots": names[host.boots() or old],
        "profile": names[host.profile_closure()],
        "switches": [f"{call.split()[0]} {names[call.split()[1]]}" for call in host.switches()],
    }


def deferred() -> dict[str, Any]:
    """With this machine's own systemctl, and nobody logged in."""
    _, new = json.loads(CLOSURES.read_text())
    host, clock, board = NixHost(DISK / "ci/hosts/web-01", "substituters =\n"), SystemClock(), StatusBoard()
    record = RolloutRecord(
        rollout_id=ROLLOUT,
        hostname="web-01",
        channel="stable",
        target_closure=new,
        dispatched_at=clock.now(),
        state=State.DEFERRED,
        deferred_boot_id=SystemMachine().boot_id(),
        deferred_component="dbus-implementation",
    )
    board.publish_rollouts(RolloutsView(ROLLOUT, True, records=(record,)))
    rules = RebootConfig(after_deferred="now", required_file="/run/reboot-required")
    worker = RebootWorker(
        services(
            config=replace(config(), state_dir=host.state_dir, reboot=rules),
            clock=clock,
            platform=Platform(),
            board=board,
            hold=HoldStore(host.state_dir, clock),
            maintenance=MaintenanceGate(MaintenanceConfig(), RunNowStore(host.state_dir, clock), clock),
        )
    )
    worker.look()
    found: dict[str, Any] = board.snapshot()["reboot"]
    return found


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        DISK.mkdir(parents=True)
        prepare(sys.argv[2])
    elif sys.argv[1] == "deferred":
        print(json.dumps(deferred()))
    else:
        print(json.dumps(tell(sys.argv[1])))
