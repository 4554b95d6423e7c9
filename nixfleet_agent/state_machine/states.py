"""The words of the state machine: its states and the closed vocabularies that events use, as on the wire."""

from __future__ import annotations

from enum import Enum


class State(str, Enum):
    """Where one host stands in one rollout, in the order of its life."""

    PENDING = "Pending"
    ACTIVATING = "Activating"
    DEFERRED = "Deferred"
    SOAKING = "Soaking"
    CONVERGED = "Converged"
    FAILED = "Failed"
    REVERTED = "Reverted"

    def __str__(self) -> str:
        return self.value


class Policy(str, Enum):
    """``onHealthFailure`` of the signed fleet: what a host does on its own when a rollout fails on it."""

    HALT = "halt"
    ROLLBACK_AND_HALT = "rollback-and-halt"

    def __str__(self) -> str:
        return self.value


class Mode(str, Enum):
    """Whether a probe decides (``enforce``), is reported only (``observe``) or does not run."""

    ENFORCE = "enforce"
    OBSERVE = "observe"
    DISABLED = "disabled"

    def __str__(self) -> str:
        return self.value


class ProbeStatus(str, Enum):
    """A probe's result; there is no third answer, because an unknown would be read as a pass."""

    PASS = "pass"
    FAIL = "fail"

    def __str__(self) -> str:
        return self.value


class SwitchMethod(str, Enum):
    """How an activation switches."""

    NOOP = "noop"
    SYSTEMD_RUN = "systemd-run"
    SETSID = "setsid"
    DARWIN = "darwin"

    def __str__(self) -> str:
        return self.value
