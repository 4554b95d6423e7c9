"""The table of failure classes: the wordings of Nix 2.3 to current and Lix, read in their sources or seen in runs."""

from __future__ import annotations

import unittest

from hypothesis import given
from hypothesis import strategies as st

from nixfleet_agent.activation import failures
from nixfleet_agent.activation.failures import broken_caches, classify
from nixfleet_agent.activation.patience import UNKNOWN_TRIES, Tried, given_up

_URL = "https://cache.example/abc.narinfo"
_PATH = "/nix/store/rv5qgvh54za2cx77h7ch9k3kd7pknf1p-nixos-system-v"
_NOT_BUILT = f"don't know how to build these paths:\n  {_PATH}\nerror: build of '{_PATH}' failed"

#: (class, whether waiting can help, words)
WORDINGS: tuple[tuple[str, bool, str], ...] = (
    # 2.3; 2.4 to 2.8; 2.9 and later; current and Lix.
    ("server", True, f"error: unable to download '{_URL}': HTTP error 502"),
    ("server", True, f"error: unable to download '{_URL}': HTTP error 502 ('Bad Gateway')"),
    ("server", True, f"error: unable to download '{_URL}': HTTP error 503 (Service Unavailable)"),
    ("server", True, f"error: unable to download '{_URL}': HTTP error 504; retrying in 329 ms"),
    ("server", True, f"warning: unable to download '{_URL}': HTTP error 500\n{_NOT_BUILT}"),
    ("server", True, f"error: unable to download '{_URL}': HTTP error 408"),
    ("throttled", True, f"error: unable to download '{_URL}': HTTP error 429 ('Too Many Requests')"),
    ("credentials", True, f"error: unable to download '{_URL}': HTTP error 401 (Unauthorized)"),
    ("credentials", True, f"error: unable to download '{_URL}': HTTP error 403 ('Forbidden')"),
    ("credentials", True, f"error: unable to download '{_URL}': HTTP error 407"),
    ("missing", True, f"error: unable to download '{_URL}': HTTP error 404 ('Not Found')"),
    ("missing", True, f"error: unable to download '{_URL}': HTTP error 410"),
    ("missing", True, "error: file 'nar/1spj.nar' does not exist in binary cache 'http://c'"),
    ("missing", True, _NOT_BUILT),
    ("missing", True, f"error: path '{_PATH}' is required, but there is no substituter that can build it"),
    ("missing", True, f"error: path '{_PATH}' does not exist and cannot be created"),
    ("missing", True, f"error: some references of path '{_PATH}' could not be realised"),
    ("missing", True, f"warning: 'http://c' does not appear to be a binary cache\n{_NOT_BUILT}"),
    ("dns", True, f"warning: unable to download '{_URL}': Couldn't resolve host name (6)\n{_NOT_BUILT}"),
    ("dns", True, f"error: unable to download '{_URL}': Could not resolve hostname (6) Could not resolve host: c"),
    ("dns", True, f"error: unable to download '{_URL}': Could not resolve host: c (curl error code=6)"),
    ("tls", True, f"error: unable to download '{_URL}': SSL peer certificate or SSH remote key was not OK (60)"),
    ("tls", True, f"error: unable to download '{_URL}': certificate has expired (curl error code=60)"),
    ("network", True, f"warning: unable to download '{_URL}': Couldn't connect to server (7)\n{_NOT_BUILT}"),
    ("network", True, f"error: unable to download '{_URL}': Could not connect to server (7)"),
    ("network", True, f"error: unable to download '{_URL}': Timeout was reached (28)"),
    ("network", True, f"error: unable to download '{_URL}': Transferred a partial file (18)"),
    ("network", True, f"error: unable to download '{_URL}': Failure when receiving data from the peer (56)"),
    (
        "network",
        True,
        f"error: unable to download '{_URL}': HTTP error 200 ('') (curl error: Stream error in the HTTP/2 framing)",
    ),
    (
        "network",
        True,
        f"error: unable to download '{_URL}': HTTP error 206 () (curl error code=92: HTTP/2 stream was reset)",
    ),
    ("network", True, "terminate called\n  what():  error: substituter 'http://c' is disabled"),
    ("network", True, "error: unexpected end-of-file"),
    ("network", True, "error: reading from file: Connection reset by peer"),
    ("daemon", True, "error: cannot connect to socket at '/nix/var/nix/daemon-socket/socket': Connection refused"),
    ("daemon", True, "error: cannot connect to socket at '/run/nix.sock': No such file or directory"),
    ("daemon", True, "error: cannot connect to daemon at '/nix/var/nix/daemon-socket/socket': Connection refused"),
    ("daemon", True, "error: cannot open connection to remote store 'daemon': unexpected end-of-file"),
    ("daemon", True, "error: Nix daemon disconnected unexpectedly (maybe it crashed?)"),
    ("daemon", True, "error: writing to file: Broken pipe"),
    ("database", True, "error: SQLite database '/nix/var/nix/db/db.sqlite' is busy"),
    ("database", True, "warning: SQLite database '/nix/var/nix/db/db.sqlite' is busy (SQLITE_PROTOCOL)"),
    ("database", True, "error: executing SQLite query 'begin immediate': database is locked (in '/nix/db.sqlite')"),
    ("database", True, "error: acquiring/releasing lock: Resource temporarily unavailable"),
    ("disk", True, "error: writing to file: No space left on device"),
    ("disk", True, "error: executing SQLite statement: database or disk is full, (in '/nix/var/nix/db/db.sqlite')"),
    ("disk", True, "error: creating directory '/nix/store/x': Disk quota exceeded"),
    ("resources", True, "error: unable to fork: Cannot allocate memory"),
    ("resources", True, "error: opening file '/nix/x': Too many open files"),
    ("stalled", True, "no new byte and no new path for 300 s; 1 paths, 100 bytes so far"),
    ("content", False, f"error: hash mismatch importing path '{_PATH}';\n  wanted: sha256:a\n  got:    sha256:b"),
    ("content", False, f"error: hash mismatch importing path '{_PATH}';\n  specified: a\n  got:       b"),
    ("content", False, f"error: size mismatch importing path '{_PATH}'"),
    ("content", False, "error: bad archive: input is not a Nix archive"),
    (
        "damaged",
        False,
        "error: opening Nix database: database disk image is malformed (in '/nix/db.sqlite')",
    ),
    *(("signature", False, f"error: the path {words} for it\n{_NOT_BUILT}") for words in failures.REFUSED_SIGNATURE),
    ("unknown", False, "error: experimental Nix feature 'nix-command' is disabled by somebody; use it"),
    ("unknown", False, f"error: unable to download '{_URL}': HTTP error 400 (Bad Request)"),
    ("unknown", False, f"error: unable to download '{_URL}': Unsupported protocol (1)"),
    ("unknown", False, ""),
)


class ClassifyTest(unittest.TestCase):
    def test_every_wording_belongs_to_its_class(self) -> None:
        for kind, passes, words in WORDINGS:
            with self.subTest(words):
                found = classify(words)
                self.assertEqual((found.kind, found.passes), (kind, passes))
                self.assertIn(found.detail.removesuffix("..."), words)

    def test_what_can_pass_is_reason_enough_whatever_another_cache_says(self) -> None:
        refused = "warning: ignoring substitute for '/nix/store/x', as it's not signed by any of the keys in 'k'"
        down = f"warning: unable to download '{_URL}': Couldn't connect to server (7)"
        for text in (f"{refused}\n{down}\n{_NOT_BUILT}", f"{down}\n{refused}\n{_NOT_BUILT}"):
            self.assertEqual(classify(text).kind, "network")

    def test_the_body_of_an_answer_is_no_word_of_nix(self) -> None:
        """A cache writes into it whatever it likes: a signature refused here would blame CI."""
        text = (
            f"error: unable to download '{_URL}': HTTP error 400 (Bad Request)\n\n       response body:\n\n"
            "       lacks a valid signature\n\n       No space left on device\n"
            "error: build failed"
        )
        self.assertEqual(classify(text).kind, "unknown")

    def test_credentials_and_full_disks_say_what_to_do(self) -> None:
        self.assertIn("netrc", str(classify(f"error: unable to download '{_URL}': HTTP error 401")))
        self.assertIn("free some", str(classify("error: writing to file: No space left on device")))
        self.assertIn("--repair", str(classify("error: database disk image is malformed")))

    @given(st.text(max_size=2000))
    def test_any_text_has_a_class_and_a_short_detail(self, text: str) -> None:
        found = classify(text)
        self.assertLessEqual(len(found.detail), 300)
        self.assertNotIn("\n", str(found))


class BrokenCachesTest(unittest.TestCase):
    def test_a_cache_that_fails_is_told_from_one_that_only_lacks_a_file(self) -> None:
        caches = ["https://a.example?priority=10", "https://a.example.evil", "https://b.example/cache/", "s3://c"]
        text = (
            "error: unable to download 'https://a.example/x.narinfo': HTTP error 502\n"
            "error: unable to download 'https://b.example/cache/nar/y': HTTP error 404\n"
        )
        self.assertEqual(broken_caches(text, caches), ["https://a.example?priority=10"])


class GivenUpTest(unittest.TestCase):
    def test_every_class_ends_for_its_own_reason_only(self) -> None:
        for kind, passes, words in WORDINGS:
            failure = classify(words)
            with self.subTest(words):
                again = given_up(Tried(failure, unknown=1, left=10.0, fresh_left=None)) is None
                self.assertEqual(again, passes or kind == "unknown")
                self.assertIsNotNone(given_up(Tried(failure, unknown=UNKNOWN_TRIES, left=0.0, fresh_left=None)))
                self.assertIsNotNone(given_up(Tried(failure, unknown=UNKNOWN_TRIES, left=9.0, fresh_left=-1.0)))

    def test_what_nobody_has_described_is_met_three_times_before_it_counts(self) -> None:
        failure = classify("error: something new")
        verdicts = [given_up(Tried(failure, unknown=n, left=9.0, fresh_left=9.0)) is None for n in (1, 2, 3)]
        self.assertEqual(verdicts, [True, True, False])


if __name__ == "__main__":
    unittest.main()
