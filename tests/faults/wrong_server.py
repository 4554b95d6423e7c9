"""Something else answers at the control plane's address, or its clock is wrong: nothing is said to it, nothing lost."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from nixfleet_agent.local_cp.ca import CertificateAuthority
from nixfleet_agent.local_cp.faults import Faults
from nixfleet_agent.local_cp.server import HttpsServer, Request, Response, tls_context
from nixfleet_agent.local_cp.service import HOST
from tests.faults.flapping import Fault, flapping
from tests.faults.proxy import Proxy
from tests.faults.rig import Rig
from tests.faults.runs import Outcome, Runs

NAMES = ("localhost", HOST)
DAY = timedelta(days=1)
#: Certificates of servers are valid for a year.
LONG_AGO = timedelta(days=366)

#: Writes a certificate and its key to a folder: (rig, folder, now).
Certificate = Callable[[Rig, Path, datetime], tuple[Path, Path]]


def of_another_ca(rig: Rig, folder: Path, now: datetime) -> tuple[Path, Path]:
    """As the right one says, but signed by somebody who calls himself the same."""
    return CertificateAuthority.create(now - DAY).server(NAMES, now, folder)


def of_another_name(rig: Rig, folder: Path, now: datetime) -> tuple[Path, Path]:
    return rig.control_plane.authority.server(("cp.example.org",), now, folder)


def expired(rig: Rig, folder: Path, now: datetime) -> tuple[Path, Path]:
    return rig.control_plane.authority.server(NAMES, now - LONG_AGO, folder)


def not_yet_valid(rig: Rig, folder: Path, now: datetime) -> tuple[Path, Path]:
    return rig.control_plane.authority.server(NAMES, now + DAY, folder)


CERTIFICATES: dict[str, Certificate] = {
    "cp-certificate-of-another-ca": of_another_ca,
    "cp-certificate-of-another-name": of_another_name,
    "cp-certificate-expired": expired,
    "cp-certificate-not-yet-valid": not_yet_valid,
}


def impostor(certificate: Certificate, heard: list[str]) -> Fault:
    """Connections lead to a server with that certificate; what is said to it is noted."""

    def install(rig: Rig) -> Callable[[bool], None]:
        folder = rig.folder / "impostor"
        folder.mkdir()
        context = tls_context(*certificate(rig, folder, rig.clock.now()), rig.control_plane.ca_file)

        def answer(request: Request) -> Response:
            heard.append(f"{request.method} {request.path}")
            return Response(status=404)

        server = HttpsServer((HOST, 0), context, answer, Faults())
        server.start()
        rig.closers.append(server.stop)
        right, wrong = (HOST, rig.control_plane.server.port), (HOST, server.port)
        proxy = Proxy(right)
        rig.closers.append(proxy.close)
        rig.write_config({"agent": {"control_plane_url": f"https://{HOST}:{proxy.port}"}})
        return lambda on: proxy.aim(wrong if on else right)

    return install


def certified(runs: Runs, name: str) -> Outcome:
    heard: list[str] = []
    outcome = flapping(runs, name, impostor(CERTIFICATES[name], heard))
    if heard:
        outcome.problems.append(f"{name}: the wrong server was asked {heard}")
    return outcome


def clock_off(rig: Rig, off: timedelta) -> Callable[[bool], None]:
    def turn(on: bool) -> None:
        rig.plane_clock.off = off if on else timedelta(0)

    return turn


CLOCKS = {"cp-clock-hour-ahead": timedelta(hours=1), "cp-clock-hour-behind": timedelta(hours=-1)}

ITEMS: dict[str, Callable[[Runs], Outcome]] = {
    **{name: partial(certified, name=name) for name in CERTIFICATES},
    **{name: partial(flapping, name=name, fault=partial(clock_off, off=off)) for name, off in CLOCKS.items()},
}
