"""How long a fleet of 10,000 hosts takes to verify, against `json.loads`, one hash and one signature of the same bytes.

    python -m tests.bench.verify_fleet [--hosts N] [--rounds N] [--json]

Exits 1 when a bar is missed: 2 x the baseline for new bytes, 5 % of it for bytes that were verified before.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from nixfleet_agent.trust.marks import Marks
from nixfleet_agent.trust.roots import parse_trust
from nixfleet_agent.trust.seen import SeenFleet, see_fleet
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


def best(work: Callable[[], object], rounds: int) -> float:
    """The shortest of ``rounds`` runs in seconds: the one that nothing else disturbed."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(hosts: int, rounds: int) -> dict[str, float]:
    """Seconds of each side, and the ratios."""
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

    baseline, cost, repeat = (best(work, rounds) for work in (unavoidable, new_bytes, unchanged))
    return {
        "hosts": hosts,
        "bytes": len(fleet.raw),
        "baseline_seconds": baseline,
        "verify_seconds": cost,
        "verify_ratio": cost / baseline,
        "unchanged_seconds": repeat,
        "unchanged_ratio": repeat / baseline,
    }


def main() -> int:
    """Measure and print; the exit code says whether both bars hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--hosts", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = measure(arguments.hosts, arguments.rounds)
    if arguments.json:
        print(json.dumps(result))
    else:
        print(f"fleet of {arguments.hosts} hosts, {result['bytes'] / 1e6:.2f} MB")
        print(f"baseline (json.loads + hash + signature)  {result['baseline_seconds'] * 1e3:8.2f} ms")
        print(
            f"verify new bytes                          {result['verify_seconds'] * 1e3:8.2f} ms"
            f"   ratio {result['verify_ratio']:.2f}  (bar {NEW_BYTES_BAR})"
        )
        print(
            f"verify unchanged bytes                    {result['unchanged_seconds'] * 1e3:8.2f} ms"
            f"   ratio {result['unchanged_ratio']:.3f} (bar {UNCHANGED_BAR})"
        )
    return 0 if result["verify_ratio"] <= NEW_BYTES_BAR and result["unchanged_ratio"] <= UNCHANGED_BAR else 1


if __name__ == "__main__":
    sys.exit(main())
