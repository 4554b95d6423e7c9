"""What version 0.1 left on disk is read without loss: state directory, configuration and journal of a real host.

The files are those of one host that went to v1 and v2 and took v3 back; ``@HOST@`` and ``@FLEET@`` stand for folders.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import tempfile
import unittest
from pathlib import Path
from typing import Any

from nixfleet_agent.activation.records import Records
from nixfleet_agent.artifacts.trust_store import TrustStore
from nixfleet_agent.cli import main
from nixfleet_agent.config.load import load
from nixfleet_agent.journal.journal import Journal
from nixfleet_agent.operator.quarantine import QuarantineStore
from nixfleet_agent.proto.times import parse_time
from nixfleet_agent.runtime.rollout.recovery import recover
from nixfleet_agent.state_machine import State

DATA = Path(__file__).resolve().parent.parent / "data" / "state-0.1"
V1, V2, V3 = "stable@3bfc269594ef", "stable@fb04dcb6970e", "stable@e0d2747b9ab7"
SYSTEM_V2 = "56pxm4bzxzdjr7745cs9nzbmjjsjj4d8-nixos-system-demo-v2"
SYSTEM_V3 = "qycpw598nqm9i0pzdiwx2yr44sa0gndw-nixos-system-demo-v3"


class Version01(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory())).resolve()
        shutil.copytree(DATA, self.folder, dirs_exist_ok=True)
        self.state = self.folder / "state"
        self.state.chmod(0o700)
        for path in self.folder.rglob("*"):
            if path.is_file() and path.suffix != ".sig":
                path.write_text(path.read_text().replace("@HOST@", str(self.folder)).replace("@FLEET@", "/nowhere"))
        (self.folder / "run").mkdir()
        (self.folder / "run" / "current-system").symlink_to(f"/nix/store/{SYSTEM_V2}")
        self.journal = Journal(self.state, "web-01")

    def command(self, *arguments: str) -> str:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([*arguments, "--config", str(self.folder / "agent.toml")], {})
        self.assertEqual((code, err.getvalue()), (0, ""), arguments)
        return out.getvalue()

    def recovered(self) -> dict[str, State]:
        self.journal.open()
        host = recover(self.journal, SYSTEM_V2, 0.0)
        self.assertEqual(host.active_id, V3)
        return {rollout_id: rollout.record.state for rollout_id, rollout in host.rollouts.items()}

    def test_its_journal_folds_to_the_states_that_it_ended_in(self) -> None:
        with self.assertNoLogs(level=logging.WARNING):
            states = self.recovered()
        self.assertEqual(states, {V1: State.CONVERGED, V2: State.CONVERGED, V3: State.REVERTED})
        self.assertEqual(list((self.state / "outbound-corrupt").glob("*")), [])

    def test_its_ways_back_are_what_ran_then_and_the_log_says_so(self) -> None:
        self.journal.open()
        with self.assertLogs("nixfleet_agent.recovery", logging.INFO) as logs:
            host = recover(self.journal, SYSTEM_V2, 0.0)
        said = {rollout: line.getMessage() for line in logs.records if (rollout := vars(line).get("rollout_id"))}
        self.assertEqual(set(said), {V1, V2, V3})
        self.assertEqual(host.rollouts[V3].record.prior_closure, SYSTEM_V2)
        self.assertIn(f"what ran then ({SYSTEM_V2}), which need not be proven", said[V3])

    def test_every_beginning_of_its_logs_folds_without_a_refused_event(self) -> None:
        """Wherever version 0.1 was killed: the new version goes on from there, and uses no seq again."""
        for folder in (self.state / "outbound-sent").iterdir():
            for last in sorted(folder.iterdir(), reverse=True)[:-1]:
                journal = Journal(self.state, "web-01")
                journal.open()
                with self.subTest(last.name), self.assertNoLogs(level=logging.WARNING):
                    host = recover(journal, None, 0.0)
                    self.assertEqual(host.rollouts[folder.name].record.last_event_seq, int(last.name[:20]))
                last.unlink()

    def test_what_it_had_not_delivered_is_still_queued_and_comes_in_order(self) -> None:
        queue = self.state / "outbound-queue"
        queue.mkdir(exist_ok=True)
        sent = sorted((self.state / "outbound-sent" / V3).iterdir())[-2:]
        for path in sent:
            path.rename(queue / path.name)
        self.assertEqual(self.recovered()[V3], State.REVERTED)
        self.assertEqual(self.journal.waiting(), {V3: 2})
        first = self.journal.first(V3)
        assert first is not None
        self.assertEqual(first.name, sent[0].name)

    def test_its_switch_records_quarantine_and_marks_are_read(self) -> None:
        records = Records(self.state, "another-boot").all()
        self.assertEqual(
            [(record.intent.rollout_id, record.intent.direction, record.exit_code) for record in records],
            [(V1, "forward", 0), (V2, "forward", 0), (V3, "forward", 0), (V3, "rollback", 0)],
        )
        self.assertEqual([entry.closure for entry in QuarantineStore(self.state).entries()], [SYSTEM_V3])
        config = load(self.folder / "agent.toml", {}, {}).config
        written = json.loads((self.state / "trust-marks.json").read_text())["fleet"]
        self.assertEqual(TrustStore(config).recover_marks(()).fleet, parse_time(written))

    def test_commands_tell_of_it_while_no_agent_runs(self) -> None:
        status: dict[str, Any] = json.loads(self.command("status", "--json"))
        states = {record["rollout_id"]: record["state"] for record in status["rollouts"]}
        self.assertEqual(states, {V1: "Converged", V2: "Converged", V3: "Reverted"})
        self.assertIn("RollbackComplete", self.command("history", V3))

    def test_its_example_configuration_with_every_key_is_accepted(self) -> None:
        load(self.folder / "every-key.toml", {}, {})


if __name__ == "__main__":
    unittest.main()
