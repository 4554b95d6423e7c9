"""Waves, soak, budgets, edges and quarantine from what CI signed to the turn that a host is given, or is not."""

from __future__ import annotations

import unittest
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

from nixfleet_agent.local_cp.api import LONGEST_WAIT, dispatch
from nixfleet_agent.local_cp.ci import ChannelDescription, FleetDescription, WaveDescription
from nixfleet_agent.local_cp.server import Peer, Request
from nixfleet_agent.proto.times import parse_time
from tests.local_cp.scripted import ControlPlaneCase, ScriptedAgent, to_converged, to_reverted
from tests.support.signing import closure_name

PRIOR = closure_name("prior")
COMMIT = "aaa1"


class GateCase(ControlPlaneCase):
    def release(self, channels: Mapping[str, ChannelDescription], commit: str = COMMIT, **more: Any) -> None:
        """Publish; each host's closure is its own, and the same in every release."""
        hosts = [host for channel in channels.values() for host in channel.hosts]
        closures = {host: closure_name(host) for host in hosts}
        fleet = FleetDescription(channels=channels, **more)
        self.cp.control.publish(self.ci.release(fleet, commit, closures, datetime.now(timezone.utc)))

    def agents(self, *names: str) -> list[ScriptedAgent]:
        made = [self.agent(name) for name in names]
        for agent in made:
            agent.beat()
        self.cp.control.dispatcher.plan_once()
        return made

    def turn(self, agent: ScriptedAgent) -> dict[str, Any] | None:
        """What the planner has for the host now."""
        self.cp.control.dispatcher.plan_once()
        return agent.poll()

    def converge(self, agent: ScriptedAgent, rollout_id: str = f"stable@{COMMIT}") -> None:
        self.play(agent, rollout_id, to_converged(closure_name(agent.hostname)))

    def why(self, agent: ScriptedAgent, rollout_id: str = f"stable@{COMMIT}") -> str:
        return self.cp.control.dispatcher.last_plan.waiting[rollout_id, agent.hostname]


def waves(*names: tuple[str, ...], soak_minutes: int = 0) -> ChannelDescription:
    return ChannelDescription(waves=tuple(WaveDescription(wave, soak_minutes) for wave in names))


class Gates(GateCase):
    def setUp(self) -> None:
        super().setUp()
        self.release({"stable": waves(("x",))}, "000")

    def test_a_wave_soaks_as_long_as_was_signed_and_the_next_waits_for_it(self) -> None:
        canary, rest = self.agents("a", "b")
        self.release({"stable": waves(("a",), ("b",), soak_minutes=7)})
        turn = self.turn(canary)
        assert turn is not None
        soak = parse_time(turn["soak_due_at"]) - parse_time(turn["enqueued_at"])
        self.assertEqual(soak, timedelta(minutes=7))
        self.assertIsNone(self.turn(rest))
        self.assertEqual(self.why(rest), "wave 1 has not converged")

    def test_a_budget_lets_as_many_go_as_it_says(self) -> None:
        first, second = self.agents("a", "b")
        budget = {"selector": {"tags": ["web"]}, "maxInFlight": 1}
        self.release({"stable": waves(("a", "b"))}, tags={"a": ["web"], "b": ["web"]}, disruption_budgets=(budget,))
        self.assertIsNotNone(self.turn(first))
        self.assertIsNone(self.turn(second))
        self.assertEqual(self.why(second), "1 of its group are under way")
        self.converge(first)
        self.assertIsNotNone(self.turn(second))

    def test_an_edge_between_hosts(self) -> None:
        gated, gates = self.agents("a", "b")
        self.release({"stable": waves(("a", "b"))}, edges=(("a", "b"),))
        self.assertIsNone(self.turn(gated))
        self.assertEqual(self.why(gated), "b goes first")
        self.assertIsNotNone(self.turn(gates))
        self.converge(gates)
        self.assertIsNotNone(self.turn(gated))

    def test_an_edge_between_channels(self) -> None:
        gated, gates = self.agents("a", "b")
        self.release({"stable": waves(("a",)), "edge": waves(("b",))}, channel_edges=(("stable", "edge"),))
        self.assertIsNone(self.turn(gated))
        self.assertEqual(self.why(gated), "channel edge goes first")
        self.assertIsNotNone(self.turn(gates))
        self.converge(gates, f"edge@{COMMIT}")
        self.assertIsNotNone(self.turn(gated))

    def test_what_was_rolled_back_is_not_handed_out_again_on_its_channel(self) -> None:
        (host,) = self.agents("a")
        self.release({"stable": waves(("a",))})
        self.assertIsNotNone(self.turn(host))
        self.play(host, f"stable@{COMMIT}", to_reverted(closure_name("a"), PRIOR))
        self.release({"stable": waves(("a",))}, "bbb2")
        self.assertIsNone(self.turn(host))
        self.assertEqual(self.why(host, "stable@bbb2"), "its closure is in quarantine on this channel")
        self.release({"edge": waves(("a",))}, "ccc3")
        self.assertIsNotNone(self.turn(host))

    def test_a_turn_of_a_release_that_a_newer_one_has_replaced_is_taken_back(self) -> None:
        (host,) = self.agents("a")
        self.release({"stable": waves(("a",))})
        self.cp.control.dispatcher.plan_once()
        self.release({"stable": waves(("a",))}, "bbb2")
        turn = self.turn(host)
        assert turn is not None
        self.assertEqual(turn["rollout_id"], "stable@bbb2")
        self.assertIsNone(self.turn(host))


class Waits(GateCase):
    def setUp(self) -> None:
        super().setUp()
        self.release({"stable": waves(("x",))})

    def test_a_poll_is_held_for_a_minute_at_most(self) -> None:
        (agent,) = self.agents("a")
        asked: list[float] = []
        next_turn = self.cp.control.next_turn

        def note(hostname: str, wait: float, gone: Any) -> Any:
            asked.append(wait)
            return next_turn(hostname, 0, gone)

        self.cp.control.next_turn = note  # type: ignore[method-assign]
        peer = Peer("a", agent.key.public_raw, datetime.now(timezone.utc))
        for wait in ("60", "61", "1e300", "inf", "0.5", "-1", ""):
            params = {"wait": wait} if wait else {}
            dispatch(self.cp.api, Request("GET", "/v1/agent/dispatch", params, {}, b"", peer, lambda: False))
        self.assertEqual(asked, [LONGEST_WAIT] * 4 + [0.5, 0.0, 0.0])


if __name__ == "__main__":
    unittest.main()
