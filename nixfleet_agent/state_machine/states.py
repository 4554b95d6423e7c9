"""The words of the state machine: its states and the closed vocabularies that events use, as on the wire."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where one host stands in one rollout, in the order of its life."""

    PENDING = "Pending"
    ACTIVATING = "Activating"
    DEFERRED = "Deferred"
    SOAKING = "Soaking"
    CONVERGED = "Converged"
    FAILED = "Failed"
    REVERTED = "Reverted"


class Policy(StrEnum):
    """``onHealthFailure`` of the signed fleet: what a host does on its own when a rollout fails on it."""

    HALT = "halt"
    ROLLBACK_AND_HALT = "rollback-and-halt"


class Mode(StrEnum):
    """Whether a probe decides (``enforce``), is reported only (``observe``) or does not run."""

    ENFORCE = "enforce"
    OBSERVE = "observe"
    DISABLED = "disabled"


class ProbeStatus(StrEnum):
    """A probe's result; there is no third answer, because an unknown would be read as a pass."""

    PASS = "pass"  # nosec B105 # a result
    FAIL = "fail"


class SwitchMethod(StrEnum):
    """How an activation switches."""

    NOOP = "noop"
    SYSTEMD_RUN = "systemd-run"
    SETSID = "setsid"
    DARWIN = "darwin"
