"""What the hosts' own files must prove of a release when its story is over, by the words of ``proven`` in a scenario.

Each proof is read from one host's disk, and from the control plane's database, by no other way than an auditor's.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime

from nixfleet_agent.config.windows import Windows, parse_windows
from nixfleet_agent.demo.balancer import DRAIN, UNDRAIN, UNDRAIN_HOOK
from nixfleet_agent.demo.disk import HostDisk
from nixfleet_agent.demo.fleet import DemoFleet, rollout_id_of
from nixfleet_agent.hooks.ledger import outputs
from nixfleet_agent.journal.entries import Entry, decode, read_raw
from nixfleet_agent.journal.folders import SENT
from nixfleet_agent.operator.run_now import FILE_NAME
from nixfleet_agent.proto.ids import file_part
from nixfleet_agent.proto.times import parse_time

Proof = Callable[[DemoFleet, HostDisk, str], Iterator[str]]


def in_window(fleet: DemoFleet, host: HostDisk, version: str) -> Iterator[str]:
    """It was published while the host's windows were closed, and began on the host in one of them."""
    windows, began = _windows(host), _began(host, version)
    with fleet.plane.store() as store:
        published = next((r.opened_at for r in store.rollouts() if r.rollout_id == rollout_id_of(version)), None)
    if not windows or published is None or windows.is_open(published):
        yield f"{host.name} had no reason to wait for a window with {version}"
    elif began is None or not windows.is_open(began):
        yield f"{host.name} began {version} at {began}, outside its windows"


def by_run_now(fleet: DemoFleet, host: HostDisk, version: str) -> Iterator[str]:
    """It began outside the host's windows, by an operator's word for this rollout."""
    windows, began = _windows(host), _began(host, version)
    try:
        used = json.loads((host.state_dir / FILE_NAME).read_bytes()).get("usedBy")
    except FileNotFoundError:
        used = None
    if used != rollout_id_of(version):
        yield f"{host.name} was not let through with {version} by an operator"
    if began is None or windows.is_open(began):
        yield f"{host.name} began {version} at {began}, not outside its windows"


def rebooted(fleet: DemoFleet, host: HostDisk, version: str) -> Iterator[str]:
    """It was deferred, and completed after that; and the host was booted into it."""
    closure = fleet.releases[version].closure
    kinds = [entry.kind for entry in _delivered(host, version)]
    if "ActivationDeferred" not in kinds or "ActivationCompleted" not in kinds[kinds.index("ActivationDeferred") :]:
        yield f"{host.name} did not complete {version} after it was deferred: {', '.join(kinds)}"
    if ("booted", closure) not in host.happened():
        yield f"{host.name} was never booted into {version}"


def drained(fleet: DemoFleet, host: HostDisk, version: str) -> Iterator[str]:
    """Its hooks took the host out of the load balancer before the switch, and in again after the rollout's end."""
    closure, out = fleet.releases[version].closure, False
    switched: list[bool] = []
    for what, of in host.happened():
        if (what, of) == ("switch", closure):
            switched.append(out)
        out = what == DRAIN or (out and what != UNDRAIN)
    if not switched or not all(switched):
        yield f"{host.name} was not out of the load balancer when it was switched to {version}"
    if not fleet.balancer.serves(host.name):
        yield f"the load balancer does not serve {host.name} any more"
    ran = [(done.hook, done.exit_code) for done in outputs(host.state_dir, rollout_id_of(version))]
    if (UNDRAIN_HOOK, 0) not in ran:
        yield f"{host.name} has no record of {UNDRAIN_HOOK} that ended well after {version}: {ran}"


PROOFS: Mapping[str, Proof] = {
    "in-window": in_window,
    "by-run-now": by_run_now,
    "rebooted": rebooted,
    "drained": drained,
}


def _delivered(host: HostDisk, version: str) -> list[Entry]:
    """The entries of a rollout that the host has delivered, by seq."""
    folder = host.state_dir / SENT / file_part(rollout_id_of(version))
    return sorted((decode(read_raw(path)) for path in folder.glob("*.json")), key=lambda entry: entry.seq)


def _began(host: HostDisk, version: str) -> datetime | None:
    """When the host began to activate it, by its journal."""
    started = (entry for entry in _delivered(host, version) if entry.kind == "ActivationStarted")
    return next((parse_time(entry.event["startedAt"]) for entry in started), None)


def _windows(host: HostDisk) -> Windows:
    """By the host's configuration."""
    told = tomllib.loads(host.config_file.read_text(encoding="utf-8"))["maintenance"]
    return parse_windows(told["windows"], told["time_zone"])
