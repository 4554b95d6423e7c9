"""What is shipped beside the program says the same as the program."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path
from typing import Any

from nixfleet_agent import errors
from nixfleet_agent.cli import COMMANDS
from nixfleet_agent.config.schema import Schema
from nixfleet_agent.config.sources import from_file
from nixfleet_agent.demo.scenario import FAULTS
from nixfleet_agent.output import CONFIG_FLAGS
from tests.docs import manual
from tests.docs.said import flags_of
from tests.packaging.exposition import families, samples

TOP = Path(__file__).resolve().parents[2]
PACKAGING = TOP / "packaging"
#: Ten times the score of `systemd-analyze security`: lower it with the unit, never raise it.
EXPOSURE = 56
#: Where systemd names a group of capabilities, those of it that the unit leaves.
CAPABILITIES = {
    "CAP_(DAC_*|FOWNER|IPC_OWNER)": ["CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_IPC_OWNER"],
    "CAP_(CHOWN|FSETID|SETFCAP)": ["CAP_CHOWN", "CAP_FSETID", "CAP_SETFCAP"],
    "CAP_SET(UID|GID|PCAP)": ["CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"],
    "CAP_SYS_(NICE|RESOURCE)": ["CAP_SYS_NICE", "CAP_SYS_RESOURCE"],
    "CAP_NET_(BIND_SERVICE|BROADCAST|RAW)": ["CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_RAW"],
    "CAP_AUDIT_*": ["CAP_AUDIT_WRITE", "CAP_AUDIT_READ"],
}
FINAL = {errors.EXIT_STATE_DIR_BUSY, errors.EXIT_ENROLLMENT_REFUSED, errors.EXIT_CONFIG}


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


@unittest.skipUnless(shutil.which("systemd-analyze"), "this machine has no systemd to ask")
class Systemd(unittest.TestCase):
    def setUp(self) -> None:
        self.unit = (PACKAGING / "nixfleet-agent.service").read_text()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        # The program itself need not be installed for the unit to be checked.
        self.copy = Path(folder.name) / "nixfleet-agent.service"
        self.copy.write_text(self.unit.replace("/usr/bin/nixfleet-agent", "/bin/true"))

    def test_systemd_finds_nothing_wrong(self) -> None:
        ran = run("systemd-analyze", "verify", "--man=no", str(self.copy))
        self.assertEqual((ran.returncode, ran.stderr), (0, ""))

    def test_the_unit_that_judges_a_boot_is_what_its_target_requires(self) -> None:
        unit = (PACKAGING / "nixfleet-agent-boot.service").read_text()
        copy = self.copy.with_name("nixfleet-agent-boot.service")
        copy.write_text(unit.replace("/usr/bin/nixfleet-agent", "/bin/true"))
        ran = run("systemd-analyze", "verify", "--man=no", str(self.copy), str(copy))
        self.assertEqual((ran.returncode, ran.stderr), (0, ""))
        for line in ("Before=boot-complete.target", "RequiredBy=boot-complete.target", "TimeoutStartSec=infinity"):
            self.assertIn(line, unit.splitlines())

    def test_it_is_as_closed_as_a_program_with_probes_can_be(self) -> None:
        """The score must not get worse by accident; it can't be good for a root service that runs foreign probes."""
        ran = run("systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE}", str(self.copy))
        self.assertEqual(ran.returncode, 0, ran.stdout[-200:])

    def test_each_point_that_is_left_open_has_its_reason_in_the_unit(self) -> None:
        ran = run("systemd-analyze", "security", "--offline=true", "--json=short", str(self.copy))
        reasons = "".join(line for line in self.unit.splitlines() if line.startswith("# "))
        found = [item for item in json.loads(ran.stdout) if item["exposure"]]
        self.assertGreater(len(found), 20)
        for item in found:
            # "CapabilityBoundingSet=~CAP_SET(UID|GID)", "RestrictNamespaces=~user", "User=/DynamicUser=", ...
            setting, _, which = item["name"].partition("=")
            words = CAPABILITIES.get(which.lstrip("~"), [which.lstrip("~")]) if "CAP_" in which else [setting]
            if setting == "SystemCallFilter":
                words = [which.lstrip("~")]
            for word in words:
                with self.subTest(item["name"]):
                    self.assertIn(word, reasons)

    def test_the_nixos_module_closes_the_same(self) -> None:
        module = (PACKAGING / "nixos" / "module.nix").read_text()
        hardening = self.unit[self.unit.index("\nNoNewPrivileges=") : self.unit.index("\n[Install]")]
        for key, value in re.findall(r"^(\w+)=(.*)$", hardening, re.MULTILINE):
            with self.subTest(key):
                self.assertIn(f"{key} = " + {"yes": "true"}.get(value, f'"{value}"') + ";", module)

    def test_it_does_not_try_again_what_can_never_work(self) -> None:
        (line,) = re.findall(r"^RestartPreventExitStatus=(.*)$", self.unit, re.MULTILINE)
        self.assertEqual({int(code) for code in line.split()}, FINAL)
        for setting in ("Type=notify", "WatchdogSec=", "Restart=always", "StateDirectory=nixfleet-agent"):
            self.assertIn(f"\n{setting}", self.unit)

    def test_it_waits_longer_than_the_agents_own_hard_stop(self) -> None:
        from nixfleet_agent.runtime.daemon import HARD_STOP

        (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", self.unit, re.MULTILINE)
        self.assertGreater(int(seconds), HARD_STOP)


class Completions(unittest.TestCase):
    FILES = ("nixfleet-agent.bash", "_nixfleet-agent", "nixfleet-agent.fish")

    def test_all_know_every_command_and_fault(self) -> None:
        for name in self.FILES:
            text = (PACKAGING / "completions" / name).read_text()
            for word in [*COMMANDS, *FAULTS]:
                with self.subTest(name, word=word):
                    self.assertRegex(text, rf"\b{re.escape(word)}\b")

    def test_all_know_every_flag_and_none_that_is_gone(self) -> None:
        known = {flag for command in COMMANDS for flag in flags_of(command)}
        configuration = {"--" + key.replace("_", "-") for key in CONFIG_FLAGS} - {"--trust-file"}
        for name in self.FILES:
            # fish writes `-l json` for `--json`.
            text = (PACKAGING / "completions" / name).read_text()
            text = re.sub(r"(?m)^(complete .*) -l (?=\w)", r"\1 --", text)
            words = set(re.findall(r"--[a-z][\w-]*", text))
            with self.subTest(name):
                self.assertEqual(words - known - {"--version", "--verify"}, set())
                self.assertEqual(known - words - (configuration if name.startswith("_") else set()), set())

    @unittest.skipUnless(shutil.which("fish"), "fish is not installed: apt-get install fish")
    def test_fish_completes(self) -> None:
        def complete(line: str) -> set[str]:
            code = f"source {PACKAGING / 'completions' / 'nixfleet-agent.fish'}; complete -C '{line}'"
            ran = run("fish", "--no-config", "-c", code)
            self.assertEqual((ran.returncode, ran.stderr), (0, ""))
            return {row.partition("\t")[0] for row in ran.stdout.splitlines()}

        self.assertEqual(complete("nixfleet-agent qu"), {"queue", "quarantine"})
        self.assertEqual(complete("nixfleet-agent --config /x qu"), {"queue", "quarantine"})
        self.assertEqual(complete("nixfleet-agent queue "), {"list", "show", "retry", "drop"})
        self.assertEqual(complete("nixfleet-agent demo --fault "), set(FAULTS))
        flags = {"--" + key.replace("_", "-") for key in CONFIG_FLAGS}
        self.assertLessEqual(flags, complete("nixfleet-agent run --"))
        for command in COMMANDS:
            action = " clear" if command == "quarantine" else ""
            with self.subTest(command):
                self.assertLessEqual(flags_of(command) - flags, complete(f"nixfleet-agent {command}{action} --"))

    @unittest.skipUnless(shutil.which("zsh"), "zsh is not installed: apt-get install zsh")
    def test_zsh_can_read_its_own(self) -> None:
        ran = run("zsh", "-n", str(PACKAGING / "completions" / "_nixfleet-agent"))
        self.assertEqual((ran.returncode, ran.stderr), (0, ""))

    def test_bash_completes(self) -> None:
        script = PACKAGING / "completions" / "nixfleet-agent.bash"

        def complete(*words: str) -> set[str]:
            listed = " ".join(f"'{word}'" for word in words)
            code = f"source {script}; COMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}; _nixfleet_agent; "
            ran = run("bash", "-ec", code + 'printf "%s\\n" "${COMPREPLY[@]}"')
            self.assertEqual((ran.returncode, ran.stderr), (0, ""))
            return set(ran.stdout.split())

        self.assertEqual(complete("nixfleet-agent", "qu"), {"queue", "quarantine"})
        self.assertLessEqual({"list", "retry", "--json"}, complete("nixfleet-agent", "--json", "queue", ""))
        flags = {"--" + key.replace("_", "-") for key in CONFIG_FLAGS}
        self.assertLessEqual(flags, complete("nixfleet-agent", "run", "--"))
        self.assertEqual(complete("nixfleet-agent", "demo", "--fault", ""), set(FAULTS))
        for command in COMMANDS:
            with self.subTest(command):
                self.assertLessEqual(flags_of(command) - flags, complete("nixfleet-agent", command, "--"))


class Manuals(unittest.TestCase):
    def test_they_are_sound_and_complete(self) -> None:
        manuals = {
            "nixfleet-agent.8": list(COMMANDS),
            "nixfleet-agent.toml.5": [key.rpartition(".")[2] for key in Schema().keys],
        }
        for name, words in manuals.items():
            with self.subTest(name):
                page = PACKAGING / "man" / name
                if shutil.which("man"):
                    self.assertEqual(
                        run("man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", str(page)).stderr, ""
                    )
                text = page.read_text().replace("\\-", "-")
                for word in words:
                    self.assertRegex(text, rf"(?m)^\.\w+ .*\b{re.escape(word)}\b", word)

    def test_the_commands_in_the_manual_are_those_of_the_help(self) -> None:
        self.assertEqual(manual.PAGE.read_text(), manual.page(manual.PAGE.read_text()), "python -m tests.docs.manual")

    def test_the_defaults_in_the_manual_are_those_of_the_example(self) -> None:
        text = (PACKAGING / "man" / "nixfleet-agent.toml.5").read_text().replace("\\-", "-").replace("\\(dq", '"')
        for line in (TOP / "conf" / "agent.toml").read_text().splitlines():
            match = re.match(r"#?(\w+) = (.*)$", line)
            if match:
                with self.subTest(match[1]):
                    self.assertIn(f'.BR {match[1]} " = {match[2]}"', text)

    def test_the_exit_codes(self) -> None:
        text = (PACKAGING / "man" / "nixfleet-agent.8").read_text()
        codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
        self.assertEqual({int(code) for code in re.findall(r"^\.B (\d+)$", text, re.MULTILINE)}, codes)


class Watching(unittest.TestCase):
    """Alerts and dashboard; what Prometheus itself says of them is a slow test."""

    def require_existing(self, queries: str) -> None:
        known = samples()
        used = set(re.findall(r"nixfleet_agent_\w+", queries))
        self.assertEqual(used - set(known), set())
        # Labels come from the metrics, or from the scraper.
        labels = {label for names in known.values() for label in names} | {"instance", "job"}
        for group in re.findall(r"by \(([^)]*)\)|\{([^}]*)\}", queries):
            for name in re.findall(r"(\w+)(?=\s*(?:=|!=|,|$))", re.sub(r'"[^"]*"', "", group[0] or group[1])):
                self.assertIn(name, labels)

    def test_alerts_watch_what_exists(self) -> None:
        text = (PACKAGING / "prometheus" / "nixfleet-agent.rules.yml").read_text()
        self.require_existing("\n".join(line for line in text.splitlines() if "nixfleet_agent_" in line))

    def test_the_dashboard_shows_what_exists(self) -> None:
        board = json.loads((PACKAGING / "grafana" / "nixfleet-agent.json").read_text())
        panels = board["panels"]
        self.assertEqual(len({panel["id"] for panel in panels}), len(panels))
        taken: set[tuple[int, int]] = set()
        for panel in panels:
            with self.subTest(panel["title"]):
                place = panel["gridPos"]
                cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
                self.assertFalse(cells & taken, "it lies over another")
                self.assertLessEqual(place["x"] + place["w"], 24)
                taken |= cells
                for target in panel.get("targets", ()):
                    self.require_existing(target["expr"])
        self.assertEqual({v["name"] for v in board["templating"]["list"]}, {"datasource", "instance"})

    def test_the_dashboard_leaves_out_nothing_that_an_operator_looks_for(self) -> None:
        text = (PACKAGING / "grafana" / "nixfleet-agent.json").read_text()
        dull = {name for name in families() if "_process_" in name}
        shown = {name for name in families() if name in text}
        self.assertEqual(families() - shown - dull, set())

    def test_every_alert_says_what_it_is_about(self) -> None:
        text = (PACKAGING / "prometheus" / "nixfleet-agent.rules.yml").read_text()
        alerts = text.split("- alert: ")[1:]
        self.assertGreater(len(alerts), 8)
        for alert in alerts:
            for part in ("expr:", "severity:", "summary:", "description:"):
                self.assertIn(part, alert)


class NixOS(unittest.TestCase):
    def module(self, settings: str) -> dict[str, Any]:
        expression = f"import {TOP}/tests/packaging/stub.nix {{ settings = {settings}; }}"
        ran = run("nix-instantiate", "--eval", "--strict", "--json", "-E", expression)
        self.assertEqual(ran.returncode, 0, ran.stderr)
        evaluated: dict[str, Any] = json.loads(ran.stdout)
        return evaluated

    def test_it_does_nothing_unless_enabled(self) -> None:
        self.assertEqual(self.module('{ controlPlaneUrl = "https://cp"; }')["config"], {})

    def test_it_has_the_options_of_the_rust_agents_module(self) -> None:
        options = {
            "enable",
            "package",
            "controlPlaneUrl",
            "machineId",
            "trustFile",
            "tls",
            "bootstrapTokenFile",
            "stateDir",
        }
        options |= {
            "renewalThresholdFraction",
            "manifestFreshnessWindowSecs",
            "sshHostKeyFile",
            "tags",
            "effectiveHealthChecks",
        }
        self.assertLessEqual(options, set(self.module("{ }")["options"]))

    def test_the_service_starts_the_agent_with_what_the_options_say(self) -> None:
        evaluated = self.module(
            """{
              enable = true;
              controlPlaneUrl = "https://cp:8443";
              tls.caCert = "/ca.pem";
              bootstrapTokenFile = "/t";
              renewalThresholdFraction = 0.8;
              settings.logging.level = "debug";
              effectiveHealthChecks.web.kind = "http";
            }"""
        )["config"]
        service = evaluated["systemd"]["services"]["nixfleet-agent"]
        self.assertFalse(service["restartIfChanged"])
        self.assertEqual(service["serviceConfig"]["Type"], "notify")
        self.assertEqual({int(c) for c in service["serviceConfig"]["RestartPreventExitStatus"].split()}, FINAL)
        etc = evaluated["environment"]["etc"]
        file = etc["nixfleet/agent.toml"]["source"]
        self.assertEqual(service["serviceConfig"]["ExecStart"], f"/agent/bin/nixfleet-agent run --config {file}")
        self.assertTrue(file.startswith("agent.toml checked by /agent/bin/nixfleet-agent check --offline --strict "))
        self.assertIn("--health-checks-file", file)
        self.assertIn('"kind":"http"', etc["nixfleet/agent/health-checks.json"]["source"])
        settings = json.loads(file.partition("--config agent.toml:")[2].partition(" --health-checks-file")[0])
        self.assertEqual(settings.pop("logging"), {"level": "debug"})
        self.assertLessEqual(set(settings), set(Schema().keys))
        self.assertEqual(settings["bootstrap_token_file"], "/t")
        self.assertEqual((settings["ca_cert"], settings["renewal_threshold_fraction"]), ("/ca.pem", 0.8))
        self.assertNotIn("manifest_freshness_window_secs", settings)

    def test_the_package_parses(self) -> None:
        self.assertEqual(run("nix-instantiate", "--parse", str(PACKAGING / "nixos" / "package.nix")).returncode, 0)


class Shell(unittest.TestCase):
    def test_scripts_parse_in_a_plain_shell_and_are_executable(self) -> None:
        for name in ("dev", "build-deb", "nixfleet-agent.init"):
            with self.subTest(name):
                path = PACKAGING / name
                self.assertEqual(run("sh", "-n", str(path)).stderr, "")
                self.assertTrue(path.stat().st_mode & 0o111)

    @unittest.skipUnless(shutil.which("shellcheck"), "shellcheck is not installed: apt-get install shellcheck")
    def test_shellcheck_finds_nothing(self) -> None:
        scripts = [PACKAGING / "completions" / "nixfleet-agent.bash"]
        for folder in (".ci", "packaging", "nixfleet_agent", "tests"):
            for path in (TOP / folder).rglob("*"):
                if path.is_file():
                    with path.open("rb") as file:
                        is_script = re.match(rb"#!\S*[/ ](env )?(ba)?sh\b", file.readline(80))
                    scripts += [path] if is_script else []
        self.assertGreater(len(scripts), 6)
        ran = run("shellcheck", "--format=gcc", *map(str, scripts))
        self.assertEqual((ran.returncode, ran.stdout), (0, ""))


class Example(unittest.TestCase):
    def test_the_example_is_valid(self) -> None:
        self.assertTrue(from_file(TOP / "conf" / "agent.toml", Schema()))


if __name__ == "__main__":
    unittest.main()
