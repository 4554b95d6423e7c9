"""The disk is full, the file is held or no database, an answer breaks on its way: nothing is lost, all goes on."""

from __future__ import annotations

import http.client
import sqlite3
import threading
import time
import unittest
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory

from nixfleet_agent.errors import ConfigError
from nixfleet_agent.local_cp.server import Request, Response
from nixfleet_agent.local_cp.store import Store
from nixfleet_agent.proto.heartbeat import Heartbeat
from tests.local_cp.scripted import ControlPlaneCase, now, until_soaking

LOGGER = "nixfleet_agent.local_cp"
PATIENCE = 60.0


class TroubleCase(ControlPlaneCase):
    def until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not done():
            self.assertLess(time.monotonic(), deadline)
            threading.Event().wait(0.01)


class FullDisk(TroubleCase):
    def fill(self) -> None:
        """From now on the database can't grow."""
        (pages,) = self.cp.control.store.rows("PRAGMA page_count")[0]
        self.cp.control.store.rows(f"PRAGMA max_page_count = {pages}")

    def empty(self) -> None:
        self.cp.control.store.rows("PRAGMA max_page_count = 1000000")

    def test_an_event_is_answered_with_503_and_taken_when_there_is_room_again(self) -> None:
        rollout_id = self.publish("aaa1", ("web-01",))
        web = self.agent("web-01")
        web.beat()
        self.assertIsNotNone(web.poll(wait=10))
        large = {"receivedAt": now(), "unknown": "x" * 200_000}
        self.fill()
        with self.assertLogs(LOGGER, "WARNING") as logged:
            reply = web.event(rollout_id, "DispatchAck", seq=1, **large)
        self.assertEqual((reply.status, reply.body), (503, b"the database can't be used: database or disk is full"))
        self.assertEqual([record.exc_info for record in logged.records], [None])
        self.assertEqual(self.logged("web-01", rollout_id), [])
        self.empty()
        self.assertEqual(web.event(rollout_id, "DispatchAck", seq=1, **large).status, 204)
        self.assertEqual(self.logged("web-01", rollout_id), [(1, "DispatchAck")])

    def test_turns_are_given_when_there_is_room_again(self) -> None:
        names = tuple(f"web-{number:03}" for number in range(150))
        for name in names:
            self.cp.control.take_heartbeat(
                Heartbeat(
                    hostname=name,
                    at=datetime.now(timezone.utc),
                    agent_version="0.1.0",
                    uptime_secs=1,
                    rollout_id=None,
                    current_closure=None,
                    last_event_seq_by_rollout={},
                )
            )
        self.fill()
        with self.assertLogs(LOGGER, "WARNING") as logged:
            rollout_id = self.publish("aaa1", names)
            self.until(lambda: bool(logged.records))
        self.assertIn("no turns are given while the database can't be used", logged.output[0])
        self.assertEqual(self.cp.control.store.placements(rollout_id), {})
        self.empty()
        self.until(lambda: len(self.cp.control.store.queued()) == len(names))


class HeldFile(TroubleCase):
    def test_a_writer_from_elsewhere_makes_requests_wait_and_none_fail(self) -> None:
        """As somebody does who looks at the file with sqlite3, or a backup."""
        rollout_id = self.publish("aaa1", ("web-01",))
        web = self.agent("web-01")
        web.beat()
        self.assertIsNotNone(web.poll(wait=10))
        with closing(
            sqlite3.connect(self.cp.folder / "cp.sqlite", isolation_level=None, check_same_thread=False)
        ) as db:
            db.execute("BEGIN IMMEDIATE")
            release = threading.Timer(0.5, db.execute, ("ROLLBACK",))
            release.start()
            self.addCleanup(release.join)
            self.play(web, rollout_id, until_soaking(self.target(rollout_id, "web-01")))
            release.join()


class NoDatabase(unittest.TestCase):
    def test_a_file_that_is_no_database_is_named_in_one_line(self) -> None:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "cp.sqlite"
            path.write_bytes(b"not a database, but long enough to be read as one" * 100)
            with self.assertRaisesRegex(ConfigError, "cp.sqlite can't be used: file is not a database: move it away"):
                Store(path)
            with self.assertRaisesRegex(ConfigError, "unable to open database file"):
                Store(Path(folder) / "missing" / "cp.sqlite")


class BrokenAnswers(TroubleCase):
    """With the usual patience of a minute and a half, which nobody waits for here."""

    def setUp(self) -> None:
        super().setUp()
        self.rollout_id = self.publish("aaa1", ("web-01",))
        self.web = self.agent("web-01")
        self.web.beat()
        self.until(lambda: "web-01" in self.cp.control.store.queued())

    def break_off(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        """A turn leaves the queue, and the connection breaks before the answer is written."""
        decided, broken = threading.Event(), threading.Event()
        answer = self.cp.server.answer

        def answer_late(request: Request) -> Response:
            response = answer(request)
            decided.set()
            broken.wait(PATIENCE)
            return response

        self.cp.server.answer = answer_late
        doomed = self.web.connect()
        self.addCleanup(doomed.close)
        doomed.request("GET", "/v1/agent/dispatch?wait=10")
        self.assertTrue(decided.wait(PATIENCE))
        self.cp.server.answer = answer
        self.assertEqual(self.cp.control.store.queued(), {})
        meanwhile()
        victims = self.cp.server.cut()
        broken.set()
        for victim in victims:
            victim.join(PATIENCE)
        with self.assertRaises((OSError, http.client.HTTPException)):
            doomed.getresponse()
        self.web.close()

    def test_a_turn_whose_answer_broke_is_given_again_at_once(self) -> None:
        self.break_off()
        turn = self.web.poll(wait=20)
        assert turn is not None
        self.assertEqual(turn["rollout_id"], self.rollout_id)

    def test_a_turn_whose_answer_broke_is_not_given_again_in_a_rollout_that_was_halted(self) -> None:
        self.break_off(lambda: self.cp.control.store.halt(self.rollout_id, "halted: by hand"))
        self.cp.control.dispatcher.plan_once()
        self.assertIsNone(self.web.poll(wait=0.2))


if __name__ == "__main__":
    unittest.main()
