"""Branch coverage of a run of the tests: what the worker processes left is added up, by package, and judged."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[2]
PACKAGE = "nixfleet_agent"
#: Starts a worker that is watched; the file .coveragerc has it watch its children too.
WATCHED = ("-m", "coverage", "run")
#: Percent of lines and branches together.
BARS = {"state_machine": 100.0, "trust": 100.0, "": 90.0}


def forget() -> None:
    """Remove what earlier runs left."""
    _coverage("erase")


def judge() -> bool:
    """Print covered percent of each package, then the places that nothing reached; whether every bar is met."""
    _coverage("combine", "--quiet")
    report: dict[str, Any] = json.loads(_coverage("json", "--quiet", "-o", "-"))
    _coverage("erase")
    there: Counter[str] = Counter()
    reached: Counter[str] = Counter()
    for file, found in report["files"].items():
        inner = Path(file).relative_to(PACKAGE).parts
        summary = found["summary"]
        for name in {inner[0] if len(inner) > 1 else "(top)", ""}:
            there[name] += summary["num_statements"] + summary["num_branches"]
            reached[name] += summary["covered_lines"] + summary["covered_branches"]
    well = True
    print("\nbranch coverage:")
    for name in sorted(there, key=lambda each: (each == "", each)):
        percent = 100.0 * reached[name] / (there[name] or 1)
        met = percent >= BARS.get(name, 0.0)
        well = well and met
        print(f"  {percent:6.2f} %  {name or 'all'}{'' if met else f'   below {BARS[name]:g} %'}")
    _print_missed(report["files"])
    return well


def _print_missed(files: dict[str, Any]) -> None:
    print("\nnot reached (lines; branches as from->to):")
    for file, found in sorted(files.items()):
        branches = [f"{start}->{end}" for start, end in found["missing_branches"]]
        if found["missing_lines"] or branches:
            print(f"  {file}: {' '.join([*map(str, found['missing_lines']), *branches])}")


def _coverage(*arguments: str) -> str:
    """Raises RuntimeError with what coverage said."""
    command = [sys.executable, "-m", "coverage", *arguments]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"coverage {arguments[0]}: {done.stdout}{done.stderr}")
    return done.stdout
