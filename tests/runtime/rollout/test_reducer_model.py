"""The real reducer and its journal under any order of dispatches, workers, restarts, disk errors and lost answers.

What always holds: the next process would go on exactly where this one stands; a worker has the order that the active
rollout waits for; no seq is ever used for two events; and the control plane ends with every event once, in order.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import unittest
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nixfleet_agent.activation.model import Forward, Rollback
from nixfleet_agent.errors import StorageError
from nixfleet_agent.journal.entries import Entry, decode, read_raw
from nixfleet_agent.journal.journal import Journal
from nixfleet_agent.proto.contract import EVENTS, request_faults
from nixfleet_agent.runtime.rollout.inputs import (
    Ack,
    Activate,
    AdvanceTick,
    Answer,
    HostEvent,
    ReducerInput,
    ReplayRequested,
    RollbackAttemptFailed,
    SwitchStarting,
)
from nixfleet_agent.runtime.rollout.orders import ActivationOrder, Release
from nixfleet_agent.runtime.rollout.recovery import recover
from nixfleet_agent.runtime.rollout.succession import in_charge
from nixfleet_agent.runtime.workers.outbound import envelope
from nixfleet_agent.state_machine import ProbeStatus, RolloutRecord, State
from tests.runtime.harness import HALT, HOSTNAME, NEWER, PRIOR, ROLLBACK, TARGET, THIRD, TestHost, bad_disk, until
from tests.state_machine.machine import T0, declared

#: Refusals in a row after which a disk counts as dead and the process as killed.
DEAD = 4


@functools.cache
def breaches(body: bytes) -> list[str]:
    """What an event's body breaks of the contract of the wire."""
    return list(request_faults("POST", EVENTS, {"accept": "application/json"}, body))


def check_contract(entry: Entry) -> None:
    """Each form of an event fits its schema; of what only differs in seq and times one stands for all."""
    times = {name: re.sub(r"\d", "0", value) for name, value in entry.event.items() if name.endswith("At")}
    body = envelope(replace(entry, event={**entry.event, **times, "seq": 1}), lambda _: None)
    found = [fault for fault in breaches(body) if "headers" not in fault]
    assert not found, found


class ReducerModel(RuleBasedStateMachine):
    """The test plays every worker, the operator, the disk and the control plane."""

    def __init__(self) -> None:
        super().__init__()
        self.case = unittest.TestCase()
        self.case.enterContext(mock.patch.object(os, "fsync"))  # nobody pulls the plug here
        self.disk = self.case.enterContext(bad_disk())
        self.host = TestHost(self.case)
        self.host.start()
        self.order: ActivationOrder | None = None
        self.count = 0
        self.posted: dict[tuple[str, int], Any] = {}
        self.received: dict[str, list[Any]] = {}
        self.forgetful: set[str] = set()

    def teardown(self) -> None:
        """The outage is over: whatever happened, the control plane ends with the whole log."""
        self.disk.mend()
        self.host.stop()
        try:
            for rollout_id in self.host.journal.rollouts():
                if rollout_id in self.forgetful:
                    self.host.journal.replay(rollout_id, 1)  # it asks until it has them
            while self.deliver(204):
                pass
            for rollout_id in self.host.journal.rollouts():
                log = [dict(entry.event) for entry in self.host.journal.read(rollout_id) if entry.seq]
                rejected = [seq for seq, _ in self.host.log(rollout_id, folder="outbound-rejected")]
                taken = [event for event in log if event["seq"] not in rejected]
                assert self.received.get(rollout_id, []) == taken, f"{self.received.get(rollout_id)}\n{taken}"
        finally:
            self.case.doCleanups()

    # -- talking to the reducer ---------------------------------------------------------------

    def asked(self, make: Callable[[Ack], ReducerInput]) -> Answer | None:
        """Its answer; None when the disk died before there was one, and then the next process runs."""
        ack = Ack(self.host.shutdown.wakeup())
        dead = self.disk.refusals + DEAD
        self.host.put(make(ack))
        until(
            lambda: ack.value is not None or self.disk.refusals >= dead,
            "an answer",
            lambda: self.host.clock.advance(0.01),
        )
        if ack.value is None:
            self.replaced()
        return ack.value

    def tell(self, rollout_id: str, kind: str, **changes: Any) -> Answer | None:
        event = self.host.event(kind, **changes)
        return self.asked(lambda ack: HostEvent(rollout_id, event, ack))

    def settle(self) -> None:
        """Ticks until they change nothing: one may hand back, the next find an end; and their events are written."""
        for _ in range(3):
            self.host.put(AdvanceTick(self.host.current))
            self.asked(lambda ack: HostEvent("barrier@0", self.host.event("Converged"), ack))

    def replaced(self) -> None:
        """The process is gone, whatever it was at; the next one starts on a disk that is well."""
        self.host.stop()
        self.disk.mend()
        self.order = None
        self.host.start(self.host.current)

    @property
    def active(self) -> RolloutRecord | None:
        return self.host.record(self.host.view.active_id) if self.host.view.active_id else None

    # -- what happens -------------------------------------------------------------------------

    @rule(to=st.sampled_from((TARGET, NEWER, PRIOR)), policy=st.sampled_from((ROLLBACK, HALT)))
    def a_dispatch_comes(self, to: str, policy: Any) -> None:
        self.count += 1
        wanted = self.host.acceptance(f"stable@{self.count:x}", to, policy=policy)
        self.asked(lambda ack: Activate(wanted, ack))
        self.settle()

    def take(self) -> ActivationOrder | None:
        """The order in hand, or the newer one that waits; the worker may be anywhere in it when the process dies."""
        if self.host.activation.peek() is not None:
            self.order = self.host.order()
        if isinstance(self.order, Release):
            self.order = None
        return self.order

    def starts(self, order: Forward) -> bool:
        told = order.already_started or self.tell(order.rollout_id, "ActivationStarted") is Answer.ACCEPTED
        if not told or self.asked(lambda ack: SwitchStarting(order.rollout_id, ack)) is not Answer.ACCEPTED:
            return False
        self.host.fired.add(order.rollout_id)
        return True

    @rule(how=st.sampled_from(("only begins", "completed", "completed", "elsewhere", "deferred", "not fired", "fired")))
    def the_worker_switches(self, how: str) -> None:
        order = self.take()
        if not isinstance(order, Forward):
            return
        started = (
            (order.already_started and order.rollout_id in self.host.fired) or how == "not fired" or self.starts(order)
        )
        if how == "only begins" and started:
            return
        self.order = None
        if started and how == "completed":
            self.host.current = order.target
            self.tell(order.rollout_id, "ActivationCompleted", observed_current_closure=order.target)
        elif started and how == "deferred":
            self.tell(order.rollout_id, "ActivationDeferred", boot_id=self.host.boot_id)
        elif started:
            self.host.current = THIRD if how == "elsewhere" else self.host.current
            fired = how != "not fired"
            self.tell(order.rollout_id, "ActivationFailed", switch_fired=fired, observed_at_failure=self.host.current)
        self.settle()

    @rule(succeeds=st.booleans())
    def the_worker_rolls_back(self, succeeds: bool) -> None:
        order = self.take()
        if not isinstance(order, Rollback):
            return
        if succeeds:
            self.order = None
            self.host.current = order.target
            self.tell(order.rollout_id, "RollbackComplete", reverted_to_closure=order.target)
        else:
            self.host.put(RollbackAttemptFailed(order.rollout_id, "fire"))
        self.settle()

    @rule(status=st.sampled_from(ProbeStatus), again=st.booleans())
    def probes_look(self, status: ProbeStatus, again: bool) -> None:
        active = self.active
        if active is None:
            return
        if again or active.topology is None:
            self.tell(active.rollout_id, "ProbeTopologyDeclared", probes=(declared("web"),))
        self.tell(active.rollout_id, "ProbeResult", status=status)
        self.settle()

    @rule(seconds=st.sampled_from((30, 400)))
    def time_passes(self, seconds: int) -> None:
        self.host.clock.advance(seconds)
        self.settle()

    @rule(seconds=st.sampled_from((-7200, 7200)))
    def the_clock_is_set(self, seconds: int) -> None:
        self.host.clock.step(seconds)

    @precondition(lambda self: self.count > 1)
    @rule(
        data=st.data(), kind=st.sampled_from(("ActivationCompleted", "ActivationFailed", "RollbackComplete", "Failed"))
    )
    def a_superseded_one_is_heard_of(self, data: st.DataObject, kind: str) -> None:
        rollout_id = f"stable@{data.draw(st.integers(1, self.count)):x}"
        if rollout_id not in (self.host.view.active_id, *self.host.view.watched):
            assert self.tell(rollout_id, kind) is not Answer.ACCEPTED, "a late event was taken"

    @rule(to=st.sampled_from((PRIOR, TARGET, THIRD)))
    def an_operator_switches(self, to: str) -> None:
        self.host.current = to
        self.settle()

    @rule(reboots=st.booleans())
    def the_process_is_replaced(self, reboots: bool) -> None:
        if reboots:
            self.host.boot_id += "x"
        self.replaced()
        self.settle()

    @rule(steps=st.integers(0, 12), refusals=st.sampled_from((1, 2, 10**9)), number=st.sampled_from(("EIO", "ENOSPC")))
    def the_disk_will_refuse(self, steps: int, refusals: int, number: str) -> None:
        """A hiccup, or for good: that is as if the process were killed at that step."""
        first = len(self.disk.steps) + steps
        self.disk.break_down(
            getattr(errno, number),
            # What was half written can always be taken away: else a Dispatch that was not accepted may stay on disk.
            lambda step, path: step != "remove" and first < len(self.disk.steps) <= first + refusals,
        )

    # -- the control plane --------------------------------------------------------------------

    def deliver(self, status: int) -> bool:
        """Post one event of each rollout; False when there is none."""
        journal = self.host.journal
        waiting = journal.waiting()
        for rollout_id in waiting:
            path = journal.first(rollout_id)
            assert path is not None
            entry = decode(read_raw(path))
            event = dict(entry.event)
            check_contract(entry)
            assert self.posted.setdefault((rollout_id, event["seq"]), event) == event, "a seq was used twice"
            taken = self.received.setdefault(rollout_id, [])
            new = not taken or event["seq"] > taken[-1]["seq"]
            try:
                if status == 422 and new:
                    journal.reject(rollout_id, path, status, b"no", T0)
                    continue
                if new:
                    taken.append(event)
                if status != 500:
                    journal.delivered(rollout_id, path)
            except StorageError:
                continue  # it stays queued and is sent again
        return bool(waiting)

    @rule(status=st.sampled_from((204, 204, 204, 422, 500)))
    def events_are_posted(self, status: int) -> None:
        """500: it took them, and the answer was lost."""
        self.deliver(status)

    @precondition(lambda self: any(self.received.values()))
    @rule(data=st.data())
    def the_control_plane_loses_events(self, data: st.DataObject) -> None:
        rollout_id = data.draw(st.sampled_from(sorted(name for name, taken in self.received.items() if taken)))
        taken = self.received[rollout_id]
        lost = data.draw(st.sampled_from(taken))["seq"]
        self.received[rollout_id] = [event for event in taken if event["seq"] < lost]
        self.forgetful.add(rollout_id)
        self.host.clock.advance(60)
        self.host.put(ReplayRequested((rollout_id,), lost))
        self.settle()

    # -- what always holds --------------------------------------------------------------------

    @invariant()
    def the_next_process_would_go_on_from_here(self) -> None:
        journal = Journal(self.host.state_dir, HOSTNAME)
        journal.learn()
        recovered = recover(journal, self.host.current, 0.0, self.host.fired)
        for rollout_id, rollout in recovered.rollouts.items():
            assert rollout.record == self.host.record(rollout_id), f"{rollout.record}\n{self.host.record(rollout_id)}"
        active, then = self.active, recovered.active
        expected = active.rollout_id if active is not None and not active.terminal else None
        found = then.rollout_id if then is not None and not then.record.terminal else None
        newest = max(recovered.rollouts.values(), key=lambda rollout: rollout.accepted.number, default=None)
        came_back = active is not None and newest is not None and newest.rollout_id != active.rollout_id
        if came_back and not active.rollback_owed and active.target_closure != self.host.current:
            # An operator switched: it comes back as soon as its target runs, and until then one whose target does.
            assert found in (None, expected) or (then and then.record.target_closure == self.host.current)
        else:
            assert found == expected, f"{found} and not {expected} would go on"

    @invariant()
    def a_worker_has_the_order_that_is_waited_for(self) -> None:
        first = in_charge(self.host.reducer.host)
        active = first.record if first else None
        orders = [order for order in (self.host.activation.peek(), self.order) if order is not None]
        if active is None or active.state not in (State.ACTIVATING, State.FAILED) or active.terminal:
            return
        kind = Forward if active.state is State.ACTIVATING else Rollback
        assert any(isinstance(o, kind) and o.rollout_id == active.rollout_id for o in orders), f"{active}\n{orders}"

    @invariant()
    def every_seq_is_there_and_is_one_event(self) -> None:
        """A refused event may lie in two folders: the disk took its copy there, and refused to let the first one go."""
        for rollout_id in self.host.journal.rollouts():
            found = sorted(set(self.host.log(rollout_id)))
            assert [seq for seq, _ in found] == list(range(len(found))), f"{rollout_id}: {found}"


# No shrinking: it takes longer than a module may, and what goes wrong is told by the steps as they are.
ReducerModel.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)


class AgainstTheModel(ReducerModel.TestCase):  # type: ignore[misc,name-defined]
    """The reducer in its thread."""


if __name__ == "__main__":
    unittest.main()
