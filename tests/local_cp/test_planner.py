"""The planner as tables: a picture of the fleet, and who gets a turn."""

from __future__ import annotations

import unittest
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta, timezone

from nixfleet_agent.local_cp.planner import Budget, FleetView, Order, Placement, Plan, RolloutView, Wave, plan
from nixfleet_agent.state_machine import State

NOW = datetime(2026, 5, 16, 1, 30, tzinfo=timezone.utc)
ID = "stable@aaa1"
HOSTS = ("a", "b", "c", "d")

PENDING = Placement(State.PENDING, queued=True)
ACTIVATING = Placement(State.ACTIVATING)
SOAKING = Placement(State.SOAKING)
CONVERGED = Placement(State.CONVERGED, terminal=True)
OWED = Placement(State.FAILED)
FAILED = Placement(State.FAILED, terminal=True)
REVERTED = Placement(State.REVERTED, terminal=True)


def rollout(
    *waves: tuple[str, ...], states: Mapping[str, Placement] | None = None, channel: str = "stable"
) -> RolloutView:
    return RolloutView(
        rollout_id=f"{channel}@aaa1",
        channel=channel,
        targets={hostname: f"closure-{hostname}" for wave in waves for hostname in wave},
        waves=tuple(Wave(wave) for wave in waves),
        placements=states or {},
    )


def fleet(*rollouts: RolloutView, ready: tuple[str, ...] = HOSTS, **more: object) -> FleetView:
    return FleetView(rollouts=rollouts, ready=frozenset(ready), **more)  # type: ignore[arg-type]


def turns(made: Plan) -> list[str]:
    return [order.hostname for order in made.orders]


class Waves(unittest.TestCase):
    def test_who_gets_a_turn(self) -> None:
        two = (("a", "b"), ("c", "d"))
        for name, states, expected in (
            ("nothing has begun", {}, ["a", "b"]),
            ("one has its turn", {"a": PENDING}, ["b"]),
            ("both are under way", {"a": ACTIVATING, "b": SOAKING}, []),
            ("one of two converged", {"a": CONVERGED, "b": SOAKING}, []),
            ("a deferred host holds its wave", {"a": CONVERGED, "b": Placement(State.DEFERRED)}, []),
            ("the wave converged", {"a": CONVERGED, "b": CONVERGED}, ["c", "d"]),
            ("all converged", dict.fromkeys(HOSTS, CONVERGED), []),
            ("one failed, a rollback is owed", {"a": OWED}, []),
            ("one failed for good", {"a": FAILED}, []),
            ("one was rolled back", {"a": REVERTED, "b": CONVERGED}, []),
        ):
            with self.subTest(name):
                self.assertEqual(turns(plan(fleet(rollout(*two, states=states)), NOW)), expected)

    def test_an_order_carries_what_ci_signed(self) -> None:
        view = replace(rollout(("a",)), waves=(Wave(("a",), timedelta(minutes=7)),))
        (order,) = plan(fleet(view), NOW).orders
        self.assertEqual(order, Order("a", ID, "closure-a", NOW + timedelta(minutes=7)))

    def test_who_waits_is_told_why(self) -> None:
        made = plan(fleet(rollout(("a",), ("b",), states={"a": SOAKING})), NOW)
        self.assertEqual(made.waiting, {(ID, "b"): "wave 1 has not converged"})

    def test_an_empty_wave_holds_nobody(self) -> None:
        self.assertEqual(turns(plan(fleet(rollout((), ("a",))), NOW)), ["a"])

    def test_the_same_picture_gives_the_same_plan(self) -> None:
        view = fleet(rollout(("a", "b"), ("c",)))
        self.assertEqual(plan(view, NOW), plan(view, NOW))


class Halts(unittest.TestCase):
    def test_a_failure_halts_once_and_names_the_hosts(self) -> None:
        view = rollout(("a", "b", "c"), states={"b": REVERTED, "a": OWED})
        made = plan(fleet(view), NOW)
        self.assertEqual([(halt.rollout_id, halt.reason) for halt in made.halts], [(ID, "halted: failed on a, b")])
        self.assertEqual(plan(fleet(replace(view, halted="halted: before")), NOW).halts, ())

    def test_a_halted_rollout_gives_no_turn_even_when_all_is_well_again(self) -> None:
        view = replace(rollout(("a",), ("b",), states={"a": CONVERGED}), halted="by hand")
        made = plan(fleet(view), NOW)
        self.assertEqual(made.orders, ())
        self.assertEqual(made.waiting[ID, "b"], "by hand")

    def test_another_channel_goes_on(self) -> None:
        made = plan(fleet(rollout(("a",), states={"a": FAILED}), rollout(("b",), channel="edge")), NOW)
        self.assertEqual(turns(made), ["b"])


class Gates(unittest.TestCase):
    def test_each_reason_to_wait(self) -> None:
        view = rollout(("a", "b"))
        for name, more, reason in (
            ("never heard of", {"ready": ("b",)}, "not heard of yet"),
            (
                "events missing",
                {"ready": ("b",), "missing": {"a": "its events are still to be replayed"}},
                "its events",
            ),
            ("quarantine", {"quarantine": frozenset({("stable", "closure-a")})}, "its closure is in quarantine"),
            ("edge", {"edges": (("a", "b"),)}, "b goes first"),
            ("budget", {"budgets": (Budget(frozenset({"a"}), 0),)}, "0 of its group"),
        ):
            with self.subTest(name):
                made = plan(fleet(view, **more), NOW)  # type: ignore[arg-type]
                self.assertEqual(turns(made), ["b"])
                self.assertTrue(made.waiting[ID, "a"].startswith(reason), made.waiting)

    def test_a_quarantine_of_another_channel_does_not_count(self) -> None:
        view = fleet(rollout(("a",)), quarantine=frozenset({("edge", "closure-a")}))
        self.assertEqual(turns(plan(view, NOW)), ["a"])

    def test_an_edge_opens_when_the_gate_has_converged_or_has_no_part(self) -> None:
        converged = rollout(("a", "b"), states={"b": CONVERGED})
        self.assertEqual(turns(plan(fleet(converged, edges=(("a", "b"),)), NOW)), ["a"])
        self.assertEqual(turns(plan(fleet(rollout(("a",)), edges=(("a", "z"),)), NOW)), ["a"])

    def test_a_budget_counts_the_turns_of_this_round_and_of_other_rollouts(self) -> None:
        budget = Budget(frozenset({"a", "b", "c"}), 2)
        self.assertEqual(turns(plan(fleet(rollout(("a", "b", "c")), budgets=(budget,)), NOW)), ["a", "b"])
        edge = rollout(("c",), channel="edge", states={"c": SOAKING})
        self.assertEqual(turns(plan(fleet(edge, rollout(("a", "b")), budgets=(budget,)), NOW)), ["a"])

    def test_a_channel_waits_for_the_channel_before_it(self) -> None:
        gates = (("stable", "edge"),)
        edge = rollout(("b",), channel="edge", states={"b": SOAKING})
        self.assertEqual(turns(plan(fleet(edge, rollout(("a",)), channel_edges=gates), NOW)), [])
        done = replace(edge, placements={"b": CONVERGED})
        self.assertEqual(turns(plan(fleet(done, rollout(("a",)), channel_edges=gates), NOW)), ["a"])
        self.assertEqual(turns(plan(fleet(rollout(("a",)), channel_edges=gates), NOW)), ["a"])

    def test_a_host_that_the_manifest_does_not_name_gets_nothing(self) -> None:
        view = replace(rollout(("a",)), targets={})
        made = plan(fleet(view), NOW)
        self.assertEqual((made.orders, made.waiting), ((), {(ID, "a"): "the manifest does not name it"}))


class Redelivery(unittest.TestCase):
    def made(self, placement: Placement, halted: str | None = None) -> Plan:
        view = replace(rollout(("a",), states={"a": placement}), halted=halted)
        return plan(fleet(view), NOW, timedelta(seconds=90))

    def test_a_turn_is_offered_again_only_when_it_led_to_nothing_for_long(self) -> None:
        long_ago, just_now = NOW - timedelta(seconds=90), NOW - timedelta(seconds=30)
        for name, placement, again in (
            ("queued", PENDING, False),
            ("fetched just now", Placement(State.PENDING, delivered_at=just_now), False),
            ("fetched long ago", Placement(State.PENDING, delivered_at=long_ago), True),
            ("lost before it was fetched", Placement(State.PENDING), True),
            ("acknowledged", Placement(State.ACTIVATING, delivered_at=long_ago), False),
        ):
            with self.subTest(name):
                self.assertEqual([order.again for order in self.made(placement).orders], [True] if again else [])

    def test_the_next_look_is_when_the_patience_ends(self) -> None:
        made = self.made(Placement(State.PENDING, delivered_at=NOW - timedelta(seconds=30)))
        self.assertEqual(made.look_again_at, NOW + timedelta(seconds=60))

    def test_a_halted_rollout_offers_nothing_again(self) -> None:
        self.assertEqual(self.made(Placement(State.PENDING), halted="by hand").orders, ())


if __name__ == "__main__":
    unittest.main()
