"""The cert_renewal worker over simulated hours: when it acts, how it waits, and that nothing ends it."""

from __future__ import annotations

import itertools
import logging
import threading
import unittest
from typing import Any

from nixfleet_agent.config.model import TuningConfig
from nixfleet_agent.identity import install
from nixfleet_agent.identity.certificate import load_certificate
from nixfleet_agent.runtime.workers.cert_renewal import CertRenewalWorker
from nixfleet_agent.telemetry.status import Section, StatusBoard, T
from nixfleet_agent.threads.shutdown import ShutdownToken
from tests.certificates.identity_base import PROOF, RENEW
from tests.runtime.parts import services
from tests.runtime.workers.cert_renewal_case import WorkerTestCase
from tests.support.behaviours import Reply, Request, Reset
from tests.support.tls import DAY, HOUR, now


class Renewing(WorkerTestCase):
    def write(self, **options: Any) -> None:
        self.certificate = self.fleet.write_client(self.cert_path, self.key, "web-01", **options)

    def test_a_fresh_certificate_makes_no_calls_and_no_noise(self) -> None:
        self.start(self.config())
        records = self.run_for(3600)
        self.assertEqual([], self.server.requests)
        self.assertEqual([], records)
        status = self.certificate_status()
        self.assertEqual(("valid", None), (status.state, status.failure))
        self.assertEqual(format(self.certificate.serial_number, "x"), status.serial)

    def test_it_is_renewed_when_half_of_its_life_is_over(self) -> None:
        self.write(not_before=self.clock.now(), not_after=self.clock.now() + 2 * HOUR)
        self.start(self.config())
        self.run_for(3590)
        self.assertEqual([], self.server.requests)
        records = self.run_for(130)
        self.assertEqual(1, len(self.asked(RENEW)))
        self.assertEqual(1, len(self.said(records, logging.INFO)))
        self.assertEqual(self.issued[0], load_certificate(self.cert_path).leaf)
        self.assertEqual("valid", self.certificate_status().state)

    def test_a_certificate_that_somebody_else_put_in_place_is_used(self) -> None:
        self.start(self.config())
        self.run_for(60)
        self.write(not_after=now() + 50 * DAY)
        self.run_for(60)
        current = self.mine.current()
        assert current is not None
        self.assertEqual(self.certificate, current.certificate.leaf)

    def test_failures_are_retried_from_30_seconds_to_half_an_hour_and_said_once(self) -> None:
        self.write(not_before=now() - 10 * DAY, not_after=now() + 9 * DAY)
        self.start(self.config())
        times: list[float] = []

        def failing(request: Request) -> Reply:
            times.append(self.clock.monotonic())
            return Reply(500, b"broken")

        self.server.route(*RENEW, failing)
        records = self.run_for(8 * 3600)
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        self.assertLess(10, len(gaps))
        self.assertLessEqual(gaps[0], 30 + 60)
        self.assertLessEqual(max(gaps), 1800 + 60)
        self.assertGreater(max(gaps), 600)
        self.assertEqual(1, len(self.said(records, logging.ERROR)))
        self.assertGreater(len(self.said(records, logging.DEBUG)), 5)
        status = self.certificate_status()
        self.assertEqual("due", status.state)
        self.assertIn("500", str(status.failure))
        self.server.route(*RENEW, self.sign)
        self.run_for(3600)
        self.assertIsNone(self.certificate_status().failure)
        self.assertEqual(self.issued[-1], load_certificate(self.cert_path).leaf)

    def test_retry_after_is_honoured(self) -> None:
        self.write(not_before=now() - 10 * DAY, not_after=now() + 9 * DAY)
        self.start(self.config())
        self.server.route(*RENEW, Reply(503, b"", {"Retry-After": "500"}))
        self.run_for(490)
        self.assertEqual(1, len(self.asked(RENEW)))

    def test_a_network_failure_is_a_warning_and_not_an_error(self) -> None:
        self.write(not_before=now() - 10 * DAY, not_after=now() + 9 * DAY)
        self.start(self.config())
        self.server.close()
        records = self.run_for(600)
        self.assertEqual([], self.said(records, logging.ERROR))
        self.assertEqual(1, len(self.said(records, logging.WARNING)))

    def test_a_damaged_file_is_replaced_while_the_certificate_in_memory_works(self) -> None:
        self.start(self.config())
        self.mine.reload()
        self.cert_path.write_bytes(b"\xff\x00garbage")
        records = self.run_for(120)
        self.assertEqual(self.issued[0], load_certificate(self.cert_path).leaf)
        self.assertEqual(1, len(self.said(records, logging.ERROR)))
        self.assertEqual(1, len(self.asked(RENEW)))

    def test_a_damaged_file_with_nothing_in_memory_never_ends_the_worker(self) -> None:
        self.cert_path.write_bytes(b"\xff\x00garbage")
        self.start(self.config())
        self.run_for(3600)
        self.assertEqual("unreadable", self.certificate_status().state)
        self.write(not_after=now() + 50 * DAY)
        self.run_for(60)
        self.assertEqual("valid", self.certificate_status().state)

    def test_an_unreadable_key_does_not_make_it_renew_again_and_again(self) -> None:
        self.start(self.config())
        self.mine.reload()
        (self.folder / "key").unlink()
        records = self.run_for(3600)
        self.assertEqual([], self.server.requests)
        self.assertEqual(1, len(self.said(records, logging.ERROR)))

    def test_an_expired_certificate_without_a_token_goes_on_trying_and_says_so(self) -> None:
        self.write(not_before=now() - 10 * DAY, not_after=now() - DAY)
        self.start(self.config())
        records = self.run_for(2 * 3600)
        self.assertEqual("expired", self.certificate_status().state)
        self.assertTrue(any("expired at" in message for message in self.said(records, logging.ERROR)))
        self.assertEqual([], self.refusals)
        self.assertGreater(len(self.server.handshake_failures), 2)

    def test_a_new_certificate_that_is_refused_gives_way_to_the_old_one(self) -> None:
        self.write(not_before=now() - 10 * DAY, not_after=now() + 9 * DAY)
        old = self.certificate
        self.start(self.config())
        self.server.route(
            *PROOF, handler=lambda request: Reply(200 if request.client_serial == old.serial_number else 403)
        )
        records = self.run_for(60)
        self.assertEqual(old, load_certificate(self.cert_path).leaf)
        self.assertEqual(1, len(self.said(records, logging.ERROR)))

    def test_a_trial_that_was_left_open_is_finished(self) -> None:
        self.write(not_before=now() - 10 * DAY, not_after=now() + 9 * DAY)
        self.start(self.config())
        self.server.route(*PROOF, Reset(), Reset(), Reset(), Reset(), Reply(200))
        self.run_for(30)
        self.assertTrue(install.is_unverified(self.cert_path))
        self.run_for(180)
        self.assertFalse(install.is_unverified(self.cert_path))
        self.assertEqual(1, len(self.asked(RENEW)))

    def test_a_kick_in_the_middle_of_a_failing_try_makes_one_more_and_no_hot_loop(self) -> None:
        self.write(not_before=now() - 10 * DAY, not_after=now() + 9 * DAY)
        self.start(self.config())

        def failing(request: Request) -> Reply:
            self.worker.kick()
            return Reply(500)

        self.server.route(*RENEW, failing, Reply(500))
        self.run_for(20)
        self.assertLessEqual(len(self.asked(RENEW)), 2)

    def test_a_long_check_interval_is_within_the_workers_sign_of_life(self) -> None:
        self.start(self.config(tuning=TuningConfig(cert_check_interval=3600)))
        shutdown = ShutdownToken(self.clock)
        worker = CertRenewalWorker(
            self.services(shutdown),
            self.enrollment,
            self.renewal,
            enrollment_refused=self.refusals.append,
        )
        self.assertGreater(worker.limit, 3600)

    def test_secrets_that_others_can_read_are_reported_at_start(self) -> None:
        (self.folder / "key").chmod(0o644)
        self.start(self.config())
        (warning,) = set(self.said(self.run_for(60), logging.WARNING))
        self.assertIn("chmod 600", warning)


class TheKey(WorkerTestCase):
    def test_a_key_that_cannot_be_read_is_what_status_and_log_speak_of(self) -> None:
        self.start(self.config())
        (self.folder / "key").write_bytes(b"")
        records = self.run_for(300)
        status = self.certificate_status()
        self.assertEqual("no_key", status.state)
        self.assertIn(f"{self.folder / 'key'} is not a private key", status.failure or "")
        self.assertEqual(1, sum("is not a private key" in message for message in self.said(records, logging.ERROR)))


class Kicked(WorkerTestCase):
    def test_a_kick_makes_it_look_at_once_and_it_ends_with_the_shutdown(self) -> None:
        """In a thread, on the real clock: SIGHUP and SIGTERM reach it in the middle of its minute."""
        from nixfleet_agent.threads.clock import SystemClock

        clock = SystemClock()
        shutdown = ShutdownToken(clock)
        self.start(self.config())
        looks = threading.Semaphore(0)
        board = StatusBoard()
        publish = board.publish

        class Board(StatusBoard):
            def publish(self, section: Section[T] | str, value: T) -> None:
                publish(section, value)
                looks.release()

        worker = CertRenewalWorker(
            services(config=self.config_, clock=clock, shutdown=shutdown, board=Board(), credentials=self.mine),
            self.enrollment,
            self.renewal,
            enrollment_refused=self.refusals.append,
        )
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            self.assertTrue(looks.acquire(timeout=30))
            self.fleet.write_client(self.cert_path, self.key, "web-01", not_after=now() + 50 * DAY)
            worker.kick()
            self.assertTrue(looks.acquire(timeout=30))
            self.assertEqual(2, self.mine.generation)
        finally:
            shutdown.set()
            thread.join(30)
        self.assertFalse(thread.is_alive())


if __name__ == "__main__":
    unittest.main()
