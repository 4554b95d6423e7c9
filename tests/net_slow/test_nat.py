"""A NAT that forgets quiet connections between the real agent and its control plane: every Dispatch is heard."""

from __future__ import annotations

import time
import unittest

from tests.attacks.case import AttackCase
from tests.support.nat import Nat

#: The NAT forgets after 2 s, and polls are to hold for 5: as 30 s is to 60, in a twelfth of the time.
FORGETS_AFTER = 2.0
DISPATCHES = 10


class ForgetfulNat(AttackCase):
    def test_ten_of_ten_dispatches_are_heard_within_five_seconds(self) -> None:
        nat = Nat(self.server.port, FORGETS_AFTER)
        self.addCleanup(nat.close)
        self.publish()
        life = self.start(control_plane_url=f"https://127.0.0.1:{nat.port}")
        self.until(lambda: (life.status().get("poll") or {}).get("wait", 9.0) < FORGETS_AFTER, "it has adapted")
        self.assertGreater(nat.forgotten, 0)
        self.assertIn("from now on they ask for 1 s", life.stream.getvalue())
        code, why = self.host.command("why")
        self.assertEqual(code, 0, why)
        self.assertIn("cuts connections after about", " ".join(why.split()))
        self.assertIn("nixfleet_agent_poll_wait_seconds 1.25", life.exposition())
        waits = []
        for number in range(DISPATCHES):
            time.sleep(0.3 * number)  # quiet of every length, the NAT's own and longer
            before = life.counted("dispatches", outcome="received")
            offered = time.monotonic()
            self.liar.dispatch(f"stable@{number:03x}", self.closure)
            self.until(lambda n=before: life.counted("dispatches", outcome="received") > n, "it is heard")
            waits.append(time.monotonic() - offered)
        self.assertLess(max(waits), 5.0, waits)
        self.assertEqual(len(waits), DISPATCHES)
        self.assert_alive()


if __name__ == "__main__":
    unittest.main()
