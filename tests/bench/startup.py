"""How fast the program starts, against the interpreter alone: `python -m tests.bench.startup`.

Bars: `--version` and `--help` at most 3 x `python -c pass`; from exec to the first long poll at most 1 second.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.support.https_server import HttpsServer, Reply, Request
from tests.support.signing import CiSigner
from tests.support.tls import Authority, write_host_key

MACHINE = "web-01"


def seconds_of(arguments: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def compare(rounds: int) -> dict[str, float]:
    """Medians in seconds; the three take turns, so that a busy moment falls on all of them."""
    commands = {
        "python -c pass": ["-c", "pass"],
        "--version": ["-m", "nixfleet_agent", "--version"],
        "--help": ["-m", "nixfleet_agent", "--help"],
    }
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, arguments in commands.items():
            taken[name].append(seconds_of(arguments))
    return {name: statistics.median(values) for name, values in taken.items()}


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
        settings = {
            "control_plane_url": server.url,
            "machine_id": MACHINE,
            "trust_file": folder / "trust.json",
            "ca_cert": ca,
            "client_cert": folder / "cert.pem",
            "client_key": folder / "key",
            "ssh_host_key_file": folder / "key",
            "state_dir": folder / "state",
        }
        config = folder / "agent.toml"
        config.write_text("".join(f"{name} = {json.dumps(str(value))}\n" for name, value in settings.items()))
        began = time.perf_counter()
        command = [sys.executable, "-m", "nixfleet_agent", "run", "--config", str(config)]
        with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as agent:
            try:
                if not arrived.wait(20):
                    raise SystemExit(f"no long poll within 20 s; the agent said:\n{(folder / 'log').read_text()}")
            finally:
                agent.terminate()
    return at[0] - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    medians = compare(rounds)
    base = medians["python -c pass"]
    bad = 0
    for name, median in medians.items():
        ratio = median / base
        bad += ratio > 3
        print(f"{name:<16} {median * 1000:7.1f} ms  {ratio:5.2f} x")
    polls = []
    for _ in range(5):
        with tempfile.TemporaryDirectory() as folder:
            polls.append(first_poll(Path(folder)))
    print(f"{'first long poll':<16} {statistics.median(polls) * 1000:7.1f} ms  (bar: 1000 ms)")
    return 1 if bad or statistics.median(polls) > 1 else 0


if __name__ == "__main__":
    sys.exit(main())
