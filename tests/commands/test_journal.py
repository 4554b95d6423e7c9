"""`queue`, `history`, `status`, `why` and `support` over the files of a host, its agent running or not."""

from __future__ import annotations

import errno
import json
import threading
import unittest
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from unittest import mock

import rfc8785

from nixfleet_agent import durable
from nixfleet_agent.activation.changes import FILE, Changes
from nixfleet_agent.activation.host import read_boot_id
from nixfleet_agent.activation.records import FORWARD, Intent, Records
from nixfleet_agent.errors import StorageError
from nixfleet_agent.journal.folders import CORRUPT, DROPPED, QUEUE, REJECTED, SENT
from nixfleet_agent.reboots.ledger import RebootLedger
from nixfleet_agent.state_machine.events import LocalActivationCompleted, Phase
from tests.commands.host_case import MACHINE, NEW, OLD
from tests.commands.journal_case import ROLLOUT, Case


class Queue(Case):
    def test_list_shows_what_waits_and_why(self) -> None:
        self.rejected()
        ran = self.call("queue", "list")
        self.assertEqual(ran.code, 0)
        self.assertRegex(ran.out, r"(?m)^stable@abc123/1 +DispatchAck +rejected .* 422: odd\\x1b\[2J$")
        self.assertRegex(ran.out, r"(?m)^stable@abc123/2 +ActivationStarted +queued ")
        self.assertNotIn("/0", ran.out)
        self.assertEqual(
            [row["where"] for row in self.call("queue", "list", "--json", "--all").json], ["kept", "rejected", "queued"]
        )

    def test_show(self) -> None:
        path = self.rejected()
        shown = self.call("queue", "show", f"{ROLLOUT}/1", "--json").json
        self.assertEqual((shown["refusal"]["status"], shown["event"]["kind"]), (422, "DispatchAck"))
        out = self.call("queue", "show", path.name).out
        self.assertIn("DispatchAck", out)
        starts = {len(line) - len(line.partition(":")[2].lstrip()) for line in out.splitlines()}
        self.assertEqual(len(starts), 1, out)

    def test_retry_puts_the_same_event_back_and_wakes_the_agent(self) -> None:
        path = self.rejected()
        woken = threading.Event()
        with self.agent({"rescan-queue": lambda _: woken.set()}):
            ran = self.call("queue", "retry", f"{ROLLOUT}/1")
        self.assertEqual((ran.code, ran.out), (0, f"queued again: {ROLLOUT}/1\n"))
        self.assertTrue(woken.is_set())
        self.assertEqual(self.names(REJECTED), [])
        back = json.loads((self.state / QUEUE / path.name).read_bytes())
        self.assertNotIn("refusal", back)
        self.assertEqual(back["seq"], 1)

    def test_retry_without_an_agent_says_when_it_is_sent(self) -> None:
        self.rejected()
        self.assertIn("when it is started", self.call("queue", "retry", "--all").out)

    def test_to_retry_nothing_speaks_of_nothing_else(self) -> None:
        self.assertEqual(self.call("queue", "retry", "--all").out, "there is nothing rejected or corrupt.\n")

    def test_drop_keeps_the_event_and_its_number(self) -> None:
        path = self.rejected()
        told = threading.Event()
        with self.agent({"rescan-queue": lambda _: told.set()}):
            self.assertEqual(self.call("queue", "drop", "--all").code, 0)
        self.assertTrue(told.is_set(), "a running agent would count it as refused until its next start")
        self.assertEqual((self.names(REJECTED), self.names(DROPPED)), ([], [path.name]))
        self.assertEqual(self.journal().last_seq(ROLLOUT), 2)

    def test_what_is_delivered_is_not_touched(self) -> None:
        self.rejected()
        for action in ("retry", "drop"):
            with self.subTest(action=action):
                ran = self.call("queue", action, f"{ROLLOUT}/0")
                self.fails(2, "is kept", "only waiting, rejected and corrupt", ran=ran)
        self.assertEqual(len(self.names(QUEUE)), 1)

    def test_one_that_waits_is_retried_and_dropped_by_its_id_and_never_with_all(self) -> None:
        self.rejected()
        [waiting] = self.names(QUEUE)
        self.call("queue", "drop", "--all")
        self.assertEqual(self.names(QUEUE), [waiting])
        told = threading.Event()
        with self.agent({"rescan-queue": lambda _: told.set()}):
            self.assertEqual(self.call("queue", "retry", f"{ROLLOUT}/2").code, 0)
        self.assertTrue(told.is_set(), "the agent is told to try it now")
        self.assertEqual(self.names(QUEUE), [waiting])
        self.assertEqual(self.call("queue", "drop", f"{ROLLOUT}/2").code, 0)
        self.assertEqual(self.names(QUEUE), [])
        self.assertIn(waiting, self.names(DROPPED))

    def test_a_corrupt_file_can_be_dropped_but_not_sent(self) -> None:
        path = self.rejected()
        (self.state / CORRUPT / path.name).write_text("{")
        (self.state / REJECTED / path.name).unlink()
        self.assertIn("not JSON", self.call("queue", "list").out)
        ran = self.call("queue", "retry", f"{ROLLOUT}/1")
        self.fails(2, "can't be sent as it is", "drop it", ran=ran)
        self.assertEqual(ran.out, "")
        self.assertEqual(self.call("queue", "drop", path.name).code, 0)
        self.assertEqual(self.names(DROPPED), [path.name])

    def test_a_damaged_file_among_all_keeps_none_of_the_others_from_being_sent(self) -> None:
        """One damaged file ended the command after the first event, and nobody woke the agent for that one."""
        path = self.rejected()
        for name in (f"{9:020}-{MACHINE}-{ROLLOUT}-Failed.json", "foreign.json"):
            (self.state / CORRUPT / name).write_text("{")
        woken = threading.Event()
        with self.agent({"rescan-queue": lambda _: woken.set()}):
            ran = self.call("queue", "retry", "--all")
        self.assertEqual(ran.out, f"queued again: {ROLLOUT}/1\n")
        self.fails(2, f"{ROLLOUT}/9 can't be sent as it is", "and 1 more: see `nixfleet-agent queue list`", ran=ran)
        self.assertTrue(woken.is_set())
        self.assertIn(path.name, self.names(QUEUE))
        self.assertEqual(len(self.names(CORRUPT)), 2)

    def test_a_full_disk_in_the_middle_leaves_the_agent_woken_for_what_was_done(self) -> None:
        self.rejected()
        journal = self.journal()
        second = journal.first(ROLLOUT)
        assert second is not None
        journal.reject(ROLLOUT, second, 422, b"odd", self.now)
        really, woken = durable.write, threading.Event()

        def full(path: Path, content: bytes) -> None:
            if "ActivationStarted" in path.name:
                raise StorageError(f"can't write {path}: No space left on device", errno.ENOSPC)
            really(path, content)

        with (
            self.agent({"rescan-queue": lambda _: woken.set()}),
            mock.patch("nixfleet_agent.commands.queue.durable.write", full),
        ):
            self.fails(1, "No space left", ran=self.call("queue", "retry", "--all"))
        self.assertTrue(woken.is_set())
        self.assertEqual(len(self.names(REJECTED)), 1)

    def test_a_foreign_file_is_listed_by_its_name(self) -> None:
        self.rejected()
        (self.state / CORRUPT / "x\x1b[2J.json").write_text("[]")
        self.assertIn("x\\x1b[2J.json", self.call("queue", "list").out)


class History(Case):
    def test_a_timeline_replays_the_states(self) -> None:
        accepted = self.accept(ROLLOUT)
        self.log(accepted, *self.converged(accepted))
        ran = self.call("history")
        self.assertEqual(ran.code, 0)
        self.assertRegex(ran.out, rf"(?m)^{ROLLOUT}: Converged; {NEW}$")
        self.assertRegex(ran.out, r"(?m) \+0 s +1 +DispatchAck +Pending -> Activating +sent ")
        self.assertRegex(ran.out, r"(?m) \+20 min +5 +Converged +Soaking -> Converged +sent ")
        self.assertEqual([step["seq"] for step in self.call("history", "--json").json["steps"]], [0, 1, 2, 3, 4, 5])

    def test_what_its_switch_changed_is_shown(self) -> None:
        accepted = self.accept(ROLLOUT)
        self.log(accepted, *self.converged(accepted))
        self.assertIsNone(self.call("history", "--json").json["changes"])
        boot = read_boot_id()
        intent = Intent(ROLLOUT, FORWARD, NEW, "switch", "setsid", "u", OLD, boot, 0.0, "2026-05-16T01:02:03Z")
        record = Records(self.state, boot).prepare(intent)
        kept = Changes(("nginx 1.26 -> 1.27",), 1, 2048, ("nginx.service",), (), (), ())
        (record.path / FILE).write_text(json.dumps(kept.to_json()))
        said = "changes nginx 1.26 -> 1.27, +2.0 KiB; restarts nginx.service"
        self.assertEqual(self.call("history").out.splitlines()[2], said)
        self.assertEqual(self.call("history", "--json").json["changes"]["packages"], ["nginx 1.26 -> 1.27"])

    def test_the_steps_of_an_activation_are_shown_with_what_each_took(self) -> None:
        accepted = self.accept(ROLLOUT)
        *before, completed = self.activated(accepted)
        assert isinstance(completed, LocalActivationCompleted)
        phases = (Phase(name="realise", seconds=61.5), Phase(name="fire", seconds=0.021))
        self.log(accepted, *before, replace(completed, phases=phases))
        self.assertRegex(self.call("history").out, r"(?m) ActivationCompleted .* realise:61\.5s fire:0\.021s$")
        steps = self.call("history", "--json").json["steps"]
        self.assertEqual(steps[3]["phases"], [{"name": "realise", "seconds": 61.5}, {"name": "fire", "seconds": 0.021}])
        self.assertEqual([step["phases"] for step in steps[:3]], [[]] * 3)

    def test_a_reboot_that_the_agent_asked_for_stands_where_it_came(self) -> None:
        accepted = self.accept(ROLLOUT)
        events = self.activated(accepted)
        self.log(accepted, *events)
        ledger = RebootLedger(self.state)
        ledger.note("stable@other", "forward", "boot-0", self.now)
        for _ in range(2):
            ledger.note(ROLLOUT, "forward", "boot-1", events[-1].at - timedelta(seconds=1))
        *_, asked, completed = self.call("history").out.splitlines()
        self.assertRegex(asked, r" reboot +forward +asked for by the agent 2 times$")
        self.assertIn("ActivationCompleted", completed)
        self.assertNotIn("stable@other", asked)
        ledger.path.write_text("{")
        self.assertIn("unreadable: ", self.call("history").out)

    def test_the_newest_or_the_one_that_is_named(self) -> None:
        for number, rollout_id in enumerate(("stable@aa", "stable@ab", "edge@cc"), 1):
            self.accept(rollout_id, number)
        self.assertIn("edge@cc: Pending", self.call("history").out)
        self.assertIn("stable@ab: Pending", self.call("history", "stable@ab").out)
        self.assertIn("stable@aa: Pending", self.call("history", "stable@aa").out)
        self.fails(2, "several rollouts begin with 'stable'", ran=self.call("history", "stable"))
        self.assertEqual(len(self.call("history", "--list").out.splitlines()), 4)

    def test_an_event_that_the_machine_refuses_and_a_damaged_file_are_shown_not_hidden(self) -> None:
        accepted = self.accept(ROLLOUT)
        self.log(accepted, self.converged(accepted)[0], self.converged(accepted)[4])
        bad = self.state / SENT / ROLLOUT / f"{9:020}-{MACHINE}-{ROLLOUT}-Converged.json"
        bad.write_text("{")
        out = self.call("history").out
        self.assertRegex(out, r"(?m)Converged +Activating +refused ")
        self.assertIn("unreadable:", out)
        self.assertTrue(bad.exists(), "looking must not move it")

    def test_copies_of_events_are_checked_against_key_and_log(self) -> None:
        accepted = self.accept(ROLLOUT)
        self.log(accepted, *self.converged(accepted))
        events = [step["event"] for step in self.call("history", "--json").json["steps"][1:]]
        envelopes = [
            {"rolloutId": ROLLOUT, "event": event, "signature": self.key.sign(rfc8785.dumps(event)).hex()}
            for event in events
        ]
        file = self.folder / "events.json"

        def verdicts() -> list[tuple[str, str]]:
            file.write_text(json.dumps(envelopes))
            ran = self.call("history", "--verify", str(file), "--json")
            rows = [(row["signature"], row["log"]) for row in ran.json]
            self.assertEqual(ran.code, 0 if all(row == ("good", "same") for row in rows) else 1)
            return rows

        self.assertEqual(set(verdicts()), {("good", "same")})
        envelopes[0]["signature"] = "00" * 64
        del envelopes[1]["signature"]
        forged = dict(events[2], exitCode=1)
        envelopes[2] |= {"event": forged, "signature": self.key.sign(rfc8785.dumps(forged)).hex()}
        envelopes[3]["rolloutId"] = "stable@ff"
        self.assertEqual(
            verdicts()[:4], [("bad", "same"), ("missing", "same"), ("good", "differs"), ("good", "absent")]
        )

    def test_a_list_that_is_none(self) -> None:
        for content in ("{}", "[1]", "", "[", '[{"event": {"a": NaN}}]'):
            with self.subTest(content):
                (self.folder / "events.json").write_text(content)
                self.fails(
                    2, "list of event envelopes", ran=self.call("history", "--verify", str(self.folder / "events.json"))
                )


if __name__ == "__main__":
    unittest.main()
