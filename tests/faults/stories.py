"""What happens in a run, told without regard to faults: the same words for an undisturbed run and a disturbed one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from nixfleet_agent.state_machine import State
from tests.faults.ending import Ending
from tests.faults.rig import Rig, rollout_id

ALL_THE_WAY = ("DispatchAck", "ActivationStarted", "ActivationCompleted", "Converged")


@dataclass(frozen=True, slots=True)
class Story:
    """``slack`` is the one release whose own end depends on what was under way when the next one came; all that may
    be said of it is a beginning of the way to its convergence.

    ``stays`` is where the host stays when that one's switch was never fired, if it matters.
    ``arrives`` is the release whose boot entry is there before its switch is judged: a reboot in between brings the
    host there, and then it has arrived. ``newer`` is the release that comes while ``forward``'s own is under way: until
    then the story is that one.
    """

    tell: Callable[[Rig], None]
    slack: str | None = None
    stays: str | None = None
    arrives: str | None = None
    newer: str | None = None

    def differences(
        self, here: Ending, there: Ending, but: frozenset[str] = frozenset(), *, rebooted: bool = False
    ) -> list[str]:
        """What of ``there``, which a reboot disturbed or not, is not as in the undisturbed ``here``."""
        if rebooted and self.arrives is not None:
            here = self._arrived(here, there)
        if self.stays and f"switch {self.slack}" not in there.switches:
            here = replace(here, runs=self.stays, profile=self.stays, boots=self.stays, active=there.active)
        found = here.without(self.slack).differences(there.without(self.slack), but=but)
        if self.slack is not None:
            said = there.milestones.get(rollout_id(self.slack), ())
            if said != ALL_THE_WAY[: len(said)]:
                found.append(f"{self.slack}: {said}")
        return found

    def _arrived(self, here: Ending, there: Ending) -> Ending:
        """The undisturbed end, or, where nothing but an arrival was told, that of a release that converges."""
        assert self.arrives is not None
        name, key = self.arrives, rollout_id(self.arrives)
        if there.milestones != {key: ALL_THE_WAY}:
            return here
        state = {key: str(State.CONVERGED)}
        told: dict[str, tuple[str, ...]] = {key: ALL_THE_WAY}
        return replace(here, runs=name, profile=name, boots=name, states=state, mirrored=state, milestones=told)


def forward(rig: Rig) -> None:
    """A good release converges."""
    rig.publish("good")
    rig.start()
    rig.until_state("good", State.CONVERGED)


def rollback(rig: Rig) -> None:
    """A probe of the release fails, and the policy is rollback-and-halt."""
    rig.publish("sick")
    rig.start()
    rig.until_state("sick", State.REVERTED)


def failed_switch(rig: Rig) -> None:
    """The release's own switch script fails."""
    rig.publish("broken")
    rig.start()
    rig.until(lambda: rig.state("broken") in (State.REVERTED, State.CONVERGED), "broken taken back, or booted")


def absent(rig: Rig) -> None:
    """The cache does not have the release: nothing is ever fired."""
    rig.publish("absent")
    rig.start()
    rig.until_state("absent", State.REVERTED)


def deferred(rig: Rig) -> None:
    """Another kernel: it takes a reboot."""
    rig.publish("kernel")
    rig.start()
    rig.until(lambda: rig.state("kernel") in (State.DEFERRED, State.CONVERGED), "a deferral, or a reboot before it")
    if rig.state("kernel") is State.DEFERRED:
        rig.until_delivered()
        rig.reboot()
    rig.until_state("kernel", State.CONVERGED)


def rollback_deferred(rig: Rig) -> None:
    """Another kernel that fails its probes: the way there and the way back take a reboot each."""
    rig.publish("sick-kernel")
    rig.start()
    rig.until(lambda: rig.state("sick-kernel") in (State.DEFERRED, State.SOAKING, State.FAILED), "a deferral")
    if rig.state("sick-kernel") is State.DEFERRED:
        rig.until_delivered()
        rig.reboot()
    rig.until(lambda: rig.state("sick-kernel") in (State.FAILED, State.REVERTED), "the failure")
    rig.until(lambda: rig.state("sick-kernel") is State.REVERTED or rig.logged("rollback needs a reboot"), "its wait")
    if rig.state("sick-kernel") is not State.REVERTED:
        rig.until_delivered()
        rig.reboot()
    rig.until_state("sick-kernel", State.REVERTED)


def superseded_soaking(rig: Rig) -> None:
    """A newer release comes while the older one soaks."""
    rig.publish("good", soak_minutes=1)
    rig.start()
    rig.until_state("good", State.SOAKING)
    rig.publish("next")
    rig.until_state("next", State.CONVERGED)


def superseded_activating(rig: Rig) -> None:
    """A newer release comes while the older one's switch runs."""
    rig.publish("slow", soak_minutes=1)
    rig.start()
    rig.until(lambda: rig.has_event("slow", "ActivationStarted"), "the start of slow's activation")
    rig.publish("next")
    rig.until_state("next", State.CONVERGED)


def handed_back(rig: Rig) -> None:
    """A newer release can't be had: the older one, which runs, soaks on and converges."""
    rig.extra_soak(2.0)
    rig.publish("good")
    rig.start()
    rig.until_state("good", State.SOAKING)
    rig.publish("absent")
    rig.until_state("absent", State.REVERTED)
    rig.until_state("good", State.CONVERGED)


def handed_back_activating(rig: Rig) -> None:
    """A newer release can't be had; the older one's switch was under way when it came, and nobody listened."""
    rig.publish("slow")
    rig.start()
    rig.until(lambda: rig.has_event("slow", "ActivationStarted"), "the start of slow's activation")
    rig.publish("absent")
    rig.until_state("absent", State.REVERTED)
    if rig.host.switches():  # an agent that was killed before it fired the older one's switch never does
        rig.until_state("slow", State.CONVERGED)


STORIES: Mapping[str, Story] = {
    "forward": Story(forward),
    "rollback": Story(rollback),
    "failed-switch": Story(failed_switch, arrives="broken"),
    "absent": Story(absent),
    "deferred": Story(deferred, arrives="kernel"),
    "rollback-deferred": Story(rollback_deferred),
    "superseded-soaking": Story(superseded_soaking, newer="next"),
    "superseded-activating": Story(superseded_activating, "slow"),
    "handed-back": Story(handed_back, newer="absent"),
    "handed-back-activating": Story(handed_back_activating, "slow", stays="v0"),
}
