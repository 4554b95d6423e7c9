"""The control plane of a simulated fleet: planner, mirror, database and endpoints of the local one, without sockets."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from nixfleet_agent.local_cp.api import Api
from nixfleet_agent.local_cp.ca import CertificateAuthority
from nixfleet_agent.local_cp.catalogue import Catalogue, Publication
from nixfleet_agent.local_cp.control import ControlPlane
from nixfleet_agent.local_cp.dispatcher import Options
from nixfleet_agent.local_cp.faults import Faults
from nixfleet_agent.local_cp.happenings import Notification
from nixfleet_agent.local_cp.identity_api import Registrar
from nixfleet_agent.local_cp.server import Request, Response
from tests.simulation.primitives import ServerClock
from tests.simulation.scheduler import Scheduler

GROUP = "cp"
#: Turns that nobody took are given again soon.
IMPATIENT = Options(redeliver_after=timedelta(seconds=30))


class Plane:
    """``folder`` outlives its process, which ``stop`` and ``start`` end and begin."""

    def __init__(
        self, folder: Path, scheduler: Scheduler, authority: CertificateAuthority, org_root: bytes, lifetime: timedelta
    ) -> None:
        folder.mkdir(parents=True)
        self.clock = ServerClock(scheduler)
        self.authority = authority
        self.told: list[Notification] = []
        self._folder = folder
        self._scheduler = scheduler
        self._org_root = org_root
        self._lifetime = lifetime
        self.faults = Faults()
        self.api: Api | None = None
        #: What CI published while it was down.
        self.later: list[Publication] = []
        self.control: ControlPlane
        #: What becomes of an answer, by the path that was asked for.
        self.tamper: Callable[[str, Response], Response] = lambda path, response: response
        self.start()

    def start(self) -> None:
        catalogue = Catalogue(self._folder / "published")
        database = self._folder / "cp.sqlite"
        self.control = ControlPlane(database, catalogue, self.clock, self.faults, IMPATIENT, self.told.append)
        registrar = Registrar(
            self.control.store,
            catalogue,
            self.authority,
            self._org_root,
            self._lifetime,
            self.clock,
            self.control.waiters.wake,
        )
        self.api = Api(self.control, registrar, self.clock, strict=True)
        self._scheduler.spawn("dispatcher", GROUP, self.control.dispatcher.run)
        for publication in self.later:
            self.control.publish(publication)
        self.later.clear()

    def stop(self) -> None:
        """Its process ends; who waits for an answer gets none."""
        self.api = None
        self.control.stop()
        self._scheduler.kill([GROUP])
        self.control.store.close()

    def answer(self, request: Request) -> Response | None:
        api = self.api
        if api is None:
            return None
        response = api.answer(request)
        return self.tamper(request.path, response) if self.api is api else None

    def publish(self, publication: Publication) -> None:
        self.control.publish(publication)

    def wipe(self) -> None:
        """Its database is gone."""
        self.control.wipe()

    def events(self, host: str, rollout_id: str) -> list[tuple[int, str]]:
        """(seq, kind) of what it has of one rollout."""
        return [(event["seq"], event["kind"]) for event in self.control.store.events(host, rollout_id)]
