"""The picture of a rollout: well-formed, all of it within its frame, and what comes from outside is only text."""

from __future__ import annotations

import unittest
from datetime import datetime, timedelta, timezone
from pathlib import Path
from xml.etree import ElementTree

from nixfleet_agent.commands import journal_view
from nixfleet_agent.commands.timeline_svg import WIDTH, draw
from nixfleet_agent.state_machine.events import LocalProbeResult, LocalProbeTopologyDeclared
from nixfleet_agent.state_machine.record import DeclaredProbe
from nixfleet_agent.state_machine.states import Mode, ProbeStatus
from tests.commands.host_case import HostCase

STATE = Path(__file__).resolve().parent.parent / "data" / "state-0.1" / "state"
NOW = datetime(2027, 1, 1, tzinfo=timezone.utc)
SVG = "{http://www.w3.org/2000/svg}"


class Picture(unittest.TestCase):
    def setUp(self) -> None:
        self.reverted, self.converged, _ = journal_view.rollouts(STATE, "web-01")

    def drawn(self, replay: journal_view.Replay) -> ElementTree.Element:
        return ElementTree.fromstring(draw(replay, NOW))

    def words(self, root: ElementTree.Element) -> list[str]:
        return ["".join(node.itertext()) for node in root.iter() if node.tag in (f"{SVG}text", f"{SVG}title")]

    def test_a_rollback_shows_its_states_its_failing_probe_the_failure_and_the_way_back(self) -> None:
        words = self.words(self.drawn(self.reverted))
        for said in ("on web-01: Reverted", "Soaking for", "Failed for", "app: fail (", "failed (seq", "back (seq"):
            self.assertTrue(any(said in word for word in words), said)

    def test_one_that_converged_shows_when(self) -> None:
        words = self.words(self.drawn(self.converged))
        self.assertTrue(any(word.startswith("converged (seq") for word in words))
        self.assertFalse(any("fail" in word for word in words))

    def test_everything_lies_within_the_frame_and_in_the_order_of_time(self) -> None:
        for replay in (self.reverted, self.converged):
            root = self.drawn(replay)
            bands = [node for node in root.iter(f"{SVG}rect") if node.get("rx")]
            lefts = [float(node.attrib["x"]) for node in bands]
            self.assertEqual(lefts, sorted(lefts))
            for node in bands:
                self.assertLessEqual(float(node.attrib["x"]) + float(node.attrib["width"]), WIDTH)
            for node in root.iter(f"{SVG}circle"):
                self.assertTrue(0 < float(node.attrib["cx"]) < WIDTH)

    def test_one_that_is_not_over_is_drawn_up_to_now(self) -> None:
        open_one = journal_view.Replay(
            self.converged.accepted, self.converged.accepted.record("web-01"), self.converged.steps[:4], ()
        )
        begin = self.converged.accepted.accepted_at
        self.assertIn("took 2 h", draw(open_one, begin + timedelta(hours=2)))


class Command(HostCase):
    def test_it_is_written_where_asked_and_what_a_release_named_its_probe_is_only_text(self) -> None:
        self.journal_with_probe('<script>"&\x1b[2J')
        path = self.folder / "picture.svg"
        ran = self.call("history", "--svg", str(path))
        self.assertEqual((ran.code, ran.err), (0, ""))
        self.assertIn(str(path), ran.out)
        raw = path.read_text()
        ElementTree.fromstring(raw)
        self.assertNotIn("<script>", raw)
        self.assertNotIn("\x1b", raw)

    def test_a_folder_that_is_not_there_is_one_line(self) -> None:
        self.journal_with_probe("web")
        ran = self.call("history", "--svg", "/nowhere/at/all.svg")
        self.assertEqual((ran.code != 0, ran.err.count("\n")), (True, 1))
        self.assertIn("/nowhere/at", ran.err)

    def journal_with_probe(self, name: str) -> None:
        """A rollout that soaks, with one result of a probe of that name."""
        accepted = self.accept("stable@aa")
        at = accepted.accepted_at + timedelta(seconds=20)
        probe = DeclaredProbe(probe_name=name, kind="tcp", mode=Mode.ENFORCE)
        self.log(
            accepted,
            *self.activated(accepted),
            LocalProbeTopologyDeclared(seq=4, probes=(probe,), declared_at=at),
            LocalProbeResult(seq=5, probe_name=name, mode=Mode.ENFORCE, status=ProbeStatus.FAIL, observed_at=at),
        )


if __name__ == "__main__":
    unittest.main()
