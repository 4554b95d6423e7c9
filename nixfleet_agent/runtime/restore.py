"""What the logs of accepted rollouts tell the other stores at start: high-water marks and failed closures."""

from __future__ import annotations

import logging

from nixfleet_agent.activation.records import Records, awaits_successor, fired_rollouts, taken_back
from nixfleet_agent.errors import ProtoError, StorageError
from nixfleet_agent.operator import quarantine
from nixfleet_agent.runtime.rollout.recovery import Guards, recover
from nixfleet_agent.runtime.rollout.rollouts import Host
from nixfleet_agent.runtime.services import Services
from nixfleet_agent.trust.marks import Marks

log = logging.getLogger("nixfleet_agent.restore")


def restore(services: Services) -> Host:
    """The rollouts as the last process left them; the stores learn what only the logs still know.

    Raises:
        StorageError: a log can't be read.
    """
    state_dir, boot = services.config.state_dir, services.platform.machine.boot_id()
    fired = fired_rollouts(state_dir, boot)
    guards = Guards(taken_back(state_dir, boot), awaits_successor(Records(state_dir, boot)))
    host = recover(services.journal, services.read_current(), services.clock.monotonic(), fired, guards)
    services.trust.recover_marks(marks_of(host))
    recover_quarantine(services.quarantine, host)
    return host


def marks_of(host: Host) -> list[Marks]:
    """The high-water marks that each accepted Dispatch was accepted under."""
    marks = []
    for rollout in host.rollouts.values():
        try:
            marks.append(Marks.parse(rollout.accepted.marks))
        except ProtoError as error:
            log.error("the marks of an accepted Dispatch: %s", error, extra={"rollout_id": rollout.rollout_id})
    return marks


def recover_quarantine(store: quarantine.QuarantineStore, host: Host) -> None:
    """What the logs say failed here after its switch was fired, and the file has not heard of.

    All of it where the file was lost; else what failed just before the process was killed. An operator who lifts
    an entry writes the file, and so nothing comes back that was lifted.
    """
    lost = store.lost
    entries = [
        quarantine.Entry(
            record.channel, record.target_closure, record.rollout_id, record.failed_at, "rebuilt from the log"
        )
        for record in (rollout.record for rollout in host.rollouts.values())
        if record.failed_at is not None and record.switch_fired and (lost or not store.has_heard_of(record.failed_at))
    ]
    if not (lost or entries):
        return
    try:
        store.rebuild(entries)
    except StorageError as error:
        log.warning("the quarantine is not on disk: %s", error)
