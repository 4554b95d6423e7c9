"""Scenario files: all that ship are good, and every mistake in one is a line that names the file and the key."""

from __future__ import annotations

import tempfile
import unittest
from pathlib import Path

from nixfleet_agent.demo.errors import ScenarioError
from nixfleet_agent.demo.proofs import PROOFS
from nixfleet_agent.demo.scenario import FAULTS, INSTALLER, NEVER, PLAIN, End, Step, load, shipped
from nixfleet_agent.demo.story import VERBS, hosts_of
from nixfleet_agent.errors import EXIT_CONFIG

GOOD = """\
title = "one release"
[[steps]]
do = "release"
version = "v1"
waves = ["first", "rest"]
[[steps]]
do = "reach"
version = "v1"
state = "Converged"
[[end]]
hosts = "all"
runs = "v1"
rollouts = { v1 = "Converged" }
"""
KILL = '[[steps]]\ndo = "kill-cp"\n'

#: (what is put in the place of what, what the message says)
MISTAKES = [
    (('waves = ["first"', 'wavs = ["first"'), "steps[1].wavs: unknown key: did you mean 'waves'?"),
    (("title =", "titel ="), "titel: unknown key: did you mean 'title'?"),
    (('title = "one release"', ""), "title is missing"),
    (('title = "one release"', f'title = "{"x" * 101}"'), "title is longer than 100 characters"),
    (('do = "release"', 'do = "relase"'), "steps[1].do must be one of"),
    (('do = "release"', 'do = "relase"'), "did you mean 'release'?"),
    (('do = "release"\n', ""), "steps[1].do is missing"),
    (('state = "Converged"', 'state = "Convergd"'), "is 'Convergd': did you mean 'Converged'?"),
    (('version = "v1"\nwaves', "version = 1\nwaves"), "steps[1].version must be of type string, is 1"),
    (('["first", "rest"]', "[]"), "steps[1].waves is empty"),
    (('["first", "rest"]', '["second"]'), "steps[1].waves[1] must be one of all, first, rest, last"),
    (('runs = "v1"', 'runs = "v7"'), "end[1].runs: v7 is never released"),
    (('runs = "v1"', 'runs = "latest"'), "end[1].runs must be a version such as 'v1'"),
    (('{ v1 = "Converged" }', '{ one = "Converged" }'), "end[1].rollouts must be a version"),
    (('{ v1 = "Converged" }', '{ v1 = "gone" }'), "end[1].rollouts.v1 must be one of"),
    (('version = "v1"\nstate', 'version = "v2"\nstate'), "steps[2].version: v2 has not been released before"),
    (('version = "v1"\nwaves', 'version = "v0"\nwaves'), "steps[1].version: v0 is what hosts are installed with"),
    (('rollouts = { v1 = "Converged" }', 'rollouts = {}\nproven = { booted = ["v1"] }'), "did you mean 'rebooted'?"),
    (
        ('rollouts = { v1 = "Converged" }', 'rollouts = {}\nproven = { drained = ["v3"] }'),
        "end[1].proven.drained: v3 is never",
    ),
    (("title", 'new_dbus = ["v9"]\ntitle'), "new_dbus: v9 is never released"),
    (("title", 'broken = ["v9"]\ntitle'), "broken: v9 is never released"),
    (("title", "agents = 0\ntitle"), "agents must be at least 1, is 0"),
    (("title", "agents = 5000\ntitle"), "agents must be at most 500, is 5000"),
    (("title", "agents = true\ntitle"), "agents must be of type integer"),
    (("[[end]]", KILL + "[[end]]"), "still down after the last one: start-cp is missing"),
    (("[[end]]", KILL * 2 + "[[end]]"), "steps[4].do: the control plane is down already"),
    (("[[end]]", '[[steps]]\ndo = "start-cp"\n[[end]]'), "steps[3].do: the control plane is up already"),
    (("[[end]]", KILL + '[[steps]]\ndo = "slow"\nseconds = 1\n[[end]]'), "that is down can't be told to slow"),
    (("title =", "title"), "is not TOML"),
    ((GOOD, ""), "is missing"),
    ((GOOD, "title = 'x'\nsteps = 3\nend = []"), "steps must be of type array"),
    ((GOOD, "#" * 300_000), "is larger than 256 KiB"),
]


class Files(unittest.TestCase):
    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory(prefix="scenario-")
        self.addCleanup(scratch.cleanup)
        self.file = Path(scratch.name) / "mine.toml"

    def refused(self, raw: bytes) -> str:
        self.file.write_bytes(raw)
        with self.assertRaises(ScenarioError) as caught:
            load(str(self.file))
        self.assertEqual(caught.exception.exit_code, EXIT_CONFIG)
        return str(caught.exception)

    def test_every_mistake_is_one_line_that_names_file_and_key(self) -> None:
        for (place, instead), said in MISTAKES:
            with self.subTest(said=said):
                self.assertEqual(GOOD.count(place) if place != "title" else 1, 1, place)
                message = self.refused(GOOD.replace(place, instead, 1).encode())
                self.assertIn(str(self.file), message)
                self.assertIn(said, message)
                self.assertNotIn("\n", message)

    def test_a_file_that_is_no_text_is_refused(self) -> None:
        self.assertIn("is not TOML", self.refused(b"\xff\xfe"))

    def test_a_good_file_is_read_as_it_stands(self) -> None:
        self.file.write_text(GOOD)
        scenario = load(str(self.file))
        self.assertEqual((scenario.name, scenario.title, scenario.agents), ("mine", "one release", 3))
        self.assertEqual(scenario.versions, (INSTALLER, "v1"))
        self.assertEqual(scenario.steps[0], Step("release", {"version": "v1", "waves": ["first", "rest"]}))
        self.assertEqual(scenario.end, (End("all", "v1", {"v1": "Converged"}),))

    def test_a_name_that_nobody_knows_gets_the_nearest_one(self) -> None:
        with self.assertRaisesRegex(ScenarioError, "did you mean 'canary'"):
            load("canry")
        with self.assertRaisesRegex(ScenarioError, "--list-scenarios"):
            load("qqq")

    def test_a_path_that_leads_nowhere_is_said(self) -> None:
        for path in ("/nonexistent/x.toml", "/"):
            with self.subTest(path), self.assertRaisesRegex(ScenarioError, f"can't read {path}"):
                load(path)


class Shipped(unittest.TestCase):
    def test_all_are_good_and_told_with_verbs_that_there_are(self) -> None:
        titles = shipped()
        self.assertGreaterEqual(set(titles), {PLAIN, *FAULTS})
        for name in titles:
            with self.subTest(name):
                self.assertLessEqual({step.do for step in load(name).steps}, set(VERBS))

    def test_every_release_of_every_scenario_has_an_end_on_every_host(self) -> None:
        """A release that no end speaks of is not proven. What a wiped control plane forgot is the one exception."""
        for name in shipped():
            scenario = load(name)
            released = {step.arguments["version"] for step in scenario.steps if step.do == "release"}
            for host in ("web-01", "web-02", "web-03"):
                ends = [end for end in scenario.end if host in hosts_of(["web-01", "web-02", "web-03"], end.hosts)]
                with self.subTest(name, host=host):
                    self.assertEqual(len(ends), 1)
                    self.assertEqual(set(ends[0].rollouts) | ({"v1"} if name == "wipe-cp" else set()), released)

    def test_every_proof_that_a_scenario_may_name_is_one(self) -> None:
        named = {proof for name in shipped() for end in load(name).end for proof in end.proven}
        self.assertEqual(named, set(PROOFS))

    def test_a_bad_release_that_stops_at_the_canary_is_never_given_to_the_rest(self) -> None:
        rest = next(end for end in load("bad-canary").end if end.hosts == "rest")
        self.assertEqual(rest.rollouts["v2"], NEVER)


class Hosts(unittest.TestCase):
    def test_words_for_hosts(self) -> None:
        names = ("a", "b", "c")
        self.assertEqual(
            [hosts_of(names, word) for word in ("all", "first", "rest", "last")], [names, ("a",), ("b", "c"), ("c",)]
        )
        self.assertEqual(hosts_of(("a",), "rest"), ())


if __name__ == "__main__":
    unittest.main()
