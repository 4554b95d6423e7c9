"""Foreign text made safe: no escape reaches a terminal, no newline forges a log line, no character is cut in half."""

from __future__ import annotations

import unittest

from hypothesis import given
from hypothesis import strategies as st

from nixfleet_agent.text import FOREIGN_LIMIT, clip, clip_tail, printable


class Clipped(unittest.TestCase):
    def test_at_a_whole_character_and_marked_only_when_something_is_missing(self) -> None:
        self.assertEqual(clip("abc", 3, "..."), "abc")
        self.assertEqual(clip("abcd", 3, "..."), "abc...")
        self.assertEqual(clip("aé", 2, "!"), "a!")
        self.assertEqual(clip("é", 1), "")

    def test_to_the_end_of_what_a_program_said(self) -> None:
        self.assertEqual(clip_tail(b"abcdef", 3), "def")
        self.assertEqual(clip_tail(b"abc", 3), "abc")
        self.assertEqual(clip_tail("xé".encode(), 1), "")
        self.assertEqual(clip_tail("xéy".encode(), 2), "y")
        self.assertEqual(clip_tail(b"abc", 0), "")
        self.assertEqual(clip_tail(b"\xff\xfe!", 3), "\ufffd\ufffd!")

    @given(st.text(), st.integers(0, 20))
    def test_never_to_more_than_the_limit(self, text: str, limit: int) -> None:
        self.assertLessEqual(len(clip(text, limit).encode("utf-8", "replace")), limit)
        raw = text.encode("utf-8", "replace")
        self.assertTrue(raw.decode().endswith(clip_tail(raw, limit)))


class Shown(unittest.TestCase):
    def test_without_anything_that_a_terminal_or_a_log_reader_acts_on(self) -> None:
        self.assertEqual(printable("a\x1b[31mb\nc\x9bd\u202ee\udc80"), "a\\x1b[31mb\\nc\\x9bd\\u202ee\\udc80")
        self.assertEqual(printable(None), "None")
        self.assertEqual(printable("x" * 5000), "x" * FOREIGN_LIMIT + "...")

    @given(st.text())
    def test_always_on_one_line_of_printable_characters(self, text: str) -> None:
        shown = printable(text, 200)
        self.assertTrue(shown.isprintable())
        self.assertLessEqual(len(shown.encode()), 203)


if __name__ == "__main__":
    unittest.main()
