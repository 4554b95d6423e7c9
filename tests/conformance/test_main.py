"""The driver's command line: what it says without an agent, and its table."""

from __future__ import annotations

import contextlib
import io
import tempfile
import unittest
from pathlib import Path

from nixfleet_agent.conformance import main
from nixfleet_agent.conformance.stand import Subject, Unmet
from nixfleet_agent.conformance.verdicts import Judge, Story, Verdict
from nixfleet_agent.local_cp.__main__ import main as local_cp

GOOD = Verdict("converges", "ack", "DispatchAck is seq 1", None)
BAD = Verdict("converges", "soak", "it does not converge early", "it converged\x1b at 1")


class CommandLine(unittest.TestCase):
    def run_it(self, *arguments: str) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = local_cp(["--conformance", *arguments])
        return code, out.getvalue(), err.getvalue()

    def test_help_teaches_how_another_agent_is_tried(self) -> None:
        code, out, _ = self.run_it("--help")
        self.assertEqual(code, 0)
        for word in (*Subject.PLACES, *(story.name for story in main.STORIES), "--agent", "mount --bind {root}/run"):
            self.assertIn(word, out)

    def test_mistakes_are_one_line(self) -> None:
        folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        (folder / "mine").touch()
        for code, words, arguments in (
            (2, "invalid choice: 'converge'", ("--story", "converge")),
            (2, "'soon' is not a number of seconds", ("--patience", "soon")),
            (2, "is not from 0", ("--settle", "nan")),
            (1, "{state} is not known: use root, config", ("--agent", "true {state}")),
            (1, "write braces that are meant as such twice", ("--agent", "true {0}")),
            (1, "there is no command", ("--agent", " ")),
            (1, "No closing quotation", ("--agent", "sh -c 'x")),
            (1, "no-such-agent is not a program here: give its path", ("--agent", "no-such-agent --config {config}")),
            (1, "is not an empty folder: choose another --dir", ("--dir", str(folder))),
        ):
            with self.subTest(arguments):
                found, out, err = self.run_it(*arguments)
                self.assertEqual((found, out, err.count("\n")), (code, "", 1), err)
                self.assertIn(words, err)
                self.assertTrue(err.startswith("nixfleet-agent: "), err)

    def test_enrolling_and_summing_up_belong_to_every_choice(self) -> None:
        self.assertEqual([story.name for story in main.chosen(["killed"])], ["enrolls", "killed", "all"])
        self.assertEqual([story.name for story in main.chosen([])], [*(s.name for s in main.STORIES), "all"])

    def test_no_row_is_named_twice_and_no_release_has_two_kinds(self) -> None:
        stories = main.chosen([])
        rows = [(story.name, row) for story in stories for row in story.rows]
        self.assertEqual(len(rows), len(set(rows)))
        self.assertGreater(len(rows), 50)
        systems = [system.version for story in stories for system in story.systems]
        self.assertEqual(len(systems), len(set(systems)))


class Tables(unittest.TestCase):
    def test_a_row_that_does_not_hold_says_why_and_is_counted(self) -> None:
        lines = main.table([GOOD, BAD])
        self.assertRegex(lines[1], r"^converges  ack   pass  DispatchAck is seq 1$")
        self.assertRegex(lines[2], r"^converges  soak  FAIL  it does not converge early$")
        self.assertEqual(lines[3].strip(), r"it converged\x1b at 1")
        self.assertEqual(lines[-1], "1 of 2 rows hold, 1 do not")
        self.assertEqual(main.table([GOOD])[-1], "1 of 1 rows hold")

    def test_json_says_whether_all_is_well(self) -> None:
        self.assertEqual([main.document(found)["ok"] for found in ([GOOD], [GOOD, BAD])], [True, False])

    def test_a_row_that_is_never_reached_fails_with_the_reason(self) -> None:
        class Recorder:
            instead: object = None

        class FakeStand:
            recorder = Recorder()

        def tell(stand: object, judge: Judge) -> None:
            judge.row("first", None)
            raise Unmet("waited 9 s for a start")

        story = Story(name="s", title="", rows={"first": "one", "second": "two"}, tell=tell)
        found = story.verdicts(FakeStand())  # type: ignore[arg-type]
        self.assertEqual([verdict.problem for verdict in found], [None, "waited 9 s for a start"])

    def test_a_row_that_is_judged_twice_must_hold_twice(self) -> None:
        judge = Judge({"row": ""})
        judge.row("row", None, "first")
        judge.row("row", None)
        self.assertEqual(judge.found, {"row": "first"})
        with self.assertRaises(RuntimeError):
            judge.row("rwo", None)


if __name__ == "__main__":
    unittest.main()
