"""Tests that evaluate the NixOS module: Nix on a store of its own, and a stub of nixpkgs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[2]
NIXOS = TOP / "packaging" / "nixos"
STUB = TOP / "tests" / "packaging" / "stub.nix"


@unittest.skipUnless(shutil.which("nix-build"), "Nix is not installed: apt-get install nix-bin")
class NixOSCase(unittest.TestCase):
    """``build`` and ``evaluate`` take Nix expressions; the agent that checks a configuration is the one at hand."""

    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.addCleanup(subprocess.run, ["chmod", "-R", "u+w", str(self.folder)], check=True)
        program = self.folder / "package" / "bin" / "nixfleet-agent"
        program.parent.mkdir(parents=True)
        program.write_text(f'#!/bin/sh\nPYTHONPATH={TOP} exec {sys.executable} -B -m nixfleet_agent "$@"\n')
        program.chmod(0o755)

    def nix(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run Nix on a store of its own, whose paths are where they say: a build needs no sandbox."""
        places = {f"NIX_{name}_DIR": str(self.folder / "nix" / name.lower()) for name in ("STORE", "STATE", "LOG")}
        environ = {**places, "PATH": os.environ["PATH"], "HOME": str(self.folder)}
        environ["NIX_CONFIG"] = "build-users-group =\nsandbox = false\nsubstitute = false\n"
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=120)

    def stub(self, settings: str, trust: str = "null") -> str:
        program = self.folder / "package"
        return f'import {STUB} {{ settings = {{ {settings} }}; trust = {trust}; program = "{program}"; }}'

    def build(self, settings: str, trust: str = "null") -> subprocess.CompletedProcess[str]:
        expression = f"({self.stub(settings, trust)}).settingsFile"
        return self.nix("nix-build", "--no-out-link", "-E", expression)

    def evaluate(self, expression: str) -> Any:
        ran = self.nix("nix-instantiate", "--eval", "--read-write-mode", "--strict", "--json", "-E", expression)
        self.assertEqual(ran.returncode, 0, ran.stderr)
        return json.loads(ran.stdout)
