"""One real host for benchmarks: its agent a process with the default configuration, its control plane another.

with Rig(soak=10) as rig:
    rig.start()
    rollout_id = rig.release(1)          # CI signs, the control plane gives the turn
    rig.reach(rollout_id, State.SOAKING)
    rig.times(rollout_id)                # when the turn left, and when each event came in: monotonic seconds
"""

from __future__ import annotations

import hashlib
import multiprocessing
import re
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from nixfleet_agent.demo.agents import Host, Surroundings
from nixfleet_agent.demo.cache import Cache
from nixfleet_agent.demo.closures import Maker, System
from nixfleet_agent.demo.processes import MARK_VARIABLE, end_marked, remove_tree
from nixfleet_agent.local_cp.ci import ChannelDescription, ContinuousIntegration, FleetDescription, WaveDescription
from nixfleet_agent.local_cp.dispatcher import Options
from nixfleet_agent.local_cp.server import Request, Response
from nixfleet_agent.local_cp.service import LocalControlPlane
from nixfleet_agent.state_machine import State
from nixfleet_agent.threads.clock import SystemClock
from tests.bench.processes import fresh_byte_code

NAME = "web-01"
PATIENCE = 90.0
#: Seconds that a long poll waits for turns to be given again.
HELD_POLL = 4.0
_SEQ_KIND = re.compile(rb'"kind":\s*"(\w+)"')


@dataclass(frozen=True, slots=True)
class Supply:
    """A cache that somebody else serves, the key that it is signed with, and the closures of releases: see ``Rig``."""

    cache_url: str
    cache_key: str
    closures: tuple[str, ...]


@contextmanager
def made_here(folder: Path) -> Iterator[Supply]:
    """Three small closures, from a cache of this process."""
    maker = Maker(folder / "ci")
    cache = Cache(maker.cache)
    releases = maker.releases(map(System, ("v0", "v1", "v2")), cache.url)
    yield Supply(cache.url, maker.public_key, tuple(releases[version].closure for version in ("v0", "v1", "v2")))
    cache.close()


def serve(
    folder: Path, names: list[str], soak: float, others: int, pipe: Connection, supply: Supply | None = None
) -> None:
    """The control plane's process: publishes when told, and notes when turns leave and events arrive."""
    with nullcontext(supply) if supply is not None else made_here(folder) as supplied:
        _serve(folder, names, soak, others, pipe, supplied)


def _serve(folder: Path, names: list[str], soak: float, others: int, pipe: Connection, supply: Supply) -> None:
    clock = SystemClock()
    ci = ContinuousIntegration()
    turns, inside = threading.Event(), threading.Lock()
    turns.set()
    noted: dict[str, dict[str, float]] = {}

    def happened(happening: Any) -> None:
        if happening.state is not None:
            noted.setdefault(happening.rollout_id, {}).setdefault(f"state {happening.state}", time.monotonic())

    options = Options(extra_soak=timedelta(seconds=soak))
    plane = LocalControlPlane(folder / "cp", clock, ci.org_root_public, options=options, watcher=happened)
    inner = plane.server.answer

    def answer(request: Request) -> Response:
        if request.path.endswith("/events"):
            at, match = time.monotonic(), _SEQ_KIND.search(request.body)
            rollout = re.search(rb'"rolloutId":\s*"([^"]+)"', request.body)
            if match and rollout:
                noted.setdefault(rollout[1].decode(), {}).setdefault(match[1].decode(), at)
        if request.path.endswith("/dispatch"):
            if not turns.wait(HELD_POLL):
                return Response(status=204)
            with inside:
                response = inner(request)
        else:
            response = inner(request)
        if request.path.endswith("/dispatch") and response.status == 200:
            rollout = re.search(rb'"rolloutId":\s*"([^"]+)"|"rollout_id":\s*"([^"]+)"', response.body)
            if rollout:
                noted.setdefault((rollout[1] or rollout[2]).decode(), {}).setdefault("turn", time.monotonic())
        return response

    plane.server.answer = answer
    plane.start()
    trust = ci.trust_file(issuance_ca_pems=[plane.authority.pem], cache_keys=[supply.cache_key])
    pipe.send((plane.url, str(plane.ca_file), trust, supply))
    fleet = FleetDescription(channels={"stable": ChannelDescription(waves=(WaveDescription(tuple(names)),))})
    crowd = [f"other-{number:05}" for number in range(others)]
    if crowd:
        fleet = FleetDescription(
            channels={
                "stable": ChannelDescription(waves=(WaveDescription(tuple(names)), WaveDescription(tuple(crowd))))
            }
        )
    while (order := pipe.recv()) is not None:
        match order:
            case ("token", name, fingerprint):
                pipe.send(ci.token(name, fingerprint, clock.now(), timedelta(hours=1)))
            case ("publish", commit, closure):
                wanted = dict.fromkeys([*names, *crowd], closure)
                plane.control.publish(ci.release(fleet, commit, wanted, clock.now()))
                pipe.send(None)
            case ("noted", rollout_id):
                pipe.send(dict(noted.get(rollout_id, {})))
            case ("turns", True):
                turns.set()
                pipe.send(None)
            case ("turns", False):
                turns.clear()
                with inside:  # the poll that was open before is over
                    pipe.send(None)
    turns.set()
    plane.stop()


class Rig:
    """See the module. ``tuning`` replaces the agent's default intervals; ``others`` are hosts that only CI knows.

    With ``supply`` its closures are released, of which the first runs from the start; else three small ones are made.
    """

    def __init__(
        self,
        soak: float = 5.0,
        tuning: Mapping[str, float] | None = None,
        others: int = 0,
        supply: Supply | None = None,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="bench-"))
        self._tuning = dict(tuning or {})
        self._pipe, theirs = multiprocessing.Pipe()
        spawn = multiprocessing.get_context("spawn")
        self._child = spawn.Process(target=serve, args=(self.folder, [NAME], soak, others, theirs, supply), daemon=True)
        self._child.start()
        self.url, ca_file, trust, supplied = self._pipe.recv()
        self.closures = supplied.closures
        around = Surroundings(
            self.url, Path(ca_file), trust, supplied.cache_url, supplied.cache_key, str(self.folder), 1.0
        )
        self.host = Host(NAME, self.folder / "hosts" / NAME, around)
        key = self.host.install(self.closures[0])
        self.host.give_token(self._ask("token", NAME, key.fingerprint))
        text = self.host.config_file.read_text(encoding="utf-8").partition("[tuning]")[0]
        lines = [f"{name} = {value}" for name, value in self._tuning.items()]
        self.host.config_file.write_text("\n".join([text, "[tuning]", *lines, ""]), encoding="utf-8")

    def start(self) -> int:
        """Start the agent; its process id."""
        fresh_byte_code()
        self.host.start()
        pid = self.host.pid
        if pid is None:
            raise SystemExit(f"the agent ended at once; its log: {self.host.log_file.read_text()}")
        return pid

    def release(self, number: int, closure: int = 1) -> str:
        """Publish the ``number``-th release with one of the three ``closures``; its rollout id."""
        commit = hashlib.sha256(f"{number}".encode()).hexdigest()[:12]
        self._ask("publish", commit, self.closures[closure])
        return f"stable@{commit}"

    def give_turns(self, on: bool) -> None:
        """Whether the control plane hands out turns. To hold them back takes until the open long poll is over."""
        self._ask("turns", on)

    def times(self, rollout_id: str) -> dict[str, float]:
        """``turn``, ``state <State>`` and the kinds of events: when the first of each left or came in."""
        noted: dict[str, float] = self._ask("noted", rollout_id)
        return noted

    def reach(self, rollout_id: str, state: State) -> None:
        """Wait until the control plane knows the host to be in ``state``."""
        self.until(rollout_id, f"state {state}")

    def until(self, rollout_id: str, what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while what not in self.times(rollout_id):
            if time.monotonic() > deadline:
                log = self.host.log_file.read_text(encoding="utf-8").splitlines()[-3:]
                raise SystemExit(f"no {what} of {rollout_id} within {PATIENCE} s; the agent said last: {log}")
            threading.Event().wait(0.1)

    def _ask(self, *order: object) -> Any:
        self._pipe.send(order)
        return self._pipe.recv()

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        self.host.ask_to_stop()
        self.host.wait_stopped()
        self._pipe.send(None)
        self._child.join()
        end_marked(MARK_VARIABLE, str(self.folder))
        remove_tree(self.folder)
