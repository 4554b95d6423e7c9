"""The other machine of the two-machine test: CI and control plane of a fleet of one host, driven from a shell.

    fleet.py serve FOLDER HOSTNAME [PORT]    until SIGTERM, on the loopback; FOLDER gets trust.json and fleet-ca.pem
    fleet.py token FOLDER KEY                print a bootstrap token for the host key in the file KEY (ssh_host_*.pub)
    fleet.py release FOLDER COMMIT CLOSURE   sign a release that names CLOSURE, and hand it to the control plane

The last two ask the first, through a socket in FOLDER: it alone has the keys that sign.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import socketserver
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from nixfleet_agent import durable
from nixfleet_agent.demo.plane import ControlPlaneProcess, Pace
from nixfleet_agent.errors import AgentError
from nixfleet_agent.identity.host_key import fingerprint_of
from nixfleet_agent.local_cp.ci import ChannelDescription, ContinuousIntegration, FleetDescription, WaveDescription
from nixfleet_agent.threads.clock import SystemClock

PORT = 8443
CHANNEL = "stable"
SOCKET = "fleet.sock"
DAY = timedelta(days=1)


class Fleet:
    """CI, and the control plane that it publishes to; ``folder`` holds what a host needs to trust both."""

    def __init__(self, folder: Path, hostname: str, port: int) -> None:
        self.folder, self._hostname = folder, hostname
        self._ci, self._clock = ContinuousIntegration(), SystemClock()
        pace = Pace(certificate_lifetime=DAY, extra_soak=timedelta(seconds=5), redeliver_after=timedelta(seconds=30))
        self.plane = ControlPlaneProcess(
            folder / "cp",
            self._ci.org_root_public,
            dict(os.environ),
            lambda _: None,
            pace,
            hosts=folder / "hosts",  # on this machine there are none
            port=port,
        )

    def start(self) -> None:
        """Once it returns the control plane listens, and a host can be told whom to trust."""
        self.plane.start()
        shutil.copy(self.plane.ca_file, self.folder / "fleet-ca.pem")
        trust = self._ci.trust_file(issuance_ca_pems=[self.plane.ca_file.read_text(encoding="ascii")])
        durable.write(self.folder / "trust.json", trust, mode=0o644)

    def token(self, key_file: str) -> str:
        key = load_ssh_public_key(Path(key_file).read_bytes())
        if not isinstance(key, Ed25519PublicKey):
            raise ValueError(f"{key_file} holds no Ed25519 key")
        fingerprint = fingerprint_of(key.public_bytes_raw())
        return self._ci.token(self._hostname, fingerprint, self._clock.now(), DAY).decode()

    def release(self, commit: str, closure: str) -> str:
        channel = ChannelDescription(waves=(WaveDescription((self._hostname,)),))
        fleet = FleetDescription(channels={CHANNEL: channel})
        closures = {self._hostname: Path(closure).name}
        self.plane.publish(self._ci.release(fleet, commit, closures, self._clock.now()))
        return f"{CHANNEL}@{commit}"

    def answer(self, request: list[str]) -> dict[str, str]:
        orders: dict[str, Callable[..., str]] = {"token": self.token, "release": self.release}
        try:
            return {"said": orders[request[0]](*request[1:])}
        except (AgentError, OSError, ValueError) as error:
            return {"error": str(error)}


def serve(folder: Path, hostname: str, port: int = PORT) -> None:
    """Until SIGTERM."""
    fleet = Fleet(folder, hostname, port)

    class Order(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(json.dumps(fleet.answer(json.loads(self.rfile.readline()))).encode() + b"\n")

    fleet.start()
    (folder / SOCKET).unlink(missing_ok=True)
    try:
        with socketserver.UnixStreamServer(str(folder / SOCKET), Order) as server:
            signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
            server.serve_forever()
    finally:
        fleet.plane.close()


def ask(folder: Path, *request: str) -> str:
    with socket.socket(socket.AF_UNIX) as connection, connection.makefile("rw", encoding="utf-8") as lines:
        connection.connect(str(folder / SOCKET))
        lines.write(json.dumps(request) + "\n")
        lines.flush()
        answer = json.loads(lines.readline())
    if "error" in answer:
        raise SystemExit(f"fleet.py: {answer['error']}")
    return str(answer["said"])


def main(arguments: list[str]) -> None:
    match arguments:
        case ["serve", folder, hostname, *port] if len(port) <= 1:
            serve(Path(folder), hostname, *map(int, port))
        case ["token", folder, key]:
            print(ask(Path(folder), "token", key))
        case ["release", folder, commit, closure]:
            print(ask(Path(folder), "release", commit, closure))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
