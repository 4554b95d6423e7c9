"""Runs the benchmarks and prints one table.

    python -m tests.bench [NAME...] [--quick] [--json FILE]

Each runs in a process of its own, one after the other. Exits 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

from tests.bench.figures import Figure, rows, table

#: Every row of the table, in its order.
USUAL = (
    "dispatch_ack",
    "event_latency",
    "journal_enqueue",
    "drain",
    "recovery",
    "verify_fleet",
    "idle",
    "startup",
    "status",
    "memory",
    "scaling",
    "local_cp",
    "pipeline_overhead",
    "turn_to_switch",
    "prefetch_spread",
    "probes",
)
#: Only when asked for: they take long, or fetch packages.
ON_REQUEST = ("local_fleet", "peers")


def run(name: str, quick: bool) -> list[Figure] | str:
    """The figures of one benchmark, or why there are none."""
    command = [sys.executable, "-m", f"tests.bench.{name}", "--json", *(["--quick"] if quick else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    try:
        return [Figure(**each) for each in json.loads(done.stdout.splitlines()[-1])]
    except (ValueError, TypeError, IndexError):
        return f"{name}: no figures (exit code {done.returncode})"


def machine() -> str:
    """What it was measured on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    at = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    return (
        f"{at} UTC; {os.cpu_count()} cores, {model}; Linux {platform.release()}; Python {platform.python_version()};"
        f" load before: {load}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join((*USUAL, *ON_REQUEST))}")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: to see that it runs, not to quote")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    unknown = set(options.names) - {*USUAL, *ON_REQUEST}
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    print(machine(), flush=True)
    found: list[Figure] = []
    failed = []
    for name in options.names or USUAL:
        began = time.monotonic()
        got = run(name, options.quick)
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        if isinstance(got, str):
            failed.append(got)
        else:
            found += got
    print(table(rows(found)))
    for line in failed:
        print(line)
    if options.json is not None:
        options.json.write_text(json.dumps([[*cells] for cells in rows(found)], indent=1) + "\n")
    return 1 if failed or any(figure.met is False for figure in found) else 0


if __name__ == "__main__":
    sys.exit(main())
