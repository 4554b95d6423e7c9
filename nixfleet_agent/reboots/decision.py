"""Which reboot is due on this host, and why it does not come yet: pure, in words that status, why and metrics share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from nixfleet_agent.activation.host import same_boot
from nixfleet_agent.operator.hold import Hold
from nixfleet_agent.operator.maintenance import MaintenanceStatus
from nixfleet_agent.reboots.ledger import Asked
from nixfleet_agent.state_machine import State
from nixfleet_agent.telemetry.status import RolloutsView

#: Values of ``[reboot] after_deferred``.
NEVER, WINDOW = "never", "window"
#: The two directions, of which each may take one reboot of a rollout.
FORWARD, BACK = "forward", "rollback"
#: How long a reboot that was asked for may take to begin, and how often one that does not is asked for in one boot.
ASK_AGAIN = timedelta(minutes=10)
MOST_TRIES = 3


class WaitsFor(StrEnum):
    """What has to change before the host reboots by itself; an operator, where it never will."""

    OPERATOR = "operator"
    ROLLBACK = "rollback"
    ACTIVATION = "activation"
    GUARD = "guard"
    HOLD = "hold"
    WINDOW = "window"
    BLOCKER = "blocker"
    USERS = "users"
    DISK = "disk"
    SHUTDOWN = "shutdown"


@dataclass(frozen=True, slots=True)
class Due:
    """A reboot that a rollout needs: ``closure`` is what boots next, ``component`` what can't be replaced live."""

    rollout_id: str
    direction: str
    closure: str
    component: str
    since: datetime | None


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why the host does not reboot yet; ``until`` is when that may end by itself, where it is known."""

    waits_for: WaitsFor
    reason: str
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class RebootStatus:
    """The status section ``reboot``: what is due, and what it waits for."""

    rollout_id: str
    direction: str
    closure: str
    component: str
    since: datetime | None
    after_deferred: str
    waits_for: WaitsFor
    reason: str
    until: datetime | None


@dataclass(frozen=True, slots=True)
class Facts:
    """One look at what the agent itself knows.

    ``boot_id`` is empty where the boot has no name; ``asked`` is the last reboot asked for in this direction of the
    rollout, ``refused`` what was answered to it by this process. ``guard`` names the rollout whose guard is armed.
    """

    now: datetime
    after_deferred: str
    boot_id: str
    asked: Asked | None
    refused: str | None
    busy: Waiting | None
    guard: str | None
    hold: Hold | None
    maintenance: MaintenanceStatus | None


def due_reboot(view: RolloutsView, rollback: object, boot_id: str) -> Due | None:
    """The reboot that this host needs in this boot; ``rollback`` is the status section of that name.

    A way back comes first. What was deferred in another boot has had its reboot, whoever made it: what came of that is
    the reducer's to find out, and until then nothing is due.
    """
    if isinstance(rollback, Mapping) and rollback.get("deferred"):
        for record in view.records:
            if record.rollout_id == rollback["rollout_id"] and record.rollback_owed:
                closure, component = str(rollback["closure"]), str(rollback["deferred"])
                return Due(record.rollout_id, BACK, closure, component, record.failed_at)
    active = view.active
    if active is None or active.state is not State.DEFERRED or not same_boot(active.deferred_boot_id, boot_id):
        return None
    component = active.deferred_component or "a part of it"
    return Due(active.rollout_id, FORWARD, active.target_closure, component, active.deferred_at)


def busy_with(due: Due, view: RolloutsView, switching: bool) -> Waiting | None:
    """What is under way on this host and must not be cut short by a reboot."""
    for record in view.records:
        name = record.rollout_id
        if name != view.active_id and name not in view.watched:
            continue
        if record.rollback_owed and name != due.rollout_id:
            return Waiting(WaitsFor.ROLLBACK, f"the rollback of {name} comes first")
        if record.state in (State.PENDING, State.ACTIVATING):
            return Waiting(WaitsFor.ACTIVATION, f"{name} is being activated")
    return Waiting(WaitsFor.ACTIVATION, "a switch runs") if switching else None


def why_not_yet(due: Due, facts: Facts) -> Waiting | None:
    """The first thing that stands in the way, of what the agent itself knows; None: only the host is still to be asked.

    A reboot that would end a rollback waits for no hold, as the rollback itself does not.
    """
    if facts.after_deferred == NEVER:
        return Waiting(WaitsFor.OPERATOR, "nothing reboots this host by itself (reboot.after_deferred is never)")
    if not facts.boot_id:
        return Waiting(WaitsFor.OPERATOR, "this boot has no id, so a second reboot could not be told from the first")
    if facts.asked is not None and (waiting := _asked(facts.asked, facts)):
        return waiting
    if facts.busy is not None:
        return facts.busy
    if facts.guard is not None:
        return Waiting(WaitsFor.GUARD, f"the guard of {facts.guard} is armed")
    if facts.hold is not None and due.direction == FORWARD:
        return Waiting(WaitsFor.HOLD, f"an operator holds back changes: {facts.hold.reason}", facts.hold.until)
    maintenance = facts.maintenance
    if facts.after_deferred == WINDOW and maintenance and not (maintenance.open or maintenance.run_now):
        return Waiting(WaitsFor.WINDOW, "it reboots in the next maintenance window", maintenance.changes_at)
    return None


def _asked(asked: Asked, facts: Facts) -> Waiting | None:
    """A reboot that came is the only one; one that did not is asked for a few times more."""
    if not same_boot(asked.boot_id, facts.boot_id):
        return Waiting(WaitsFor.OPERATOR, "it was rebooted for this once already, and does not reboot again by itself")
    answer = f"was refused: {facts.refused}" if facts.refused else "was asked for"
    if timedelta(0) <= facts.now - asked.at < ASK_AGAIN:
        return Waiting(WaitsFor.SHUTDOWN, f"the reboot {answer}", asked.at + ASK_AGAIN)
    if asked.tries >= MOST_TRIES:
        return Waiting(WaitsFor.OPERATOR, f"the reboot {answer} ({asked.tries} times), and the host is still up")
    return None


def blocked_by(blockers: Sequence[str]) -> Waiting | None:
    """Programs that have asked not to be shut down now."""
    return Waiting(WaitsFor.BLOCKER, f"shutdown is blocked by {', '.join(blockers)}") if blockers else None


def users_have(left: float, users: Sequence[str], now: datetime) -> Waiting:
    """The users who are logged in were warned, and have ``left`` seconds more."""
    until = now + timedelta(seconds=left)
    return Waiting(WaitsFor.USERS, f"logged-in users were warned: {', '.join(users)}", until)


def status_of(due: Due, after_deferred: str, waiting: Waiting) -> RebootStatus:
    """What `status` shows."""
    return RebootStatus(
        rollout_id=due.rollout_id,
        direction=due.direction,
        closure=due.closure,
        component=due.component,
        since=due.since,
        after_deferred=after_deferred,
        waits_for=waiting.waits_for,
        reason=waiting.reason,
        until=waiting.until,
    )
