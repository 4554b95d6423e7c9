"""The conformance driver on this agent, on this agent with one thing wrong, and on one that knows no other paths."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import unittest
from pathlib import Path
from typing import Any

from tests.support.crippled import WAYS

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 600.0
#: What an agent with one thing wrong fails at least: (story, row).
FAILS = {
    "coarse": {("all", "bodies")},
    "blind": {("converges", "ack"), ("all", "bodies")},
    "hasty": {("converges", "ack"), ("all", "seqs")},
    "mute": {("converges", "started-first"), ("all", "seqs")},
    "fickle": {("all", "same-bytes")},
    "nameless": {("all", "headers")},
}
FLAGS = (
    *("control_plane_url", "machine_id", "trust_file", "ca_cert", "client_cert", "client_key"),
    *("bootstrap_token_file", "state_dir", "ssh_host_key_file", "health_checks_file"),
)
FIXED = (
    "mount --bind {root}/run /run && mount --bind {root}/store/nix /nix && "
    "mount --bind {root}/profiles /nix/var/nix/profiles && export NIXFLEET_TAGS=a,b NIX_REMOTE= && exec "
)


def own_mounts() -> bool:
    """Whether a process may have a mount namespace of its own here, and there is a /nix to mount on."""
    tried = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    return tried.returncode == 0 and Path("/nix").is_dir()


class Conformance(unittest.TestCase):
    def judged(self, *arguments: str) -> dict[tuple[str, str], Any]:
        """The driver's rows; its exit code must agree with them."""
        done = subprocess.run(
            [sys.executable, "-m", "nixfleet_agent.local_cp", "--conformance", "--json", *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        self.assertTrue(done.stdout, done.stderr)
        document = json.loads(done.stdout)
        problems = [row for row in document["rows"] if not row["ok"]]
        self.assertEqual((document["ok"], done.returncode), (not problems, 1 if problems else 0), done.stderr)
        return {(row["story"], row["row"]): row["problem"] for row in document["rows"]}

    def test_every_row_holds_for_this_agent(self) -> None:
        rows = self.judged("--certificate-secs", "60")
        self.assertEqual({row: problem for row, problem in rows.items() if problem}, {})
        self.assertGreaterEqual(len(rows), 70)

    def test_an_agent_with_one_thing_wrong_fails_the_row_that_says_so(self) -> None:
        self.assertEqual(set(FAILS), set(WAYS))
        for way, expected in FAILS.items():
            with self.subTest(way):
                program = shlex.join([sys.executable, "-m", "tests.support.crippled", way, "run", "--config"])
                story = "answers" if way == "fickle" else "converges"
                rows = self.judged("--agent", program + " {config}", "--story", story, "--patience", "20")
                self.assertLessEqual(expected, {row for row, problem in rows.items() if problem}, rows)

    def test_an_agent_that_does_not_start_fails_every_row_and_says_why(self) -> None:
        rows = self.judged("--agent", "sh -c 'echo no such key >&2; exit 78'", "--story", "converges")
        self.assertTrue(all(rows.values()))
        told = "the agent ends without a request, at last with 78: no such key"
        self.assertEqual({rows["enrolls", "enrolls"], rows["converges", "ack"]}, {told})

    @unittest.skipUnless(os.geteuid() == 0 and own_mounts(), "needs a mount namespace: run as root")
    def test_an_agent_with_fixed_paths_that_is_told_everything_by_flags(self) -> None:
        flags = " ".join(f"--{flag.replace('_', '-')} {{{flag}}}" for flag in FLAGS)
        old = "--poll-interval 60 --compliance-gate-mode auto"  # as units of the Rust agent have it
        agent = f"unshare --mount sh -c '{FIXED}{sys.executable} -m nixfleet_agent run {flags} {old}'"
        rows = self.judged("--agent", agent, "--story", "converges", "--patience", "150")
        self.assertEqual({row: problem for row, problem in rows.items() if problem}, {})


if __name__ == "__main__":
    unittest.main()
