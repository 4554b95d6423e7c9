"""Each defence taken out of a copy of the agent, one at a time, and the tests that notice.

`python -m tests.attacks --mutants [NAME...]` ends with an error when one of them survives. A mutant is a change of
text that stands exactly once in its file, so that a defence that was rewritten makes itself heard here.
"""

from __future__ import annotations

import concurrent.futures
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.attacks.defence import Defence
from tests.attacks.defences import DEFENCES

TOP = Path(__file__).resolve().parent.parent.parent
JOBS = 2
#: A mutant may hang its test: that counts as noticed, like any other end but success.
LIMIT_SECS = 120


@dataclass(frozen=True)
class Verdict:
    """``noticed``: a named test failed; ``problem``: the mutant could not be made, or its tests can't be run."""

    defence: Defence
    noticed: bool
    seconds: float
    problem: str = ""


def main(names: list[str], *, only_list: bool = False) -> int:
    chosen = [d for d in DEFENCES if not names or any(n.lower() in d.name.lower() for n in names)]
    if only_list:
        for defence in chosen:
            print(f"{defence.name:<62} {defence.file}")
        return 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        sound = baseline(Path(folder), chosen)
        if sound:
            print(f"without any mutation these fail already:\n{sound}")
            return 1
        with concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
            verdicts = []
            print(f"{'DEFENCE TAKEN OUT':<62} {'OUTCOME':<9} {'TIME':>6}")
            for verdict in pool.map(lambda d: try_out(Path(folder), d), chosen):
                outcome = "noticed" if verdict.noticed else "SURVIVED"
                print(f"{verdict.defence.name:<62} {outcome:<9} {verdict.seconds:>5.1f}s {verdict.problem}", flush=True)
                verdicts.append(verdict)
    alive = [verdict for verdict in verdicts if not verdict.noticed]
    print(f"\n{len(verdicts)} defences, {len(alive)} survivors, {time.monotonic() - began:.1f} s")
    return 1 if alive or not verdicts else 0


def baseline(folder: Path, chosen: list[Defence]) -> str:
    """The output of the named tests on an unchanged copy where they fail; empty when all is well."""
    place = copy(folder / "sound")
    named = {test for defence in chosen for test in defence.tests}
    # A class whose module is named too would run twice in one process, which hypothesis does not have.
    tests = sorted(test for test in named if not any(test.startswith(f"{other}.") for other in named))
    done = run(place, tests, limit=900)
    return "" if done is not None and done.returncode == 0 else (done.stderr[-4000:] if done else "out of time")


def try_out(folder: Path, defence: Defence) -> Verdict:
    began = time.monotonic()
    place = copy(folder / defence.name.replace("/", "_"))
    path = place / "nixfleet_agent" / defence.file
    source = path.read_text()
    if source.count(defence.old) != 1:
        return Verdict(defence, False, 0.0, f"its text stands {source.count(defence.old)} times in the file")
    path.write_text(source.replace(defence.old, defence.new))
    done = run(place, list(defence.tests), limit=LIMIT_SECS, ATTACK_PATIENCE_SECS="4")
    shutil.rmtree(place)
    problem = ""
    if done is not None and ("SyntaxError" in done.stderr or "ImportError" in done.stderr):
        problem = "the mutant does not even start: " + done.stderr.strip().splitlines()[-1]
    noticed = (done is None or done.returncode != 0) and not problem
    return Verdict(defence, noticed, time.monotonic() - began, problem)


def copy(place: Path) -> Path:
    """The package, with tests and configuration beside it as they are."""
    place.mkdir()
    shutil.copytree(
        TOP / "nixfleet_agent",
        place / "nixfleet_agent",
        symlinks=True,
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for name in ("tests", "conf"):
        (place / name).symlink_to(TOP / name)
    return place


def run(place: Path, tests: list[str], limit: float, **more: str) -> subprocess.CompletedProcess[str] | None:
    """The tests in a process that imports the copy; None when they don't end in time."""
    environment = {**os.environ, "PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1", **more}
    command = [sys.executable, "-W", "error", "-m", "unittest", "-f", *tests]
    try:
        return subprocess.run(
            command, cwd=place, env=environment, capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return None
