"""Carries out the steps of a plan: CI, operators, power, network, disks, clocks, and control planes that misbehave."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

from nixfleet_agent.errors import StorageError
from nixfleet_agent.local_cp.catalogue import Publication
from nixfleet_agent.local_cp.server import Response
from nixfleet_agent.operator.hold import HoldStore
from tests.simulation.disk import BROKEN, FULL, Trouble
from tests.simulation.network import Weather
from tests.simulation.plan import Plan, Step, closures, releases
from tests.simulation.world import Host, World, closure_name

#: A switch that takes longer hangs.
HANGS_SECS = 600.0

GROUP = "actors"


class Actors:
    """``begin`` starts a step in a thread of its own, and ``calm`` ends what is left of all of them."""

    def __init__(self, world: World, plan: Plan) -> None:
        self._world = world
        self._plan = plan
        self._names = iter(releases(plan))
        self._published: list[Publication] = []
        #: When the last fault of each host (and of the control plane, at -1) was over.
        self.last_fault: dict[int, float] = {}
        self.by_hand: set[str] = set()
        self.wiped = False
        self.hostile = False
        world.plane.tamper = self._tampered
        self._lie = False

    def begin(self, step: Step) -> None:
        world, scheduler = self._world, self._world.scheduler
        if step.kind.startswith("release:"):
            name, _ = next(self._names)
            self.release(name, int(step.amount))
            return
        who = "cp" if step.host < 0 else world.hosts[step.host].name
        world.note(who, f"! {step.kind} for {step.seconds:.1f} s")

        def act() -> None:
            with self._befalls(step):
                scheduler.sleep(step.seconds)
            self.last_fault[step.host] = scheduler.now
            world.note(who, f"! {step.kind} is over")

        self.last_fault[step.host] = scheduler.now + step.seconds
        scheduler.spawn(step.kind, GROUP, act)

    def release(self, name: str, soak_minutes: int) -> str:
        world = self._world
        targets = {host.name: name for host in world.hosts}
        rollout_id = world.release(name, targets, soak_minutes=soak_minutes, waves=self._plan.waves)
        self._published.append(world.published)
        return rollout_id

    # -- faults -------------------------------------------------------------------------------

    @contextmanager
    def _befalls(self, step: Step) -> Iterator[None]:
        if step.host < 0:
            yield from self._plane(step)
        else:
            host = self._world.hosts[step.host]
            family = step.kind.partition("-")[0]
            handlers: dict[str, Callable[[Host, Step], Iterator[None]]] = {
                "net": self._net,
                "disk": self._disk,
                "kill": self._down,
                "power": self._down,
                "reboot": self._down,
            }
            yield from handlers.get(family, self._other)(host, step)

    def _net(self, host: Host, step: Step) -> Iterator[None]:
        rate = 0.1 + 0.9 * step.amount
        weather = {
            "net-lost": Weather(lost=rate),
            "net-reset": Weather(reset=rate),
            "net-front": Weather(front=rate),
            "net-slow": Weather(slow=20 * step.amount),
            "net-cut": Weather(cut=True),
        }[step.kind]
        host.network.weather = weather
        yield
        host.network.weather = Weather()

    def _disk(self, host: Host, step: Step) -> Iterator[None]:
        latency = self._plan.disk_latency
        host.disk.trouble = {
            "disk-full": Trouble(FULL, 1.0, latency),
            "disk-broken": Trouble(BROKEN, 0.05 + step.amount, latency),
            "disk-slow": Trouble(None, 0.0, 10 * step.amount),
        }[step.kind]
        yield
        host.disk.trouble = Trouble(latency=latency)

    def _down(self, host: Host, step: Step) -> Iterator[None]:
        if not host.agent.wanted:  # it is down already
            yield
            return
        if step.kind == "kill":
            host.agent.kill()
            yield
            host.agent.start()
        else:
            if step.kind == "reboot":
                self.shut_down(host)
            host.lose_power()
            yield
            host.power_up()

    def shut_down(self, host: Host) -> None:
        """In order: SIGTERM, and what is written stays."""
        host.agent.wanted = False
        host.agent.signal(signal.SIGTERM)
        self._world.scheduler.sleep(30.0)
        host.disk.sync()

    def _other(self, host: Host, step: Step) -> Iterator[None]:
        machine, scheduler = host.machine, self._world.scheduler
        if step.kind == "terminate":
            host.agent.signal(signal.SIGTERM)
            yield
        elif step.kind == "nix-cut":
            machine.network_for_nix = False
            yield
            machine.network_for_nix = True
        elif step.kind == "locked":
            machine.locked_until = scheduler.now + step.seconds
            yield
        elif step.kind == "clock":
            machine.clock.offset = timedelta(seconds=600 * (step.amount - 0.5))
            yield
            machine.clock.offset = timedelta(0)
        elif step.kind == "hold":
            store = HoldStore(host.agent.config.state_dir, machine.clock)
            with suppress(StorageError):
                store.set("simulated")
            yield
            self.release_hold(host)
        elif step.kind == "by-hand":
            yield from self._by_hand(host, step)

    def release_hold(self, host: Host) -> None:
        store = HoldStore(host.agent.config.state_dir, host.machine.clock)
        while store.current() is not None:
            with suppress(StorageError):
                store.release()
            self._world.scheduler.sleep(1.0)

    def _by_hand(self, host: Host, step: Step) -> Iterator[None]:
        machine = host.machine
        # Not one whose script hangs: the lock that an operator's own program holds is the operator's to give back.
        known = sorted(c for c, made in self._world.closures.items() if machine.has(c) and made.seconds < HANGS_SECS)
        chosen = known[int(step.amount * len(known))]
        task = self._world.scheduler.spawn("operator", machine.units, lambda: self._switch_by_hand(host, chosen))
        yield
        self._world.scheduler.block(task)

    def _switch_by_hand(self, host: Host, closure: str) -> None:
        self.by_hand.add(host.name)
        self._world.note(host.name, f"! an operator switches to {self._world.closures[closure].short}")
        host.machine.switch(closure, "switch", checked=False, who="operator")

    # -- control planes -----------------------------------------------------------------------

    def _plane(self, step: Step) -> Iterator[None]:
        plane = self._world.plane
        match step.kind:
            case "cp-down":
                if plane.api is not None:
                    plane.stop()
                yield
                if plane.api is None:
                    plane.start()
            case "cp-wipe":
                self.wiped = True
                if plane.api is not None:
                    plane.wipe()
                yield
            case "cp-forgets":
                self.wiped = True
                plane.faults.forgotten = frozenset({"DispatchAck", "ActivationCompleted", "ProbeResult", "Converged"})
                yield
                plane.faults.forgotten = frozenset()
            case "cp-tampers":
                plane.faults.tampered = frozenset(p for old in self._published for p in old.manifests)
                yield
                plane.faults.tampered = frozenset()
            case "cp-wrong":
                self.hostile = True
                wrong = closure_name(sorted(closures(self._plan))[int(step.amount * 3)])
                plane.faults.wrong_closures = {p: wrong for old in self._published for p in old.manifests}
                yield
                plane.faults.wrong_closures = {}
            case "cp-replays-old":
                yield from self._replays_old(step)
            case "cp-lies":
                self.hostile = self._lie = True
                yield
                self._lie = False

    def _replays_old(self, step: Step) -> Iterator[None]:
        """What CI published once is published again, whatever came since."""
        plane = self._world.plane
        self.hostile = True
        if self._published and plane.api is not None:
            plane.publish(self._published[int(step.amount * len(self._published))])
        yield
        if self._published and plane.api is not None:
            plane.publish(self._published[-1])

    def _tampered(self, path: str, response: Response) -> Response:
        """Lies about what is not signed: which events it has, and whose turn it is."""
        if not self._lie or response.status != 200 or not response.body:
            return response
        if path == "/v1/agent/heartbeat":
            headers = {**response.headers, "X-Nixfleet-Replay-From": "1"}
            return dataclasses.replace(response, headers=headers)
        if path == "/v1/agent/dispatch" and self._published:
            body = json.loads(response.body)
            old = sorted(self._published[0].manifests)[0]
            name = bytes.fromhex(old.partition("@")[2]).decode()
            body["rollout_id"], body["target_closure"] = old, closure_name(name)
            return dataclasses.replace(response, body=json.dumps(body).encode())
        return response

    # -- the end of all trouble ---------------------------------------------------------------

    def calm(self) -> None:
        """End every fault, as if its time had come."""
        world, plane = self._world, self._world.plane
        world.scheduler.kill([GROUP])
        self._lie = False
        plane.faults.forgotten = plane.faults.tampered = frozenset()
        plane.faults.wrong_closures = {}
        if plane.api is None:
            plane.start()
        for host in world.hosts:
            host.network.weather = Weather()
            host.disk.trouble = Trouble(latency=self._plan.disk_latency)
            host.machine.network_for_nix = True
            host.machine.locked_until = 0.0
            host.machine.clock.offset = timedelta(0)
            self.release_hold(host)
            if host.off:
                host.power_up()
            elif not host.agent.wanted:
                host.agent.kill()
                host.agent.start()
