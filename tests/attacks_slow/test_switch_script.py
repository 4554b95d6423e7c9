"""The daemon as a process, with real Nix and a real switch script: after every kind of lie only what CI signed ran."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import unittest
from pathlib import Path
from typing import Any, ClassVar

from tests.attacks.case import HOSTS
from tests.attacks.host import MACHINE
from tests.attacks.liar import DISPATCH, FLEET, HEARTBEAT, Liar, LyingServer, ago, minutes, rollout_path
from tests.support.behaviours import GzipBomb, HalfBody, Raw, Reply, Reset
from tests.support.nix import Nixery
from tests.support.signing import CiSigner, Release, manifest_value
from tests.support.tls import Authority, now, write_host_key

TOP = Path(__file__).resolve().parent.parent.parent
PATIENCE = 60.0


class SwitchScript(unittest.TestCase):
    """``good`` is what CI signs in the end; ``evil`` lies in the same cache, and any host could fetch it."""

    nixery: ClassVar[Nixery]
    former: ClassVar[str]
    good: ClassVar[str]
    evil: ClassVar[str]

    @classmethod
    def setUpClass(cls) -> None:
        cls.nixery = Nixery()
        cls.addClassCleanup(cls.nixery.close)
        cls.former, cls.good, cls.evil = (cls.nixery.system(name) for name in ("former", "good", "evil"))

    def setUp(self) -> None:
        self.nix = self.nixery.host("web-01")
        self.nix.boot(self.former)
        folder = self.folder = self.nix.root
        self.authority, self.ci = Authority("fleet CA"), CiSigner()
        certificate, key = self.authority.write_server(folder)
        self.server = LyingServer(certificate, key, client_ca=self.authority.write_ca(folder / "ca.pem"))
        self.addCleanup(self.server.close)
        self.liar = Liar(self.server, self.authority, MACHINE)
        host_key = write_host_key(folder / "key")
        self.authority.write_client(folder / "agent-cert.pem", host_key, MACHINE)
        (folder / "trust.json").write_bytes(self.ci.trust_bytes())
        (folder / "health-checks.json").write_text("{}")
        self._commits = 0
        self.write_config()
        self.start()

    def write_config(self) -> None:
        folder = self.folder
        agent: dict[str, Any] = {
            "control_plane_url": self.server.url,
            "machine_id": MACHINE,
            "trust_file": folder / "trust.json",
            "ca_cert": folder / "ca.pem",
            "client_cert": folder / "agent-cert.pem",
            "client_key": folder / "key",
            "state_dir": self.nix.state_dir,
            "ssh_host_key_file": folder / "key",
            "health_checks_file": folder / "health-checks.json",
        }
        activation = self.nix.activation
        tables: dict[str, dict[str, Any]] = {
            "activation": {name: getattr(activation, name) for name in activation.__slots__},
            "prefetch": {"enabled": False},
            "tuning": {
                "dispatch_wait": 5,
                "heartbeat_interval": 0.3,
                "manifest_poll_interval": 0.3,
                "drain_interval": 0.3,
                "advance_interval": 0.1,
                "backoff_initial": 0.05,
                "backoff_max": 0.2,
            },
        }
        lines = [f"{k} = {json.dumps(str(v))}" for k, v in agent.items()]
        for table, keys in tables.items():
            lines.append(f"[{table}]")
            lines += [f"{k} = {json.dumps(str(v) if isinstance(v, Path) else v)}" for k, v in keys.items()]
        (folder / "agent.toml").write_text("\n".join(lines) + "\n")

    def start(self) -> None:
        with (self.folder / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "nixfleet_agent", "run", "--config", str(self.folder / "agent.toml")],
                env=self.nix.environment | {"PYTHONPATH": str(TOP)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.addCleanup(self.stop, self.process)

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.wait(20), 0)
        self.liar.hang_up()

    def release(self, closure: str, **options: Any) -> Release:
        self._commits += 1
        options.setdefault("signed_at", now())
        closures = {MACHINE: closure}
        release = self.ci.release(HOSTS, commit=f"{self._commits:07x}", closures=closures, soak_minutes=0, **options)
        self.liar.publish(release)
        return release

    def until(self, condition: Any, what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            self.assertIsNone(self.process.poll(), "the agent lives")
            if time.monotonic() > deadline:
                raise AssertionError(f"never: {what}; {(self.folder / 'agent.log').read_text()[-2000:]}")
            time.sleep(0.02)

    def handled(self, rollout_id: str) -> None:
        """The log has said what became of an order."""
        log = self.folder / "agent.log"
        words = ("was refused", "is kept for later")
        self.until(
            lambda: any(rollout_id in line and any(w in line for w in words) for line in log.read_text().splitlines()),
            f"{rollout_id} is refused or kept",
        )

    def test_no_lie_runs_a_switch_script_and_the_truth_does(self) -> None:
        for lie in (
            self.closure_that_was_not_signed,
            self.manifest_of_another_key,
            self.stale_release,
            self.release_of_the_future,
            self.manifest_that_was_changed,
            self.older_than_accepted,
            self.broken_bodies,
            self.hostile_hints,
        ):
            with self.subTest(lie.__name__):
                lie()
                self.assertEqual(self.nix.switches(), [])
                self.assertEqual(self.nix.running(), self.former)
        with self.subTest("killed and started again"):
            self.process.kill()
            self.process.wait()
            self.liar.hang_up()
            self.start()
            time.sleep(1.0)
            self.assertEqual(self.nix.switches(), [])
        self.liar.lies.clear()
        self.liar.snapshots = []
        honest = self.release(self.good)
        rollout_id = honest.rollout_id("stable")
        self.liar.dispatch(rollout_id, self.good)
        self.until(lambda: "Converged" in self.liar.kinds(rollout_id), "the honest release converges")
        self.assertEqual(self.nix.running(), self.good)
        self.assertEqual({call.split()[1] for call in self.nix.switches()}, {self.good})
        self.assertFalse(self.nix.has(self.evil), "what CI did not sign was never even fetched")
        started = [e for e in self.liar.events if e["event"]["kind"] == "ActivationStarted"]
        self.assertEqual([e["rolloutId"] for e in started], [rollout_id])

    def closure_that_was_not_signed(self) -> None:
        release = self.release(self.good)
        self.liar.dispatch(release.rollout_id("stable"), self.evil)
        self.handled(release.rollout_id("stable"))

    def manifest_of_another_key(self) -> None:
        release = self.release(self.evil)
        forged = CiSigner().sign(release.rollout("stable").value)
        self.liar.serve(rollout_path(release.rollout_id("stable")), forged.raw, forged.signature)
        self.liar.dispatch(release.rollout_id("stable"), self.evil)
        self.handled(release.rollout_id("stable"))

    def manifest_that_was_changed(self) -> None:
        release = self.release(self.good)
        raw = release.rollout("stable").raw.replace(self.good.encode(), self.evil.encode())
        self.liar.serve(rollout_path(release.rollout_id("stable")), raw)
        self.liar.dispatch(release.rollout_id("stable"), self.evil)
        self.handled(release.rollout_id("stable"))

    def stale_release(self) -> None:
        release = self.release(self.evil, signed_at=ago(70))
        self.liar.dispatch(release.rollout_id("stable"), self.evil)
        self.handled(release.rollout_id("stable"))

    def release_of_the_future(self) -> None:
        release = self.release(self.evil, signed_at=now() + minutes(5))
        self.liar.dispatch(release.rollout_id("stable"), self.evil)
        self.handled(release.rollout_id("stable"))

    def older_than_accepted(self) -> None:
        older = self.release(self.evil, signed_at=ago(5))
        marks = self.nix.state_dir / "trust-marks.json"
        before = marks.read_bytes() if marks.exists() else b""
        self.release(self.good)
        self.until(lambda: marks.exists() and marks.read_bytes() != before, "the newer release is known")
        self.liar.dispatch(older.rollout_id("stable"), self.evil)
        self.handled(older.rollout_id("stable"))

    def broken_bodies(self) -> None:
        release = self.release(self.good)
        order = json.dumps(self.liar.order(release.rollout_id("stable"), self.evil)).encode()
        for body in (order[:-1], order[:-1] + b',"hostname":"web-01"}', b"[" * 70 + b"]" * 70, Reset(), HalfBody()):
            self.liar.offer(body)
        self.liar.offer(GzipBomb(8 * 1024 * 1024))
        self.liar.offer(Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nx"))
        asked = len(self.liar.asked(DISPATCH))
        self.until(lambda: len(self.liar.asked(DISPATCH)) >= asked + 7, "all of them were handed out")

    def hostile_hints(self) -> None:
        release = self.release(self.evil)
        forged = CiSigner().sign(manifest_value(release.fleet, "stable", release.closures, signed_at=now()))
        self.liar.serve(rollout_path(release.rollout_id("stable")), forged.raw, forged.signature)
        self.liar.lies["GET", FLEET] = Reply(500)
        rollout_id = release.rollout_id("stable")
        self.liar.snapshots = [
            self.liar.snapshot(rollout_id, closure, state, lastEventSeq=2**53 - 1)
            for closure in (self.evil, self.former)
            for state in ("Pending", "Activating", "Soaking", "Failed")
        ]
        beats = len(self.liar.asked(HEARTBEAT))
        self.until(lambda: len(self.liar.asked(HEARTBEAT)) > beats + 2, "heartbeats go on")


if __name__ == "__main__":
    unittest.main()
