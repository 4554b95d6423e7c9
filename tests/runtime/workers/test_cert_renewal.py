"""The cert_renewal worker over simulated hours: when it acts, how it waits, and that nothing ends it."""

from __future__ import annotations

import itertools
import logging
import random
import threading
import unittest
from datetime import timedelta
from typing import Any

from nixfleet_agent.config.model import Config, TuningConfig
from nixfleet_agent.errors import EnrollmentRefusedError
from nixfleet_agent.identity import install
from nixfleet_agent.identity.certificate import load_certificate
from nixfleet_agent.runtime.services import Services
from nixfleet_agent.runtime.workers.cert_renewal import CertificateStatus, CertRenewalWorker
from nixfleet_agent.telemetry.status import Section, StatusBoard, T
from nixfleet_agent.threads.shutdown import ShutdownToken
from tests.certificates.identity_base import ENROLL, NONCE, PROOF, RENEW, IdentityTestCase
from tests.runtime.parts import services
from tests.support.clock import FakeClock
from tests.support.https_server import Reply, Request, Reset, page
from tests.support.tls import DAY, HOUR, Authority, now

LOGGER = "nixfleet_agent.cert_renewal"


class EndingClock(FakeClock):
    """A clock that ends the run when its time is over, so that the worker's own loop runs in the test's thread."""

    shutdown: ShutdownToken

    def services(self, shutdown: ShutdownToken) -> Services:
        return services(
            config=self.config_, clock=self.clock, shutdown=shutdown, board=self.status, credentials=self.mine
        )

    def run_for(self, seconds: float) -> None:
        self.end = self.monotonic() + seconds
        self.waits = 0

    def wait(self, event: threading.Event, timeout: float | None) -> bool:
        assert timeout is not None
        self.waits += 1
        assert self.waits < 1000, "the worker hardly waits: a hot loop"
        if self.monotonic() + timeout > self.end:
            self.shutdown.set()
            return True
        if not event.is_set():
            self.advance(timeout)
        return event.is_set()


class WorkerTestCase(IdentityTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.clock = EndingClock(now())
        self.refusals: list[EnrollmentRefusedError] = []
        self.status = StatusBoard()

    def start(self, config: Config) -> None:
        """Build a worker and its parts, as after a start of the agent."""
        self.config_ = config
        self.enrollment, self.renewal, self.mine = self.parts(config)

    def services(self, shutdown: ShutdownToken) -> Services:
        return services(
            config=self.config_, clock=self.clock, shutdown=shutdown, board=self.status, credentials=self.mine
        )

    def run_for(self, seconds: float) -> list[logging.LogRecord]:
        """Let a new worker over the same parts run for so many simulated seconds; what it logged."""
        shutdown = ShutdownToken(self.clock)
        self.clock.shutdown = shutdown
        self.clock.run_for(seconds)
        worker = CertRenewalWorker(
            self.services(shutdown),
            self.enrollment,
            self.renewal,
            enrollment_refused=self.refusals.append,
            rng=random.Random(7),
        )
        self.worker = worker
        logging.getLogger(LOGGER).setLevel(logging.DEBUG)
        with self.assertLogs(LOGGER, logging.DEBUG) as logs:
            logging.getLogger(LOGGER).debug("start")
            worker.run()
        for record in logs.records:
            self.assertNotIn(NONCE, record.getMessage())
            self.assertNotIn("PRIVATE KEY", record.getMessage())
        return logs.records[1:]

    def said(self, records: list[logging.LogRecord], level: int) -> list[str]:
        return [record.getMessage() for record in records if record.levelno == level]

    def certificate_status(self) -> CertificateStatus:
        status = self.status.get("certificate")
        assert isinstance(status, CertificateStatus)
        return status


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


class Enrolling(WorkerTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.cert_path.unlink()
        self.write_token(expiresAt=self.stamp(timedelta(days=3)))
        self.start(self.config(bootstrap_token_file=self.token_path))

    def test_a_host_without_a_certificate_enrolls_at_once(self) -> None:
        self.run_for(1)
        self.assertEqual(self.issued[0], load_certificate(self.cert_path).leaf)
        self.assertEqual("valid", self.certificate_status().state)
        self.run_for(3600)
        self.assertEqual(1, len(self.asked(ENROLL)))

    def test_a_cold_start_is_asked_again_every_ten_times_the_initial_backoff(self) -> None:
        times: list[float] = []

        def cold(request: Request) -> Reply:
            times.append(self.clock.monotonic())
            return Reply(503, b"control plane not ready")

        self.server.route(*ENROLL, cold)
        records = self.run_for(120)
        gaps = {round(later - earlier, 6) for earlier, later in itertools.pairwise(times)}
        self.assertEqual({10.0}, gaps)
        self.assertEqual(1, len(self.said(records, logging.WARNING)))
        self.server.route(*ENROLL, self.sign)
        self.run_for(60)
        self.assertTrue(self.cert_path.exists())

    def test_a_network_failure_is_retried_within_the_usual_backoff(self) -> None:
        self.server.route(*ENROLL, Reply(500), Reply(500), Reply(500), self.sign)
        self.run_for(20)
        self.assertTrue(self.cert_path.exists())

    def test_a_token_of_the_future_is_used_when_its_time_comes(self) -> None:
        self.write_token(issuedAt=self.stamp(timedelta(minutes=5)), expiresAt=self.stamp(timedelta(days=1)))
        self.run_for(290)
        self.assertEqual([], self.server.requests)
        self.run_for(60)
        self.assertTrue(self.cert_path.exists())

    def test_401_and_403_are_asked_again_for_the_tokens_whole_life_and_said_once(self) -> None:
        """The control plane reads its list of tokens and the fleet each minute: a new host is mostly too early."""
        for status in (401, 403):
            self.server.route(*ENROLL, Reply(status))
            before = len(self.asked(ENROLL))
            records = self.run_for(1200)
            asked = len(self.asked(ENROLL)) - before
            self.assertTrue(20 <= asked <= 100, asked)
            self.assertEqual(1, len(self.said(records, logging.WARNING)))
            self.assertEqual([], self.said(records, logging.ERROR))
            self.assertIn("until the token expires at", self.certificate_status().failure or "")
        self.server.route(*ENROLL, self.sign)
        self.run_for(120)
        self.assertTrue(self.cert_path.exists())
        self.assertEqual([], self.refusals)

    def test_the_end_of_the_tokens_life_is_final_and_handed_up(self) -> None:
        self.write_token(expiresAt=self.stamp(timedelta(minutes=15)))
        self.server.route(*ENROLL, Reply(401))
        self.run_for(800)
        self.assertEqual([], self.refusals)
        self.run_for(400)
        self.assertTrue(self.refusals)
        self.assertIn("expired", str(self.refusals[0]))

    def test_a_token_for_another_host_is_final_at_once(self) -> None:
        self.write_token(hostname="web-02")
        self.run_for(10)
        self.assertEqual([77], [error.exit_code for error in self.refusals])

    def test_a_token_that_was_used_is_asked_for_seldom_and_never_final(self) -> None:
        self.server.route(*ENROLL, Reply(409))
        records = self.run_for(3600)
        self.assertEqual([], self.refusals)
        self.assertLess(len(self.asked(ENROLL)), 20)
        self.assertEqual(1, len(self.said(records, logging.ERROR)))
        self.server.route(*ENROLL, self.sign)
        self.run_for(3600)
        self.assertTrue(self.cert_path.exists())

    def test_an_answer_of_an_unknown_issuer_is_taken_when_the_trust_changes(self) -> None:
        issuing = Authority("agents' CA")

        def leaf_only(request: Request) -> Reply:
            return self.answer(issuing.issue_for_csr(request.json()["csrPem"], not_after=now() + 60 * DAY))

        self.server.route(*ENROLL, leaf_only, Reply(409))
        self.run_for(600)
        self.assertFalse(self.cert_path.exists())
        self.ca.write_bytes(self.ca.read_bytes() + issuing.pem)
        asked = len(self.asked(ENROLL))
        self.run_for(61)
        self.assertEqual("valid", self.certificate_status().state)
        self.assertEqual(asked, len(self.asked(ENROLL)), "at the next look, without another word on the wire")

    def test_a_used_token_with_an_expired_certificate_does_not_stop_renewals(self) -> None:
        self.fleet.write_client(self.cert_path, self.key, "web-01", not_before=now() - 9 * DAY, not_after=now() - DAY)
        self.server.route(*ENROLL, Reply(409))
        records = self.run_for(4 * 3600)
        self.assertGreater(len(self.asked(ENROLL)), 1)
        self.assertEqual([], self.refusals)
        # It goes on to renew, which a control plane may allow where the token is of no use any more.
        self.assertGreater(len(self.server.handshake_failures), 1)
        self.assertEqual(1, sum("used already" in message for message in self.said(records, logging.ERROR)))

    def test_a_front_that_answers_enrollments_does_not_stop_renewals(self) -> None:
        self.fleet.write_client(self.cert_path, self.key, "web-01", not_before=now() - 9 * DAY, not_after=now() - DAY)
        self.server.route(*ENROLL, page(403))
        self.run_for(600)
        self.assertGreater(len(self.asked(ENROLL)), 0)
        self.assertGreater(len(self.server.handshake_failures), 0)

    def test_a_certificate_that_is_refused_is_replaced_with_the_token(self) -> None:
        self.fleet.write_client(self.cert_path, self.key, "web-01")
        self.run_for(1)
        self.assertEqual([], self.asked(ENROLL), "a valid certificate leaves it unused")
        for proof, enrolls in ((Reply(200), False), (Reply(403), True)):
            self.server.route("GET", "/v1/x", Reply(403))
            self.server.route(*PROOF, proof)
            self.renewal._control_plane.get("/v1/x", deadline=5)
            self.run_for(120)
            self.assertEqual(enrolls, bool(self.asked(ENROLL)))
        self.assertEqual(self.issued[0], load_certificate(self.cert_path).leaf)

    def test_a_certificate_that_is_refused_without_a_token_is_said_once_until_it_is_let_in(self) -> None:
        self.fleet.write_client(self.cert_path, self.key, "web-01")
        self.start(self.config())
        self.run_for(1)
        self.server.route("GET", "/v1/x", Reply(403), Reply(204))
        self.server.route(*PROOF, Reply(403))
        self.renewal._control_plane.get("/v1/x", deadline=5)
        records = self.run_for(1800)
        (said,) = self.said(records, logging.ERROR)
        self.assertIn("is refused (status 403)", said)
        self.assertIn("bootstrap token", self.certificate_status().failure or "")
        self.renewal._control_plane.get("/v1/x", deadline=5)
        self.run_for(61)
        self.assertIsNone(self.certificate_status().failure)

    def test_a_final_refusal_with_an_expired_certificate_in_memory_alone_is_not_handed_up(self) -> None:
        self.fleet.write_client(self.cert_path, self.key, "web-01", not_before=now() - 9 * DAY, not_after=now() - DAY)
        self.mine.reload()
        self.cert_path.unlink()
        self.server.route(*ENROLL, Reply(409))
        self.run_for(600)
        self.assertGreater(len(self.asked(ENROLL)), 0)
        self.assertEqual([], self.refusals)

    def test_a_final_refusal_with_a_damaged_certificate_file_is_not_handed_up(self) -> None:
        self.cert_path.write_text("nonsense")
        self.server.route(*ENROLL, Reply(409))
        self.run_for(600)
        self.assertGreater(len(self.asked(ENROLL)), 0)
        self.assertEqual([], self.refusals)

    def test_an_expired_certificate_is_replaced_with_the_token(self) -> None:
        self.fleet.write_client(self.cert_path, self.key, "web-01", not_before=now() - 9 * DAY, not_after=now() - DAY)
        self.run_for(1)
        self.assertEqual([], self.asked(RENEW))
        self.assertEqual(self.issued[0], load_certificate(self.cert_path).leaf)

    def test_a_valid_certificate_leaves_the_token_unused(self) -> None:
        self.fleet.write_client(self.cert_path, self.key, "web-01")
        self.run_for(3600)
        self.assertEqual([], self.server.requests)

    def test_without_certificate_and_token_it_says_so_and_waits(self) -> None:
        self.start(self.config())
        records = self.run_for(3600)
        self.assertEqual("missing", self.certificate_status().state)
        self.assertIn("bootstrap_token_file", self.said(records, logging.ERROR)[0])
        self.assertEqual([], self.refusals)


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
