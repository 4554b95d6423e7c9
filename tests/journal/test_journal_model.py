"""The journal and its fold against a model of a few lines: whatever is done to it in whatever order."""

from __future__ import annotations

import shutil
import tempfile
import unittest
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nixfleet_agent.journal.entries import Entry, entry_of
from nixfleet_agent.journal.header import DISPATCH_KIND, Acceptance
from nixfleet_agent.journal.journal import Journal
from nixfleet_agent.runtime.rollout.recovery import fold
from nixfleet_agent.state_machine import EmitEvent, RolloutRecord, TransitionError, step
from tests.runtime.harness import HOSTNAME, ROLLBACK
from tests.state_machine.machine import T0
from tests.state_machine.test_properties import happenings
from tests.support.acceptances import acceptance

ROLLOUTS = ("stable@aa", "edge-1_x@bb")


class JournalModel(RuleBasedStateMachine):
    """The model: for each rollout its record, the place of each event, and the highest seq of any name."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.records: dict[str, RolloutRecord] = {}
        self.accepted: dict[str, Acceptance] = {}
        self.queued: dict[str, set[int]] = {}
        self.sent: dict[str, set[int]] = {}
        self.rejected: dict[str, set[int]] = {}
        self.open()

    def open(self) -> None:
        self.journal = Journal(self.folder, HOSTNAME)
        self.journal.open()

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @initialize()
    def first_rollout(self) -> None:
        self.accept(ROLLOUTS[0])

    @precondition(lambda self: len(self.records) < len(ROLLOUTS))
    @rule()
    def next_rollout(self) -> None:
        self.accept(ROLLOUTS[1])

    def accept(self, rollout_id: str) -> None:
        accepted = acceptance(rollout_id, number=len(self.records) + 1)
        self.journal.accept(
            Entry(
                seq=0,
                hostname=HOSTNAME,
                rollout_id=rollout_id,
                kind=DISPATCH_KIND,
                created_at=T0,
                event=accepted.to_json(),
            )
        )
        self.accepted[rollout_id] = accepted
        self.records[rollout_id] = accepted.record(HOSTNAME)
        self.queued[rollout_id], self.sent[rollout_id], self.rejected[rollout_id] = set(), {0}, set()

    @rule(data=st.data(), which=st.integers(0, 1))
    def something_happens(self, data: st.DataObject, which: int) -> None:
        """As the reducer: step, make durable, take over."""
        rollout_id = list(self.records)[which % len(self.records)]
        record = self.records[rollout_id]
        event = replace(data.draw(happenings(record.state, True, 0)), seq=record.last_event_seq + 1)
        try:
            after, effects = step(record, event, T0, ROLLBACK)
        except TransitionError:
            return
        for effect in effects:
            if isinstance(effect, EmitEvent):
                self.journal.append(entry_of(effect.event, HOSTNAME, rollout_id, T0))
                self.queued[rollout_id].add(event.seq)
        self.records[rollout_id] = after

    def waiting(self) -> list[str]:
        return [rollout for rollout, seqs in self.queued.items() if seqs]

    @precondition(lambda self: self.waiting())
    @rule(data=st.data(), count=st.integers(1, 4))
    def some_are_delivered(self, data: st.DataObject, count: int) -> None:
        rollout_id = data.draw(st.sampled_from(self.waiting()))
        for _ in range(min(count, len(self.queued[rollout_id]))):
            path = self.journal.first(rollout_id)
            assert path is not None and int(path.name[:20]) == min(self.queued[rollout_id])
            self.journal.delivered(rollout_id, path)
            self.move(rollout_id, self.sent)

    @precondition(lambda self: self.waiting())
    @rule(data=st.data())
    def one_is_refused(self, data: st.DataObject) -> None:
        rollout_id = data.draw(st.sampled_from(self.waiting()))
        path = self.journal.first(rollout_id)
        assert path is not None
        self.journal.reject(rollout_id, path, 422, b"no", T0)
        self.move(rollout_id, self.rejected)

    def move(self, rollout_id: str, to: dict[str, set[int]]) -> None:
        seq = min(self.queued[rollout_id])
        self.queued[rollout_id].remove(seq)
        to[rollout_id].add(seq)

    @rule(which=st.integers(0, 1), from_seq=st.integers(0, 6))
    def the_control_plane_lost_some(self, which: int, from_seq: int) -> None:
        rollout_id = list(self.records)[which % len(self.records)]
        known = self.sent[rollout_id] | self.rejected[rollout_id]
        again = {seq for seq in known if seq >= max(1, from_seq)}
        assert self.journal.replay(rollout_id, from_seq) == len(again)
        self.sent[rollout_id] -= again
        self.rejected[rollout_id] -= again
        self.queued[rollout_id] |= again

    @rule()
    def the_process_is_replaced(self) -> None:
        self.open()

    @rule()
    def an_operator_asks_to_look_again(self) -> None:
        assert self.journal.rescan_queue() == 0

    @invariant()
    def the_index_is_what_the_model_says(self) -> None:
        assert self.journal.waiting() == {rollout: len(seqs) for rollout, seqs in self.queued.items() if seqs}
        rejected = sum(map(len, self.rejected.values()))
        assert self.journal.counts() == (sum(map(len, self.queued.values())), rejected)
        for rollout_id, record in self.records.items():
            assert self.journal.last_seq(rollout_id) == record.last_event_seq
            assert self.journal.knows(rollout_id)

    @invariant()
    def the_log_folds_to_the_record(self) -> None:
        for rollout_id, record in self.records.items():
            entries = self.journal.read(rollout_id)
            places = self.queued[rollout_id] | self.sent[rollout_id] | self.rejected[rollout_id]
            assert [entry.seq for entry in entries] == sorted(places) == list(range(record.last_event_seq + 1))
            folded: Any = fold(entries, HOSTNAME, self.journal.last_seq(rollout_id), 0.0)
            assert folded.record == record, f"{folded.record}\n{record}"
            assert folded.accepted == self.accepted[rollout_id]


JournalModel.TestCase.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


class AgainstTheModel(JournalModel.TestCase):  # type: ignore[misc,name-defined]
    """The journal, on a real disk."""


if __name__ == "__main__":
    unittest.main()
