"""A control plane, and a network to it, that do every wrong thing now and then, all through a rollout: same end."""

from __future__ import annotations

import base64
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

from nixfleet_agent.local_cp.server import Request, Response
from nixfleet_agent.local_cp.store import Store
from nixfleet_agent.proto.dispatch import Dispatch
from nixfleet_agent.state_machine import State
from tests.faults.ending import Ending
from tests.faults.flapping import Fault, flapping, judged
from tests.faults.nursery import TOP
from tests.faults.proxy import Proxy
from tests.faults.rig import HOSTNAME, SOAK, Problem, Rig, rollout_id
from tests.faults.runs import KEPT, Outcome, Runs
from tests.faults.wire import EVENTS

# -- faults that come and go ------------------------------------------------------------------


def answers(status: int, body: bytes = b"", headers: dict[str, str] | None = None, events: bool = True) -> Fault:
    """Every answer (but to events, where ``events`` is False) is this one."""

    def install(rig: Rig) -> Callable[[bool], None]:
        def misbehave(request: Request) -> Response | None:
            if request.path == EVENTS and not events:
                return None
            return Response(status=status, body=body, headers=headers or {})

        def turn(on: bool) -> None:
            rig.wire.misbehave = misbehave if on else lambda request: None

        return turn

    return install


def taken_but_500(rig: Rig) -> Callable[[bool], None]:
    """The request is carried out, its answer is a 500: everything comes twice."""
    honest = rig.wire.answer

    def turn(on: bool) -> None:
        def misbehave(request: Request) -> Response | None:
            if request.path != EVENTS:
                return None
            honest(request)
            return Response(status=500)

        rig.wire.misbehave = misbehave if on else lambda request: None

    return turn


def network(mode: str) -> Fault:
    """A proxy in the way."""

    def install(rig: Rig) -> Callable[[bool], None]:
        proxy = Proxy(("127.0.0.1", rig.control_plane.server.port))
        rig.closers.append(proxy.close)
        rig.write_config({"agent": {"control_plane_url": f"https://127.0.0.1:{proxy.port}"}})
        return lambda on: proxy.turn(mode if on else "pass")

    return install


def never(rig: Rig) -> Callable[[bool], None]:
    """Every request is read, and none is answered while this goes on."""
    well = threading.Event()

    def misbehave(request: Request) -> Response | None:
        well.wait()
        return Response(status=503)

    def turn(on: bool) -> None:
        well.clear() if on else well.set()
        rig.wire.misbehave = misbehave if on else lambda request: None

    return turn


def partition(rig: Rig) -> Callable[[bool], None]:
    return rig.control_plane.partition


FAULTS: dict[str, Fault] = {
    "cp-500": answers(500, b"oops"),
    "cp-503-retry-after": answers(503, b"later", {"Retry-After": "1"}),
    "cp-429": answers(429, b"slower", {"Retry-After": "0"}),
    "cp-404": answers(404, b"{}"),
    "cp-garbage": answers(200, b"\x00\xff{[garbage", events=False),
    "cp-empty-200": answers(200, b"", events=False),
    "cp-taken-but-500": taken_but_500,
    "cp-never": never,
    "net-partition": partition,
    "net-reset": network("reset"),
    "net-refuse": network("refuse"),
    "net-hole": network("hole"),
    "net-half-an-answer": network("half"),
    "net-drip": network("drip"),
    "net-idle-close": network("idle"),
}


# -- a control plane that is killed, or loses its memory --------------------------------------


def killed_control_plane(runs: Runs) -> Outcome:
    """The control plane is a process of its own, and is killed with SIGKILL again and again."""
    rig = runs.rig("cp-killed")
    plane = rig.control_plane
    port = plane.server.port

    def tell(rig: Rig) -> None:
        rig.publish("sick")
        plane.stop()
        plane.control.store = Store(plane.folder / "cp.sqlite")
        process = _serve(rig, port)
        rig.start()
        chance = random.Random(4)
        try:
            for _ in range(3 if runs.quick else 8):
                rig.until(lambda: True, "")
                time.sleep(chance.uniform(0.3, 0.9))
                process.kill()
                process.wait()
                process = _serve(rig, port)
            rig.until_state("sick", State.REVERTED)
            rig.until_delivered()
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()

    return judged(runs, rig, tell, "rollback", "cp-killed")


def _serve(rig: Rig, port: int) -> subprocess.Popen[bytes]:
    root = base64.b64encode(rig.world.ci.org_root_public).decode()
    folder, soak = str(rig.control_plane.folder), f"{SOAK.total_seconds():g}"
    options = ["--dir", folder, "--org-root", root, "--port", str(port), "--extra-soak", soak, "--redeliver-after", "1"]
    return subprocess.Popen(
        [sys.executable, "-m", "nixfleet_agent.local_cp", *options],
        cwd=TOP,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def wiped(runs: Runs) -> Outcome:
    """The database is lost just after each milestone; the agent makes it whole again when it is asked to."""
    kinds = ["ActivationCompleted", "RollbackComplete"]
    if not runs.quick:
        kinds += ["DispatchAck", "ActivationStarted", "Failed"]
    return runs.each(partial(_wiped, runs, kind) for kind in kinds)


def _wiped(runs: Runs, kind: str) -> Outcome:
    def tell(rig: Rig) -> None:
        rig.publish("sick")
        rig.start()
        rig.until(lambda: rig.has_event("sick", kind), kind)
        rig.control_plane.control.wipe()
        rig.until_state("sick", State.REVERTED)

    return judged(runs, runs.rig(f"wiped-{kind}"), tell, "rollback", f"wiped after {kind}")


def forgets(runs: Runs) -> Outcome:
    """One event is answered with 204 and forgotten, whichever it is: the control plane learns of it all the same."""
    kinds = ["DispatchAck", "Failed", "RollbackComplete"]
    if not runs.quick:
        kinds += [
            "ActivationStarted",
            "ActivationCompleted",
            "ProbeTopologyDeclared",
            "ProbeFailureFirst",
            "ProbeResult",
        ]
    return runs.each(
        [*(partial(_forgets, runs, "sick", kind) for kind in kinds), partial(_forgets, runs, "good", "Converged")]
    )


def _forgets(runs: Runs, release: str, kind: str) -> Outcome:
    forgotten: list[bytes] = []

    def misbehave(request: Request) -> Response | None:
        if request.path != EVENTS or forgotten or json.loads(request.body)["event"]["kind"] != kind:
            return None
        forgotten.append(request.body)
        return Response(status=204)

    def tell(rig: Rig) -> None:
        rig.publish(release)
        rig.start()
        rig.wire.misbehave = misbehave
        rig.until_state(release, State.REVERTED if release == "sick" else State.CONVERGED)
        if not forgotten:
            raise Problem(f"{kind} was never sent")

    ending = "rollback" if release == "sick" else "forward"
    return judged(runs, runs.rig(f"forgets-{kind}"), tell, ending, f"{kind} forgotten")


# -- dispatches out of order ------------------------------------------------------------------


def _dispatch(rig: Rig, name: str) -> None:
    """A turn that the planner did not give."""
    now = rig.clock.now()
    turn = Dispatch(
        hostname=HOSTNAME,
        rollout_id=rollout_id(name),
        target_closure=rig.world.closures[name],
        soak_due_at=now,
        enqueued_at=now,
    )
    rig.control_plane.control.store.enqueue(turn)
    rig.control_plane.control.waiters.wake(HOSTNAME)


def dispatch_storm(runs: Runs) -> Outcome:
    """The same turn again and again, before, while and after it is run."""

    def tell(rig: Rig) -> None:
        rig.publish("good")
        rig.start()
        for _ in range(4):
            rig.until(lambda: rig.state("good") is not None, "the first turn")
            _dispatch(rig, "good")
        rig.until_state("good", State.CONVERGED)
        _dispatch(rig, "good")
        rig.until(lambda: not rig.control_plane.control.store.queued(), "every turn fetched")
        rig.until(lambda: not (rig.host.state_dir / "pending-dispatch.json").exists(), "the last turn's end")

    return judged(runs, runs.rig("storm"), tell, "forward", "storm")


def dispatch_reordered(runs: Runs) -> Outcome:
    """An older release that this host has never run comes after a newer one: it must never run."""
    rig = runs.rig("reordered")

    def tell(rig: Rig) -> None:
        rig.control_plane.control.dispatcher.stop()  # turns are given here
        rig.publish("good")
        rig.publish("next")
        rig.start()
        rig.until_started()
        _dispatch(rig, "next")
        rig.until(lambda: rig.has_event("next", "Converged"), "next Converged")
        _dispatch(rig, "good")
        rig.until(lambda: not rig.control_plane.control.store.queued(), "the old turn fetched")
        time.sleep(1.5)
        (rig.host.state_dir / "pending-dispatch.json").unlink(missing_ok=True)
        if rig.host.switches() != [f"switch {rig.world.closures['next']}"]:
            raise Problem(f"the older release was switched to: {rig.host.switches()}")

    return judged(runs, rig, tell, None, "reordered")


def newer_at_any_moment(runs: Runs) -> Outcome:
    """A newer good release while an older bad one is anywhere between its acceptance and its rollback's end."""
    moments = [(kind, 0.0) for kind in ("DispatchAck", "ActivationStarted", "ActivationCompleted", "Failed")]
    if not runs.quick:
        chance = random.Random(7)
        moments += [(kind, chance.uniform(0.01, 0.3)) for kind, _ in moments for _ in range(4)]
    return runs.each(_newer(runs, kind, pause) for kind, pause in moments)


def _newer(runs: Runs, kind: str, pause: float) -> Callable[[], Outcome]:
    what = f"newer {pause:.2f} s after {kind}"

    def tell(rig: Rig) -> None:
        rig.publish("sick")
        rig.start()
        rig.until(lambda: rig.has_event("sick", kind), kind)
        time.sleep(pause)
        rig.publish("next")
        rig.until_state("next", State.CONVERGED)

    def run() -> Outcome:
        outcome, rig = Outcome(tries=1), runs.rig("newer")
        try:
            finished = runs.finish(rig, tell)
        except Problem as problem:
            outcome.problems.append(f"{what}: {problem} [{KEPT / rig.folder.name}]")
            return outcome
        outcome.problems += [f"{what}: {line}" for line in [*_ends_on_next(finished.ending), *finished.flaws]]
        return outcome

    return run


def _ends_on_next(ending: Ending) -> Iterator[str]:
    where = (ending.runs, ending.profile, ending.boots)
    if where != ("next", "next", "next"):
        yield f"(runs, profile, boots) is {where}"
    if ending.switches[-1:] != ("switch next",) or ending.switches.count("switch next") != 1:
        yield f"switches: {ending.switches}"
    if ending.states != ending.mirrored:
        yield f"the host has {ending.states}, the control plane {ending.mirrored}"


ITEMS: dict[str, Callable[[Runs], Outcome]] = {
    **{name: partial(flapping, name=name, fault=fault) for name, fault in FAULTS.items()},
    "cp-killed": killed_control_plane,
    "cp-wiped": wiped,
    "cp-forgets": forgets,
    "dispatch-storm": dispatch_storm,
    "dispatch-reordered": dispatch_reordered,
    "newer-at-any-moment": newer_at_any_moment,
}
