"""The CI of a demo or a test: holds the signing keys, resolves a small fleet, signs real artifacts and tokens.

The control plane never sees these keys. Artifacts are signed over their JCS bytes, which are also the bytes served.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nixfleet_agent.local_cp.catalogue import Publication, Signed
from nixfleet_agent.proto.times import format_time
from nixfleet_agent.state_machine import Policy
from nixfleet_agent.trust.canonical import canonical, sha256_hex

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class WaveDescription:
    """Hosts that go together, and the minutes that each soaks."""

    hosts: tuple[str, ...]
    soak_minutes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelDescription:
    """One channel: its waves name every host that follows it."""

    waves: tuple[WaveDescription, ...]
    policy: Policy = Policy.ROLLBACK_AND_HALT
    freshness_minutes: int = 60

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(hostname for wave in self.waves for hostname in wave.hosts)


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetDescription:
    """What an operator would write: who follows what, and who waits for whom. ``edges`` are (gated, gates)."""

    channels: Mapping[str, ChannelDescription]
    system: str = "x86_64-linux"
    tags: Mapping[str, Sequence[str]] = field(default_factory=dict)
    edges: tuple[tuple[str, str], ...] = ()
    channel_edges: tuple[tuple[str, str], ...] = ()
    disruption_budgets: tuple[Mapping[str, Any], ...] = ()


class ContinuousIntegration:
    """Two Ed25519 keys: the release key signs artifacts, the org root key bootstrap tokens and their nonces."""

    def __init__(self) -> None:
        self._release = Ed25519PrivateKey.generate()
        self._org_root = Ed25519PrivateKey.generate()
        #: Nonce -> (host name, end) of every token that was made and not cancelled.
        self._nonces: dict[str, tuple[str, datetime]] = {}

    @property
    def org_root_public(self) -> bytes:
        """32 raw bytes, for the control plane that checks tokens."""
        return self._org_root.public_key().public_bytes_raw()

    def trust_file(self, *, issuance_ca_pems: Sequence[str] = (), cache_keys: Sequence[str] = ()) -> bytes:
        """The trust file of every host of the fleet."""
        value = {
            "schemaVersion": SCHEMA_VERSION,
            "ciReleaseKey": {"current": _public(self._release)},
            "orgRootKey": {"current": _public(self._org_root)},
            "issuanceCaPems": list(issuance_ca_pems),
            "cacheKeys": list(cache_keys),
        }
        return json.dumps(value, indent=1).encode()

    def release(
        self,
        fleet: FleetDescription,
        commit: str,
        closures: Mapping[str, str],
        signed_at: datetime,
        form: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    ) -> Publication:
        """Sign one commit of the fleet; ``closures`` maps every host to the closure it gets.

        ``form`` rewrites the resolved fleet before it is signed, as a CI of another age would write it.
        """
        resolved = self._sign(form(_resolved(fleet, commit, closures, signed_at)))
        manifests = {
            f"{name}@{commit}": self._sign(_manifest(fleet, name, commit, closures, resolved, signed_at))
            for name in sorted(fleet.channels)
        }
        return Publication(resolved, manifests, self.nonces(signed_at))

    def token(self, hostname: str, fingerprint: str, now: datetime, lifetime: timedelta) -> bytes:
        """A bootstrap token file that lets ``hostname`` enroll once with the key of this fingerprint."""
        claims = {
            "hostname": hostname,
            "expectedPubkeyFingerprint": fingerprint,
            "issuedAt": format_time(now),
            "expiresAt": format_time(now + lifetime),
            "nonce": secrets.token_hex(16),
        }
        self._nonces[claims["nonce"]] = (hostname, now + lifetime)
        signature = base64.b64encode(self._org_root.sign(canonical(claims))).decode("ascii")
        return json.dumps({"version": 1, "claims": claims, "signature": signature}).encode()

    def cancel(self, token: bytes) -> None:
        """A token that was lost: from the next release on it is on no list."""
        self._nonces.pop(json.loads(token)["claims"]["nonce"], None)

    def nonces(self, now: datetime) -> Signed:
        """The nonces that may enroll, signed. What is cancelled stays so, whatever a database has lost."""
        good = [
            {"nonce": nonce, "hostname": hostname, "expiresAt": format_time(until)}
            for nonce, (hostname, until) in sorted(self._nonces.items())
            if now < until
        ]
        body = canonical({"schemaVersion": SCHEMA_VERSION, "signedAt": format_time(now), "nonces": good})
        return Signed(body, self._org_root.sign(body))

    def _sign(self, value: Mapping[str, Any]) -> Signed:
        body = canonical(dict(value))
        return Signed(body, self._release.sign(body))


def _public(key: Ed25519PrivateKey) -> dict[str, str]:
    raw = key.public_key().public_bytes_raw()
    return {"algorithm": "ed25519", "public": base64.b64encode(raw).decode("ascii")}


def _meta(commit: str, signed_at: datetime) -> dict[str, Any]:
    return {
        "schemaVersion": SCHEMA_VERSION,
        "signedAt": format_time(signed_at),
        "ciCommit": commit,
        "signatureAlgorithm": "ed25519",
    }


def _resolved(fleet: FleetDescription, commit: str, closures: Mapping[str, str], signed_at: datetime) -> dict[str, Any]:
    return {
        "schemaVersion": SCHEMA_VERSION,
        "hosts": {
            hostname: {
                "system": fleet.system,
                "tags": list(fleet.tags.get(hostname, ())),
                "channel": name,
                "closureHash": closures[hostname],
            }
            for name, channel in fleet.channels.items()
            for hostname in channel.hosts
        },
        "channels": {name: _channel(name, channel) for name, channel in fleet.channels.items()},
        "rolloutPolicies": {name: _policy(channel) for name, channel in fleet.channels.items()},
        "waves": {
            name: [{"hosts": list(wave.hosts), "soakMinutes": wave.soak_minutes} for wave in channel.waves]
            for name, channel in fleet.channels.items()
        },
        "edges": [{"gated": gated, "gates": gates} for gated, gates in fleet.edges],
        "channelEdges": [{"gated": gated, "gates": gates} for gated, gates in fleet.channel_edges],
        "disruptionBudgets": [dict(budget) for budget in fleet.disruption_budgets],
        "meta": _meta(commit, signed_at),
    }


def _channel(name: str, channel: ChannelDescription) -> dict[str, Any]:
    return {
        "rolloutPolicy": name,
        "reconcileIntervalMinutes": 1,
        "freshnessWindow": channel.freshness_minutes,
        "signingIntervalMinutes": max(1, channel.freshness_minutes // 2),
        "compliance": {"frameworks": [], "mode": "observe"},
    }


def _policy(channel: ChannelDescription) -> dict[str, Any]:
    return {
        "strategy": "waves",
        "waves": [
            {"selector": {"hosts": list(wave.hosts)}, "soakMinutes": wave.soak_minutes} for wave in channel.waves
        ],
        "healthGate": {},
        "onHealthFailure": channel.policy.value,
    }


def _manifest(
    fleet: FleetDescription,
    name: str,
    commit: str,
    closures: Mapping[str, str],
    resolved: Signed,
    signed_at: datetime,
) -> dict[str, Any]:
    host_set = [
        {"hostname": hostname, "waveIndex": index, "targetClosure": closures[hostname]}
        for index, wave in enumerate(fleet.channels[name].waves)
        for hostname in wave.hosts
    ]
    return {
        "schemaVersion": SCHEMA_VERSION,
        "displayName": f"{name} at {commit[:7]}",
        "channel": name,
        "channelRef": commit,
        "fleetResolvedHash": sha256_hex(resolved.body),
        "hostSet": sorted(host_set, key=lambda entry: str(entry["hostname"])),
        "healthGate": {},
        "disruptionBudgets": [dict(budget) for budget in fleet.disruption_budgets],
        "meta": _meta(commit, signed_at),
    }
