"""How long `status` takes on a host with a thousand rollouts in its journal: the whole command, from exec to its end.

Bars: 300 ms in all, and at most 1.5 x what it takes on a host with one rollout.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from unittest import mock

from nixfleet_agent.journal.journal import Journal
from nixfleet_agent.telemetry.status_socket import AgentNotRunningError, ask
from tests.bench import figures
from tests.bench.figures import Figure, in_turns
from tests.bench.processes import fresh_byte_code
from tests.bench.recovery import write_rollout
from tests.bench.startup import MACHINE, settings_of
from tests.runtime.harness import HOSTNAME
from tests.support.signing import CiSigner
from tests.support.tls import Authority, write_host_key

ROLLOUTS, EVENTS = 1000, 8
BAR_MS, BAR = 300.0, 1.5
#: Nobody listens there: the agent goes on alone.
NOWHERE = "https://127.0.0.1:9"


@contextlib.contextmanager
def running(rollouts: int) -> Iterator[Path]:
    """The configuration file of an agent that runs on a journal of so many rollouts."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        authority = Authority()
        authority.write_client(folder / "cert.pem", write_host_key(folder / "key"), MACHINE)
        (folder / "trust.json").write_bytes(CiSigner().trust_bytes())
        state = folder / "state"
        state.mkdir(mode=0o700)
        journal = Journal(state, HOSTNAME)
        journal.open()
        with mock.patch.object(os, "fsync", lambda descriptor: None):
            for number in range(rollouts):
                write_rollout(journal, number, EVENTS)
        config = folder / "agent.toml"
        config.write_text(settings_of(folder, NOWHERE, authority.write_ca(folder / "ca.pem")))
        command = [sys.executable, "-m", "nixfleet_agent", "run", "--config", str(config)]
        with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as agent:
            try:
                until_known(state, rollouts)
                yield config
            finally:
                agent.terminate()


def until_known(state: Path, rollouts: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(AgentNotRunningError):
            if len(ask(state, "status").get("rollouts") or ()) == rollouts:
                return
        time.sleep(0.1)
    raise SystemExit("the agent does not come up")


def seconds_of(config: Path) -> float:
    command = [sys.executable, "-m", "nixfleet_agent", "status", "--config", str(config)]
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def measure(quick: bool) -> list[Figure]:
    fresh_byte_code()
    rounds = 5 if quick else 15
    with running(1) as one, running(ROLLOUTS) as many:
        alone, crowded = in_turns(rounds, partial(seconds_of, one), partial(seconds_of, many))
    what, value = f"status with {ROLLOUTS} rollouts", 1000 * crowded
    against = Figure(
        what=what, value=value, unit="ms", baseline=1000 * alone, against="with one", most=BAR, runs=rounds
    )
    return [Figure(what=what, value=value, unit="ms", most=BAR_MS, runs=rounds), against]


if __name__ == "__main__":
    sys.exit(figures.main(measure, __doc__))
