"""The two-machine test of the flake, as far as it can be told without NixOS: its expression, its script, its fleet.

The virtual machines themselves need nixpkgs. CI and control plane of that test run here as they do there.
"""

from __future__ import annotations

import ast
import base64
import json
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nixfleet_agent.identity.host_key import from_private
from nixfleet_agent.state_machine import State
from nixfleet_agent.trust.roots import parse_trust
from nixfleet_agent.trust.verify import open_fleet
from tests.packaging.nixos_case import NIXOS, TOP, NixOSCase

CLOSURE = "ydvwfdgph7ba0as22nrz4qy3vlps72x6-nixos-system-web-01-25.11"
STUB = """
let
  it = import %s/two-machines.nix {
    testers.runNixOSTest = test: test;
    python3Packages.python.withPackages = _: { interpreter = "python"; };
    python3Packages.toPythonModule = package: package;
    nixfleet-agent = "/agent";
  };
  pkgs = { systemd = "/systemd"; fleet = "/fleet"; };
  lib.mkForce = value: value;
  host = it.nodes.host { inherit lib pkgs; };
in
{
  inherit (it) name testScript;
  agent = removeAttrs host.services.nixfleet-agent [ "package" ];
  specialisations = builtins.attrNames host.specialisation;
  relays = [ host.systemd.sockets (it.nodes.cp { inherit pkgs; }).systemd.sockets ];
}
"""


class Expression(NixOSCase):
    def setUp(self) -> None:
        super().setUp()
        self.test = self.evaluate(STUB % NIXOS)

    def test_its_script_is_python_and_asks_for_states_that_there_are(self) -> None:
        tree = ast.parse(self.test["testScript"])
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
        asked = [
            node.args[1].value
            for node in calls
            if isinstance(node.func, ast.Name)
            and node.func.id == "wait_for_state"
            and isinstance(node.args[1], ast.Constant)
        ]
        self.assertEqual(asked, [State.CONVERGED, State.REVERTED, State.DEFERRED, State.CONVERGED])

    def test_every_release_that_it_makes_is_a_specialisation_of_the_host(self) -> None:
        self.assertEqual(self.test["specialisations"], ["bad", "good", "reboot"])
        for name in self.test["specialisations"]:
            self.assertIn(f'release("{name}")', self.test["testScript"])

    def test_the_relays_meet(self) -> None:
        host, plane = (relay["relay"]["listenStreams"] for relay in self.test["relays"])
        self.assertEqual((host, plane), (["127.0.0.1:8443"], ["0.0.0.0:9443"]))

    def test_the_agent_finds_no_mistake_in_the_hosts_configuration(self) -> None:
        settings = " ".join(
            f"{name} = builtins.fromJSON ''{json.dumps(value)}'';" for name, value in self.test["agent"].items()
        )
        ran = self.build(settings)
        self.assertEqual(ran.returncode, 0, ran.stderr)


class Fleet(unittest.TestCase):
    """The process of the second machine, asked as its test asks it."""

    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.process = subprocess.Popen(
            [sys.executable, str(NIXOS / "fleet.py"), "serve", str(self.folder), "web-01", "0"], cwd=TOP
        )
        self.addCleanup(self.process.wait, 30)
        self.addCleanup(self.process.send_signal, signal.SIGTERM)
        until = time.monotonic() + 60
        while not (self.folder / "fleet.sock").exists():
            self.assertIsNone(self.process.poll())
            self.assertLess(time.monotonic(), until)
            time.sleep(0.05)

    def ask(self, *command: str) -> subprocess.CompletedProcess[str]:
        verb, *rest = command
        program = [sys.executable, str(NIXOS / "fleet.py"), verb, str(self.folder), *rest]
        return subprocess.run(program, cwd=TOP, capture_output=True, text=True, check=False, timeout=60)

    def test_what_it_releases_is_signed_by_the_keys_that_hosts_are_told_to_trust(self) -> None:
        said = self.ask("release", "c1", f"/nix/store/{CLOSURE}")
        self.assertEqual(said.stdout, "stable@c1\n", said.stderr)
        trust, now = parse_trust((self.folder / "trust.json").read_bytes()), datetime.now(UTC)
        published = self.folder / "cp" / "published"
        fleet = open_fleet(
            (published / "fleet.resolved").read_bytes(), (published / "fleet.resolved.sig").read_bytes(), trust, now=now
        )
        self.assertEqual(fleet.fleet.hosts["web-01"]["closureHash"], CLOSURE)
        self.assertTrue((self.folder / "fleet-ca.pem").read_text().startswith("-----BEGIN CERTIFICATE"))

    def test_a_token_is_for_the_key_that_it_is_shown(self) -> None:
        key = from_private(Ed25519PrivateKey.generate())
        (self.folder / "host.pub").write_text(f"{key.public_openssh}\n")
        token = json.loads(self.ask("token", str(self.folder / "host.pub")).stdout)
        self.assertEqual(token["claims"]["expectedPubkeyFingerprint"], key.fingerprint)
        self.assertEqual(len(base64.b64decode(token["signature"])), 64)

    def test_what_can_not_be_done_fails(self) -> None:
        said = self.ask("token", str(self.folder / "missing.pub"))
        self.assertEqual(said.returncode, 1)
        self.assertRegex(said.stderr, r"\Afleet.py: .*missing.pub'\n\Z")


if __name__ == "__main__":
    unittest.main()
