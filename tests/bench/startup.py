"""How fast the program starts, against the interpreter alone: `python -m tests.bench.startup`.

Bars: `--version` and `--help` at most 3 x `python -c pass`; from exec to the first long poll at most 1 second.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

from tests.bench import figures
from tests.bench.figures import Figure, in_turns
from tests.bench.processes import fresh_byte_code
from tests.support.behaviours import Reply, Request
from tests.support.https_server import HttpsServer
from tests.support.signing import CiSigner
from tests.support.tls import Authority, write_host_key

MACHINE = "web-01"
VERSION_BAR, FIRST_POLL_MS = 3.0, 1000.0


def seconds_of(arguments: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def compare(rounds: int) -> dict[str, float]:
    """Medians in seconds."""
    commands = {
        "python -c pass": ["-c", "pass"],
        "--version": ["-m", "nixfleet_agent", "--version"],
        "--help": ["-m", "nixfleet_agent", "--help"],
    }
    sides = [partial(seconds_of, arguments) for arguments in commands.values()]
    return dict(zip(commands, in_turns(rounds, *sides), strict=True))


def settings_of(folder: Path, url: str, ca: Path) -> str:
    """A configuration of nothing but the addresses and paths that have no default."""
    settings = {
        "control_plane_url": url,
        "machine_id": MACHINE,
        "trust_file": folder / "trust.json",
        "ca_cert": ca,
        "client_cert": folder / "cert.pem",
        "client_key": folder / "key",
        "ssh_host_key_file": folder / "key",
        "state_dir": folder / "state",
    }
    return "".join(f"{name} = {json.dumps(str(value))}\n" for name, value in settings.items())


def first_poll(folder: Path) -> float:
    """Seconds from exec of the daemon to its first long poll on the wire."""
    authority, arrived = Authority(), threading.Event()
    key = write_host_key(folder / "key")
    authority.write_client(folder / "cert.pem", key, MACHINE)
    (folder / "trust.json").write_bytes(CiSigner().trust_bytes())
    (folder / "state").mkdir(mode=0o700)
    ca = authority.write_ca(folder / "ca.pem")
    certificate, server_key = authority.write_server(folder)
    at = [0.0]

    def poll(request: Request) -> Reply:
        at[0] = at[0] or time.perf_counter()
        arrived.set()
        return Reply(204)

    with contextlib.closing(HttpsServer(certificate, server_key, client_ca=ca)) as server:
        server.route("GET", "/v1/agent/dispatch", poll)
        config = folder / "agent.toml"
        config.write_text(settings_of(folder, server.url, ca))
        began = time.perf_counter()
        command = [sys.executable, "-m", "nixfleet_agent", "run", "--config", str(config)]
        with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as agent:
            try:
                if not arrived.wait(20):
                    raise SystemExit(f"no long poll within 20 s; the agent said:\n{(folder / 'log').read_text()}")
            finally:
                agent.terminate()
    return at[0] - began


def measure(quick: bool) -> list[Figure]:
    fresh_byte_code()
    rounds = 5 if quick else 15
    medians = compare(rounds)
    base = medians.pop("python -c pass")
    found = [
        Figure(
            what=name,
            value=1000 * median,
            unit="ms",
            baseline=1000 * base,
            against="python -c pass",
            most=VERSION_BAR,
            runs=rounds,
        )
        for name, median in medians.items()
    ]
    polls = []
    for _ in range(rounds // 3):
        with tempfile.TemporaryDirectory() as folder:
            polls.append(first_poll(Path(folder)))
    poll = 1000 * statistics.median(polls)
    return [*found, Figure(what="exec -> first long poll", value=poll, unit="ms", most=FIRST_POLL_MS, runs=len(polls))]


if __name__ == "__main__":
    sys.exit(figures.main(measure, __doc__))
