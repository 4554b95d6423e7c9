"""What answers in place of the control plane decides nothing: portals, maintenance pages, firewalls, redirects."""

from __future__ import annotations

import unittest

from tests.attacks.case import AttackCase
from tests.attacks.liar import DISPATCH, ENROLL, EVENTS, FLEET, HEARTBEAT, RENEW
from tests.support.behaviours import Reply, page

FRONTS = {
    "a page with 200": page(200, "Log in to the guest network"),
    "words with 200": Reply(200, b"OK", {"Content-Type": "text/plain"}),
    "a redirect": Reply(302, b"", {"Location": "https://portal.example/login"}),
    "a firewall's page": page(403, "Request blocked"),
    "a refusal of nobody's": Reply(422),
    "a maintenance page": page(503),
}


class Fronts(AttackCase):
    def posted(self, rollout_id: str) -> int:
        """How often; a request that its process did not live to end has no body."""
        return sum(rollout_id.encode() in request.body for request in self.liar.asked(EVENTS))

    def test_no_front_acknowledges_an_event_or_has_one_refused(self) -> None:
        for name, answer in FRONTS.items():
            with self.attempt(name):
                self.start()
                self.publish()
                self.liar.lies["POST", EVENTS] = answer
                self.liar.dispatch(self.rollout_id, self.closure)
                self.until(lambda r=self.rollout_id: self.posted(r) > 1, "it is posted, and again")
                folder = self.host.state_dir / "outbound-queue"
                kept = [path.name for path in folder.iterdir() if self.rollout_id in path.name]
                self.assertTrue(any("DispatchAck" in file for file in kept), kept)
                self.assertEqual(list((self.host.state_dir / "outbound-rejected").iterdir()), [])
                self.assertEqual(self.liar.kinds(self.rollout_id), [])
                self.liar.lies.clear()
                rollout_id = self.rollout_id
                self.start()
                self.until(lambda r=rollout_id: "DispatchAck" in self.liar.kinds(r), "it is delivered later")
                self.assert_alive()

    def test_no_front_is_taken_for_a_dispatch_or_raises_the_alarm_of_a_forged_one(self) -> None:
        for name, answer in FRONTS.items():
            with self.attempt(name):
                for endpoint in (DISPATCH, FLEET, f"{FLEET}/sig"):
                    self.liar.lies["GET", endpoint] = answer
                for endpoint in (HEARTBEAT, RENEW, ENROLL):
                    self.liar.lies["POST", endpoint] = answer
                life = self.start()
                for endpoint in (DISPATCH, HEARTBEAT):
                    asked = len(self.liar.asked(endpoint))
                    self.until(lambda e=endpoint, n=asked: len(self.liar.asked(e)) > n + 1, f"{endpoint} is asked")
                status = life.status()
                self.assertEqual([], status.get("refusals") or [])
                self.assertEqual(0, life.counted("dispatches", outcome="received"))
                told = [line for line in life.log() if "something answers in place" in str(line.get("message"))]
                said = [line for line in told if line.get("logger", "").endswith(".net")]
                if name in ("a refusal of nobody's", "a maintenance page"):
                    self.assertEqual(told, [])
                else:
                    self.assertEqual(len(said), 1, "said once, with what it was")
                    self.assertIn(DISPATCH, status["foreign"])
                    self.assertIn("in place of the control plane", " ".join(self.host.command("why")[1].split()))
                    self.assertIn("in place of the control plane", self.host.command("status")[1])
                self.assert_untouched()
        self.assert_only_delayed()


if __name__ == "__main__":
    unittest.main()
