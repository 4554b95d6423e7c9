"""How the long poll waits for its turn."""

from __future__ import annotations

import unittest

from tests.artifacts.release_base import ROLLOUT, rollout_path
from tests.runtime.workers.longpoll_case import PATH, LongPollTestCase
from tests.support.behaviours import Hang, Reply
from tests.support.signing import closure_name


class Held(LongPollTestCase):
    def test_a_hold_keeps_it_without_further_requests_and_without_the_window_running(self) -> None:
        release = self.publish(self.release(freshness_minutes=1))
        self.hold = "release freeze"
        self.run_worker(self.dispatch(release))
        self.seconds(1)
        self.assertEqual(self.refusals(), [("kept", "hold")])
        self.assertTrue(self.pending()["held"])
        self.seconds(200)
        self.assertEqual(len(self.asked(rollout_path())), 1)
        self.assertEqual(self.accepted, [])
        self.hold = None
        self.publish(self.release(freshness_minutes=1))
        self.seconds(15)
        self.assertEqual(len(self.accepted), 1)

    def test_a_maintenance_window_that_is_not_open_keeps_it_as_a_hold_does(self) -> None:
        self.window = "no maintenance window is open"
        self.run_worker(self.dispatch(self.publish(self.release(freshness_minutes=1))))
        self.seconds(200)
        self.assertEqual((self.accepted, self.refusals()), ([], [("kept", "window")]))
        self.assertTrue(self.pending()["held"])
        self.assertEqual(self.told_accepted, [])
        self.window = None
        self.publish(self.release(freshness_minutes=1))
        self.seconds(15)
        self.assertEqual(len(self.accepted), 1)
        self.assertEqual(self.told_accepted, [ROLLOUT])

    def test_a_refusal_is_told_under_a_hold_too(self) -> None:
        release = self.publish()
        self.hold = "release freeze"
        with self.assertLogs("nixfleet_agent.longpoll", "ERROR"):
            self.run_worker(self.dispatch(release, target_closure=closure_name("evil")))
            self.seconds(1)
        self.assertEqual(self.refusals(), [("refused", "closure_mismatch")])

    def test_a_quarantined_closure_is_not_activated_until_it_is_cleared(self) -> None:
        release = self.publish()
        self.quarantine = "failed an hour ago"
        self.run_worker(self.dispatch(release))
        self.seconds(30)
        self.assertEqual((self.accepted, self.refusals()), ([], [("kept", "quarantine")]))
        self.quarantine = None
        self.seconds(10)
        self.assertEqual(len(self.accepted), 1)


class Polling(LongPollTestCase):
    def test_a_server_that_ignores_wait_is_asked_once_a_second(self) -> None:
        self.run_worker()
        self.seconds(20)
        self.assertEqual(len(self.asked(PATH)), 21)
        self.assertEqual(set(self.waits()), {"60"})

    def test_empty_and_null_bodies_are_no_work(self) -> None:
        self.run_worker(b"", b"null", b" null\n")
        self.seconds(4)
        self.assertEqual(self.counted("dispatches"), {})

    def test_errors_are_said_once_for_each_reason_and_backed_off(self) -> None:
        with self.assertLogs("nixfleet_agent.longpoll", "INFO") as logs:
            self.run_worker(*[Reply(503, b"no")] * 6, *[Reply(401)] * 2)
            while len(self.asked(PATH)) < 9:
                self.seconds(1)
            self.seconds(1)
        levels = [record.levelname for record in logs.records]
        self.assertEqual(levels, ["WARNING", "WARNING", "INFO"])

    def test_retry_after_is_honoured(self) -> None:
        self.run_worker(Reply(429, b"", {"Retry-After": "30"}))
        self.seconds(29)
        self.assertEqual(len(self.asked(PATH)), 1)
        self.seconds(2)
        self.assertGreaterEqual(len(self.asked(PATH)), 2)

    def test_redirects_are_not_followed(self) -> None:
        self.server.route("GET", "/elsewhere", Reply(200, self.dispatch(self.publish())))
        self.run_worker(Reply(302, b"", {"Location": self.server.url + "/elsewhere"}))
        self.seconds(5)
        self.assertEqual((self.asked("/elsewhere"), self.accepted), ([], []))

    def test_a_poll_that_hangs_ends_with_shutdown(self) -> None:
        self.server.route("GET", PATH, Hang())
        self._start(self.worker.run)
        self.until_asked(PATH)
        self.stop()


if __name__ == "__main__":
    unittest.main()
