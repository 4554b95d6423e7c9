"""Each command line in the documentation runs as it stands there, on a host with a past; what can't, parses."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

from nixfleet_agent.activation.host import read_boot_id
from nixfleet_agent.activation.records import FORWARD, Intent, Records
from nixfleet_agent.cli import COMMANDS, module_of, split_command
from nixfleet_agent.commands import journal_view
from nixfleet_agent.commands.invocation import Invocation, parse
from nixfleet_agent.operator.quarantine import Entry, QuarantineStore
from nixfleet_agent.proto.times import format_time
from nixfleet_agent.trust.canonical import canonical
from tests.commands.host_case import MACHINE, NEW, OLD, HostCase
from tests.docs.pages import PAGES, TOP, blocks, inline_code
from tests.docs.said import parser_of

#: They change the world outside, or ask a Nix store: that their arguments are understood is what can be said here.
ELSEWHERE = {"run", "init", "enroll", "renew", "demo", "rollback", "diff", "rehearse"}
#: Words of the text that stand for something.
STANDS_FOR = {
    "CLOSURE": OLD,
    "ROLLOUT/SEQ": "stable@def4567abc/3",
    "TEXT": "because",
}
#: Programs that may stand at the beginning of a line.
KNOWN = {"nixfleet-agent", "packaging/dev", "packaging/build-deb", ".venv/bin/python", "sudo"}


def lines() -> list[tuple[Path, str]]:
    """(page, command line) of every ``sh`` block."""
    return [(block.page, line) for block in blocks("sh") for line in block.text.splitlines() if line]


class Commands(HostCase):
    def setUp(self) -> None:
        super().setUp()
        accepted = self.accept("stable@def4567abc")
        self.log(accepted, *self.converged(accepted))
        QuarantineStore(self.state).add(Entry("stable", OLD, "stable@abc", self.now, "rolled back"))
        self._switched("stable@def4567abc")
        (self.folder / "health-checks.json").write_text('{"web": {"kind": "exec", "command": ["/bin/true"]}}')
        self.work = self.folder / "work"
        self.work.mkdir()
        before = Path.cwd()
        os.chdir(self.work)
        self.addCleanup(os.chdir, before)
        (replay,) = journal_view.rollouts(self.state, MACHINE)
        events = [dict(step.entry.event) for step in replay.steps[1:]]
        signed = [{"event": event, "signature": self.key.sign(canonical(event)).hex()} for event in events]
        envelopes = [{"hostname": MACHINE, "rolloutId": "stable@def4567abc", **item} for item in signed]
        (self.work / "events.json").write_text(json.dumps(envelopes))
        (self.work / "web-01.pub").write_text(f"{self.key.public_openssh}\n")
        (self.folder / "booted-system").symlink_to(f"/nix/store/{OLD}")
        release = self.ci.release({MACHINE: "stable"}, signed_at=self.now)
        for name, artifact in (("fleet.resolved", release.fleet), ("manifest.json", release.rollout("stable"))):
            (self.work / name).write_bytes(artifact.raw)
            (self.work / f"{name}.sig").write_bytes(artifact.signature)

    def _switched(self, rollout_id: str) -> None:
        boot = read_boot_id()
        at = format_time(self.now)
        intent = Intent(rollout_id, FORWARD, NEW, "switch", "setsid", "u", OLD, boot, 0.0, at)
        record = Records(self.state, boot).prepare(intent)
        (record.path / "started").write_text(f"pid=1 group=1 start=1 boot={boot}\n")
        (record.path / "output").write_text("starting the following units: app.service\n")
        (record.path / "exit").write_text("0\n")

    def understood(self, arguments: list[str]) -> Invocation:
        command, rest = split_command(arguments)
        self.assertIn(command, COMMANDS)
        module: Any = importlib.import_module(module_of(command))
        call = parse(str(command), "x", module.configure, rest, {})
        self.assertIsInstance(call, Invocation, f"{arguments} is not understood")
        assert isinstance(call, Invocation)
        return call

    def test_every_line_begins_with_something_known(self) -> None:
        for page, line in lines():
            with self.subTest(line, page=page.name):
                program = shlex.split(line)[0]
                self.assertIn(program, KNOWN)
                if "/" in program:
                    self.assertTrue(os.access(TOP / program, os.X_OK))

    def test_every_line_of_the_agent_runs(self) -> None:
        ran = 0
        for page, line in lines():
            words = shlex.split(line)
            if words[0] != "nixfleet-agent":
                continue
            with self.subTest(line, page=page.name):
                call = self.understood(words[1:])
                if words[1] in ELSEWHERE:
                    continue
                extra = ["--local"] if words[1:] == ["check"] else []
                result = self.call(*words[1:], *extra)
                self.assertEqual((result.code, result.err), (0, ""), result.out)
                self.assertNotEqual(result.out, "")
                if call.json:
                    self.assertIsNotNone(result.json)
                ran += 1
        self.assertGreater(ran, 15)

    def test_every_example_of_the_help_runs(self) -> None:
        for command in COMMANDS:
            examples = parser_of(command).examples
            self.assertTrue(examples, command)
            for line in examples:
                with self.subTest(line):
                    words = shlex.split(line)
                    self.assertEqual(words[:2], ["nixfleet-agent", command])
                    self.understood(words[1:])
                    if command in ELSEWHERE:
                        continue
                    extra = ["--local"] if words[1:] == ["check"] else []
                    result = self.call(*words[1:], *extra)
                    self.assertEqual((result.code, result.err), (0, ""), result.out)
                    self.assertNotEqual(result.out, "")

    def test_every_command_in_the_text_is_understood(self) -> None:
        checked = 0
        for page in PAGES:
            for code in inline_code(page):
                if not code.startswith("nixfleet-agent "):
                    continue
                words = [STANDS_FOR.get(word, word) for word in shlex.split(code)[1:]]
                with self.subTest(code, page=page.name):
                    checked += 1
                    if len(words) == 1:
                        self.assertIn(words[0], COMMANDS)
                        continue
                    self.understood([*words, "events.json"] if words[-1] == "--verify" else words)
        self.assertGreater(checked, 10)

    def test_the_first_two_lines_a_newcomer_sees_are_the_demo_and_the_tests(self) -> None:
        first = [block.text for block in blocks("sh") if block.page.name == "README.md"][:2]
        self.assertEqual(first, ["packaging/dev demo\n", "packaging/dev test\n"])
        usage = subprocess.run([TOP / "packaging" / "dev", "--help"], capture_output=True, text=True, check=True).stdout
        for command in ("demo", "test", "setup"):
            self.assertTrue(re.search(rf"packaging/dev {command}\b", usage))
