"""The per-host state machine of one rollout: states, events, effects and one pure function, ``step``.

Nothing here reads a clock, a file or a socket: the agent runs it on ``Local*`` events, a control plane on
the ``Remote*`` mirror of each, and a restart folds the log of a rollout through the mirror half (``advance``: the same
step without its effects).
"""

from nixfleet_agent.state_machine.effects import (
    AppendEventLog,
    Effect,
    EmitEvent,
    FireRollbackTo,
    FireSwitch,
    InsertQuarantine,
    RecordTransition,
    ResetProbeCache,
)
from nixfleet_agent.state_machine.errors import IllegalForState, InvariantViolation, SeqRegression, TransitionError
from nixfleet_agent.state_machine.events import KINDS, Event
from nixfleet_agent.state_machine.record import DeclaredProbe, ProbeRecord, RolloutRecord, WayBack
from nixfleet_agent.state_machine.states import Mode, Policy, ProbeStatus, State, SwitchMethod
from nixfleet_agent.state_machine.transitions import TRANSITIONS, advance, step

__all__ = [
    "KINDS",
    "TRANSITIONS",
    "AppendEventLog",
    "DeclaredProbe",
    "Effect",
    "EmitEvent",
    "Event",
    "FireRollbackTo",
    "FireSwitch",
    "IllegalForState",
    "InsertQuarantine",
    "InvariantViolation",
    "Mode",
    "Policy",
    "ProbeRecord",
    "ProbeStatus",
    "RecordTransition",
    "ResetProbeCache",
    "RolloutRecord",
    "SeqRegression",
    "State",
    "SwitchMethod",
    "TransitionError",
    "WayBack",
    "advance",
    "step",
]
