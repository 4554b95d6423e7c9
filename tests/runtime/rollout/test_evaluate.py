"""Pure rules of the runtime: what a tick means, which results are worth an event, what an answer means."""

from __future__ import annotations

import unittest
from dataclasses import replace
from typing import Any

from nixfleet_agent.journal.delivery import CONFLICT_LIMIT, REFUSALS, Disposition, disposition
from nixfleet_agent.journal.header import Acceptance
from nixfleet_agent.runtime.rollout.dedup import Journaled, should_record
from nixfleet_agent.runtime.rollout.evaluate import Moment, due_event, expected_closure, needs_probes
from nixfleet_agent.runtime.rollout.rollouts import Host, Rollout, prunable
from nixfleet_agent.runtime.rollout.succession import handed_back, rollback_target, why_not_now
from nixfleet_agent.state_machine import KINDS, Mode, ProbeStatus, State
from nixfleet_agent.state_machine.events import LocalProbeResult, SubResult
from nixfleet_agent.state_machine.timing import ProbeTimer, Timers
from tests.state_machine.machine import PRIOR, ROLLBACK, TARGET, THIRD, at, event, record
from tests.support.acceptances import acceptance

ACCEPTED = acceptance("stable@def4567abc")


def rollout(state: State, timers: Timers | None = None, accepted: Acceptance = ACCEPTED, **changes: Any) -> Rollout:
    return Rollout(record(state, **changes), accepted, timers or Timers())


def moment(current: str | None, *, monotonic: float = 0.0, boot_id: str = "boot-1", now: float = 2000) -> Moment:
    return Moment(at(now), monotonic, current, boot_id)


class WhatATickMeans(unittest.TestCase):
    def test_nothing_for_a_rollout_that_is_over_or_in_the_pipelines_hands(self) -> None:
        for state in (State.PENDING, State.ACTIVATING, State.CONVERGED, State.FAILED, State.REVERTED):
            for current in (PRIOR, TARGET, THIRD, None):
                self.assertIsNone(due_event(rollout(state), moment(current, boot_id="boot-9"), 120))

    def test_arrival_of_an_adopted_rollout_that_was_under_way_there(self) -> None:
        adopted = replace(ACCEPTED, adopted_state=State.ACTIVATING)
        self.assertIsNone(due_event(rollout(State.ACTIVATING, accepted=adopted), moment(THIRD), 120))
        arrived = due_event(rollout(State.ACTIVATING, accepted=adopted), moment(TARGET), 120)
        assert arrived is not None
        self.assertEqual((arrived.kind, arrived.at), ("ActivationCompleted", at(2000)))

    def test_a_deferred_one_that_booted_into_something_else_failed(self) -> None:
        deferred = rollout(State.DEFERRED, deferred_boot_id="boot-1")
        self.assertIsNone(due_event(deferred, moment(PRIOR), 120))
        self.assertIsNone(due_event(deferred, moment(None, boot_id="boot-2"), 120))
        failed: Any = due_event(deferred, moment(PRIOR, boot_id="boot-2"), 120)
        self.assertEqual((failed.kind, failed.exit_code, failed.observed_at_failure), ("ActivationFailed", -1, PRIOR))
        self.assertIsNone(
            due_event(rollout(State.DEFERRED), moment(PRIOR, boot_id="boot-2"), 120), "which boot is not known"
        )

    def test_a_sustained_failure_names_what_was_applied_and_what_ran(self) -> None:
        timers = Timers(0.0, {"web": ProbeTimer(ProbeStatus.FAIL, 10.0, 2)})
        failed: Any = due_event(rollout(State.SOAKING, timers), moment(TARGET, monotonic=135.9), 120)
        self.assertEqual(
            (failed.failing_probes, failed.sustained_duration_secs, failed.policy_applied, failed.observed_at_failure),
            (("web",), 125, ROLLBACK, TARGET),
        )

    def test_a_convergence_is_never_stamped_before_the_end_of_the_soak(self) -> None:
        timers = Timers(0.0, {"web": ProbeTimer(ProbeStatus.PASS)})
        for now, stamped in ((2000, 2000), (500, 1000)):
            converged: Any = due_event(rollout(State.SOAKING, timers), moment(TARGET, now=now), 120)
            self.assertEqual((converged.converged_at, converged.current_closure), (at(stamped), TARGET))

    def test_what_ought_to_run(self) -> None:
        expected = {state: expected_closure(rollout(state)) for state in State}
        self.assertEqual(
            expected,
            {
                State.PENDING: None,
                State.ACTIVATING: None,
                State.DEFERRED: None,
                State.SOAKING: TARGET,
                State.CONVERGED: TARGET,
                State.FAILED: None,
                State.REVERTED: PRIOR,
            },
        )

    def test_probes_are_started_once_and_only_where_they_can_tell_something(self) -> None:
        soaking = rollout(State.SOAKING)
        self.assertTrue(needs_probes(soaking, TARGET))
        self.assertFalse(needs_probes(soaking, THIRD) or needs_probes(soaking, None))
        self.assertFalse(needs_probes(replace(soaking, probes_started=True), TARGET))
        self.assertFalse(needs_probes(rollout(State.CONVERGED), TARGET))


class BetweenRollouts(unittest.TestCase):
    def host(self, *rollouts: Rollout, active: str) -> Host:
        host = Host(active_id=active)
        for each in rollouts:
            host = host.with_rollout(each)
        return host

    def numbered(self, number: int, state: State, **changes: Any) -> Rollout:
        name = f"stable@{number:x}"
        accepted = replace(ACCEPTED, number=number, rollout_id=name, accepted_at=at(number))
        return Rollout(record(state, rollout_id=name, **changes), accepted)

    def test_what_runs_is_the_way_back_where_it_is_proven(self) -> None:
        self.assertEqual(rollback_target(Host(), THIRD), (THIRD, False))
        host = self.host(self.numbered(1, State.CONVERGED), active="stable@1")
        self.assertEqual(rollback_target(host, TARGET), (TARGET, False))
        self.assertEqual(rollback_target(host, THIRD), (THIRD, False), "an operator's own, and nothing of ours is open")
        self.assertEqual(rollback_target(host, None), (TARGET, False), "it can't be read, and this was proven last")

    def test_unless_it_failed_here_and_was_never_taken_back(self) -> None:
        failed = replace(self.numbered(1, State.FAILED), begun=True)
        heir = self.numbered(2, State.ACTIVATING, target_closure=THIRD)
        self.assertEqual(rollback_target(self.host(failed, active="stable@1"), TARGET), (PRIOR, True))
        self.assertEqual(rollback_target(self.host(failed, active="stable@1"), THIRD), (PRIOR, True))
        self.assertEqual(rollback_target(self.host(failed, heir, active="stable@2"), TARGET), (PRIOR, True))
        self.assertEqual(rollback_target(self.host(failed, heir, active="stable@2"), THIRD), (PRIOR, False))

    def test_a_dispatch_waits_for_one_attempt_of_an_owed_rollback(self) -> None:
        host = self.host(self.numbered(1, State.FAILED), active="stable@1")
        self.assertIn("stable@1", why_not_now(host) or "")
        self.assertIsNone(why_not_now(replace(host, attempted="stable@1")))
        self.assertIsNone(why_not_now(self.host(self.numbered(1, State.SOAKING), active="stable@1")))
        self.assertIsNone(why_not_now(Host()))

    def test_the_newest_that_soaks_on_what_runs_comes_back(self) -> None:
        ended = self.numbered(4, State.FAILED, rollback_owed=False, switch_fired=False)
        soaking = [self.numbered(number, State.SOAKING) for number in (1, 2)]
        other = self.numbered(3, State.SOAKING, target_closure=THIRD)
        host = self.host(*soaking, other, ended, active="stable@4")
        self.assertEqual(handed_back(host, TARGET).active_id, "stable@2")
        self.assertEqual(handed_back(host, THIRD).active_id, "stable@3")
        self.assertIs(handed_back(host, PRIOR), host)
        later = self.numbered(5, State.SOAKING)
        self.assertEqual(handed_back(host.with_rollout(later), TARGET).active_id, "stable@2")

    def test_the_newest_twenty_and_the_last_seven_days_are_kept(self) -> None:
        week = 7 * 86_400
        host = self.host(*(self.numbered(number, State.CONVERGED) for number in range(1, 31)), active="stable@1")
        self.assertEqual(prunable(host, at(week), frozenset()), ())
        gone = {f"stable@{number:x}" for number in range(2, 11)}
        self.assertEqual(set(prunable(host, at(week + 31), frozenset())), gone)
        self.assertEqual(set(prunable(host, at(week + 31), frozenset({"stable@5"}))), gone - {"stable@5"})
        self.assertEqual(set(prunable(host, at(week + 4), frozenset())), {"stable@2", "stable@3"})

    def test_a_heartbeat_reports_the_newest_and_all_that_are_open(self) -> None:
        states = {1: State.CONVERGED, 2: State.SOAKING, 3: State.REVERTED, 4: State.CONVERGED}
        host = self.host(*(self.numbered(number, state) for number, state in states.items()), active="stable@4")
        self.assertEqual(set(host.reported()), {"stable@2", "stable@4"})
        self.assertEqual(Host().reported(), ())
        self.assertEqual(set(host.without("stable@2").reported()), {"stable@4"})


class WorthAnEvent(unittest.TestCase):
    def result(self, **changes: Any) -> LocalProbeResult:
        made = event("ProbeResult", **changes)
        assert isinstance(made, LocalProbeResult)
        return made

    def worth(self, result: LocalProbeResult, after: float, queued: bool = False, **last: Any) -> bool:
        return should_record(Journaled(self.result(**last), 100.0), result, 100.0 + after, 60.0, queued)

    def test_the_first_one_is(self) -> None:
        self.assertTrue(should_record(None, self.result(), 0.0, 60.0, True))

    def test_an_unchanged_one_is_after_the_interval_and_when_none_waits(self) -> None:
        for after, queued, worth in ((0, False, False), (59.9, False, False), (60, False, True), (9999, True, False)):
            with self.subTest(after=after, queued=queued):
                self.assertIs(self.worth(self.result(observed_at=at(77), seq=3), after, queued), worth)

    def test_every_change_is_at_once(self) -> None:
        sub = SubResult(control_id="a", status=ProbeStatus.PASS, framework="x", effective_mode=Mode.ENFORCE)
        for changes in (
            {"status": ProbeStatus.FAIL},
            {"failure_reason": "new"},
            {"mode": Mode.OBSERVE},
            {"sub_results": (sub,)},
        ):
            with self.subTest(changes=changes):
                self.assertTrue(self.worth(self.result(**changes), 0, True))
                self.assertTrue(self.worth(self.result(), 0, True, **changes))


class WhatAnAnswerMeans(unittest.TestCase):
    def test_every_status_has_exactly_one_meaning(self) -> None:
        settled = {
            Disposition.DELIVERED: set(range(200, 300)),
            Disposition.RETRY: {408, 409, 425, 429, *range(500, 600)},
            Disposition.MISMATCH: {426},
        }
        rest = set(range(100, 600)) - set().union(*settled.values())
        bad_event = {400, 413, 415, 422}
        own = {**settled, Disposition.REFUSED: bad_event, Disposition.MISROUTED: rest - bad_event}
        anybodys = {**settled, Disposition.BLOCKED: rest}
        for own_error, meanings in ((True, own), (False, anybodys)):
            for meaning, statuses in meanings.items():
                for status in statuses:
                    for over in (True, False):
                        with self.subTest(status=status, over=over, own_error=own_error):
                            found = disposition(
                                status, own_error=own_error, refused_for=0.0, kind="ProbeResult", over=over
                            )
                            self.assertIs(found, meaning)

    def test_a_conflict_is_given_up_after_a_day_and_only_when_its_rollout_is_over(self) -> None:
        for seconds, over, meaning in (
            (CONFLICT_LIMIT, True, Disposition.REFUSED),
            (CONFLICT_LIMIT, False, Disposition.RETRY),
            (CONFLICT_LIMIT - 1, True, Disposition.RETRY),
        ):
            found = disposition(409, own_error=True, refused_for=seconds, kind="Converged", over=over)
            self.assertIs(found, meaning)
        self.assertEqual(CONFLICT_LIMIT, 86_400)

    def test_a_refusal_of_what_later_events_rest_on_holds_them_for_ten_minutes_and_of_any_other_for_none(self) -> None:
        for status in sorted(REFUSALS):
            for kind in KINDS:
                for seconds in (0.0, 599.9, 600.0):
                    needed = kind in (
                        "DispatchAck",
                        "ActivationCompleted",
                        "ActivationDeferred",
                        "ActivationFailed",
                        "Failed",
                    )
                    meaning = Disposition.RETRY if needed and seconds < 600 else Disposition.REFUSED
                    with self.subTest(status=status, kind=kind, seconds=seconds):
                        found = disposition(status, own_error=True, refused_for=seconds, kind=kind, over=False)
                        self.assertIs(found, meaning)


if __name__ == "__main__":
    unittest.main()
