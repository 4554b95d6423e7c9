"""Unsigned hints: snapshots, replay requests and sequence numbers may cost repeats, never a switch or an event."""

from __future__ import annotations

import json
import unittest
from typing import Any

from tests.attacks.case import AttackCase
from tests.attacks.host import MACHINE, RUNNING
from tests.attacks.liar import EVENTS, HEARTBEAT, rollout_path
from tests.support.behaviours import Reply
from tests.support.signing import closure_name

HUGE: tuple[Any, ...] = (-1, 2**31, 2**53 - 1, 2**53, 2**64, 10**400, 1.5, 1e300, "7", None, True, [], {})


class Hints(AttackCase):
    def heartbeats(self, count: int = 2) -> None:
        before = len(self.liar.heartbeats)
        self.until(lambda: len(self.liar.heartbeats) >= before + count, "heartbeats go on")

    def adopt(self, **changes: Any) -> None:
        """The host runs what CI signed for it, has no log of it, and the control plane says so."""
        self.publish()
        self.host.run_system(self.closure)
        self.liar.snapshots = [self.liar.snapshot(self.rollout_id, self.closure, **changes)]
        self.start()

    def test_hostile_snapshots(self) -> None:
        """Of another host, another closure, another rollout, in any state: none of them is adopted, none fires."""
        self.publish()
        evil, rollout_id = closure_name("nixos-system-evil"), self.rollout_id
        for state in ("Pending", "Activating", "Deferred", "Soaking", "Failed", "Reverted", "Converged"):
            self.liar.snapshots += [
                self.liar.snapshot(rollout_id, evil, state),
                self.liar.snapshot(rollout_id, self.closure, state),
                self.liar.snapshot(rollout_id, RUNNING, state),
                self.liar.snapshot("stable@bad", RUNNING, state),
                self.liar.snapshot(rollout_id, self.closure, state, hostname="web-02"),
            ]
        snapshots, self.liar.snapshots = self.liar.snapshots, []
        self.start()
        for begin in range(0, len(snapshots), 5):
            with self.attempt(snapshots[begin]["state"]):
                self.liar.snapshots = snapshots[begin : begin + 5]
                self.heartbeats()
                self.assert_untouched()
        self.liar.snapshots = []
        self.assert_only_delayed()

    def test_malformed_snapshots(self) -> None:
        self.publish()
        good = self.liar.snapshot(self.rollout_id, self.closure)
        wrong: list[Any] = [None, 1, "x", [], {}, [[]] * 3]
        strange: list[Any] = [None, 7, [], "../..", "x" * 9000, "\x1b[2J"]
        wrong += [{**good, key: value} for key in good for value in strange]
        self.start()
        with self.attempt(f"{len(wrong)} of them"):
            self.liar.snapshots = wrong
            self.heartbeats()
        with self.attempt("a thousand good ones"):
            self.liar.snapshots = [{**good, "rolloutId": f"stable@{n:x}"} for n in range(1000)]
            self.heartbeats(3)
            # What does not run here can't be adopted, so a hint at it costs no request.
            paths = {request.path for request in list(self.server.requests)}
            self.assertFalse(paths & {rollout_path(f"stable@{n:x}") for n in range(2, 1000)})
        for body in (b"null", b"[]", b"7", b'{"bootstrap_rollouts": {}}', b'{"bootstrap_rollouts": "all"}', b""):
            with self.attempt(body):
                self.liar.lies["POST", HEARTBEAT] = Reply(200, body)
                asked = len(self.liar.asked(HEARTBEAT))
                self.until(lambda n=asked: len(self.liar.asked(HEARTBEAT)) > n + 1, "heartbeats go on")
        self.liar.snapshots = []
        self.assert_only_delayed()

    def test_a_hint_never_replaces_what_is_accepted(self) -> None:
        self.start()
        self.assert_honest_order_is_taken()
        switches, journal = list(self.life.switches), self.host.journal()
        former = self.rollout_id
        self.publish()
        self.liar.lies["POST", HEARTBEAT] = lambda request: Reply(
            200,
            json.dumps(
                {
                    "bootstrap_rollouts": [
                        self.liar.snapshot(former, closure_name("evil"), "Failed", lastEventSeq=999),
                        self.liar.snapshot(former, self.closure, "Reverted", lastEventSeq=999),
                        self.liar.snapshot(self.rollout_id, RUNNING, "Activating"),
                    ]
                }
            ).encode(),
        )
        with self.attempt("while it is active"):
            asked = len(self.liar.asked(HEARTBEAT))
            self.until(lambda: len(self.liar.asked(HEARTBEAT)) > asked + 2, "heartbeats go on")
        self.assertEqual(self.life.switches, switches)
        self.assertEqual(self.host.journal(), journal)
        self.assertEqual(self.life.status()["host"]["active_id"], former)

    def test_huge_negative_and_overflowing_seqs(self) -> None:
        """Whatever the control plane says that the last seq was, what happens here gets a number and arrives."""
        for seq in HUGE:
            with self.attempt(f"adopted with {str(seq)[:20]}"):
                self.adopt(lastEventSeq=seq)
                rollout_id = self.rollout_id
                taken = isinstance(seq, int) and not isinstance(seq, bool) and 0 <= seq < 2**52
                if taken:
                    self.until(
                        lambda r=rollout_id: "ProbeTopologyDeclared" in self.liar.kinds(r), "events of it arrive"
                    )
                    first = next(e["event"] for e in self.liar.events if e["rolloutId"] == rollout_id)
                    self.assertLess(first["seq"], 2**52)
                    self.assertFalse(list((self.host.state_dir / "outbound-corrupt").glob("*")))
                else:
                    self.heartbeats(4)
                    self.assertEqual(self.host.journal(), [])
                self.assertEqual(self.life.switches, [])
                self.assert_alive()
            self.host.stop()
            self.wipe()
        self.liar.snapshots = []
        self.host.run_system(RUNNING)
        self.start()
        self.assert_honest_order_is_taken()

    def test_seqs_of_an_open_rollout_rise_by_little(self) -> None:
        """Restart after restart, a control plane may raise the number; it never runs out."""
        self.start()
        self.assert_honest_order_is_taken()
        for seq in (2**53 - 1, 2**40, 5):
            with self.attempt(seq):
                self.liar.snapshots = [self.liar.snapshot(self.rollout_id, self.closure, "Pending", lastEventSeq=seq)]
                self.start()
                self.heartbeats()
                records = self.life.status()["rollouts"]
                self.assertLess(records[0]["last_event_seq"], 10_000)
        self.assert_alive()

    def test_replay_from(self) -> None:
        """Events again, at most once a minute; never the record of acceptance, never a number that was not given."""
        self.start()
        self.assert_honest_order_is_taken()
        kinds = self.liar.kinds(self.rollout_id)
        for value in ("0", "1", "-1", "99999999999999999999", "1e3", "1" * 5000, "\u0661", "", "0x1", "1, 2"):
            with self.attempt(value[:20]):
                self.liar.replay_from = value
                self.heartbeats()
        self.until(lambda: len(self.liar.kinds(self.rollout_id)) >= 2 * len(kinds), "it is replayed once")
        self.assertNotIn("Dispatch", self.liar.kinds(self.rollout_id))
        self.assertEqual({e["event"]["seq"] for e in self.liar.events}, {1})
        self.assertLessEqual(len(self.liar.events), 3)
        self.assertEqual(len(self.life.switches), 1)
        self.assert_alive()

    def test_events_refused_in_every_way_stay_on_the_host(self) -> None:
        """A control plane may refuse to listen: nothing is lost by it, and the next order is still taken."""
        self.start()
        for status in (400, 413, 422, 409, 401, 404, 418, 500, 301, 999):
            with self.attempt(status):
                self.publish()
                self.liar.lies["POST", EVENTS] = Reply(status, b"\x1b[2J no")
                asked = len(self.liar.asked(EVENTS))
                self.liar.dispatch(self.rollout_id, self.closure)
                self.until(lambda n=asked: len(self.liar.asked(EVENTS)) > n, "the acknowledgement is posted")
                rollout_id = self.rollout_id
                self.until(
                    lambda r=rollout_id: [n for n in self.host.journal() if r in n and "DispatchAck" in n],
                    "it is on disk",
                )
        self.assert_alive()
        self.liar.lies.clear()
        self.start()  # without the backoff that some of these answers ask for
        self.assert_honest_order_is_taken()

    def wipe(self) -> None:
        """A host that has lost its state, as after an installation."""
        import shutil

        shutil.rmtree(self.host.state_dir)
        self.host.state_dir.mkdir(mode=0o700)
        self.liar.events.clear()

    def test_a_storm_of_orders(self) -> None:
        """A storm of orders is taken one at a time, and only those that CI signed."""
        self.start()
        self.publish()
        with self.attempt("forged ones and one honest one"):
            for number in range(40):
                self.liar.dispatch(f"stable@{number:x}", closure_name(f"evil-{number}"), hostname=MACHINE)
            self.liar.dispatch(self.rollout_id, self.closure)
        self.until(lambda: "DispatchAck" in self.liar.kinds(self.rollout_id), "the honest one is taken")
        self.assertEqual([order.target for order in self.life.switches], [self.closure])
        with self.attempt("the honest one again and again"):
            for _ in range(20):
                self.liar.dispatch(self.rollout_id, self.closure)
            self.until(lambda: self.life.counted("dispatches", outcome="repeat") >= 20, "all are known")
        self.assertEqual(len(self.life.switches), 1)


if __name__ == "__main__":
    unittest.main()
