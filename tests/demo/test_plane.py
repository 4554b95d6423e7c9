"""The control plane as a process: it obeys, survives a kill with its memory, and never outlives its owner."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import unittest
import urllib.request
from datetime import datetime, timedelta, timezone
from pathlib import Path

from nixfleet_agent.demo.errors import DemoError
from nixfleet_agent.demo.plane import ControlPlaneProcess, Pace
from nixfleet_agent.demo.processes import inherited
from nixfleet_agent.local_cp.ci import ChannelDescription, ContinuousIntegration, FleetDescription, WaveDescription
from nixfleet_agent.local_cp.happenings import Notification
from nixfleet_agent.state_machine import State
from tests.local_cp.scripted import ScriptedAgent, to_converged
from tests.support.signing import closure_name

PATIENCE = 60.0
TARGET = closure_name("web-01-aaa1")
ROLLOUT = "stable@aaa1"


class PlaneCase(unittest.TestCase):
    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory(prefix="plane-")
        self.addCleanup(scratch.cleanup)
        self.folder = Path(scratch.name)
        self.ci = ContinuousIntegration()
        self.told: list[Notification] = []
        self.news = threading.Condition()
        self.plane = self.make()
        self.addCleanup(self.plane.close)

    def make(self, port: int = 0) -> ControlPlaneProcess:
        return ControlPlaneProcess(
            self.folder / "cp",
            self.ci.org_root_public,
            inherited(),
            self.watch,
            Pace(
                certificate_lifetime=timedelta(hours=1),
                extra_soak=timedelta(0),
                redeliver_after=timedelta(seconds=1),
            ),
            hosts=self.folder / "hosts",
            port=port,
        )

    def watch(self, happening: Notification) -> None:
        with self.news:
            self.told.append(happening)
            self.news.notify_all()

    def await_told(self, what: str, state: State | None = None) -> Notification:
        def found() -> Notification | None:
            return next((h for h in self.told if h.what == what and (state is None or h.state is state)), None)

        with self.news:
            self.assertTrue(self.news.wait_for(lambda: found() is not None, PATIENCE), (what, self.told))
            happening = found()
        assert happening is not None
        return happening

    def publish(self) -> None:
        fleet = FleetDescription(channels={"stable": ChannelDescription(waves=(WaveDescription(("web-01",)),))})
        self.plane.publish(self.ci.release(fleet, "aaa1", {"web-01": TARGET}, datetime.now(timezone.utc)))

    def agent(self) -> ScriptedAgent:
        port = int(self.plane.url.rpartition(":")[2])
        agent = ScriptedAgent("web-01", port, self.plane.ca_file, self.folder)
        self.addCleanup(agent.close)
        token = self.ci.token("web-01", agent.key.fingerprint, datetime.now(timezone.utc), timedelta(hours=1))
        self.publish()  # the list that the token is on
        self.assertEqual(agent.enroll(token).status, 200)
        return agent


class Killed(PlaneCase):
    def test_it_comes_back_at_the_same_address_with_the_same_ca_and_all_that_it_knew(self) -> None:
        self.plane.start()
        self.publish()
        agent = self.agent()
        agent.beat()
        self.assertIsNotNone(agent.poll(wait=10))
        for kind, fields in to_converged(TARGET):
            self.assertEqual(agent.event(ROLLOUT, kind, **fields).status, 204)
        self.await_told("Converged", State.CONVERGED)
        before = (self.plane.url, self.plane.page_url, self.plane.ca_file.read_bytes(), self.plane.pid)

        self.plane.kill()
        self.assertIsNone(self.plane.pid)
        self.told.clear()
        agent.close()
        self.plane.start()

        after = (self.plane.url, self.plane.page_url, self.plane.ca_file.read_bytes())
        self.assertEqual(after, before[:3])
        self.assertNotEqual(self.plane.pid, before[3])
        self.assertEqual(self.await_told("Known").state, State.CONVERGED)
        self.assertEqual(agent.beat().status, 200)  # its certificate is still good
        with self.plane.store() as store:
            self.assertEqual(store.arrivals("web-01", ROLLOUT), [1, 2, 3, 4, 5, 6])
            self.assertEqual(store.certificates(), {"web-01": 1})

    def test_without_its_database_it_asks_for_everything_again(self) -> None:
        self.plane.start()
        self.publish()
        agent = self.agent()
        agent.beat()
        self.assertIsNotNone(agent.poll(wait=10))
        for kind, fields in to_converged(TARGET):
            agent.event(ROLLOUT, kind, **fields)
        self.plane.kill()
        self.plane.forget()
        agent.close()
        self.plane.start()
        self.assertEqual(agent.beat().headers["x-nixfleet-replay-from"], "1")

    def test_what_is_published_while_it_is_down_is_served_when_it_is_back(self) -> None:
        self.plane.start()
        self.plane.kill()
        self.publish()
        self.plane.start()
        self.assertEqual(self.agent().call("GET", "/v1/fleet.resolved").status, 200)

    def test_an_end_that_nobody_asked_for_is_noticed(self) -> None:
        self.plane.start()
        self.plane.look_after()
        assert self.plane.pid is not None
        pid = self.plane.pid
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with self.assertRaisesRegex(DemoError, "does not take orders|can't fault: it ended"):
            self.plane.fault("delay", 1)
        with self.assertRaisesRegex(DemoError, "control plane's log"):
            self.plane.look_after()


class Orders(PlaneCase):
    def test_an_order_that_makes_no_sense_is_refused_and_changes_nothing(self) -> None:
        self.plane.start()
        for name, value in (("fire", 1), ("delay", "long"), ("tampered", "v1"), ("wrong_closures", [])):
            with self.subTest(name), self.assertRaisesRegex(DemoError, f"no fault '{name}'"):
                self.plane.fault(name, value)
        self.plane.look_after()

    def test_a_fault_is_there_until_a_restart(self) -> None:
        self.plane.start()
        self.publish()
        agent = self.agent()
        self.plane.fault("partition", True)
        with self.assertRaises(OSError):
            agent.beat()
        self.plane.kill()
        self.plane.start()
        agent.close()
        self.assertEqual(agent.beat().status, 200)

    def test_a_port_that_is_taken_is_one_line(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            plane = self.make(port)
            with self.assertRaisesRegex(DemoError, f"can't listen on 127.0.0.1:{port}: Address already in use"):
                plane.start()
            self.assertIsNone(plane.pid)


class Alone(PlaneCase):
    def start_alone(self, *more: str) -> subprocess.Popen[str]:
        key = "A" * 43 + "="
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "nixfleet_agent.local_cp",
                f"--dir={self.folder / 'alone'}",
                f"--org-root={key}",
                *more,
            ],
            env=inherited(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe is not None
            self.addCleanup(pipe.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def test_it_ends_with_its_owner(self) -> None:
        process = self.start_alone("--orders")
        assert process.stdout is not None and process.stdin is not None
        self.assertIn("listening", process.stdout.readline())
        process.stdin.close()
        self.assertEqual(process.wait(PATIENCE), 0)

    def test_without_orders_it_serves_until_a_signal(self) -> None:
        process = self.start_alone()
        assert process.stdout is not None and process.stdin is not None
        listening = json.loads(process.stdout.readline())["listening"]
        process.stdin.close()
        with urllib.request.urlopen(listening["page"], timeout=10) as answer:
            self.assertIn(b"nothing released yet", answer.read())
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(PATIENCE), 0)

    def test_a_line_that_is_no_order_is_answered_and_nothing_ends(self) -> None:
        process = self.start_alone("--orders")
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
        for line, said in (
            ("nonsense", "not an order"),
            ("[]", "not an order"),
            ('{"order": "x", "id": 7}', "no order 'x'"),
        ):
            process.stdin.write(line + "\n")
            process.stdin.flush()
            self.assertIn(said, json.loads(process.stdout.readline())["error"])

    def test_it_has_room_for_the_connections_of_a_large_fleet(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        process = self.start_alone()
        assert process.stdout is not None
        self.assertIn("listening", process.stdout.readline())
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        self.assertRegex(limits, rf"(?m)^Max open files +{hard} +{hard} ")

    def assert_refuses(self, *arguments: str, code: int, says: str) -> None:
        """It ends with this code, and the last line that it says has these words; none is a traceback's."""
        process = subprocess.run(
            [sys.executable, "-m", "nixfleet_agent.local_cp", "--dir", str(self.folder / "alone"), *arguments],
            env=inherited(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        self.assertEqual(process.returncode, code, process.stderr)
        self.assertIn(says, process.stderr.splitlines()[-1])
        self.assertNotIn("Traceback", process.stderr)

    def test_what_can_not_be_served_is_one_line(self) -> None:
        good = ("--org-root", "A" * 43 + "=")
        self.assert_refuses("--org-root", "AAAA", code=2, says="a key has 32 bytes, this has 3")
        for option, value, says in (
            ("--port", "70000", "'70000' is not a port"),
            ("--page-port", "x", "'x' is not a port"),
            ("--certificate-secs", "nan", "'nan' is not from 0 to"),
            ("--extra-soak", "1e300", "'1e300' is not from 0 to"),
            ("--redeliver-after", "soon", "'soon' is not a number of seconds"),
        ):
            with self.subTest(option):
                self.assert_refuses(*good, option, value, code=2, says=says)
        (self.folder / "alone").mkdir()
        database = self.folder / "alone" / "cp.sqlite"
        database.write_bytes(b"x" * 5000)
        self.assert_refuses(*good, code=78, says="cp.sqlite can't be used: file is not a database")
        self.assertEqual(database.read_bytes(), b"x" * 5000)
        published = self.folder / "alone" / "published"
        published.mkdir()
        for name in ("fleet.resolved", "fleet.resolved.sig"):
            (published / name).write_bytes(b"x")
        self.assert_refuses(*good, code=1, says="fleet.resolved is not JSON")


if __name__ == "__main__":
    unittest.main()
