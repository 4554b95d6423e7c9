"""Others at work on the host's Nix: its garbage collector, an operator's nixos-rebuild, a daemon that is gone."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from nixfleet_agent.state_machine import State
from tests.faults.flapping import judged
from tests.faults.rig import Problem, Rig
from tests.faults.runs import Outcome, Runs
from tests.faults.stories import STORIES

#: How long the operator's switch holds the lock, and the daemon is away, in seconds.
HELD_SECS, AWAY_SECS = 1.5, 1.5
#: How long nothing must happen for it not to happen.
QUIET_SECS = 2.0


# -- the garbage collector --------------------------------------------------------------------


COLLECTED = ("rollback", "forward", "failed-switch", "deferred", "superseded-soaking")


def collected_all_along(runs: Runs) -> Outcome:
    """Nix collects garbage again and again all through a story: everything that is needed is held."""
    stories = (
        ("rollback",) if runs.quick else ("forward", "rollback", "failed-switch", "deferred", "superseded-soaking")
    )
    return runs.each(partial(_collected, runs, story) for story in stories)


def _collected(runs: Runs, story: str) -> Outcome:
    done = threading.Event()

    def tell(rig: Rig) -> None:
        def collect() -> None:
            while not done.wait(0.05):
                rig.host.collect_garbage()

        collector = threading.Thread(target=collect, name="collector")
        collector.start()
        try:
            STORIES[story].tell(rig)
        finally:
            done.set()
            collector.join()

    return judged(runs, runs.rig(f"gc-{story}"), tell, story, f"garbage collected in {story}")


def prior_deleted(runs: Runs) -> Outcome:
    """What a failing release would go back to is deleted by force: it is fetched again."""
    rig = runs.rig("prior-deleted", agent={"health_failure_threshold_secs": 1.5})

    def tell(rig: Rig) -> None:
        rig.publish("sick")
        rig.start()
        rig.until(lambda: rig.has_event("sick", "ActivationCompleted"), "ActivationCompleted")
        prior = rig.world.closures["v0"]
        rig.host.nix("nix-store", "--delete", "--ignore-liveness", f"/nix/store/{prior}")
        if rig.host.has(prior) or rig.state("sick") is not State.SOAKING:
            raise Problem(f"v0 is not gone while sick soaks: {rig.situation()}")
        rig.until_state("sick", State.REVERTED)

    return judged(runs, rig, tell, "rollback", "prior deleted")


# -- a daemon that is gone --------------------------------------------------------------------


class Daemon:
    """A real nix-daemon for the host's store.

    The agent itself says that a store with a root of its own is a local one; what it calls is told otherwise here.
    """

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._socket = rig.folder / "nix.sock"
        self._process: subprocess.Popen[bytes] | None = None
        rig.closers.append(self.end)
        self._environment = rig.host.environment | {"NIX_DAEMON_SOCKET_PATH": str(self._socket)}
        tools = rig.folder / "nix-tools"
        tools.mkdir()
        for name in ("nix", "nix-env", "nix-store"):
            remote = f"unix://{self._socket}?root={rig.host.store_root}"
            (tools / name).write_text(f'#!/bin/sh\nNIX_REMOTE={remote} exec {shutil.which(name)} "$@"\n')
            (tools / name).chmod(0o755)
        rig.host.environment["PATH"] = f"{tools}:{rig.host.environment['PATH']}"
        self.begin()

    def begin(self) -> None:
        self._process = subprocess.Popen(
            ["nix-daemon"],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._rig.until(self._answers, "the Nix daemon")

    def _answers(self) -> bool:
        path = f"/nix/store/{self._rig.world.closures['v0']}"
        tool = self._rig.folder / "nix-tools" / "nix-store"
        return self._rig.host.nix(str(tool), "--check-validity", path, check=False).returncode == 0

    def end(self) -> None:
        """With everything that it does for somebody."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def daemon_gone(runs: Runs) -> Outcome:
    """The Nix daemon is killed when a release comes, in the middle of its download, and when it should be undone."""
    return runs.each(partial(tell, runs) for tell in (_gone_at_the_start, _gone_in_a_download, _gone_at_the_rollback))


def _gone_at_the_start(runs: Runs) -> Outcome:
    """The release waits for it, says so, and goes through once it is back; nothing was touched meanwhile."""

    def tell(rig: Rig) -> None:
        daemon = Daemon(rig)
        rig.start()
        rig.until_started()
        daemon.end()
        rig.publish("good")
        _waits(rig, "nix.sock")
        daemon.begin()
        rig.until_state("good", State.CONVERGED)
        daemon.end()

    return judged(runs, runs.rig("no-daemon"), tell, "forward", "no Nix daemon at the start")


def _gone_in_a_download(runs: Runs) -> Outcome:
    def tell(rig: Rig) -> None:
        daemon, cache = Daemon(rig), rig.world.nixery.server
        cache.drip = (64, 0.05)
        try:
            rig.publish("good")
            rig.start()
            rig.until(lambda: rig.has_event("good", "DispatchAck"), "DispatchAck")
            time.sleep(0.4)
            daemon.end()
            _waits(rig, "nix.sock")
        finally:
            cache.drip = None
        daemon.begin()
        rig.until_state("good", State.CONVERGED)
        daemon.end()

    return judged(runs, runs.rig("no-daemon"), tell, "forward", "the Nix daemon killed in a download")


def _gone_at_the_rollback(runs: Runs) -> Outcome:
    """The way back waits for the daemon, and is gone then."""

    def tell(rig: Rig) -> None:
        daemon = Daemon(rig)
        rig.publish("sick")
        rig.start()
        rig.until(lambda: rig.has_event("sick", "ActivationCompleted"), "ActivationCompleted")
        daemon.end()
        rig.until(lambda: rig.has_event("sick", "Failed"), "Failed")
        time.sleep(AWAY_SECS)
        daemon.begin()
        rig.until_state("sick", State.REVERTED)
        daemon.end()

    return judged(runs, runs.rig("no-daemon"), tell, "rollback", "no Nix daemon at the rollback")


def _waits(rig: Rig, reason: str) -> None:
    """Until it is said what is waited for; nothing was fired, and nothing has failed."""
    rig.until(
        lambda: any(
            "not yet:" in said and reason in said for said in (str(line["message"]) for line in rig.log_lines())
        ),
        f"a wait for {reason}",
    )
    if rig.host.switches() or rig.has_event("good", "ActivationFailed"):
        raise Problem(f"good did not wait, switches: {rig.host.switches()}")


# -- an operator's nixos-rebuild --------------------------------------------------------------


@contextmanager
def switch_lock(rig: Rig) -> Iterator[None]:
    """Held as switch-to-configuration holds it."""
    with rig.host.switch_lock.open("r+b") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def rebuild_holds_the_lock(rig: Rig) -> None:
    """A release comes while an operator's switch runs: it waits."""
    with switch_lock(rig):
        rig.publish("good")
        rig.start()
        rig.until(lambda: rig.has_event("good", "DispatchAck"), "DispatchAck")
        time.sleep(HELD_SECS)
        if rig.host.switches():
            raise Problem(f"fired beside another switch: {rig.host.switches()}")
    rig.until_state("good", State.CONVERGED)


def rebuild(rig: Rig, name: str) -> None:
    """What an operator's switch does: the closure is there, in the profile, and runs."""
    closure = f"/nix/store/{rig.world.closures[name]}"
    rig.host.nix("nix-store", "--realise", closure)
    rig.host.nix("nix-env", "--profile", str(rig.host.profile), "--set", closure)
    rig.host.run_system(rig.world.closures[name])


def rebuild_while_soaking(rig: Rig) -> None:
    """An operator switches to something else while a release soaks: it neither converges nor is it undone."""
    rig.extra_soak(600)
    rig.publish("good")
    rig.start()
    rig.until_state("good", State.SOAKING)
    rebuild(rig, "sick")
    rig.extra_soak(0.25)
    time.sleep(QUIET_SECS)
    where = (rig.state("good"), rig.world.name_of(rig.host.running()), len(rig.host.switches()))
    if where != (State.SOAKING, "sick", 1):
        raise Problem(f"(state, runs, switches) is {where}")
    rig.publish("next")
    rig.until_state("next", State.CONVERGED)


def rebuild_in_a_switch(rig: Rig) -> None:
    """An operator's switch ends in the middle of a release's own: the release has failed, and is undone."""
    rig.publish("settling")
    rig.start()
    rig.until(lambda: rig.host.running() == rig.world.closures["settling"], "the flip")
    rebuild(rig, "next")
    rig.until(lambda: rig.state("settling") in (State.REVERTED, State.CONVERGED), "the end")
    tails = [event["exitCode"] for event in rig.events("settling") if event["kind"] == "ActivationFailed"]
    where = (rig.state("settling"), rig.world.name_of(rig.host.running()), tails)
    if where != (State.REVERTED, "v0", [-3]):
        raise Problem(f"(state, runs, exit codes) is {where}")


def rebuild_to_the_deferred(rig: Rig) -> None:
    """An operator switches live to what waits for a reboot: it has arrived."""
    rig.publish("kernel")
    rig.start()
    rig.until_state("kernel", State.DEFERRED)
    rebuild(rig, "kernel")
    rig.until_state("kernel", State.CONVERGED)


#: Story whose end it must have, if it has one: what an operator switched to is his.
REBUILDS: tuple[tuple[Callable[[Rig], None], str | None], ...] = (
    (rebuild_holds_the_lock, "forward"),
    (rebuild_while_soaking, None),
    (rebuild_in_a_switch, None),
    (rebuild_to_the_deferred, None),
)


def rebuilds(runs: Runs) -> Outcome:
    return runs.each(
        partial(judged, runs, runs.rig(tell.__name__.replace("_", "-")), tell, story, tell.__name__)
        for tell, story in REBUILDS
    )


ITEMS: dict[str, Callable[[Runs], Outcome]] = {
    "nix-garbage-collected": collected_all_along,
    "nix-prior-deleted": prior_deleted,
    "nix-daemon-gone": daemon_gone,
    "nixos-rebuild": rebuilds,
}
