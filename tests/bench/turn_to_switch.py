"""From a host's turn to its running script: prefetched or not, for a large and a small release, at a slow cache.

The agent is a process with its prefetch worker, the control plane another, and the cache a third that sends
``--rate`` MB a second to all clients together. A turn leaves when everything is as it should be: for the prefetched
ones once ``status`` says `ready`. The script notes when it has begun.

Bars: prefetched, a release of 400 MB in 200 paths takes at most 1.3 x what one of 1 MB takes; not prefetched at most
1.1 x a bare `nix-store --realise` of it at the same cache, plus that.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nixfleet_agent.demo.closures import run_nix
from nixfleet_agent.demo.nixos_switch import Switch, units
from nixfleet_agent.demo.processes import remove_tree
from nixfleet_agent.state_machine import State
from tests.bench import figures
from tests.bench.figures import Figure, seconds
from tests.bench.rig import PATIENCE, Rig, Supply
from tests.support.limited_cache import LimitedCache
from tests.support.nix import Nixery

PREFETCHED_BAR, FETCHED_BAR = 1.3, 1.1
MB = 1_000_000
#: So that what is announced is seen soon, and turns can be held back soon; neither lies between turn and script.
TUNING = {"manifest_poll_interval": 1.0, "dispatch_wait": 5.0}
#: Seconds within which a release is prefetched, beside what its bytes take.
READY_SECS = PATIENCE


@dataclass(frozen=True, slots=True)
class Sizes:
    """``megabytes`` in ``paths``, at ``rate`` MB a second, in ``rounds``."""

    megabytes: float = 400.0
    paths: int = 200
    rate: float = 20.0
    rounds: int = 7


SIZES = Sizes()
QUICK = Sizes(megabytes=40.0, paths=20, rounds=2)


@contextmanager
def supplied(sizes: Sizes) -> Iterator[tuple[Nixery, Supply]]:
    """A base system, one with 1 MB and one with all of it, in a cache that is slow."""
    # The switch notes when it has begun; a dry run asks the checks too.
    clock = {"clock": '[ "$action" != switch ] || date +%s.%N >"$SWITCH_LOG.begun"'}
    switch = Switch(checks=clock)
    with Nixery() as nixery:
        small = nixery.bulk("small", 1, MB)
        large = nixery.bulk("large", sizes.paths, int(sizes.megabytes * MB / sizes.paths))
        closures = (
            nixery.system("base", files=units({"app.service": "0"}), switch=switch),
            nixery.system("small", files=units({"app.service": "1"}), references=small, switch=switch),
            nixery.system("large", files=units({"app.service": "2"}), references=large, switch=switch),
        )
        with LimitedCache(nixery.cache, sizes.rate * MB) as cache:
            yield nixery, Supply(cache.url, nixery.public_key, closures)


def begin_after_turn(rig: Rig, rollout_id: str) -> float:
    """Seconds from the turn's answer to the script's first word, of a rollout that has come to its soak."""
    rig.reach(rollout_id, State.SOAKING)
    begun = float(Path(f"{rig.host.switch_log}.begun").read_text())
    monotonic = begun - (time.time() - time.monotonic())
    return monotonic - rig.times(rollout_id)["turn"]


def until_ready(rig: Rig, closure: str) -> None:
    """Wait until the agent says that this release comes next and is ready."""
    deadline = time.monotonic() + READY_SECS
    while True:
        following = rig.host.status().get("next") or {}
        if (following.get("target_closure"), following.get("state")) == (closure, "ready"):
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"not ready within {READY_SECS:g} s: {following}")
        threading.Event().wait(0.1)


def configure(rig: Rig, *, prefetch: bool) -> None:
    text = rig.host.config_file.read_text(encoding="utf-8")
    before, _, after = text.partition("[prefetch]\n")
    rest = after[after.index("[") :] if "[" in after else ""
    table = f"[prefetch]\nenabled = {str(prefetch).lower()}\nspread_secs = 0.0\n\n"
    # No probes: what they say of the release is not what is measured.
    checks = f'health_checks_file = "{rig.folder / "none.json"}"'
    text = re.sub("^health_checks_file = .*$", checks, before + table + rest, flags=re.MULTILINE)
    rig.host.config_file.write_text(text, encoding="utf-8")


def prefetched(supply: Supply, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of the small and of the large release, in turns, each in the store before its turn."""
    taken: tuple[list[float], list[float]] = ([], [])
    with Rig(soak=1.0, tuning=TUNING, supply=supply) as rig:
        configure(rig, prefetch=True)
        rig.start()
        for number in range(2 * rounds + 2):
            which = 1 + number % 2
            rig.give_turns(False)
            rollout_id = rig.release(number, closure=which)
            until_ready(rig, supply.closures[which])
            rig.give_turns(True)
            value = begin_after_turn(rig, rollout_id)
            rig.reach(rollout_id, State.CONVERGED)
            if number >= 2:  # the first of each finds neither caches nor connections
                taken[which - 1].append(value)
    return taken


def fetched(supply: Supply) -> tuple[float, float]:
    """Seconds of the large release that nothing has prefetched, and of a bare ``nix-store --realise`` of it."""
    with Rig(soak=1.0, tuning=TUNING, supply=supply) as rig:
        configure(rig, prefetch=False)
        rig.start()
        first = rig.release(0, closure=1)
        rig.reach(first, State.CONVERGED)
        before = bare(rig, supply)
        rollout_id = rig.release(1, closure=2)
        value = begin_after_turn(rig, rollout_id)
        # Before and after, so that a busy moment of the machine does not fall on one side alone.
        return value, statistics.mean([before, bare(rig, supply)])


def bare(rig: Rig, supply: Supply) -> float:
    """Into a store of its own on the same disk, which has what the host had; what Nix remembers of the cache too."""
    root = rig.folder / "bare"
    environment = {**rig.host.environment, "NIX_REMOTE": f"local?root={root}", "HOME": str(root)}

    def realise(closure: str) -> None:
        run_nix(("nix-store", "--realise", f"/nix/store/{closure}", "--add-root", str(root / "root")), environment)

    root.mkdir()
    realise(supply.closures[0])
    realise(supply.closures[1])
    try:
        return seconds(lambda: realise(supply.closures[2]))
    finally:
        remove_tree(root)


def measure(quick: bool) -> list[Figure]:
    sizes = QUICK if quick else SIZES
    with supplied(sizes) as (_, supply):
        small, large = (statistics.median(values) for values in prefetched(supply, sizes.rounds))
        rounds = [fetched(supply) for _ in range(1 if quick else 2)]
    late, plain = (statistics.median(each[side] for each in rounds) for side in (0, 1))
    what = f"{sizes.megabytes:g} MB in {sizes.paths} paths, {sizes.rate:g} MB/s"
    return [
        Figure(
            what=f"turn -> script running, prefetched ({what})",
            value=1000 * large,
            unit="ms",
            baseline=1000 * small,
            against="1 MB",
            most=PREFETCHED_BAR,
            runs=sizes.rounds,
        ),
        Figure(
            what="the same, not prefetched, less the prefetched one of 1 MB",
            value=late - small,
            unit="s",
            baseline=plain,
            against="bare nix-store --realise",
            most=FETCHED_BAR,
            runs=len(rounds),
        ),
    ]


def main() -> int:
    """The sizes can be changed for a look; what is quoted has the default ones."""
    global SIZES
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--megabytes", type=float, default=SIZES.megabytes)
    parser.add_argument("--paths", type=int, default=SIZES.paths)
    parser.add_argument("--rate", type=float, default=SIZES.rate)
    given, rest = parser.parse_known_args()
    SIZES = Sizes(given.megabytes, given.paths, given.rate, SIZES.rounds)
    return figures.main(measure, __doc__, rest)


if __name__ == "__main__":
    sys.exit(main())
