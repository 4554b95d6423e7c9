"""The status page in a real browser: it runs, renews itself, fits a phone, and is kept as a picture.

Pictures go to ``build/screenshots``. Without a browser the tests are skipped and say so.
"""

from __future__ import annotations

import html
import re
import subprocess
import tempfile
import unittest
from pathlib import Path

from nixfleet_agent.local_cp.api import PAGES
from nixfleet_agent.local_cp.page_server import PageServer
from nixfleet_agent.local_cp.server import Request, Response
from tests.local_cp.scripted import ControlPlaneCase, ScriptedAgent, to_converged, to_reverted
from tests.support.browser import FLAGS, PROGRAM

PICTURES = Path(__file__).resolve().parent.parent.parent / "build" / "screenshots"
PRIOR = "0" * 32 + "-nixos-system-before"
PHONE = 390


@unittest.skipIf(PROGRAM is None, "needs a browser (Debian: apt-get install chromium-headless-shell)")
class Browser(ControlPlaneCase):
    def setUp(self) -> None:
        super().setUp()
        self.loads = 0
        self.server = PageServer(("127.0.0.1", 0), {"/": self.page})
        self.server.start()
        self.addCleanup(self.server.stop)
        profile = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        self.addCleanup(profile.cleanup)
        self.profile = profile.name
        self.rollout = self.publish("aaa1", ("web-01",), ("web-02", "web-03"))
        self.agents = [self.agent(f"web-0{number}") for number in (1, 2, 3)]
        for agent in self.agents:
            agent.beat(closure=PRIOR)
        self.play_to(self.agents[0], to_converged)

    def page(self, request: Request) -> Response:
        """The page, on a fleet where something happens after it was loaded once."""
        self.loads += 1
        if self.loads == 2:
            self.play_to(self.agents[1], to_reverted)
        return PAGES["/"](self.cp.api, request)

    def play_to(self, agent: ScriptedAgent, end: object) -> None:
        self.cp.control.dispatcher.plan_once()
        self.assertIsNotNone(agent.poll(wait=10))
        events = end(self.target(self.rollout, agent.hostname), PRIOR)  # type: ignore[operator]
        self.play(agent, self.rollout, events)
        self.cp.control.dispatcher.plan_once()

    def browse(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        assert PROGRAM is not None
        done = subprocess.run(
            [PROGRAM, *FLAGS, "--enable-logging=stderr", f"--user-data-dir={self.profile}", *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        self.assertEqual(complaints, [])
        return done

    def test_it_comes_up_to_date_without_being_loaded_again(self) -> None:
        shown = self.browse("--virtual-time-budget=7000", "--dump-dom", self.server.url).stdout
        self.assertGreaterEqual(self.loads, 2)
        self.assertRegex(shown, r'<p id="now"[^>]*>3 hosts; stable@aaa1: .*1 Reverted')
        self.assertIn("halted: failed on web-02", shown)
        self.assertRegex(shown, r'<button id="pause"[^>]*aria-pressed="false">Pause</button>')  # hidden without script
        self.assertNotIn('class="lost"', shown)

    def test_it_is_kept_as_a_picture(self) -> None:
        PICTURES.mkdir(parents=True, exist_ok=True)
        for name, arguments in {
            "wide": ["--window-size=1000,1200"],
            "phone": ["--window-size=500,1400"],
            "dark": ["--window-size=1000,1200", "--blink-settings=preferredColorScheme=0"],
        }.items():
            picture = PICTURES / f"status-page-{name}.png"
            picture.unlink(missing_ok=True)
            self.browse(*arguments, f"--screenshot={picture}", self.server.url)
            self.assertTrue(picture.read_bytes().startswith(b"\x89PNG"), name)
            self.assertGreater(picture.stat().st_size, 10_000, name)

    def test_nothing_has_to_be_scrolled_sideways_on_a_phone(self) -> None:
        longest = "w" * 63
        self.publish("b" * 40, ("web-01",), (longest,))
        self.agent(longest).beat(closure="0" * 32 + "-" + "c" * 150)
        report = {"kind": "EnrollmentFailed", "reason": "r" * 500}
        body = {"hostname": longest, "agentVersion": "1", "occurredAt": "2026-05-16T00:00:00Z", "event": report}
        self.assertEqual(self.agents[0].call("POST", "/v1/agent/bootstrap-report", body).status, 204)
        self.cp.control.dispatcher.plan_once()
        shown = self.page(Request("GET", "/", {}, {}, b"", None, lambda: False)).body.decode()
        still = re.sub("<script>.*</script>", "", shown, flags=re.DOTALL)
        measure = (
            "<script>onload = () => { const inner = document.querySelector('iframe').contentDocument.documentElement;"
            " document.title = `${inner.clientWidth} ${inner.scrollWidth}` }</script>"
        )
        holder = Path(self.profile) / "holder.html"
        frame = f'<iframe width={PHONE} height=800 style="border:0" srcdoc="{html.escape(still)}"></iframe>'
        holder.write_text(f"<!doctype html><title>-</title>{frame}{measure}")
        outer = self.browse("--window-size=800,900", "--virtual-time-budget=1000", "--dump-dom", holder.as_uri()).stdout
        self.assertIn(f"<title>{PHONE} {PHONE}</title>", outer)


if __name__ == "__main__":
    unittest.main()
