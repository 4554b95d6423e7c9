"""Whose answer it is: a table of what control planes, proxies, portals and firewalls of the field send."""

from __future__ import annotations

import unittest

from requests.structures import CaseInsensitiveDict

from nixfleet_agent.net.verdict import Verdict, classify, describe

ANSWER, ERROR, UNCLEAR = Verdict.ANSWER, Verdict.ERROR, Verdict.UNCLEAR
LATER, FOREIGN = Verdict.LATER, Verdict.FOREIGN
JSON, PROBLEM, CHARSET = "application/json", "application/problem+json", "application/json; charset=utf-8"
HTML, TEXT, BYTES = "text/html; charset=utf-8", "text/plain; charset=utf-8", "application/octet-stream"
PAGE = b"\n<!DOCTYPE html><html><head><title>Sorry</title></head></html>"

#: (status, content type or None, body, what it is)
TABLE: tuple[tuple[int, str | None, bytes, Verdict], ...] = (
    # acknowledgements: nothing, or JSON
    (204, None, b"", ANSWER),
    (200, None, b"", ANSWER),
    (202, TEXT, b"", ANSWER),
    (200, JSON, b"", ANSWER),
    (200, JSON, b"null", ANSWER),
    (200, CHARSET, b' {"a": 1}', ANSWER),
    (200, PROBLEM, b"{}", ANSWER),
    (200, None, b"{}", ANSWER),
    (200, None, b"[1, 2", ANSWER),  # whoever reads it finds the rest
    (200, None, b"true", ANSWER),
    (200, None, b"{" + b" " * 1_000_000, ANSWER),
    (304, None, b"", ANSWER),
    # pages in place of them
    (200, HTML, PAGE, FOREIGN),
    (200, HTML, b"", FOREIGN),
    (200, HTML, b"{}", FOREIGN),
    (200, "TEXT/HTML", b"{}", FOREIGN),
    (200, None, PAGE, FOREIGN),
    (200, JSON, PAGE, FOREIGN),
    (200, TEXT, b"OK", FOREIGN),
    (200, TEXT, b'{"blocked": true}', FOREIGN),
    (200, None, b"OK", FOREIGN),
    (200, None, b"trust me", FOREIGN),
    (200, None, b" " * 1_000_000 + b"x", FOREIGN),
    (200, "application/xhtml+xml", b"", FOREIGN),
    (200, BYTES, bytes(64), FOREIGN),
    (511, HTML, PAGE, LATER),
    # redirects, and numbers that are no status
    (301, None, b"", FOREIGN),
    (302, JSON, b"{}", FOREIGN),
    (307, HTML, PAGE, FOREIGN),
    (199, None, b"", FOREIGN),
    (600, JSON, b'{"error": "no"}', FOREIGN),
    (999, None, b"", FOREIGN),
    # refusals
    (400, JSON, b'{"error": "seq starts at 1"}', ERROR),
    (422, PROBLEM, b'{"error": "no", "reason": "x"}', ERROR),
    (403, None, b'{"error": "no"}', ERROR),
    (403, HTML, b'{"error": "no"}', FOREIGN),
    (403, TEXT, b'{"error": "no"}', UNCLEAR),
    (401, None, b"", UNCLEAR),
    (422, TEXT, b"Failed to deserialize the JSON body", UNCLEAR),
    (403, JSON, b'{"message": "Forbidden"}', UNCLEAR),
    (403, JSON, b'{"error": {"code": 1020}}', UNCLEAR),
    (403, JSON, b'{"error": "a", "error": "b"}', UNCLEAR),
    (403, JSON, b"[]", UNCLEAR),
    (400, JSON, b'{"error": "' + b"x" * 20_000 + b'"}', UNCLEAR),
    (413, HTML, PAGE, FOREIGN),
    (403, None, b"<h1>403 Forbidden</h1>", FOREIGN),
    # later, whoever says so
    (408, None, b"", LATER),
    (425, None, b"", LATER),
    (429, HTML, PAGE, LATER),
    (500, JSON, b'{"error": "x"}', LATER),
    (502, HTML, PAGE, LATER),
    (503, TEXT, b"control plane not ready", LATER),
    (599, None, b"", LATER),
)
#: The same where a signed artifact was asked for, whose bytes are verified by themselves.
SIGNED: tuple[tuple[int, str | None, bytes, Verdict], ...] = (
    (200, None, bytes(64), ANSWER),
    (200, BYTES, b"<" + bytes(63), ANSWER),
    (200, BYTES, b"<<" * 32, ANSWER),
    (200, TEXT, b"{}", ANSWER),
    (200, None, PAGE, FOREIGN),
    (200, BYTES, b"<HTML><body>", FOREIGN),
    (200, HTML, bytes(64), FOREIGN),
    (404, JSON, b'{"error": "not published"}', ERROR),
    (404, HTML, PAGE, FOREIGN),
    (503, HTML, PAGE, LATER),
    (302, None, b"", FOREIGN),
)


def headers(kind: str | None, **more: str) -> CaseInsensitiveDict[str]:
    return CaseInsensitiveDict({**({} if kind is None else {"content-type": kind}), **more})


class Classify(unittest.TestCase):
    def test_each_row_of_the_table(self) -> None:
        for table, signed in ((TABLE, False), (SIGNED, True)):
            for status, kind, body, verdict in table:
                with self.subTest(status=status, kind=kind, body=body[:60], signed=signed):
                    self.assertIs(classify(status, headers(kind), body, signed=signed), verdict)

    def test_every_verdict_is_in_the_table(self) -> None:
        self.assertEqual({row[-1] for row in TABLE}, set(Verdict))

    def test_no_success_is_more_than_json_or_nothing_and_no_error_less(self) -> None:
        """Whatever the number: only 2xx and 304 are answers, only 4xx can be the control plane's refusal."""
        for status in range(100, 1000):
            with self.subTest(status=status):
                for kind, body in ((None, b""), (JSON, b'{"error": "x"}'), (HTML, PAGE)):
                    verdict = classify(status, headers(kind), body)
                    if verdict is ANSWER:
                        self.assertTrue((200 <= status < 300 and kind != HTML) or status == 304)
                    if verdict is ERROR:
                        self.assertEqual((status // 100, kind), (4, JSON))


class Describe(unittest.TestCase):
    def test_names_title_place_and_program_cut_and_escaped(self) -> None:
        body = b"<html><TITLE lang=de>\n  Log in\x1b[2J to  the\nWLAN" + b"!" * 500 + b"</TITLE>"
        told = describe(
            302, headers(HTML, Location="https://portal/\x1b?" + "x" * 500, Server="nginx\r\n", Via="a"), body
        )
        self.assertTrue(told.startswith("status 302, a page titled 'Log in\\x1b[2J to the WLAN!!!"), told)
        self.assertIn("Location: https://portal/\\x1b?xxx", told)
        self.assertIn("Server: nginx\\r\\n", told)
        self.assertIn("Via: a", told)
        self.assertLess(len(told), 600)
        self.assertTrue(told.isprintable())

    def test_without_a_title_its_kind_and_beginning_are_told(self) -> None:
        self.assertEqual(describe(200, headers(TEXT), b"OK"), "status 200, content type text/plain, beginning 'OK'")
        self.assertEqual(describe(403, headers(HTML), b"<h1>x"), "status 403, a page without a title")
        self.assertEqual(describe(204, headers(None), b""), "status 204")


if __name__ == "__main__":
    unittest.main()
