"""A CI for tests: real keys, and trust files, fleets and manifests signed for real.

The short way, for a test that needs "a host, a channel and a rollout that verifies"::

    ci = CiSigner()
    release = ci.release({"web-01": "stable", "web-02": "stable"}, signed_at=now)
    release.fleet.raw, release.fleet.signature          # GET /v1/fleet.resolved and its /sig
    rollout = release.rollout("stable")                  # a Signed: .raw .signature .value .hash
    rollout_id, target = release.rollout_id("stable"), release.closures["web-01"]
    trust_path.write_bytes(ci.trust_bytes())             # what the agent's trust_file holds

The long way, to break one thing: build the plain dict with ``fleet_value`` or ``manifest_value``, change it,
and sign it with ``ci.sign(value)`` (JCS bytes) or ``ci.sign_bytes(raw)`` (any bytes at all).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import rfc8785
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from nixfleet_agent.proto.times import format_time

COMMIT = "def4567abc"
_NIX_BASE32 = "0123456789abcdfghijklmnpqrsvwxyz"


def closure_name(label: str) -> str:
    """A valid closure basename that is the same for the same ``label``: ``<32 characters>-<label>``."""
    digest = hashlib.sha256(label.encode()).digest()
    return "".join(_NIX_BASE32[byte % 32] for byte in digest) + "-" + label


@dataclass(frozen=True)
class Signed:
    """An artifact as the control plane serves it."""

    raw: bytes
    signature: bytes

    @property
    def value(self) -> dict[str, Any]:
        """The parsed JSON: a fresh copy each time, free to be changed and signed again."""
        value: dict[str, Any] = json.loads(self.raw)
        return value

    @property
    def hash(self) -> str:
        """Lower-case hex SHA-256 of the bytes."""
        return hashlib.sha256(self.raw).hexdigest()


@dataclass(frozen=True)
class Release:
    """One run of the CI: a fleet, and one manifest for each channel that has hosts."""

    fleet: Signed
    manifests: Mapping[str, Signed] = field(default_factory=dict)  # by rollout id
    closures: Mapping[str, str] = field(default_factory=dict)  # by hostname

    @property
    def commit(self) -> str:
        return str(self.fleet.value["meta"]["ciCommit"])

    def rollout_id(self, channel: str) -> str:
        return f"{channel}@{self.commit}"

    def rollout(self, channel: str) -> Signed:
        return self.manifests[self.rollout_id(channel)]


class CiSigner:
    """One signing key: ``ed25519`` or ``ecdsa-p256``."""

    def __init__(self, algorithm: str = "ed25519") -> None:
        self.algorithm = algorithm
        self._key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
        if algorithm == "ed25519":
            self._key = ed25519.Ed25519PrivateKey.generate()
        elif algorithm == "ecdsa-p256":
            self._key = ec.generate_private_key(ec.SECP256R1())
        else:
            raise RuntimeError(f"no such algorithm: {algorithm}")

    @property
    def public(self) -> dict[str, str]:
        """The key as a trust file names it: ``{"algorithm": ..., "public": <base64>}``."""
        if isinstance(self._key, ed25519.Ed25519PrivateKey):
            raw = self._key.public_key().public_bytes_raw()
        else:
            point = self._key.public_key().public_numbers()
            raw = point.x.to_bytes(32, "big") + point.y.to_bytes(32, "big")
        return {"algorithm": self.algorithm, "public": base64.b64encode(raw).decode("ascii")}

    def signature(self, data: bytes) -> bytes:
        """64 raw bytes over ``data``."""
        if isinstance(self._key, ed25519.Ed25519PrivateKey):
            return self._key.sign(data)
        r, s = decode_dss_signature(self._key.sign(data, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    def sign_bytes(self, raw: bytes) -> Signed:
        """``raw`` as it is, with a good signature over it."""
        return Signed(raw, self.signature(raw))

    def sign(self, value: Mapping[str, Any]) -> Signed:
        """The JCS bytes of ``value``, signed: what the real CI publishes."""
        return self.sign_bytes(rfc8785.dumps(dict(value)))

    def trust_value(self, **changes: Any) -> dict[str, Any]:
        """A trust file with this key as ``ciReleaseKey.current``; ``changes`` replace top-level members."""
        return {"schemaVersion": 1, "ciReleaseKey": {"current": self.public}, **changes}

    def trust_bytes(self, **changes: Any) -> bytes:
        return json.dumps(self.trust_value(**changes)).encode()

    def release(
        self,
        hosts: Mapping[str, str],
        *,
        signed_at: datetime,
        commit: str = COMMIT,
        closures: Mapping[str, str] | None = None,
        **fleet_options: Any,
    ) -> Release:
        """A fleet and its manifests, signed.

        ``hosts`` maps hostname to channel; ``closures`` hostname to closure basename (made up from hostname and
        commit where missing); ``fleet_options`` go to ``fleet_value``.
        """
        named = {host: closure_name(f"nixos-system-{host}-{commit}") for host in hosts} | dict(closures or {})
        fleet = self.sign(fleet_value(hosts, signed_at=signed_at, commit=commit, closures=named, **fleet_options))
        manifests = {
            f"{channel}@{commit}": self.sign(manifest_value(fleet, channel, named, signed_at=signed_at))
            for channel in sorted(set(hosts.values()))
        }
        return Release(fleet, manifests, named)


def fleet_value(
    hosts: Mapping[str, str],
    *,
    signed_at: datetime,
    commit: str = COMMIT,
    closures: Mapping[str, str] | None = None,
    policy: str = "rollback-and-halt",
    soak_minutes: int = 1,
    freshness_minutes: int = 60,
    **changes: Any,
) -> dict[str, Any]:
    """An unsigned ``fleet.resolved``: every channel of ``hosts`` has one policy and one wave with all its hosts.

    ``changes`` replace top-level members (``waves=...``, ``channels=...``).
    """
    entries = {
        host: {"system": "x86_64-linux", "tags": ["web"], "channel": channel, "closureHash": (closures or {}).get(host)}
        for host, channel in hosts.items()
    }
    channels = sorted(set(hosts.values()))
    channel_entry = {
        "rolloutPolicy": "all-at-once",
        "reconcileIntervalMinutes": 5,
        "freshnessWindow": freshness_minutes,
        "signingIntervalMinutes": max(1, freshness_minutes // 2),
        "compliance": {"frameworks": [], "mode": "observe"},
    }
    rollout_policy = {
        "strategy": "waves",
        "waves": [{"selector": {"all": True}, "soakMinutes": soak_minutes}],
        "healthGate": {},
        "onHealthFailure": policy,
    }
    return {
        "schemaVersion": 1,
        "hosts": entries,
        "channels": {channel: dict(channel_entry) for channel in channels},
        "rolloutPolicies": {"all-at-once": rollout_policy},
        "waves": {
            channel: [{"hosts": sorted(h for h in hosts if hosts[h] == channel), "soakMinutes": soak_minutes}]
            for channel in channels
        },
        "edges": [],
        "channelEdges": [],
        "disruptionBudgets": [],
        "meta": _meta(signed_at, commit),
        **changes,
    }


def manifest_value(
    fleet: Signed,
    channel: str,
    closures: Mapping[str, str],
    *,
    signed_at: datetime,
    **changes: Any,
) -> dict[str, Any]:
    """An unsigned manifest for ``channel`` of ``fleet``: each of its hosts in the wave that the fleet has it in."""
    value = fleet.value
    commit = value["meta"]["ciCommit"]
    wave_of = {host: i for i, wave in enumerate(value["waves"].get(channel, [])) for host in wave["hosts"]}
    members = sorted(host for host, entry in value["hosts"].items() if entry["channel"] == channel)
    return {
        "schemaVersion": 1,
        "displayName": f"{channel}@{commit[:7]}",
        "channel": channel,
        "channelRef": commit,
        "fleetResolvedHash": fleet.hash,
        "hostSet": [
            {"hostname": host, "waveIndex": wave_of.get(host, 0), "targetClosure": closures[host]} for host in members
        ],
        "healthGate": {},
        "disruptionBudgets": [],
        "meta": _meta(signed_at, commit),
        **changes,
    }


def _meta(signed_at: datetime, commit: str) -> dict[str, Any]:
    return {
        "schemaVersion": 1,
        "signedAt": format_time(signed_at),
        "ciCommit": commit,
        "signatureAlgorithm": "ed25519",
    }
