"""What the pipeline adds to Nix and to the switch itself, and how soon it sees that a switch has ended.

    python -m tests.bench.pipeline_overhead [--rounds N] [--json]

Overhead is the time of a whole forward minus the time of the Nix calls that it makes (measured one by one in the
same run) and minus what its script takes. Exits 1 when a bar is missed: 100 ms of overhead (p50), and
``poll_interval`` + 50 ms from the end of a switch to its outcome (worst).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import threading
import time
from dataclasses import dataclass

from nixfleet_agent.activation import nix, processes
from nixfleet_agent.activation.context import Context
from nixfleet_agent.activation.model import Completed, Forward
from nixfleet_agent.activation.pipeline import Pipeline
from nixfleet_agent.clock import SystemClock
from tests.support.nix import Nixery, NixHost

OVERHEAD_BAR_SECS = 0.100
SEEN_BAR_SECS = 0.050
POLL_SECS = 0.5
_LOG = logging.getLogger("bench")


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds: the forward, its children other than the switch, and from the switch's end to the outcome."""

    whole: float
    nix: float
    script: float
    seen: float

    @property
    def overhead(self) -> float:
        return self.whole - self.nix - self.script


def one_round(host: NixHost, number: int, target: str, prior: str) -> Round:
    """One forward in a fresh rollout; the children are timed by a spy around the function that runs them."""
    children: list[float] = []
    run = Context.run

    def timed(context: Context, *arguments: object, **keywords: object) -> processes.Finished:
        begin = time.monotonic()
        try:
            return run(context, *arguments, **keywords)  # type: ignore[arg-type]
        finally:
            children.append(time.monotonic() - begin)

    Context.run = timed  # type: ignore[method-assign, assignment]
    try:
        pipeline = Pipeline(
            host.activation, host.state_dir, SystemClock(), lambda: None, _wait, _LOG, environment=host.environment
        )
        begin = time.monotonic()
        outcome = pipeline.forward(
            Forward(f"bench@{number:x}", target, prior, "rollback-and-halt"), lambda method: None
        )
        end, ended_wall = time.monotonic(), time.time()
    finally:
        Context.run = run  # type: ignore[method-assign]
    if outcome != Completed(target, 0, ()):
        raise SystemExit(f"the forward did not complete: {outcome}")
    pipeline.release(f"bench@{number:x}")
    started, stopped = (float(word) for word in host.bootloader.read_text().split())
    # The last poll may come up to one interval after the end: that is `seen`, and no overhead.
    return Round(end - begin - (ended_wall - stopped), sum(children), stopped - started, ended_wall - stopped)


def measure(rounds: int) -> list[Round]:
    """Forwards between two closures, there and back, each as its own rollout."""
    script = 'echo "$(date +%s.%N)" >"$TEST_BOOTLOADER"; flip "$self"; echo "$(date +%s.%N)" >>"$TEST_BOOTLOADER"\n'
    with Nixery() as nixery:
        ends = [nixery.system(f"bench-{name}", script) for name in ("a", "b")]
        host = nixery.host("bench")
        host.configure(poll_interval_secs=POLL_SECS)
        for closure in reversed(ends):
            host.boot(closure)
        return [one_round(host, n, ends[n % 2], ends[(n + 1) % 2]) for n in range(1, rounds + 1)]


def _wait(seconds: float) -> None:
    threading.Event().wait(seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.rounds)
    result = {
        "whole_p50_ms": statistics.median(r.whole for r in found) * 1000,
        "nix_p50_ms": statistics.median(r.nix for r in found) * 1000,
        "overhead_p50_ms": statistics.median(r.overhead for r in found) * 1000,
        "overhead_bar_ms": OVERHEAD_BAR_SECS * 1000,
        "seen_worst_ms": max(r.seen for r in found) * 1000,
        "seen_bar_ms": (POLL_SECS + SEEN_BAR_SECS) * 1000,
    }
    met = result["overhead_p50_ms"] <= result["overhead_bar_ms"] and result["seen_worst_ms"] <= result["seen_bar_ms"]
    if options.json:
        print(json.dumps(result | {"met": met, "cores": os.cpu_count(), "query_limit_secs": nix.QUERY_SECS}))
    else:
        for name, value in result.items():
            print(f"{name:18} {value:9.1f}")
        print("bars met" if met else "A BAR IS MISSED")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
