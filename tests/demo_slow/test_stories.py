"""Scenarios without an enemy; what the demo itself calls a good end is checked again from outside."""

from __future__ import annotations

import json
import os
import tomllib
import unittest
from datetime import datetime, timedelta
from pathlib import Path
from unittest import mock

from nixfleet_agent.errors import EXIT_CHECK_FAILED
from tests.demo_slow.case import DemoCase

ROOT = Path(__file__).resolve().parent.parent.parent
#: A story that nobody waits for to the end tells nothing; on two busy cores it may take a multiple.
LONGEST = 60.0
ROLLED_BACK = {"v1": "Converged", "v2": "Converged", "v3": "Reverted"}


class Stories(DemoCase):
    def test_plain(self) -> None:
        document = self.demo("--agents", "3")
        self.assertEqual((document["scenario"], document["agents"]), ("plain", 3))
        self.assert_ends(document, "v2", ROLLED_BACK)
        logs = self.logs()
        self.assertEqual(len(logs), 9)
        for (name, _), events in logs.items():
            kinds = [kind for _, kind in events]
            self.assertEqual(
                kinds[:4], ["DispatchAck", "ActivationStarted", "ActivationCompleted", "ProbeTopologyDeclared"]
            )
            self.assertIn(kinds[-1], ("Converged", "RollbackComplete"), name)

    def test_a_bad_release_is_stopped_at_the_canary_and_the_rest_never_gets_it(self) -> None:
        document = self.demo("--scenario", "bad-canary", "--agents", "3")
        first, *rest = document["hosts"]
        self.assert_host_ends(first, "v3", {"v1": "Converged", "v2": "Reverted", "v3": "Converged"})
        for host in rest:
            self.assert_host_ends(host, "v3", {"v1": "Converged", "v3": "Converged"})
        halted = {rollout["version"]: rollout["halted"] for rollout in document["rollouts"]}
        self.assertEqual(halted, {"v1": None, "v2": "halted: failed on web-01", "v3": None})
        # No store but the canary's has ever held the bad system.
        holders = [path.parts[-5] for path in (self.folder / "hosts").glob("*/store/nix/store/*-nixos-system-demo-v2")]
        self.assertEqual(holders, ["web-01"])

    def test_a_file_of_ones_own(self) -> None:
        """The whole way of a scenario that does not ship: first with a wrong end, which must be noticed."""
        scenario = self.outer / "mine.toml"
        steps = (
            '[[steps]]\ndo = "release"\nversion = "v1"\n[[steps]]\ndo = "reach"\nversion = "v1"\nstate = "Converged"\n'
        )
        for runs, code in (("v0", 1), ("v1", 0)):
            end = f'[[end]]\nhosts = "all"\nruns = "{runs}"\nrollouts = {{ v1 = "Converged" }}\n'
            scenario.write_text(f'title = "mine"\nagents = 1\nsoak_secs = 0.5\n{steps}{end}')
            self.folder = self.outer / f"demo-{runs}"
            process = self.start("--scenario", str(scenario), "--json")
            assert process.stdout is not None
            said = process.stdout.read()
            self.assertEqual(process.wait(), code, said)
            document = json.loads(said[said.index("\n{\n") :])
            self.assertEqual((document["ok"], document["scenario"]), (code == 0, "mine"))
            self.assertEqual(["web-01 runs" in problem for problem in document["problems"][:1]], [True] * code)

    def test_an_agent_that_breaks_the_contract_of_the_wire_spoils_the_end(self) -> None:
        (self.outer / "sitecustomize.py").write_text(
            "import sys\n"
            "if 'run' in sys.orig_argv:\n"
            "    from tests.support.crippled import WAYS\n"
            "    WAYS['coarse']()\n"
        )
        with mock.patch.dict(os.environ, PYTHONPATH=f"{self.outer}{os.pathsep}{ROOT}"):
            process = self.start("--scenario", "canary", "--agents", "1", "--json")
        assert process.stdout is not None
        said = process.stdout.read()
        self.assertEqual(process.wait(), EXIT_CHECK_FAILED, said)
        problems = json.loads(said[said.index("\n{\n") :])["problems"]
        self.assertTrue(problems)
        for problem in problems:
            self.assertRegex(problem, "^web-01 breaks the contract of the wire: POST /v1/agent/heartbeat: at: ")

    def test_a_release_waits_for_its_window_and_an_operator_lets_one_through(self) -> None:
        document = self.demo("--scenario", "window")
        self.assert_ends(document, "v1", {"v1": "Converged"})
        first, second = (self.started(host["name"]) for host in document["hosts"])
        self.assertLess(first, second)
        config = tomllib.loads((self.folder / "hosts/web-02/agent.toml").read_text())
        opens = datetime.fromisoformat(f"{second[:10]}T{config['maintenance']['windows'][0].partition('-')[0]}+00:00")
        waited_on = (datetime.fromisoformat(second) - opens) % timedelta(days=1)
        self.assertLess(waited_on, timedelta(hours=1), "it began before the window opened")
        self.assertLess(document["seconds"], LONGEST)

    def test_deferred_releases_are_rebooted_into(self) -> None:
        document = self.demo("--scenario", "reboot")
        self.assert_ends(document, "v2", {"v1": "Converged", "v2": "Converged"})
        for host in document["hosts"]:
            calls = (self.folder / "hosts" / host["name"] / "switch.log").read_text().splitlines()
            told = [(line.split()[0], line.rpartition("-")[2]) for line in calls]
            by_boot = [("boot", "v1"), ("booted", "v1")]
            # Its script writes the boot entry and ends with 100: nothing else is asked of it.
            by_exit_100 = [("switch", "v2"), ("booted", "v2")]
            self.assertEqual(told, [("booted", "v0"), *by_boot, *by_exit_100])
        self.assertLess(document["seconds"], LONGEST)

    def test_hosts_are_drained_before_a_switch(self) -> None:
        document = self.demo("--scenario", "drain")
        self.assert_host_ends(document["hosts"][0], "v1", {"v1": "Converged", "v2": "Reverted"})
        for host in document["hosts"][1:]:
            self.assert_host_ends(host, "v1", {"v1": "Converged"})
        said = [entry["text"] for entry in document["timeline"]]
        self.assertIn("web-01 waits: the hook 10-drain refuses it: clients are still connected", said)
        calls = (self.folder / "hosts/web-01/switch.log").read_text().splitlines()
        self.assertEqual(
            [line.split()[0] for line in calls],
            ["booted", "drain", "switch", "undrain", "drain", "switch", "switch", "undrain"],
        )
        self.assertLess(document["seconds"], LONGEST)

    def started(self, name: str) -> str:
        """When the host began its only rollout, by its journal."""
        (path,) = (self.folder / "hosts" / name / "state/outbound-sent").rglob("*-ActivationStarted.json")
        at: str = json.loads(path.read_text())["event"]["startedAt"]
        return at

    def test_an_outage_in_the_middle_of_switches(self) -> None:
        document = self.demo("--scenario", "outage", "--agents", "2")
        self.assert_ends(document, "v2", {"v1": "Converged", "v2": "Converged"})

    def test_slow_answers(self) -> None:
        document = self.demo("--fault", "slow", "--agents", "2")
        self.assert_ends(document, "v2", ROLLED_BACK)

    def test_certificates_are_renewed_while_rollouts_go_on(self) -> None:
        document = self.demo("--scenario", "renewal", "--agents", "2")
        self.assert_ends(document, "v2", ROLLED_BACK)
        for host in document["hosts"]:
            log = (self.folder / "hosts" / host["name"] / "agent.log").read_text()
            # One process has lived through several certificates, each shorter than the story.
            self.assertEqual(log.count('"message": "started"'), 1)
            self.assertGreaterEqual(log.count('"message": "certificate renewed'), 3)


if __name__ == "__main__":
    unittest.main()
