"""What CI published: the signed files as they are served, and what the planner reads of them.

The folder is the truth: CI writes it, this module reads it. Nothing here is verified, because nothing here
decides what a host runs; every agent verifies the same bytes for itself.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from nixfleet_agent import durable
from nixfleet_agent.errors import ProtoError
from nixfleet_agent.local_cp.planner import Budget, RolloutView, Wave
from nixfleet_agent.proto.fleet import Fleet
from nixfleet_agent.proto.ids import channel_of
from nixfleet_agent.proto.manifest import RolloutManifest
from nixfleet_agent.state_machine import Policy

NONCES_FILE = "bootstrap-nonces"


@dataclass(frozen=True, slots=True)
class Artifact:
    """One file as it is served."""

    body: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class Signed:
    """An artifact and its 64-byte signature, as CI hands them over."""

    body: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Publication:
    """One run of CI: the fleet, a manifest by rollout id for each channel that has hosts, and the list of the nonces
    of bootstrap tokens that are good, which never leaves the control plane.
    """

    fleet: Signed
    manifests: Mapping[str, Signed]
    nonces: Signed


@dataclass(frozen=True, slots=True)
class _Content:
    """One reading of the folder; replaced as a whole."""

    artifacts: Mapping[str, Artifact] = field(default_factory=dict)
    manifests: Mapping[str, RolloutManifest] = field(default_factory=dict)
    targets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    rollouts: tuple[RolloutView, ...] = ()
    fleet: Fleet | None = None
    nonces: Signed | None = None
    edges: tuple[tuple[str, str], ...] = ()
    channel_edges: tuple[tuple[str, str], ...] = ()
    budgets: tuple[Budget, ...] = ()


class Catalogue:
    """Reads never block a publication for long: they use the last complete reading."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._content = _Content()
        self.reload()

    def publish(self, publication: Publication) -> None:
        """Write what CI signed, the fleet last, and serve it from now on."""
        with self._lock:
            write(self._folder, publication)
        self.reload()

    def reload(self) -> None:
        """Read the folder again.

        Raises:
            ProtoError: something in it is not what CI publishes.
        """
        with self._lock:
            self._content = _read(self._folder)

    @property
    def ready(self) -> bool:
        """Whether there is a fleet to serve."""
        return self._content.fleet is not None

    @property
    def nonces(self) -> Signed | None:
        """The list of nonces as CI signed it, once there is one."""
        return self._content.nonces

    def artifact(self, path: str) -> Artifact | None:
        """By the end of its path: ``fleet.resolved``, ``rollouts/<id>``, and either with ``/sig``."""
        return self._content.artifacts.get(path)

    def manifest(self, rollout_id: str) -> RolloutManifest | None:
        return self._content.manifests.get(rollout_id)

    def target(self, rollout_id: str, hostname: str) -> str | None:
        """The closure that the manifest gives the host."""
        return self._content.targets.get(rollout_id, {}).get(hostname)

    def signed_at(self, rollout_id: str) -> datetime | None:
        manifest = self.manifest(rollout_id)
        return manifest.meta.signed_at if manifest else None

    def policy(self, rollout_id: str) -> Policy:
        """``onHealthFailure`` of the rollout's channel; ``halt``, which fires nothing, where none is known."""
        fleet = self._content.fleet
        channel = fleet.channels.get(channel_of(rollout_id)) if fleet else None
        name = fleet.policies.get(channel.rollout_policy) if fleet and channel else None
        return Policy(name) if name in {policy.value for policy in Policy} else Policy.HALT

    def soak_floor(self, rollout_id: str, hostname: str) -> int:
        """Minutes that the fleet's wave gives the host."""
        fleet = self._content.fleet
        waves = fleet.waves.get(channel_of(rollout_id), ()) if fleet else ()
        return next((wave.soak_minutes for wave in waves if hostname in wave.hosts), 0)

    @property
    def open_rollouts(self) -> tuple[RolloutView, ...]:
        """One for each channel in use whose manifest is here, with no placements yet."""
        return self._content.rollouts

    @property
    def edges(self) -> tuple[tuple[str, str], ...]:
        """(gated, gates) pairs of host names."""
        return self._content.edges

    @property
    def channel_edges(self) -> tuple[tuple[str, str], ...]:
        """(gated, gates) pairs of channels."""
        return self._content.channel_edges

    @property
    def budgets(self) -> tuple[Budget, ...]:
        return self._content.budgets


def write(folder: Path, publication: Publication) -> None:
    """Put what CI signed where a control plane serves it from."""
    durable.make_directory(folder / "rollouts")
    write_nonces(folder, publication.nonces)
    for rollout_id, signed in publication.manifests.items():
        _write(folder / "rollouts" / rollout_id, signed)
    _write(folder / "fleet.resolved", publication.fleet)


def write_nonces(folder: Path, nonces: Signed) -> None:
    """Put the list of nonces alone there: tokens are made when hosts are, not when releases are."""
    durable.make_directory(folder)
    _write(folder / NONCES_FILE, nonces)


def _write(path: Path, signed: Signed) -> None:
    durable.write(path.with_name(path.name + ".sig"), signed.signature, mode=0o644)
    durable.write(path, signed.body, mode=0o644)


def _read(folder: Path) -> _Content:
    artifacts: dict[str, Artifact] = {}
    manifests: dict[str, RolloutManifest] = {}
    for path in sorted((folder / "rollouts").glob("*@*")):
        if path.suffix == ".sig":
            continue
        body = _artifact(artifacts, f"rollouts/{path.name}", path)
        manifests[path.name] = RolloutManifest.parse(_json(body, path), f"the manifest {path.name}")
    targets = {
        rollout_id: {entry["hostname"]: entry["targetClosure"] for entry in manifest.host_set}
        for rollout_id, manifest in manifests.items()
    }
    nonces = _signed(folder / NONCES_FILE) if (folder / NONCES_FILE).exists() else None
    fleet_file = folder / "fleet.resolved"
    if not fleet_file.exists():
        return _Content(artifacts, manifests, targets, nonces=nonces)
    value = _json(_artifact(artifacts, "fleet.resolved", fleet_file), fleet_file)
    fleet = Fleet.parse(value)
    current = (f"{channel}@{fleet.meta.ci_commit}" for channel in sorted(fleet.channels_in_use))
    return _Content(
        artifacts,
        manifests,
        targets,
        tuple(_view(manifests[id_], targets[id_], fleet) for id_ in current if id_ in manifests),
        fleet,
        nonces,
        edges=_edges(value, "edges"),
        channel_edges=_edges(value, "channelEdges"),
        budgets=tuple(_budget(entry, value["hosts"]) for entry in value.get("disruptionBudgets") or ()),
    )


def _view(manifest: RolloutManifest, targets: Mapping[str, str], fleet: Fleet) -> RolloutView:
    """Hosts that no wave of the fleet names come last, in the order of the waves that the manifest gives them."""
    waves = [
        Wave(tuple(host for host in wave.hosts if host in targets), timedelta(minutes=wave.soak_minutes))
        for wave in fleet.waves.get(manifest.channel, ())
    ]
    named = {hostname for wave in waves for hostname in wave.hosts}
    rest: dict[int, list[str]] = {}
    for entry in manifest.host_set:
        if entry["hostname"] not in named:
            rest.setdefault(entry["waveIndex"], []).append(entry["hostname"])
    waves.extend(Wave(tuple(sorted(hosts))) for _, hosts in sorted(rest.items()))
    return RolloutView(rollout_id=manifest.rollout_id, channel=manifest.channel, targets=targets, waves=tuple(waves))


def _artifact(artifacts: dict[str, Artifact], name: str, path: Path) -> bytes:
    signed = _signed(path)
    for key, content in ((name, signed.body), (f"{name}/sig", signed.signature)):
        artifacts[key] = Artifact(content, f'"{hashlib.sha256(content).hexdigest()}"')
    return signed.body


def _signed(path: Path) -> Signed:
    return Signed(path.read_bytes(), path.with_name(path.name + ".sig").read_bytes())


def _json(body: bytes, path: Path) -> Any:
    try:
        return json.loads(body)
    except ValueError as error:
        raise ProtoError(f"{path} is not JSON: {error}") from error


def _edges(fleet: Mapping[str, Any], name: str) -> tuple[tuple[str, str], ...]:
    """(gated, gates) of each edge; older fleets write `after` and `before`."""
    return tuple(
        (str(entry["gated"] if "gated" in entry else entry["after"]), str(entry.get("gates") or entry["before"]))
        for entry in fleet.get(name) or ()
    )


def _budget(entry: Mapping[str, Any], hosts: Mapping[str, Mapping[str, Any]]) -> Budget:
    """A budget names hosts or selects them; one that limits nothing allows everything."""
    selector = entry.get("selector") or {}
    chosen = {
        name for name, host in hosts.items() if name in (entry.get("hosts") or ()) or _selects(selector, name, host)
    }
    limits = [len(chosen)]
    if isinstance(entry.get("maxInFlight"), int):
        limits.append(entry["maxInFlight"])
    if isinstance(entry.get("maxInFlightPct"), int):
        limits.append(max(1, len(chosen) * entry["maxInFlightPct"] // 100))
    return Budget(frozenset(chosen), min(limits))


def _selects(selector: Mapping[str, Any], name: str, host: Mapping[str, Any]) -> bool:
    """`not` goes before `and`, and both before the rest, of which any may hold."""
    if selector.get("not") is not None:
        return not _selects(selector["not"], name, host)
    if selector.get("and"):
        return all(_selects(part, name, host) for part in selector["and"])
    tags, of_host = set(selector.get("tags") or ()), set(host.get("tags") or ())
    return (
        selector.get("all") is True
        or name in (selector.get("hosts") or ())
        or selector.get("channel") == host["channel"]
        or (bool(tags) and tags <= of_host)
        or bool(of_host & set(selector.get("tagsAny") or ()))
    )
