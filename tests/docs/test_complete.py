"""The documentation names everything that an operator can meet, and nothing that is not there."""

from __future__ import annotations

import re
import unittest

from nixfleet_agent import errors
from nixfleet_agent.cli import COMMANDS
from nixfleet_agent.config.load import load
from nixfleet_agent.config.retired import FLAGS, VARIABLES
from nixfleet_agent.config.schema import CONFIG_VARIABLE, ENVIRONMENT_ALIASES, Schema
from nixfleet_agent.conformance import main as conformance
from nixfleet_agent.output import CONFIG_FLAGS
from nixfleet_agent.state_machine.states import State
from nixfleet_agent.trust.errors import VerificationError
from tests.docs import said, state_diagram
from tests.docs.pages import DOCS, PAGES, TOP, anchors, first_column, inline_code, prose, read, section
from tests.docs.said import flags_of
from tests.packaging.exposition import families, samples
from tests.simulation.__main__ import options as simulation_options

GUIDE, INSTALLING, MONITORING, FAILING = (
    DOCS / name for name in ("operators-guide.md", "installing.md", "monitoring.md", "when-it-fails.md")
)
EVERYTHING = "\n".join(read(page) for page in PAGES)
ALERTS = re.findall(r"alert: (\w+)", read(TOP / "packaging" / "prometheus" / "nixfleet-agent.rules.yml"))


class Operators(unittest.TestCase):
    def test_every_key_its_default_and_its_flag(self) -> None:
        text = section(INSTALLING, "## Configuration")
        rows = re.findall(r"^\| `([\w.]+)` \| ([^|]*)\| (?:`(--[\w-]+)`)?", text, re.MULTILINE)
        keys = Schema().keys
        self.assertEqual([name for name, _, _ in rows], list(keys))
        needed = {"control_plane_url": "https://cp", "machine_id": "web-01"}
        defaults = load(None, {}, needed).provenance
        for name, text, flag in rows:
            with self.subTest(name):
                self.assertEqual(flag or None, keys[name].flag if name in CONFIG_FLAGS else None)
                value = defaults[name][0]
                number = isinstance(value, (int, float)) and not isinstance(value, bool)
                shown = f"{value:g}" if number else str(value or "")
                shown = shown.lower() if isinstance(value, bool) else shown
                if name not in needed:
                    self.assertIn(shown, text.replace("not set", ""))

    def test_every_command_and_every_flag(self) -> None:
        for command in COMMANDS:
            with self.subTest(command):
                self.assertRegex(EVERYTHING, rf"(?:nixfleet-agent|packaging/dev) {command}\b")
                for flag in flags_of(command):
                    self.assertRegex(EVERYTHING, rf"{flag}\b")

    def test_no_flag_that_does_not_exist(self) -> None:
        of_the_program = {"--version", *FLAGS}
        of_the_tests = {"--fast", "--slow", "--coverage", "--now", "--mutants", "--fuzz", "--guided"}
        of_nix = {"--repair-path"}
        of_conformance = {flag for action in conformance.parser()._actions for flag in action.option_strings}
        known = {flag for command in COMMANDS for flag in flags_of(command)}
        of_the_simulation = {flag for action in simulation_options()._actions for flag in action.option_strings}
        known |= of_the_program | of_the_tests | of_nix | of_conformance | of_the_simulation
        for page in PAGES:
            for code in inline_code(page):
                for flag in re.findall(r"(?:^|\s)(--[a-z][\w-]*)", code):
                    with self.subTest(flag, page=page.name):
                        self.assertIn(flag, known)

    def test_every_exit_code(self) -> None:
        codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
        listed = re.findall(r"^\| (\d+) \|", section(MONITORING, "## Exit codes"), re.MULTILINE)
        self.assertEqual({int(code) for code in listed}, codes)

    def test_every_metric_with_its_labels(self) -> None:
        text = section(MONITORING, "## Metrics")
        self.assertEqual(set(first_column(text)), families())
        labels = samples()
        for name, cell in re.findall(r"^\| `(\w+)` \| ([^|]*)\|", text, re.MULTILINE):
            with self.subTest(name):
                known = labels.get(name) or labels.get(f"{name}_count") or set()
                self.assertEqual(set(re.findall(r"`(\w+)`", cell)), known)

    def test_every_alert(self) -> None:
        self.assertEqual(first_column(section(MONITORING, "## Alerts")), ALERTS)

    def test_every_line_at_error(self) -> None:
        listed = set(first_column(section(MONITORING, "## Log lines at error")))
        self.assertEqual(said.error_lines() - listed, set())
        self.assertEqual(listed - said.all_lines(), set())

    def test_every_phase_exists(self) -> None:
        source = "\n".join(path.read_text() for path in (said.PACKAGE).rglob("*.py"))
        for phase in first_column(section(FAILING, "## Failed activations")):
            with self.subTest(phase):
                self.assertRegex(source, rf'"{phase}(?:"|: )')

    def test_every_line_of_status(self) -> None:
        source = read(said.PACKAGE / "commands" / "status.py")
        listed = set(first_column(section(GUIDE, "## Reading it"))) - {"refused", "expired"}
        shown = set(re.findall(r'yield "(\w+)"', source)) - {"host", "runs"}
        self.assertEqual(listed, shown)

    def test_every_file_of_the_state_directory(self) -> None:
        listed = {name.rstrip("/") for name in first_column(section(FAILING, "## The state directory"))}
        named = set()
        for path in (said.PACKAGE).rglob("*.py"):
            if path.relative_to(said.PACKAGE).parts[0] in ("runtime", "activation"):
                named |= set(re.findall(r'state_dir / "([\w.-]+)"', path.read_text()))
        self.assertEqual(named - listed, set())

    def test_every_variable(self) -> None:
        known = {key.variable for key in Schema().keys.values()} | set(ENVIRONMENT_ALIASES) | {CONFIG_VARIABLE}
        known |= set(VARIABLES)
        used = set(re.findall(r"\bNIXFLEET_AGENT_\w+[A-Z]", EVERYTHING))
        self.assertEqual(used - known, set())


class Trust(unittest.TestCase):
    def test_every_check_and_whether_it_is_final(self) -> None:
        rows = re.findall(r"^\| [^|]+ \| `(\w+)` \| (yes)?", section(DOCS / "trust.md", "## Checks"), re.MULTILINE)
        known, classes = {}, [VerificationError]
        while classes:
            kind = classes.pop()
            classes += kind.__subclasses__()
            known[kind.reason] = kind.final
        del known[VerificationError.reason]
        self.assertEqual({reason: bool(final) for reason, final in rows}, known)


class StateMachine(unittest.TestCase):
    def test_the_diagram_is_that_of_the_table(self) -> None:
        text = read(state_diagram.PAGE)
        self.assertEqual(text, state_diagram.page(text), "run: python -m tests.docs.state_diagram")
        self.assertIn("```mermaid", text)

    def test_every_state_is_explained(self) -> None:
        rows = re.findall(r"^\| (\w+) \|", section(state_diagram.PAGE, "## States"), re.MULTILINE)
        self.assertEqual(rows[1:] if rows[0] == "state" else rows, [str(state) for state in State])


class Places(unittest.TestCase):
    def test_every_link_leads_somewhere(self) -> None:
        for page in (*PAGES, TOP / "CHANGELOG.md"):
            for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
                with self.subTest(target, page=page.name):
                    path, _, anchor = target.partition("#")
                    if "://" in target:
                        continue
                    place = (page.parent / path).resolve() if path else page
                    self.assertTrue(place.exists())
                    if anchor:
                        self.assertIn(anchor, anchors(place))

    def test_every_page_can_be_reached_from_the_readme(self) -> None:
        linked = read(TOP / "README.md")
        for page in DOCS.glob("*.md"):
            with self.subTest(page.name):
                self.assertIn(f"packaging/docs/{page.name}", linked)

    def test_every_file_that_is_named_exists(self) -> None:
        for page in PAGES:
            for code in inline_code(page):
                if re.fullmatch(r"(?:nixfleet_agent|tests|conf|packaging)/[\w./-]+", code):
                    with self.subTest(code, page=page.name):
                        self.assertTrue((TOP / code).exists())


if __name__ == "__main__":
    unittest.main()
