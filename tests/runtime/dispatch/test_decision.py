"""The rules over a received Dispatch: what is final, what is kept, how long, and what the next poll waits."""

from __future__ import annotations

import unittest
from datetime import datetime, timedelta, timezone

from nixfleet_agent.artifacts.fetch import UnavailableError
from nixfleet_agent.errors import ProtoError, StorageError, TransportError
from nixfleet_agent.proto.dispatch import Dispatch
from nixfleet_agent.runtime.dispatch import decision
from nixfleet_agent.runtime.dispatch.decision import Done, Pending, Refuse, Retry
from nixfleet_agent.runtime.rollout.inputs import Answer
from nixfleet_agent.trust import errors
from tests.support.signing import closure_name

NOW = datetime(2026, 5, 16, 1, 27, tzinfo=timezone.utc)
HOUR = timedelta(hours=1)
DISPATCH = Dispatch(
    hostname="web-01",
    rollout_id="stable@def4567abc",
    target_closure=closure_name("x"),
    soak_due_at=NOW,
    enqueued_at=NOW,
)
PENDING = Pending(DISPATCH, received_at=NOW, as_of=NOW)


class Failures(unittest.TestCase):
    FINAL = (
        errors.BadSignatureError,
        errors.SchemaInvalidError,
        errors.UnsupportedSchemaVersionError,
        errors.RolloutIdMismatchError,
        errors.MissingSignedAtError,
        errors.HostNotInManifestError,
        errors.DuplicateHostError,
        errors.ClosureMismatchError,
    )
    PASSING = (
        errors.StaleError,
        errors.FutureDatedError,
        errors.OlderThanAcceptedError,
        errors.ClockBehindError,
        errors.FleetPinMismatchError,
        errors.TrustFileError,
        errors.NoTrustRootsError,
        errors.UnsupportedAlgorithmError,
        errors.RejectedBeforeError,
        errors.MalformedArtifactError,
        errors.ChannelNotInFleetError,
        errors.PolicyUnknownError,
        errors.WaveNotInFleetError,
    )

    def test_every_refusal_is_in_one_of_both_lists(self) -> None:
        kinds = {
            kind
            for kind in vars(errors).values()
            if isinstance(kind, type) and issubclass(kind, errors.VerificationError)
        }
        self.assertEqual({*self.FINAL, *self.PASSING}, kinds - {errors.VerificationError})

    def test_final_ones_refuse_and_the_others_keep(self) -> None:
        for kind in self.FINAL:
            self.assertEqual(decision.of_failure(kind("why")), Refuse(kind.reason, "why"))
        for kind in self.PASSING:
            self.assertEqual(decision.of_failure(kind("why")), Retry(kind.reason, "why"))

    def test_the_network_passes_and_says_when_to_come_again(self) -> None:
        self.assertEqual(decision.of_failure(TransportError("x", "timeout")), Retry("timeout", "x"))
        kept = decision.of_failure(UnavailableError("x", "status_503", 9.0))
        self.assertEqual(kept, Retry("status_503", "x", after=9.0))

    def test_a_pattern_is_final_and_a_local_fault_is_not(self) -> None:
        self.assertEqual(decision.of_failure(ProtoError("x")), Refuse("pattern", "x"))
        self.assertEqual(decision.of_failure(StorageError("x")), Retry("local", "x"))

    def test_another_hosts_dispatch_is_refused(self) -> None:
        self.assertIsNone(decision.check_recipient(DISPATCH, "web-01"))
        refusal = decision.check_recipient(DISPATCH, "web-02")
        self.assertEqual(refusal and refusal.label, "host")


class GatesAndAnswers(unittest.TestCase):
    def test_hold_comes_before_window_and_quarantine_and_each_can_be_lifted(self) -> None:
        self.assertIsNone(decision.of_gates(None, None, None))
        cases = (("h", "w", "q", "hold"), (None, "w", "q", "window"), (None, None, "q", "quarantine"))
        for hold, window, quarantine, label in cases:
            gate = decision.of_gates(hold, window, quarantine)
            assert gate is not None
            self.assertEqual((gate.label, gate.gated), (label, True))

    def test_the_reducers_words(self) -> None:
        self.assertEqual(decision.of_answer(Answer.ACCEPTED, ""), Done("accepted"))
        self.assertEqual(decision.of_answer(Answer.REPEAT, ""), Done("repeat"))
        self.assertEqual(
            decision.of_answer(Answer.NOT_NOW, "rollback first"), Retry("not_now", "rollback first", gated=True)
        )
        self.assertIsInstance(decision.of_answer(None, ""), Retry)


class Keeping(unittest.TestCase):
    def test_is_given_up_only_past_the_window(self) -> None:
        at_the_end = decision.advanced(PENDING, HOUR, NOW)
        self.assertIsNone(decision.expiry(at_the_end, HOUR))
        past = decision.advanced(at_the_end, timedelta(seconds=1), NOW)
        self.assertIn("60 minutes", getattr(decision.expiry(past, HOUR), "reason", ""))

    def test_without_a_fleet_a_day_is_the_limit(self) -> None:
        self.assertIsNone(decision.expiry(decision.advanced(PENDING, 24 * HOUR, NOW), None))
        self.assertIsNotNone(decision.expiry(decision.advanced(PENDING, 25 * HOUR, NOW), None))

    def test_time_under_hold_does_not_count(self) -> None:
        held = Pending(DISPATCH, NOW, NOW, timedelta(minutes=5), held=True)
        self.assertEqual(decision.advanced(held, 100 * HOUR, NOW).kept_for, timedelta(minutes=5))
        self.assertEqual(decision.resumed(held, NOW + 100 * HOUR).kept_for, timedelta(minutes=5))

    def test_the_time_between_two_processes_counts_and_a_clock_set_back_does_not_give_time(self) -> None:
        self.assertEqual(decision.resumed(PENDING, NOW + HOUR).kept_for, HOUR)
        self.assertEqual(decision.resumed(PENDING, NOW - HOUR).kept_for, timedelta(0))


class Polling(unittest.TestCase):
    def test_waits_in_full_when_nothing_is_pending(self) -> None:
        self.assertEqual(decision.poll_wait(60, None), 60)
        self.assertEqual(decision.poll_wait(0.5, None), 0.5)

    def test_waits_whole_seconds_up_to_the_next_try(self) -> None:
        for left, wait in ((-5.0, 1), (0.2, 1), (1.0, 1), (4.1, 5), (500.0, 60)):
            self.assertEqual(decision.poll_wait(60, left), wait)


if __name__ == "__main__":
    unittest.main()
