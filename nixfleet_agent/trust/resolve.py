"""What a Dispatch may do, read from signed artifacts alone: the control plane says when, CI says what and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from nixfleet_agent.proto.fleet import Wave
from nixfleet_agent.proto.manifest import ManifestHost, RolloutManifest
from nixfleet_agent.proto.times import format_time
from nixfleet_agent.state_machine.states import Policy
from nixfleet_agent.text import printable
from nixfleet_agent.trust import errors
from nixfleet_agent.trust.marks import Marks
from nixfleet_agent.trust.verify import VerifiedFleet, VerifiedManifest


@dataclass(frozen=True, slots=True)
class Resolved:
    """The signed terms of one host's part in a rollout."""

    policy: Policy
    soak_floor_minutes: int
    wave_index: int
    freshness_window: timedelta


def resolve_dispatch(manifest: VerifiedManifest, fleet: VerifiedFleet, hostname: str, target_closure: str) -> Resolved:
    """Whether the manifest gives this host exactly ``target_closure``, and the policy and soak it runs under.

    Raises:
        errors.Refusal: HostNotInManifest, DuplicateHost, ClosureMismatch, FleetPinMismatch, ChannelNotInFleet,
            PolicyUnknown or WaveNotInFleet.
    """
    entry = require_entry(manifest.manifest, hostname, target_closure)
    require_pin(manifest, fleet, hostname)
    return _terms(manifest.manifest, fleet, entry)


def require_entry(manifest: RolloutManifest, hostname: str, target_closure: str) -> ManifestHost:
    """The one entry of ``hostname``, which must name ``target_closure``.

    Raises:
        errors.Refusal: HostNotInManifest, DuplicateHost or ClosureMismatch.
    """
    what, entries = f"the manifest of {manifest.rollout_id}", manifest.entries(hostname)
    if not entries:
        raise errors.HostNotInManifestError(f"{what} does not name {hostname}")
    if len(entries) > 1:
        raise errors.DuplicateHostError(f"{what} names {hostname} {len(entries)} times")
    if entries[0].target_closure != target_closure:
        signed, asked = printable(entries[0].target_closure, 250), printable(target_closure, 250)
        raise errors.ClosureMismatchError(f"{what} gives {hostname} {signed}, and the control plane asked for {asked}")
    return entries[0]


def require_pin(manifest: VerifiedManifest, fleet: VerifiedFleet, hostname: str) -> None:
    """Whether ``fleet`` may say policy and soak for this host's part in the rollout.

    It is the fleet that the manifest pins; or it was signed later and still has the host on the channel: CI publishes
    a new fleet while rollouts of the last one are still running, and its newer word counts.

    Raises:
        errors.FleetPinMismatch: neither holds.
    """
    pinned, channel = manifest.manifest.fleet_resolved_hash, manifest.manifest.channel
    if fleet.hash == pinned:
        return
    what = f"the manifest of {manifest.manifest.rollout_id} pins the fleet {pinned[:12]}"
    if fleet.signed_at <= manifest.signed_at:
        raise errors.FleetPinMismatchError(
            f"{what}, and the control plane serves {fleet.hash[:12]}, which is not newer"
        )
    host = fleet.fleet.host(hostname)
    if host is None or host.channel != channel:
        raise errors.FleetPinMismatchError(
            f"{what}, and the newer {fleet.hash[:12]} does not have {hostname} on {channel}"
        )


def check_order(manifest: VerifiedManifest, marks: Marks) -> None:
    """Whether it is the newest manifest that this host has accepted, in whatever channel, or newer.

    A control plane holds no key, but it holds every manifest that CI ever signed: the host's former channel, an
    abandoned one, or one of two that CI signed in the same instant must not take it anywhere else.

    Raises:
        errors.Refusal: OlderThanAccepted.
    """
    newest, what = marks.manifest, f"the manifest of {manifest.manifest.rollout_id}"
    if newest is None or manifest.signed_at > newest.at:
        return
    shown = format_time(newest.at)
    if manifest.signed_at < newest.at:
        raise errors.OlderThanAcceptedError(
            f"{what}: signed at {format_time(manifest.signed_at)}, and this host has accepted one of {shown}"
        )
    if newest.hash not in ("", manifest.hash):
        raise errors.OlderThanAcceptedError(f"{what}: this host has accepted another one that was signed at {shown}")


def _terms(manifest: RolloutManifest, fleet: VerifiedFleet, entry: ManifestHost) -> Resolved:
    name = manifest.channel
    channel = fleet.fleet.channels.get(name)
    if channel is None:
        raise errors.ChannelNotInFleetError(f"fleet.resolved has no channel {name}")
    signed_policy = fleet.fleet.policies.get(channel.rollout_policy)
    if signed_policy not in (Policy.HALT, Policy.ROLLBACK_AND_HALT):
        shown = printable(signed_policy, 80)
        raise errors.PolicyUnknownError(f"fleet.resolved: onHealthFailure of the policy of channel {name} is {shown!r}")
    waves = fleet.fleet.waves.get(name, ())
    pinned = fleet.hash == manifest.fleet_resolved_hash
    index = entry.wave_index if pinned else _wave_naming(waves, entry.hostname, name)
    if index >= len(waves):
        raise errors.WaveNotInFleetError(f"fleet.resolved has {len(waves)} waves for {name}, and none numbered {index}")
    return Resolved(
        policy=Policy(signed_policy),
        soak_floor_minutes=waves[index].soak_minutes,
        wave_index=index,
        freshness_window=channel.freshness_window,
    )


def _wave_naming(waves: Sequence[Wave], hostname: str, channel: str) -> int:
    """The wave of a fleet that the manifest does not pin: its numbers count another list, so the host's name decides.

    Raises:
        errors.Refusal: WaveNotInFleet.
    """
    named = [(wave.soak_minutes, index) for index, wave in enumerate(waves) if hostname in wave.hosts]
    if not named:
        raise errors.WaveNotInFleetError(
            f"fleet.resolved, which the manifest does not pin, has no wave of {channel} that names {hostname}"
        )
    return max(named)[1]  # named twice, by mistake: the longest soak is the safe one
