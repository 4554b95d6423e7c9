"""How long a fleet of 10,000 hosts takes to verify, against `json.loads`, one hash and one signature of the same bytes.

Bars: 2 x the baseline for new bytes, 5 % of it for bytes that were verified before.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from nixfleet_agent.trust.marks import Marks
from nixfleet_agent.trust.roots import parse_trust
from nixfleet_agent.trust.seen import SeenFleet, see_fleet
from tests.bench import figures
from tests.bench.figures import Figure, cpu_seconds, in_turns
from tests.support.signing import CiSigner, Signed, closure_name, fleet_value

NOW = datetime(2026, 5, 16, 1, 27, tzinfo=timezone.utc)
NEW_BYTES_BAR = 2.0
UNCHANGED_BAR = 0.05


def big_fleet(ci: CiSigner, hosts: int) -> Signed:
    """What a real fleet of this size looks like: keys, closures, tags, edges, three channels of four waves."""
    names = {f"host-{i:05d}.example": ("stable", "edge", "canary")[i % 3] for i in range(hosts)}
    value = fleet_value(names, signed_at=NOW, closures={name: closure_name(f"nixos-system-{name}") for name in names})
    for i, (name, entry) in enumerate(value["hosts"].items()):
        key = base64.b64encode(hashlib.sha384(name.encode()).digest()).decode()
        entry.update(tags=["web", f"rack-{i % 40}", f"zone-{i % 7}"], pubkey=f"ssh-ed25519 AAAA{key}")
    for channel, (wave,) in value["waves"].items():
        share = len(wave["hosts"]) // 4
        value["waves"][channel] = [
            {"hosts": wave["hosts"][n * share : (n + 1) * share], "soakMinutes": 5 * n} for n in range(4)
        ]
    value["edges"] = [{"gated": a, "gates": b} for a, b in zip(names, list(names)[1:500], strict=False)]
    return ci.sign(value)


def measure(quick: bool) -> list[Figure]:
    hosts, rounds = (1_000, 5) if quick else (10_000, 15)
    ci = CiSigner()
    fleet, trust = big_fleet(ci, hosts), parse_trust(ci.trust_bytes())
    public = Ed25519PublicKey.from_public_bytes(base64.b64decode(ci.public["public"]))

    def unavoidable() -> None:
        json.loads(fleet.raw)
        hashlib.sha256(fleet.raw).hexdigest()
        public.verify(fleet.signature, fleet.raw)

    def new_bytes() -> SeenFleet:
        return see_fleet(fleet.raw, fleet.signature, None, trust, now=NOW, override_window=None, marks=Marks())

    seen = new_bytes()
    again = bytes(bytearray(fleet.raw))  # equal, and not the same object: as it comes from the network

    def unchanged() -> SeenFleet:
        now = NOW + timedelta(seconds=30)
        return see_fleet(again, fleet.signature, seen, trust, now=now, override_window=None, marks=Marks(NOW))

    baseline, cost, repeat = in_turns(
        rounds, *(partial(cpu_seconds, work) for work in (unavoidable, new_bytes, unchanged))
    )
    of = f"fleet of {hosts:,} hosts ({len(fleet.raw) / 1e6:.1f} MB)"
    parts: dict[str, Any] = {
        "unit": "ms",
        "baseline": 1000 * baseline,
        "against": "json.loads + hash + signature",
        "runs": rounds,
    }
    return [
        Figure(what=f"verify a {of}", value=1000 * cost, most=NEW_BYTES_BAR, **parts),
        Figure(what="the same bytes again", value=1000 * repeat, most=UNCHANGED_BAR, **parts),
    ]


if __name__ == "__main__":
    sys.exit(figures.main(measure, __doc__))
