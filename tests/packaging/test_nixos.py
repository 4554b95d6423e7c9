"""The NixOS module and package, as far as Nix alone can tell: nixpkgs itself is a stub of what they use (stub.nix).

What needs nixpkgs is not looked at here: the types of options, `mkRemovedOptionModule`, the build of the package, and
the outputs of flake.nix. A host's configuration is really built, though, by the agent at hand.
"""

from __future__ import annotations

import json
import re
import unittest
from pathlib import Path

from nixfleet_agent import __version__
from tests.packaging.nixos_case import NIXOS, STUB, TOP, NixOSCase

GOOD = 'enable = true; controlPlaneUrl = "https://cp.example:8443";'
KEY = '{ algorithm = "ed25519"; public = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="; }'
TRUST = f'{{ ciReleaseKey.current = {KEY}; orgRootKey.current = "/FHNjmIYoaONpH7QAjDwWAgW7RO6MwOsXeuRFUiQgCU="; }}'

#: What a fleet can have set of `services.nixfleet-agent`.
RUST_OPTIONS = {
    *("enable", "package", "controlPlaneUrl", "machineId", "trustFile", "tls", "bootstrapTokenFile", "stateDir"),
    *("sshHostKeyFile", "tags", "renewalThresholdFraction", "manifestFreshnessWindowSecs", "effectiveHealthChecks"),
    *("pollInterval", "healthChecks", "complianceGate"),
}

#: What must not be built -> (settings, a word of the reason).
MISTAKES = {
    "an address that is not safe": ('enable = true; controlPlaneUrl = "http://cp";', "uses http, which is not safe"),
    "a fraction of 1.5": (f"{GOOD} renewalThresholdFraction = 1.5;", "less than 1, is 1.5"),
    "a mistyped key": (f"{GOOD} settings.activation.guard_sec = 1500;", "guard_secs"),
    "a mistyped table": (f'{GOOD} settings.loging.level = "debug";', "loging"),
    "a mistyped kind of probe": (f'{GOOD} effectiveHealthChecks.web.kind = "htpp";', "'htpp' is not known"),
    "a mistyped key of a probe": (
        f'{GOOD} effectiveHealthChecks.db = {{ kind = "tcp"; port = 1; intervalSecond = 5; }};',
        "intervalSecond",
    ),
    "a mistyped mode of a probe": (
        f'{GOOD} effectiveHealthChecks.db = {{ kind = "tcp"; port = 1; mode = "enforec"; }};',
        "enforec",
    ),
}


class NixOS(NixOSCase):
    def test_a_good_configuration_is_built_and_is_what_the_service_reads(self) -> None:
        probes = 'effectiveHealthChecks = { web = { kind = "tcp"; port = 1; }; };'
        ran = self.build(f'{GOOD} {probes} settings.logging.level = "debug";', TRUST)
        self.assertEqual(ran.returncode, 0, ran.stderr)
        text = Path(ran.stdout.strip()).read_text()
        self.assertIn('control_plane_url = "https://cp.example:8443"', text)
        self.assertIn('[logging]\nlevel = "debug"', text)

    def test_a_mistake_is_not_built_and_the_log_of_the_build_says_which(self) -> None:
        for name, (settings, word) in MISTAKES.items():
            with self.subTest(name):
                ran = self.build(settings)
                self.assertNotEqual(ran.returncode, 0, ran.stdout)
                self.assertIn(word, ran.stderr)

    def test_whoever_must_can_build_it_all_the_same(self) -> None:
        settings, _ = MISTAKES["a mistyped kind of probe"]
        self.assertEqual(self.build(f"{settings} checkConfig = false;").returncode, 1, "a file is not a derivation")
        made = self.evaluate(f"({self.stub(f'{settings} checkConfig = false;')}).settingsFile")
        self.assertIn("cp.example", Path(made).read_text())

    def test_keys_that_can_verify_nothing_are_not_built(self) -> None:
        ran = self.build(GOOD, "{ ciReleaseKey = { }; }")
        self.assertNotEqual(ran.returncode, 0)
        self.assertIn("can verify nothing", ran.stderr)

    def test_the_trust_of_the_fleet_becomes_the_trust_file(self) -> None:
        etc = self.evaluate(f"({self.stub(GOOD, TRUST)}).config.environment.etc")
        written = json.loads(Path(etc["nixfleet/agent/trust.json"]["source"]).read_text())
        self.assertEqual(written["ciReleaseKey"]["current"]["algorithm"], "ed25519")
        self.assertEqual(written["orgRootKey"]["current"]["algorithm"], "ed25519", "a bare string says no algorithm")
        self.assertIsNone(written["orgRootKey"]["previous"])
        etc = self.evaluate(f"({self.stub(GOOD)}).config.environment.etc")
        self.assertNotIn("nixfleet/agent/trust.json", etc, "somebody else puts it there")

    def test_the_host_has_the_name_that_the_fleets_modules_know(self) -> None:
        for more, name in (("", "web-01"), ('hostSpec.hostName = "db-07";', "db-07")):
            stub = f"import {STUB} {{ settings = {{ {GOOD} }}; {more} }}"
            self.assertIn(f'"machine_id":"{name}"', self.evaluate(f"({stub}).settingsFile"))

    def test_state_and_certificate_outlive_a_reboot_where_the_fleet_has_a_say_in_it(self) -> None:
        declared = "declared.nixfleet.persistence.directories = { };"
        stub = f'import {STUB} {{ settings = {{ {GOOD} stateDir = "/var/lib/agent"; }}; {declared} }}'
        kept = self.evaluate(f"({stub}).config.nixfleet.persistence.directories")
        self.assertEqual(kept, ["/var/lib/agent", "/var/lib/nixfleet"])
        self.assertNotIn("nixfleet", self.evaluate(f"builtins.attrNames ({self.stub(GOOD)}).config"))

    def test_a_guard_that_a_boot_has_ended_is_armed_anew_before_the_agent_starts(self) -> None:
        stub = self.stub(f'{GOOD} stateDir = "/state/agent";')
        names = "before wantedBy serviceConfig unitConfig"
        unit = self.evaluate(f"{{ inherit (({stub}).config.systemd.services.nixfleet-agent-guard) {names}; }}")
        self.assertEqual(unit["before"], ["nixfleet-agent.service"])
        self.assertEqual(unit["wantedBy"], ["multi-user.target"])
        self.assertEqual(unit["serviceConfig"]["ExecStart"], "/bin/sh /state/agent/switch/rearm.sh")
        self.assertEqual(unit["unitConfig"]["ConditionPathExists"], "/state/agent/switch/rearm.sh")

    def test_every_option_of_the_rust_agents_module_is_known_here(self) -> None:
        stub = self.stub(GOOD)
        removed = {name.rpartition(".")[2] for name in self.evaluate(f"({stub}).removed")}
        known = removed.union(self.evaluate(f"({stub}).options"))
        self.assertLessEqual(RUST_OPTIONS, known)

    def test_a_trust_file_of_the_flake_goes_into_the_store(self) -> None:
        (self.folder / "trust.json").write_text("{}")
        ran = self.nix("nix-instantiate", "--eval", "--strict", "-E", f'"${{{self.folder}/trust.json}}"')
        self.assertIn("/store/", ran.stdout, ran.stderr)
        self.assertIn('trust_file = "${cfg.trustFile}"', (NIXOS / "module.nix").read_text())

    def test_options_that_are_gone_say_what_to_write(self) -> None:
        stub = self.stub(GOOD)
        removed = dict(zip(self.evaluate(f"({stub}).removed"), self.evaluate(f"({stub}).messages"), strict=True))
        for name, word in (
            ("pollInterval", "manifest_poll_interval"),
            ("healthChecks", "effectiveHealthChecks"),
            ("complianceGate", 'kind = "evidence"'),
        ):
            self.assertIn(word, removed[f"services.nixfleet-agent.{name}"])

    def test_every_nix_file_parses(self) -> None:
        files = sorted(NIXOS.glob("*.nix"))
        self.assertGreaterEqual(len(files), 3)
        for path in files:
            with self.subTest(path.name):
                self.assertEqual(self.nix("nix-instantiate", "--parse", str(path)).returncode, 0)

    def test_the_version_of_the_package_is_read_without_building_its_source(self) -> None:
        """`src` may be a derivation: its content in an expression would be an import from a derivation."""
        package = (NIXOS / "package.nix").read_text()
        self.assertNotIn("${src}", package)
        stub = "{ buildPythonApplication = x: x; } // builtins.listToAttrs (map (name: { inherit name; value = name; })"
        requires = (TOP / "setup.py").read_text().partition("install_requires=[")[2].partition("]")[0]
        needed = re.findall(r'"([\w-]+)[<>=]', requires)
        names = "[ " + " ".join(f'"{name}"' for name in [*needed, "setuptools", "hypothesis", "rich"]) + " ]"
        made = self.evaluate(
            f"""let it = import {NIXOS}/package.nix {{
              lib = {{ cleanSource = path: path; platforms.linux = [ ]; }};
              python3Packages = {stub} {names});
              installShellFiles = "x"; nix = "nix"; openssh = "openssh"; src = throw "it must not be looked at";
            }}; in {{ inherit (it) version pyproject build-system doCheck dependencies; }}"""
        )
        self.assertEqual((made["version"], made["pyproject"], made["doCheck"]), (__version__, True, True))
        self.assertEqual(made["build-system"], ["setuptools"])
        self.assertEqual(sorted(made["dependencies"]), sorted(needed))


if __name__ == "__main__":
    unittest.main()
