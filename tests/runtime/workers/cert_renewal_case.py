"""A renewal worker with a certificate that ends."""

from __future__ import annotations

import logging
import random
import threading

from nixfleet_agent.config.model import Config
from nixfleet_agent.errors import EnrollmentRefusedError
from nixfleet_agent.runtime.services import Services
from nixfleet_agent.runtime.workers.cert_renewal import CertificateStatus, CertRenewalWorker
from nixfleet_agent.telemetry.status import StatusBoard
from nixfleet_agent.threads.shutdown import ShutdownToken
from tests.certificates.identity_base import NONCE, IdentityTestCase
from tests.runtime.parts import services
from tests.support.clock import FakeClock
from tests.support.tls import now

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
