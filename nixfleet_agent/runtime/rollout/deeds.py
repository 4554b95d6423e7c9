"""What a turn leaves to be done, in order: nobody acts on a deed before those above it are carried out."""

from __future__ import annotations

from dataclasses import dataclass

from nixfleet_agent.runtime.rollout.orders import ActivationOrder, ResetProbes, StopProbes
from nixfleet_agent.runtime.rollout.rollouts import Rollout
from nixfleet_agent.state_machine import Effect, Event


@dataclass(frozen=True, slots=True)
class Stepped:
    """An event that the state machine took: durable first, then its ``effects``. ``soak_left`` is in seconds."""

    rollout: Rollout
    event: Event
    effects: tuple[Effect, ...]
    soak_left: float | None


@dataclass(frozen=True, slots=True)
class Ordered:
    """An order for the activation worker, which replaces whatever waits: it is of the rollout in charge."""

    order: ActivationOrder


@dataclass(frozen=True, slots=True)
class Refused:
    """An event that the state machine refused: nothing changes."""

    rollout_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class HandedBack:
    """``ended`` never fired a switch: ``back`` goes on."""

    ended: str
    back: str


Deed = Stepped | Ordered | Refused | HandedBack | ResetProbes | StopProbes
