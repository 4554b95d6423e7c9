"""What the tests of cache, long poll and manifest poll share: a CI, a control plane that serves its work, a host."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from nixfleet_agent.artifacts.cache import ManifestCache
from nixfleet_agent.artifacts.trust_store import TrustStore
from nixfleet_agent.config.model import Config, TuningConfig
from nixfleet_agent.telemetry.status import StatusBoard
from tests.net.base import NetTestCase
from tests.support.behaviours import Reply, Request
from tests.support.clock import FakeClock
from tests.support.https_server import HttpsServer
from tests.support.signing import CiSigner, Release, Signed, closure_name

MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)
HOSTS = {"web-01": "stable", "web-02": "stable", "db-01": "edge"}
ROLLOUT = "stable@def4567abc"
FLEET_PATH = "/v1/fleet.resolved"


def rollout_path(rollout_id: str = ROLLOUT) -> str:
    return f"/v1/rollouts/{rollout_id}"


class ReleaseTestCase(NetTestCase):
    """``publish`` puts a release on the server; ``self.cache`` is a fresh agent's, ``restarted`` the next process's."""

    def setUp(self) -> None:
        super().setUp()
        self.clock = FakeClock()
        self.ci = CiSigner()
        self.state_dir = self.folder / "state"
        self.state_dir.mkdir(mode=0o700)
        self.trust_path = self.folder / "trust.json"
        self.trust_path.write_bytes(self.ci.trust_bytes())
        self.server: HttpsServer = self.serve()
        self.control_plane = self.connect(self.server)
        self.board = StatusBoard()
        self.config = self.configure()
        self.store = TrustStore(self.config)
        self.cache = self.new_cache(self.store)

    def configure(self, **changes: Any) -> Config:
        changes.setdefault("tuning", TuningConfig())
        return Config(
            control_plane_url=self.server.url,
            machine_id="web-01",
            trust_file=self.trust_path,
            state_dir=self.state_dir,
            **changes,
        )

    def new_cache(self, store: TrustStore) -> ManifestCache:
        return ManifestCache(self.config, self.control_plane, store, self.clock, self.board)

    def restarted(self) -> tuple[TrustStore, ManifestCache]:
        """Store and cache of a process that starts now."""
        store = TrustStore(self.config)
        store.recover_marks([])
        return store, self.new_cache(store)

    def release(self, **options: Any) -> Release:
        """A release signed now; ``hosts``, ``commit`` and the options of ``fleet_value`` may be given."""
        options.setdefault("signed_at", self.clock.now())
        return self.ci.release(options.pop("hosts", HOSTS), **options)

    def publish(self, release: Release | None = None, *, etags: bool = False) -> Release:
        """Serve ``release`` (a new one without) from now on."""
        release = release or self.release()
        self.serve_artifact(FLEET_PATH, release.fleet, etags=etags)
        for rollout_id, manifest in release.manifests.items():
            self.serve_artifact(rollout_path(rollout_id), manifest, etags=etags)
        return release

    def serve_artifact(self, path: str, artifact: Signed, *, etags: bool = False) -> None:
        for place, body in ((path, artifact.raw), (f"{path}/sig", artifact.signature)):
            self.server.route("GET", place, handler=_conditional(body) if etags else _always(body))

    def asked(self, path: str) -> list[Request]:
        """The requests for ``path`` so far."""
        return [request for request in self.server.requests if request.path == path]

    def failures(self) -> dict[str, int]:
        """Counted verification failures by reason."""
        return {
            dict(labels)["reason"]: count
            for (name, labels), count in self.board.counters().items()
            if name == "verification_failures"
        }

    def marks_on_disk(self) -> Any:
        return json.loads((self.state_dir / "trust-marks.json").read_bytes())


def target(release: Release, host: str = "web-01") -> str:
    return release.closures.get(host) or closure_name(host)


def _always(body: bytes) -> Any:
    return lambda request: Reply(200, body)


def _conditional(body: bytes) -> Any:
    tag = f'"{hash(body)}"'

    def answer(request: Request) -> Reply:
        if request.headers.get("If-None-Match") == tag:
            return Reply(304)
        return Reply(200, body, {"ETag": tag})

    return answer
