"""A fleet over a bad network: the agent in one namespace, its control plane in another, and a wire that misbehaves."""

from __future__ import annotations

import os
import time
import unittest
from pathlib import Path
from unittest import mock

from nixfleet_agent.local_cp import service
from nixfleet_agent.state_machine import State
from tests.faults.ending import MILESTONES, flaws
from tests.faults.rig import STOP_SECS, Rig
from tests.faults.world import World
from tests.support.network import ADDRESSES, HOST, PLANE, Network, Quality, why_not

SOUND = Quality(delay=0.005)
ROUGH = Quality(delay=0.02, jitter=0.04, loss=0.03, repeat=0.02)
CUT = Quality(cut=True)
#: Smaller than a server's part of a TLS handshake, larger than what opens a connection.
BLACK_HOLE = Quality(delay=0.005, largest=700)
FORWARD = ("DispatchAck", "ActivationStarted", "ActivationCompleted", "Converged")
BACK = ("DispatchAck", "ActivationStarted", "ActivationCompleted", "Failed", "RollbackComplete")
#: Half a minute of failing at the pace of this rig (at most 2 s between two tries) by every part that talks: the long
#: poll, the heartbeat, the queue, the manifest poll.
TALKERS = 4
TUNING = {"backoff_initial": 0.2, "backoff_max": 2, "dispatch_wait": 5}

WHY_NOT = why_not()


def cpu_seconds(pid: int) -> float:
    """Processor time of a process, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@unittest.skipIf(WHY_NOT, WHY_NOT)
class BadNetwork(unittest.TestCase):
    world: World
    network: Network

    @classmethod
    def setUpClass(cls) -> None:
        cls.network = Network()
        cls.addClassCleanup(cls.network.__exit__)
        # The cache is the host's neighbour: Nix's own way of failing is not the point here.
        with cls.network.inside(HOST):
            cls.world = World()
        cls.addClassCleanup(cls.world.close)

    def setUp(self) -> None:
        self.wire = self.network.wire
        self.wire.quality = SOUND
        patch = mock.patch.object(service, "HOST", ADDRESSES[PLANE])
        patch.start()
        self.addCleanup(patch.stop)
        with self.network.inside(PLANE):
            self.rig = Rig(self.world, self._testMethodName[5:30], tuning=TUNING)
        self.addCleanup(self.rig.close)

    def start(self) -> None:
        with self.network.inside(HOST):
            self.rig.start()

    def end(self, **expected: tuple[str, ...]) -> None:
        """The agent stops in time; each release has these milestones, and the log is the host's, in order, once."""
        self.rig.until_delivered()
        took = self.rig.stop()
        self.assertEqual(flaws(self.rig), [])
        self.assertEqual(self.rig.killed, 0)
        for name, milestones in expected.items():
            said = tuple(event["kind"] for event in self.rig.events(name) if event["kind"] in MILESTONES)
            self.assertEqual(said, milestones, name)
        self.assertLess(took, STOP_SECS + 1.0, "two seconds, and what a busy machine needs")

    def test_loss_delay_reordering_and_repetition_change_nothing(self) -> None:
        self.wire.quality = ROUGH
        self.start()
        for name, state in (("good", State.CONVERGED), ("next", State.CONVERGED), ("sick", State.REVERTED)):
            self.rig.publish(name)
            self.rig.until_state(name, state)
        self.assertGreater(self.wire.dropped, 0)
        self.end(good=FORWARD, next=FORWARD, sick=BACK)
        self.assertEqual(self.rig.world.name_of(self.rig.host.running()), "next")

    def test_a_partition_in_the_middle_of_a_switch_and_the_log_after_it(self) -> None:
        self.start()
        self.rig.publish("slow")
        self.rig.until(lambda: self.rig.has_event("slow", "ActivationStarted"), "the switch")
        self.wire.quality, calls = CUT, self.wire.calls
        self.rig.until(lambda: len(self.rig.queued()) > 1, "what the host has to say meanwhile")
        began = time.monotonic()
        self.rig.until(lambda: time.monotonic() > began + 10, "ten seconds")
        self.assertEqual(self.rig.state("slow"), State.ACTIVATING)
        # Each try is at least one packet, and the kernel repeats it after 1, 2 and 4 s.
        self.assertLess(self.wire.calls - calls, TALKERS * 4 * 10)
        self.wire.quality, healed = SOUND, time.monotonic()
        self.rig.until_state("slow", State.CONVERGED)
        self.assertLess(time.monotonic() - healed, 20)
        self.end(slow=FORWARD)

    def test_an_order_given_during_a_partition_is_carried_out_after_it(self) -> None:
        self.start()
        self.rig.publish("good")
        self.rig.until_state("good", State.CONVERGED)
        self.rig.until_delivered()
        self.wire.quality = CUT
        self.rig.publish("next")
        began = time.monotonic()
        self.rig.until(lambda: time.monotonic() > began + 8, "eight seconds")
        self.assertIsNone(self.rig.state("next") if self.rig.events("next") else None)
        self.wire.quality, healed = SOUND, time.monotonic()
        self.rig.until_state("next", State.CONVERGED)
        self.assertLess(time.monotonic() - healed, 25)
        self.end(good=FORWARD, next=FORWARD)

    def test_a_network_that_fails_every_call_at_once_is_not_called_in_a_loop(self) -> None:
        self.start()
        self.rig.publish("good")
        self.rig.until_state("good", State.CONVERGED)
        self.network.link(HOST, up=False)
        self.rig.until(lambda: self.rig.logged("long poll failed"), "that the long poll fails")
        before, began = cpu_seconds(self.rig.pid), time.monotonic()
        self.rig.until(lambda: time.monotonic() > began + 10, "ten seconds")
        self.assertLess(cpu_seconds(self.rig.pid) - before, 2.5)
        self.network.link(HOST, up=True)
        self.rig.publish("next")
        self.rig.until_state("next", State.CONVERGED)
        self.end(good=FORWARD, next=FORWARD)

    def test_a_path_that_swallows_large_packets_blocks_no_longer_than_the_deadlines(self) -> None:
        self.wire.quality, calls = BLACK_HOLE, self.wire.calls
        self.rig.publish("good")
        self.start()
        self.rig.until(lambda: self.rig.logged("long poll failed"), "the long poll's deadline")
        self.assertEqual(self.rig.events("good"), [])
        self.assertLess(self.wire.calls - calls, 100)
        self.rig.stop()
        self.start()
        self.rig.until_started()
        self.wire.quality, filled = SOUND, time.monotonic()
        self.rig.until_state("good", State.CONVERGED)
        self.assertLess(time.monotonic() - filled, 35)
        self.end(good=FORWARD)


if __name__ == "__main__":
    unittest.main()
