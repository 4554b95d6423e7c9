"""How the log becomes records again, and that a death at any write changes nothing."""

from __future__ import annotations

import errno
import json
import os
import threading
import unittest
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from nixfleet_agent.activation.model import Forward, Rollback
from nixfleet_agent.journal.entries import Entry, decode, entry_of
from nixfleet_agent.journal.header import DISPATCH_KIND, Acceptance
from nixfleet_agent.journal.journal import Journal
from nixfleet_agent.operator import quarantine
from nixfleet_agent.operator.quarantine import QuarantineStore
from nixfleet_agent.runtime.restore import recover_quarantine
from nixfleet_agent.runtime.rollout.inputs import Ack, Activate, AdvanceTick, HostEvent, ReducerInput
from nixfleet_agent.runtime.rollout.orders import ResetProbes
from nixfleet_agent.runtime.rollout.recovery import fold, recover
from nixfleet_agent.state_machine import State
from tests.runtime.harness import (
    HALT,
    HOSTNAME,
    NEWER,
    PRIOR,
    TARGET,
    BadDisk,
    TestHost,
    bad_disk,
    until,
)
from tests.runtime.rollout.recovery_case import FAIL, PASS, Case, R, S
from tests.state_machine.machine import T0, at, declared, event
from tests.support.acceptances import acceptance


class Folding(unittest.TestCase):
    """``fold`` by itself, on logs that no healthy agent writes."""

    ACCEPTED = acceptance(R, number=3, soak_floor=10, policy=HALT)

    def zero(self, accepted: Acceptance | None = None) -> Entry:
        body = (accepted or self.ACCEPTED).to_json()
        return Entry(seq=0, hostname=HOSTNAME, rollout_id=R, kind=DISPATCH_KIND, created_at=T0, event=body)

    def log(self, *kinds: str, **changes: Any) -> list[Entry]:
        made = [event(kind, seq, **changes.get(kind, {})) for seq, kind in enumerate(kinds, 1)]
        return [self.zero(), *(entry_of(each, HOSTNAME, R, each.at) for each in made)]

    def folded(self, entries: list[Entry], last_seq: int = 0) -> Any:
        return fold(entries, HOSTNAME, last_seq, 100.0)

    def test_seq_zero_is_read_back_as_it_was_written(self) -> None:
        for accepted in (
            self.ACCEPTED,
            replace(self.ACCEPTED, prior_closure=None, adopted_state=State.SOAKING, adopted_seq=14, number=0),
            replace(self.ACCEPTED, inherited=True, marks={"fleet": "x", "channels": {}}),
        ):
            body = json.loads(json.dumps(accepted.to_json()))
            self.assertNotIn(None, body.values())
            self.assertEqual(Acceptance.parse(R, body), accepted)

    def test_an_event_that_the_machine_refuses_is_skipped_and_still_counts(self) -> None:
        entries = self.log("DispatchAck", "Converged", "ActivationStarted", "RollbackComplete")
        with self.assertLogs("nixfleet_agent.recovery", "ERROR") as logs:
            rollout = self.folded(entries, last_seq=4)
        self.assertEqual(len(logs.output), 2)
        self.assertIs(rollout.record.state, State.ACTIVATING)
        self.assertEqual(rollout.record.last_event_seq, 4)

    def test_an_event_that_cant_be_read_is_skipped(self) -> None:
        entries = self.log("DispatchAck")
        broken = replace(entries[1], seq=2, event={"kind": "Mystery", "seq": 2})
        with self.assertLogs("nixfleet_agent.recovery", "ERROR"):
            self.assertIs(self.folded([*entries, broken]).record.state, State.ACTIVATING)

    def test_a_log_without_its_dispatch_is_not_resumed(self) -> None:
        for entries in (
            self.log("DispatchAck")[1:],
            [],
            [replace(self.zero(), event={"kind": "Dispatch"})],
            [replace(self.zero(), event={**self.zero().event, "policy": "whatever"})],
            [replace(self.zero(), event={**self.zero().event, "marks": None})],
            [replace(self.zero(), event={**self.zero().event, "adoptedState": "Nowhere"})],
            [replace(self.zero(), event={**self.zero().event, "soakFloorMinutes": -1})],
            [replace(self.zero(), event={**self.zero().event, "targetClosure": "../x"})],
        ):
            with self.subTest(entries=entries), self.assertLogs("nixfleet_agent.recovery", "ERROR"):
                self.assertIsNone(self.folded(entries))

    def test_a_soak_that_never_ends_stops_no_start(self) -> None:
        endless = replace(self.zero(), event={**self.zero().event, "soakFloorMinutes": 2**53 - 1})
        with self.assertLogs("nixfleet_agent.recovery", "ERROR"):
            rollout = self.folded([endless, *self.log("DispatchAck", "ActivationCompleted")[1:]])
        self.assertIs(rollout.record.state, State.ACTIVATING)

    def test_a_log_that_another_process_left_is_numbered_on_from_its_highest_name(self) -> None:
        self.assertEqual(self.folded(self.log("DispatchAck"), last_seq=41).record.last_event_seq, 41)

    def soaking(self, **changes: Any) -> list[Entry]:
        kinds = ("DispatchAck", "ActivationCompleted", "ProbeTopologyDeclared", "ProbeResult")
        topology = {"ProbeTopologyDeclared": {"probes": (declared("web"),), "declared_at": at(4)}}
        return self.log(*kinds, **{**topology, **changes})

    def test_a_soak_counts_what_the_stamps_prove(self) -> None:
        rollout = self.folded(self.soaking(ProbeResult={"observed_at": at(203)}))
        self.assertEqual(rollout.timers.soak_ends, 100.0 + 400)
        self.assertFalse(rollout.timers.probes["web"].seen)

    def test_what_was_measured_counts_before_any_stamp_and_a_damaged_number_does_not(self) -> None:
        entries = self.soaking(ProbeResult={"observed_at": at(203)})
        for left, ends in ((550.5, 650.5), (0, 100.0), (None, 500.0), (-1, 500.0), (True, 500.0), ("9", 500.0)):
            with self.subTest(left=left):
                last = replace(entries[-1], local={"soakLeftSecs": left})
                rollout = self.folded([*entries[:-1], decode(last.encode())])
                self.assertEqual(rollout.timers.soak_ends, ends)

    def test_stamps_from_before_the_soak_prove_nothing_about_it(self) -> None:
        # The clock was an hour ahead when the Dispatch was accepted, and was set right before the switch ended.
        entries = self.soaking(DispatchAck={"received_at": at(3600)})
        entries[0] = self.zero(replace(self.ACCEPTED, accepted_at=at(3600)))
        rollout = self.folded(entries)
        self.assertEqual(rollout.timers.soak_ends, 100.0 + 595)


class Recovering(Case):
    def test_an_empty_state_directory_is_a_fresh_host(self) -> None:
        host = recover(self.host.journal, PRIOR, 0.0)
        self.assertEqual((host.active, host.newest_number, dict(host.rollouts)), (None, 0, {}))

    def test_events_of_a_log_without_a_dispatch_are_still_sent_and_its_seqs_stay_taken(self) -> None:
        self.host.soaking(R)
        self.host.stop()
        for name in self.host.names(f"outbound-sent/{R}"):
            (self.host.state_dir / "outbound-sent" / R / name).write_bytes(b"torn")
        with self.assertLogs("nixfleet_agent", "ERROR"):
            self.host.start(TARGET)
        self.assertIsNone(self.host.view.active_id)
        self.assertEqual(self.host.journal.waiting(), {R: 4})
        self.assertEqual(self.host.journal.last_seq(R), 4)
        self.assertTrue(self.host.journal.knows(R))

    def test_an_unreadable_newest_event_keeps_its_seq(self) -> None:
        self.host.soaking(R)
        self.host.stop()
        last = self.host.names("outbound-queue")[-1]
        (self.host.state_dir / "outbound-queue" / last).write_bytes(b"")
        with self.assertLogs("nixfleet_agent.journal", "ERROR"):
            self.host.start(TARGET)
        self.host.declare(R, "web")
        self.assertEqual([seq for seq, _ in self.host.log()], [0, 1, 2, 3, 5])

    def test_two_rollouts_with_one_number_are_ordered_by_when_they_were_accepted(self) -> None:
        # Adopted ones all have the number 0.
        self.host.stop()
        journal: Journal = self.host.journal
        for rollout, second in ((R, 50), (S, 10)):
            accepted = replace(Folding.ACCEPTED, rollout_id=rollout, number=0, accepted_at=at(second))
            body = accepted.to_json()
            journal.accept(
                Entry(seq=0, hostname=HOSTNAME, rollout_id=rollout, kind=DISPATCH_KIND, created_at=T0, event=body)
            )
        self.assertEqual(recover(journal, None, 0.0).active_id, R)


class Quarantine(Case):
    """A kill between a durable failure and the quarantine's file."""

    def setUp(self) -> None:
        super().setUp()
        self.store = QuarantineStore(self.host.state_dir)
        self.written(before=0)
        self.host.soaking(R, policy=HALT)
        for _ in range(2):
            self.host.tell(R, "ProbeResult", status=FAIL)
            self.host.clock.advance(60)
        self.host.tick()

    def written(self, *entries: quarantine.Entry, before: float) -> None:
        """The file, as written so many seconds before now."""
        self.store.rebuild(entries)
        stamp = self.host.clock.now().timestamp() - before
        os.utime(self.host.state_dir / "quarantine.json", (stamp, stamp))

    def recovered(self) -> list[str]:
        recover_quarantine(self.store, recover(self.host.journal, TARGET, 0.0))
        return [entry.closure for entry in self.store.entries()]

    def test_the_next_process_enters_what_failed_and_keeps_the_rest(self) -> None:
        other = quarantine.Entry("edge", NEWER, S, self.host.clock.now(), "failed")
        self.written(other, before=1)
        self.assertEqual(sorted(self.recovered()), [TARGET, NEWER])

    def test_what_was_lifted_since_stays_lifted(self) -> None:
        self.host.clock.advance(1)
        self.written(before=0)
        self.assertEqual(self.recovered(), [])

    def test_a_lost_file_is_made_anew(self) -> None:
        (self.host.state_dir / "quarantine.json").write_bytes(b"torn")
        self.assertEqual(self.recovered(), [TARGET])


class DiesAtEveryWrite(unittest.TestCase):
    """A whole rollout, on a disk that refuses its n-th step for good; then the next process carries on.

    Whatever the step, the host ends where it would have, and the log has every seq once and in an order that the
    machine takes.
    """

    def story(self, host: TestHost, disk: BadDisk, *, fails: bool) -> bool:
        """Play every worker's part until the rollout is over; False as soon as the disk has refused something."""

        def put(make: Callable[[Ack], ReducerInput]) -> bool:
            ack = Ack(threading.Event())
            host.put(make(ack))
            until(lambda: ack.value is not None or disk.refusals > 0, "an answer")
            return disk.refusals == 0

        def tell(kind: str, **changes: Any) -> bool:
            return put(lambda ack: HostEvent(R, host.event(kind, **changes), ack))

        def settle() -> bool:
            return put(lambda ack: HostEvent("barrier@0", host.event("Converged"), ack))

        if not (put(lambda ack: Activate(host.acceptance(R, TARGET), ack)) and settle()):
            return False
        for _ in range(20):
            order, probes = host.order(), host.probe_order()
            match order:
                case Forward(already_started=started):
                    if not started and not tell("ActivationStarted"):
                        return False
                    host.current = TARGET
                    if not tell("ActivationCompleted", observed_current_closure=TARGET):
                        return False
                case Rollback():
                    host.current = PRIOR
                    if not tell("RollbackComplete", reverted_to_closure=PRIOR):
                        return False
            if isinstance(probes, ResetProbes):
                declares = {"probes": (declared("web"),)}
                if not (
                    tell("ProbeTopologyDeclared", **declares) and tell("ProbeResult", status=FAIL if fails else PASS)
                ):
                    return False
            if host.view.active_open:
                host.clock.advance(150)
                if host.record().state is State.SOAKING and not tell("ProbeResult", status=FAIL if fails else PASS):
                    return False
                host.put(AdvanceTick(host.current))
                if not settle():
                    return False
            elif host.activation.peek() is None:
                return True
        raise AssertionError("the rollout does not end")

    def played(self, *, fails: bool, until_step: int | None) -> tuple[int, list[tuple[int, str]], State]:
        """(steps taken, the log at the end, the state at the end)"""
        host = TestHost(self)
        with bad_disk() as disk:
            host.start()
            taken = len(disk.steps)
            if until_step is not None:
                disk.break_down(errno.EIO, lambda step, path: len(disk.steps) > taken + until_step)
            for _ in range(3):
                if self.story(host, disk, fails=fails):
                    break
                host.stop()
                disk.mend()
                disk.refusals = 0
                with self.assertNoLogs("nixfleet_agent.recovery", "ERROR"):
                    host.start(host.current)
            else:
                self.fail("it does not end")
            steps = len(disk.steps) - taken
            host.stop()
        with self.assertNoLogs("nixfleet_agent.recovery", "ERROR"):
            rollout = recover(host.journal, host.current, 0.0).rollouts[R]
        self.assertEqual(rollout.record.current_closure, host.current)
        return steps, host.log(), rollout.record.state

    def check(self, *, fails: bool, end: State) -> None:
        steps, whole, state = self.played(fails=fails, until_step=None)
        self.assertIs(state, end)
        self.assertGreater(steps, 20)
        for step in range(steps):
            with self.subTest(step=step):
                _, log, state = self.played(fails=fails, until_step=step)
                self.assertIs(state, end)
                self.assertEqual([seq for seq, _ in log], list(range(len(log))), "a seq is missing or there twice")
                wanted, given = [kind for _, kind in whole], [kind for _, kind in log]
                # A restart declares the topology again, and each probe's first result after it counts anew.
                repeated = {"ProbeTopologyDeclared", "ProbeResult"}
                self.assertEqual(
                    [kind for kind in given if kind not in repeated], [kind for kind in wanted if kind not in repeated]
                )

    def test_forwards(self) -> None:
        self.check(fails=False, end=State.CONVERGED)

    def test_and_back(self) -> None:
        self.check(fails=True, end=State.REVERTED)


if __name__ == "__main__":
    unittest.main()
