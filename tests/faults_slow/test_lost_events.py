"""A control plane answers an event with 204 and forgets it: a minute later it knows the truth, whichever it was.

The agent beats, drains and replays as often as it does by default, so that a minute here is a minute in the field. All
hosts live at the same time, for most of it is waiting.
"""

from __future__ import annotations

import json
import time
import unittest
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

from nixfleet_agent.config.model import TuningConfig
from nixfleet_agent.local_cp.server import Request, Response
from nixfleet_agent.state_machine import State
from tests.faults.ending import flaws
from tests.faults.rig import Problem, Rig
from tests.faults.wire import EVENTS
from tests.faults.world import World

BAR_SECS = 60.0
#: What a busy machine adds to the minute.
SLACK_SECS = 5.0
DEFAULTS = TuningConfig()
TUNING = {
    "heartbeat_interval": DEFAULTS.heartbeat_interval,
    "drain_interval": DEFAULTS.drain_interval,
    "backoff_initial": DEFAULTS.backoff_initial,
    "backoff_max": DEFAULTS.backoff_max,
}

Event = Mapping[str, Any]


def kind_is(kind: str) -> Callable[[Event], bool]:
    return lambda event: event["kind"] == kind


def recovers(event: Event) -> bool:
    return event["kind"] == "ProbeResult" and event["status"] == "pass" and event["probeName"] == "app"


@dataclass(frozen=True)
class Loss:
    """``forgets`` says of an event that it is the one to lose; ``release`` ends as ``end``."""

    release: str
    end: State
    forgets: Callable[[Event], bool]


LOSSES: Mapping[str, Loss] = {
    "DispatchAck": Loss("good", State.CONVERGED, kind_is("DispatchAck")),
    "ActivationStarted": Loss("good", State.CONVERGED, kind_is("ActivationStarted")),
    "ActivationCompleted": Loss("good", State.CONVERGED, kind_is("ActivationCompleted")),
    "recovery": Loss("good", State.CONVERGED, recovers),
    "Converged": Loss("good", State.CONVERGED, kind_is("Converged")),
    "ActivationFailed": Loss("broken", State.REVERTED, kind_is("ActivationFailed")),
    "Failed": Loss("sick", State.REVERTED, kind_is("Failed")),
    "RollbackComplete": Loss("sick", State.REVERTED, kind_is("RollbackComplete")),
}


def heal(world: World, name: str, loss: Loss) -> float:
    """Seconds from the loss until the control plane has the host where it is.

    Raises:
        Problem: it never has, or something else is wrong at the end.
    """
    rig = Rig(world, f"lost-{name}", tuning=TUNING, agent={"health_failure_threshold_secs": 1.0})
    rig.forked = True
    lost: list[float] = []

    def misbehave(request: Request) -> Response | None:
        if request.path != EVENTS or lost or not loss.forgets(json.loads(request.body)["event"]):
            return None
        lost.append(time.monotonic())
        return Response(status=204)

    rig.wire.misbehave = misbehave
    return _ends(rig, loss, lost, lambda: _ill_at_first(rig) if name == "recovery" else None)


def _ill_at_first(rig: Rig) -> None:
    """The probe fails once the release soaks, and passes again before its time is over."""
    rig.until(lambda: rig.has_event("good", "ProbeFailureFirst"), "a probe that fails")
    (rig.folder / "well").touch()


def wipe(world: World) -> float:
    """Seconds from the loss of the whole database until the control plane has the host where it is."""
    rig = Rig(world, "lost-log", tuning=TUNING)
    rig.forked = True
    lost: list[float] = []

    def forget_all() -> None:
        rig.until_state("good", State.CONVERGED)
        rig.until_delivered()
        rig.control_plane.control.wipe()
        lost.append(time.monotonic())

    return _ends(rig, LOSSES["Converged"], lost, forget_all)


def _ends(rig: Rig, loss: Loss, lost: list[float], then: Callable[[], object]) -> float:
    try:
        if loss.forgets is recovers:
            command = ["test", "-e", str(rig.folder / "well")]
            checks = {"app": {"kind": "exec", "intervalSeconds": 0.1, "command": command}}
            (rig.folder / "health-checks.json").write_text(json.dumps(checks))
            rig.write_config({"tuning": TUNING, "agent": {"health_failure_threshold_secs": 20.0}})
        rig.publish(loss.release)
        rig.start()
        then()
        rig.until(lambda: bool(lost), "the loss")
        rig.until(lambda: rig.state(loss.release) is loss.end, f"the truth of {loss.release}", BAR_SECS + 30.0)
        took = time.monotonic() - lost[0]
        rig.until_delivered()
        rig.stop()
        if found := flaws(rig):
            raise Problem(f"{rig.folder.name}: {found}")
        return took
    finally:
        rig.close()


class LostEvents(unittest.TestCase):
    took: ClassVar[dict[str, Future[float]]]

    @classmethod
    def setUpClass(cls) -> None:
        world = World()
        cls.addClassCleanup(world.close)
        pool = ThreadPoolExecutor(len(LOSSES) + 1)
        cls.addClassCleanup(pool.shutdown)
        cls.took = {name: pool.submit(heal, world, name, loss) for name, loss in LOSSES.items()}
        cls.took["log"] = pool.submit(wipe, world)

    def heals(self, name: str) -> None:
        took = self.took[name].result()
        self.assertLess(took, BAR_SECS + SLACK_SECS)

    def test_acknowledgement(self) -> None:
        self.heals("DispatchAck")

    def test_start_of_the_activation(self) -> None:
        self.heals("ActivationStarted")

    def test_end_of_the_activation(self) -> None:
        self.heals("ActivationCompleted")

    def test_failed_activation(self) -> None:
        self.heals("ActivationFailed")

    def test_recovery_of_a_probe(self) -> None:
        self.heals("recovery")

    def test_failure(self) -> None:
        self.heals("Failed")

    def test_end_of_the_rollback(self) -> None:
        self.heals("RollbackComplete")

    def test_convergence(self) -> None:
        self.heals("Converged")

    def test_whole_log(self) -> None:
        self.heals("log")


if __name__ == "__main__":
    unittest.main()
