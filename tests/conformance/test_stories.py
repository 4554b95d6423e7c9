"""Three stories told to this agent, within this process: what the slow tests tell from outside, and all of them."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import unittest

from nixfleet_agent.conformance.main import main


@unittest.skipUnless(shutil.which("nix"), "Nix is not installed: apt-get install nix-bin")
class Told(unittest.TestCase):
    def test_every_row_holds(self) -> None:
        out, err = io.StringIO(), io.StringIO()
        stories = ("--story", "converges", "--story", "rolls-back", "--story", "repeats")
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(["--conformance", "--json", "--settle", "0.3", *stories])
        self.assertEqual(err.getvalue(), "")
        document = json.loads(out.getvalue())
        self.assertEqual([row for row in document["rows"] if not row["ok"]], [])
        self.assertEqual((code, document["ok"]), (0, True))
        told = ["enrolls", "converges", "rolls-back", "repeats", "all"]
        self.assertEqual(list(dict.fromkeys(row["story"] for row in document["rows"])), told)


if __name__ == "__main__":
    unittest.main()
