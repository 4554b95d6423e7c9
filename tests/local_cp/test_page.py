"""The status page: well-formed, complete, said in words and not in colours alone, and closed to foreign script."""

from __future__ import annotations

import base64
import hashlib
import http.client
import re
import unittest
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser

from nixfleet_agent.local_cp import markup
from nixfleet_agent.local_cp.api import PAGES
from nixfleet_agent.local_cp.ci import ChannelDescription, FleetDescription, WaveDescription
from nixfleet_agent.local_cp.page_server import PageServer
from nixfleet_agent.local_cp.status_page import View
from nixfleet_agent.local_cp.store import HostRow
from tests.local_cp.scripted import ControlPlaneCase, now, result, to_converged, to_reverted, until_soaking
from tests.support.signing import closure_name

VOID = {"meta", "link", "br"}
PRIOR = "0" * 32 + "-before"


class Outline(HTMLParser):
    """What a page is made of; an element that is not closed, or closed twice, is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.errors: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.errors.append(tag)


class Page(ControlPlaneCase):
    def setUp(self) -> None:
        super().setUp()
        self.server = PageServer(("127.0.0.1", 0), dict.fromkeys(PAGES, self.cp.api.answer))
        self.server.start()
        self.addCleanup(self.server.stop)

    def get(self, path: str = "/", host: str | None = None) -> tuple[int, dict[str, str], str]:
        port = self.server.server_address[1]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", path, headers={} if host is None else {"Host": host})
        answer = connection.getresponse()
        body = answer.read().decode()
        connection.close()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, body

    def outline(self, body: str) -> Outline:
        outline = Outline()
        outline.feed(body)
        outline.close()
        self.assertEqual((outline.open, outline.errors), ([], []))
        return outline

    def test_an_empty_fleet_has_a_page(self) -> None:
        status, _, body = self.get()
        self.assertEqual(status, 200)
        self.outline(body)
        self.assertIn("nothing released yet", body)

    def test_a_halted_canary_is_told_in_words(self) -> None:
        rollout_id = self.publish("aaa1", ("web-01",), ("web-02",))
        agents = [self.agent("web-01"), self.agent("web-02")]
        for agent in agents:
            agent.beat()
        self.assertIsNotNone(agents[0].poll(wait=10))
        self.play(agents[0], rollout_id, to_reverted(self.target(rollout_id, "web-01"), PRIOR))
        self.cp.control.dispatcher.plan_once()
        _, _, body = self.get()
        outline = self.outline(body)
        for said in ("1 Reverted", "Wave 1", "Wave 2", "halted: failed on web-01", "RollbackComplete", "Quarantine"):
            self.assertIn(said, body)
        self.assertRegex(body, r"<li><a [^>]*>web-02</a> <span class=note>waits</span>")
        self.assertEqual(body.count("halted: failed on web-01"), 2)  # of the rollout, and of the host that waits
        # What a reader with a screen reader, a phone or a zoom needs.
        self.assertIn(("html", {"lang": "en"}), outline.tags)
        names = [tag for tag, _ in outline.tags]
        self.assertEqual((names.count("h1"), names.count("main"), names.count("title")), (1, 1, 1))
        for tag, attributes in outline.tags:
            if tag == "th":
                self.assertIn(attributes.get("scope"), ("col", "row"))
            if tag == "td":
                self.assertTrue(attributes.get("data-label"))
            if tag == "table":
                self.assertIn(f"<h2 id={attributes['aria-labelledby']}>", body)
        viewport = next(
            attributes["content"] for tag, attributes in outline.tags if attributes.get("name") == "viewport"
        )
        self.assertEqual(viewport, "width=device-width, initial-scale=1")

    def test_of_two_channels_each_host_has_its_own_newest_rollout(self) -> None:
        channels = {
            "stable": ChannelDescription(waves=(WaveDescription(("web-01",)), WaveDescription(("web-02",)))),
            "edge": ChannelDescription(waves=(WaveDescription(("db-01",)),)),
        }
        hosts = ("web-01", "web-02", "db-01")
        closures = {name: closure_name(name) for name in hosts}
        release = self.ci.release(FleetDescription(channels=channels), "aaa1", closures, datetime.now(timezone.utc))
        self.cp.control.publish(release)
        agents = {name: self.agent(name) for name in hosts}
        for agent in agents.values():
            agent.beat()
        self.assertIsNotNone(agents["web-01"].poll(wait=10))
        self.play(agents["web-01"], "stable@aaa1", to_converged(closures["web-01"]))
        self.assertIsNotNone(agents["web-02"].poll(wait=10))
        self.cp.control.dispatcher.plan_once()
        _, _, body = self.get()
        self.outline(body)
        for name, state in (("web-01", "Converged"), ("web-02", "Pending"), ("db-01", "Pending")):
            row = rf'<th scope=row><a [^>]*>{name}</a></th><td data-label="newest rollout"><span class="state {state}">'
            self.assertRegex(body, row)
        self.assertRegex(body, r'<p id="now"[^>]*>3 hosts; .*stable@aaa1: .*1 Converged.*, .*1 Pending')
        self.assertRegex(body, r'<p id="now"[^>]*>3 hosts; .*edge@aaa1: .*1 Pending')
        self.assertIn("<progress value=1 max=2 aria-label=converged></progress>1 of 2 converged", body)
        self.assertIn("<progress value=0 max=1 aria-label=converged></progress>0 of 1 converged", body)

    def test_a_host_that_is_silent_stands_out(self) -> None:
        self.agent_row("web-01", timedelta(seconds=20))
        self.agent_row("web-02", timedelta(minutes=5, seconds=10))
        self.agent_row("web-03", timedelta(days=2))
        _, _, body = self.get()
        seen = re.findall(r'<td data-label="last heard of"[^>]*>(.*?)</td>', body)
        self.assertRegex(seen[0], "^2[0-9] s ago$")
        self.assertEqual(seen[1:], ["<span class=late>5 min ago</span>", "<span class=late>48 h ago</span>"])

    def waits(self, body: str) -> dict[str, str]:
        """What each row of the hosts' table says is waited for."""
        rows = re.findall(
            r"<th scope=row><a [^>]*>([^<]*)</a></th>.*?<td data-label=\"waits for\"[^>]*>(.*?)</td>", body
        )
        return dict(rows)

    def test_what_a_host_waits_for_is_told_at_every_step(self) -> None:
        rollout_id = self.publish("aaa1", ("web-01",), ("web-02",))
        agent, other = self.agent("web-01"), self.agent("web-02")
        agent.beat()
        other.beat()
        target = self.target(rollout_id, "web-01")
        self.cp.control.dispatcher.plan_once()
        told = self.waits(self.get()[2])
        self.assertEqual(told["web-01"], "its turn is ready: it has not asked for it yet")
        self.assertIn("wave", told["web-02"])
        self.assertIsNotNone(agent.poll(wait=10))
        self.assertRegex(
            self.waits(self.get()[2])["web-01"], "^it fetched its turn at ..:..:.. UTC, and has not accepted it yet$"
        )
        self.cp.control.own_words = lambda: {"web-01": "no maintenance <window> is open"}
        self.assertEqual(self.waits(self.get()[2])["web-01"], "no maintenance &lt;window&gt; is open")
        events = until_soaking(target, PRIOR)
        self.play(agent, rollout_id, events[:2])
        self.assertEqual(self.waits(self.get()[2])["web-01"], "no maintenance &lt;window&gt; is open")
        self.play(agent, rollout_id, [("ActivationDeferred", {"component": "kernel", "deferredAt": now()})])
        self.assertEqual(self.waits(self.get()[2])["web-01"], "a reboot, for kernel")
        self.play(agent, rollout_id, events[2:])
        self.assertRegex(self.waits(self.get()[2])["web-01"], "^its soak, until ..:..:.. UTC or later$")
        self.play(agent, rollout_id, [result("fail")])
        self.assertRegex(self.waits(self.get()[2])["web-01"], "^its soak, until .*; failing: app$")
        self.play(agent, rollout_id, to_reverted(target, PRIOR)[-2:-1])
        self.assertEqual(self.waits(self.get()[2])["web-01"], "its way back")
        self.play(agent, rollout_id, to_reverted(target, PRIOR)[-1:])
        self.assertEqual(self.waits(self.get()[2])["web-01"], "")

    def test_a_host_leads_to_its_timeline(self) -> None:
        rollout_id = self.publish("aaa1", ("web-01",))
        agent = self.agent("web-01")
        agent.beat(closure=PRIOR)
        self.assertIsNotNone(agent.poll(wait=10))
        events = to_reverted(self.target(rollout_id, "web-01"), PRIOR)
        events[4][1]["failureReason"] = "<b>no database</b>"
        self.play(agent, rollout_id, events, link=True)
        (path,) = set(re.findall(r'href="(/host[^"]*)"', self.get()[2]))
        status, _, body = self.get(path)
        self.assertEqual(status, 200)
        self.outline(body)
        for said in (
            "<title>web-01</title>",
            "7 events, each signed together with the one before it",
            "&lt;b&gt;no database&lt;/b&gt;",
            "7 RollbackComplete",
            'href="/"',
        ):
            self.assertIn(said, body)
        self.assertEqual(body.count("✓ follows"), 7)

    def test_a_broken_chain_is_told_on_both_pages(self) -> None:
        rollout_id = self.publish("aaa1", ("web-01",))
        agent = self.agent("web-01")
        agent.beat()
        self.assertIsNotNone(agent.poll(wait=10))
        events = until_soaking(self.target(rollout_id, "web-01"))
        self.play(agent, rollout_id, events[:2], link=True)
        agent.tails[rollout_id] = "e" * 64
        with self.assertLogs("nixfleet_agent.local_cp", "WARNING"):
            self.play(agent, rollout_id, events[2:3], link=True)
        self.assertIn("<p>web-01, stable@aaa1: event 3: gap</p>", self.get()[2])
        self.assertIn("<span class=halted>links: 1 gap</span>", self.get("/host?name=web-01")[2])

    def test_a_host_that_nobody_knows_is_not_found(self) -> None:
        status, _, body = self.get("/host?name=%3Cscript%3E")
        self.assertEqual(status, 404)
        self.assertIn("no such host", body)
        self.assertEqual(self.get("/host")[0], 404)

    def test_strange_wishes_show_the_first_hosts(self) -> None:
        for params, view in (
            ({}, View()),
            ({"state": "Failed", "page": "2"}, View("Failed", 2)),
            ({"state": "<b>", "page": "-1"}, View()),
            ({"page": "9" * 400}, View()),
            ({"page": "\u00b2"}, View()),
        ):
            self.assertEqual(View.of(params), view)
        self.agent_row("web-01", timedelta(seconds=1))
        self.assertIn("web-01", self.get("/?page=999")[2])

    def agent_row(self, name: str, silent: timedelta) -> None:
        seen_at = datetime.now(timezone.utc) - silent
        row = HostRow(
            hostname=name,
            seen_at=seen_at,
            agent_version="0.1.0",
            current_closure=None,
            rollout_id=None,
            uptime_secs=1,
            reported={},
        )
        self.cp.control.store.save_host(row)

    def test_a_database_that_can_not_be_read_is_told_and_not_shown_as_an_empty_fleet(self) -> None:
        self.cp.control.store.run("DROP TABLE hosts")
        with self.assertLogs("nixfleet_agent.local_cp", "WARNING"):
            status, _, body = self.get()
        self.assertEqual((status, body), (503, "the database can't be used: no such table: hosts"))

    def test_only_its_own_style_and_script_may_run(self) -> None:
        _, headers, body = self.get()
        policy = headers["content-security-policy"]
        for tag in ("style", "script"):
            (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", body, re.DOTALL)
            digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
            self.assertIn(f"{tag}-src 'sha256-{digest}'", policy)
        self.assertIn("default-src 'none'", policy)
        self.assertNotRegex(body, r' on\w+="| style="|javascript:')

    def test_a_page_elsewhere_can_not_read_it_under_another_name(self) -> None:
        status, _, body = self.get(host="evil.example:80")
        self.assertEqual(status, 421)
        self.assertNotIn("NixFleet", body)

    def test_nothing_but_pages_is_served(self) -> None:
        self.assertEqual(self.get("/v1/fleet.resolved")[0], 404)
        self.assertEqual(self.get("/status.json")[0], 200)

    def test_without_script_it_comes_up_to_date_too(self) -> None:
        self.assertIn('<noscript><meta http-equiv="refresh"', markup.frame())


if __name__ == "__main__":
    unittest.main()
