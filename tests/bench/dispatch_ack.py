"""From "it is your turn" to the acknowledgement on the wire, against what nobody can avoid on that way.

The agent is a process with the default configuration; the control plane is the local one, in another. Measured in
the control plane's process, from the moment the turn's answer is handed to the connection until the DispatchAck has
been read: the pending turn made durable, fleet and manifest fetched and verified, the accepted Dispatch and its
acknowledgement durable, and the POST. Baseline, from a third process, after each turn: four GETs of the same artifacts
over one keep-alive mTLS connection, and two durable writes.
"""

from __future__ import annotations

import http.client
import json
import multiprocessing
import os
import ssl
import statistics
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path

from nixfleet_agent.state_machine import State
from tests.bench import figures
from tests.bench.figures import Figure, percentile, seconds
from tests.bench.rig import NAME, Rig

BAR = 3.0
#: By then the first results of all probes are delivered, and the agent is idle.
SETTLE_SECS = 0.7
#: As long as an accepted Dispatch is.
_ENTRY = json.dumps({"event": "x" * 1100}).encode()


def unavoidable(folder: Path, port: int, pipe: Connection) -> None:
    """For each rollout id that comes in, the seconds of four GETs and two durable writes."""
    context = ssl.create_default_context(cafile=str(folder / "cp" / "fleet-ca.pem"))
    host = folder / "hosts" / NAME
    context.load_cert_chain(host / "state" / "agent-cert.pem", _pkcs8(host / "ssh_host_ed25519_key"))
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context)
    spare = folder / "bare"
    spare.mkdir()

    def once() -> None:
        for path in [
            f"/v1/{path}{end}" for path in ("fleet.resolved", f"rollouts/{rollout_id}") for end in ("", "/sig")
        ]:
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise SystemExit(f"{path}: {answer.status}")
        for name in ("0", "1"):
            _durable_write(spare / name)

    while (rollout_id := pipe.recv()) is not None:
        pipe.send(seconds(once))


def _durable_write(path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.write(descriptor, _ENTRY)
    os.fsync(descriptor)
    os.close(descriptor)
    os.rename(temporary, path)
    directory = os.open(path.parent, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def _pkcs8(key: Path) -> Path:
    """The host key in the form that Python's `ssl` reads."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    from nixfleet_agent.identity.host_key import load_host_key

    path = key.with_suffix(".pkcs8")
    path.write_bytes(load_host_key(key).private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


def measure(quick: bool) -> list[Figure]:
    rounds = 5 if quick else 50
    taken, bare = [], []
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    with Rig(soak=600) as rig:
        rig.start()
        port = int(rig.url.rpartition(":")[2])
        child = spawn.Process(target=unavoidable, args=(rig.folder, port, theirs))
        for number in range(rounds + 1):
            rollout = rig.release(number, closure=1 + number % 2)
            rig.reach(rollout, State.SOAKING)
            threading.Event().wait(SETTLE_SECS)
            if not number:  # the first one finds neither caches nor connections
                child.start()
            ours.send(rollout)
            seconds_bare = ours.recv()
            if number:
                times = rig.times(rollout)
                taken.append(times["DispatchAck"] - times["turn"])
                bare.append(seconds_bare)
        ours.send(None)
        child.join()
    median = statistics.median(taken)
    return [
        Figure(
            what="Dispatch received -> DispatchAck on the wire, p50",
            value=1000 * median,
            unit="ms",
            baseline=1000 * statistics.median(bare),
            against="4 GETs + 2 durable writes",
            most=BAR,
            runs=rounds,
        ),
        Figure(what="the same, p90", value=1000 * percentile(taken, 0.9), unit="ms", runs=rounds),
    ]


if __name__ == "__main__":
    sys.exit(figures.main(measure, __doc__))
