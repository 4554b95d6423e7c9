"""The control plane's own mind: database, mirror, planner and long polls put together. It knows no HTTP.

Every method that an endpoint calls does one short transaction. What changes the picture kicks the dispatcher.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

from nixfleet_agent.journal.chain_check import GOOD, MISSING, follow
from nixfleet_agent.local_cp import mirror, records
from nixfleet_agent.local_cp.catalogue import Catalogue, Publication
from nixfleet_agent.local_cp.dispatcher import Dispatcher, Options, fresh_record
from nixfleet_agent.local_cp.errors import RequestRefused
from nixfleet_agent.local_cp.faults import Faults
from nixfleet_agent.local_cp.happenings import BREACH, FORGOTTEN, Notification
from nixfleet_agent.local_cp.replays import Replays
from nixfleet_agent.local_cp.store import HostRow, Store
from nixfleet_agent.local_cp.waiters import Waiters
from nixfleet_agent.proto.dispatch import Dispatch
from nixfleet_agent.proto.events import to_wire
from nixfleet_agent.proto.heartbeat import Heartbeat
from nixfleet_agent.state_machine import Event, RolloutRecord, State
from nixfleet_agent.state_machine.events import RemoteActivationCompleted
from nixfleet_agent.text import printable
from nixfleet_agent.threads.clock import Clock

LOG = logging.getLogger("nixfleet_agent.local_cp")


class ControlPlane:
    """Thread-safe; its ``dispatcher`` needs a thread."""

    def __init__(
        self,
        database: Path,
        catalogue: Catalogue,
        clock: Clock,
        faults: Faults,
        options: Options | None = None,
        watcher: Callable[[Notification], None] | None = None,
    ) -> None:
        self.store = Store(database)
        self.catalogue = catalogue
        self.faults = faults
        self.waiters = Waiters(clock)
        #: What agents on this machine say that they wait for, by host name.
        self.own_words: Callable[[], Mapping[str, str]] = dict
        self._clock = clock
        self._options = options or Options()
        self._watcher = watcher
        self._replays = Replays(clock)
        self.dispatcher = Dispatcher(self.store, catalogue, self.waiters, clock, self._options, self._tell)

    # What the endpoints call

    def next_turn(self, hostname: str, wait: float, gone: Callable[[], bool]) -> Dispatch | None:
        """The host's next Dispatch, waited for up to ``wait`` seconds; it has left the queue when this returns."""
        dispatch = self.waiters.wait(hostname, wait, lambda: self.store.dequeue(hostname, self._clock.now()), gone)
        if dispatch is None:
            return None
        self.dispatcher.kick()  # It has to look again if no acknowledgement comes.
        self._tell(hostname, dispatch.rollout_id, "Dispatched", State.PENDING)
        wrong = self.faults.wrong_closures.get(dispatch.rollout_id)
        return dispatch if wrong is None else replace(dispatch, target_closure=wrong)

    def not_delivered(self, dispatch: Dispatch) -> None:
        """The answer broke on the way: the planner may give the turn again at once, if it still would."""
        self.store.take_back(dispatch)
        self.dispatcher.kick()

    def take_event(self, event: Event, envelope: Mapping[str, Any]) -> None:
        """Mirror one event, which came in ``envelope``; a repeat is taken without a word.

        The envelope names the host and a rollout, and those of its signatures that are there are good.

        Raises:
            RequestRefused: with the status that tells the host what to do with the event.
        """
        hostname, rollout_id, body = envelope["hostname"], envelope["rolloutId"], envelope["event"]
        if self.faults.forgets(hostname, rollout_id, event.kind):
            self._tell(hostname, rollout_id, FORGOTTEN.format(event.kind))
            return
        now = self._clock.now()
        with self.store.transaction():
            before = self.store.record(rollout_id, hostname) or self._rebuilt(rollout_id, hostname)
            verdict = mirror.take(
                before,
                event,
                now=now,
                policy=self.catalogue.policy(rollout_id),
                past_gaps=self._replays.given_up(hostname, rollout_id),
            )
            if isinstance(verdict, mirror.Taken):
                self.store.save_record(verdict.record)
                self.store.append_event(hostname, rollout_id, body, envelope.get("signature"), now)
                self._append_link(envelope)
                if verdict.quarantined is not None:
                    self.store.quarantine(*verdict.quarantined, hostname, now)
        self._report(before, event, verdict, body)

    def _append_link(self, envelope: Mapping[str, Any]) -> None:
        """Check that the event follows the one that this database has before it; whether or not, it is kept."""
        hostname, rollout_id = envelope["hostname"], envelope["rolloutId"]
        standing = self.store.standing(hostname, rollout_id)
        verdict, after = follow(standing, envelope, lambda said, signature: True)
        self.store.append_link(envelope, verdict, after)
        if verdict not in (GOOD, MISSING):
            where = (printable(hostname, 200), rollout_id, envelope["event"]["seq"])
            LOG.warning("the chain of %s in %s is broken before seq %d: %s", *where, verdict)

    def _report(
        self,
        before: RolloutRecord,
        event: Event,
        verdict: mirror.Taken | mirror.Repeat | mirror.Gap | mirror.Refused,
        body: Mapping[str, Any],
    ) -> None:
        hostname, rollout_id = before.hostname, before.rollout_id
        if isinstance(verdict, mirror.Taken):
            self._replays.arrived(hostname, rollout_id)
            self._tell(hostname, rollout_id, event.kind, verdict.record.state, body)
            if verdict.record.state is not before.state:
                self.dispatcher.kick()
        elif isinstance(verdict, mirror.Gap):
            self._replays.gap(hostname, rollout_id)
            message = f"events from seq {verdict.missing_from} on are missing here: a replay will be asked for"
            raise RequestRefused(HTTPStatus.CONFLICT, message)
        elif isinstance(verdict, mirror.Refused):
            raise RequestRefused(verdict.status, verdict.reason)

    def take_heartbeat(self, beat: Heartbeat) -> tuple[list[dict[str, Any]], int | None]:
        """Snapshots for the answer, and the seq to replay from where events were lost."""
        now = self._clock.now()
        with self.store.transaction():
            known = self.store.host(beat.hostname)
            self.store.save_host(
                HostRow(
                    hostname=beat.hostname,
                    seen_at=now,
                    agent_version=beat.agent_version,
                    current_closure=beat.current_closure,
                    rollout_id=beat.rollout_id,
                    uptime_secs=beat.uptime_secs,
                    reported=beat.last_event_seq_by_rollout,
                )
            )
            held = self.store.last_seqs(beat.hostname)
            snapshots = [] if beat.rollout_id else [r for r in self.store.records_of(beat.hostname) if not r.terminal]
        here = {
            rollout_id: held.get(rollout_id, 0)
            for rollout_id in beat.last_event_seq_by_rollout
            if self._target(rollout_id, beat.hostname)
        }
        before = None if known is None else self._replays.expected(beat, known.reported)
        replay = mirror.replay_from(beat.rollout_id, beat.last_event_seq_by_rollout, before, here)
        if replay is not None:
            self._replays.asked(beat)
        if known is None or dict(known.reported) != dict(beat.last_event_seq_by_rollout):
            self.dispatcher.kick()
        if self._options.complete_from_heartbeat:
            self._complete_from(beat)
        return [records.snapshot(record) for record in snapshots], replay

    def breach(self, hostname: str, how: str) -> None:
        """Tell that a request of this host (empty: of nobody known) breaks the contract of the wire."""
        self._tell(hostname, "", BREACH, detail={"how": how})

    def publish(self, publication: Publication) -> None:
        """Serve what CI signed, and start handing out turns for it."""
        self.catalogue.publish(publication)
        self.dispatcher.kick()

    def reload(self) -> None:
        """As ``publish``, when CI has written the files itself (raises ProtoError: something in them is wrong)."""
        self.catalogue.reload()
        self.dispatcher.kick()

    def tell_known(self) -> None:
        """Tell the watcher what the database says: a control plane that was killed may have told less than it took."""
        for hostname, rollout_id, kind in self.store.kinds():
            self._tell(hostname, rollout_id, kind)
        for row in self.store.rollouts():
            for hostname, placement in self.store.placements(row.rollout_id).items():
                self._tell(hostname, row.rollout_id, "Known", placement.state)

    def wipe(self) -> None:
        """Lose the whole database while running."""
        self.store.wipe()
        self.dispatcher.kick()

    def stop(self) -> None:
        """End the dispatcher's thread and every long poll."""
        self.dispatcher.stop()
        self.waiters.stop()

    def _target(self, rollout_id: str, hostname: str) -> str:
        return self.catalogue.target(rollout_id, hostname) or ""

    def _rebuilt(self, rollout_id: str, hostname: str) -> RolloutRecord:
        """The start of a record that this database has lost: what CI signed is enough to fold the host's events on."""
        target, signed_at = self._target(rollout_id, hostname), self.catalogue.signed_at(rollout_id)
        if not target or signed_at is None:
            raise RequestRefused(HTTPStatus.NOT_FOUND, f"no published rollout {rollout_id} names {hostname}")
        return fresh_record(self.catalogue, rollout_id, hostname, target, signed_at, None)

    def _complete_from(self, beat: Heartbeat) -> None:
        """What the deployed control plane does with a host that reports the target before its event has come."""
        for record in self.store.records_of(beat.hostname):
            if record.state in (State.ACTIVATING, State.DEFERRED) and record.target_closure == beat.current_closure:
                event = RemoteActivationCompleted(
                    seq=record.last_event_seq + 1,
                    observed_current_closure=record.target_closure,
                    exit_code=0,
                    completed_at=beat.at,
                )
                envelope = {"hostname": record.hostname, "rolloutId": record.rollout_id, "event": to_wire(event)}
                self.take_event(event, envelope)

    def _tell(
        self,
        hostname: str,
        rollout_id: str,
        what: str,
        state: State | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        if self._watcher is not None:
            self._watcher(Notification(self._clock.now(), hostname, rollout_id, what, state, detail))
