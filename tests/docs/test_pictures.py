"""Every picture of the guides is there, is shown somewhere, is small, and loads nothing from elsewhere."""

from __future__ import annotations

import re
import unittest
from pathlib import Path
from xml.etree import ElementTree

from tests.docs.pages import PAGES, read
from tests.docs.pictures import PICTURES

#: Bytes; a clone should not grow by megabytes for pictures.
LARGEST = 200 * 1024


class Pictures(unittest.TestCase):
    def test_each_is_shown_with_words_for_those_who_do_not_see_it(self) -> None:
        shown: set[Path] = set()
        for page in PAGES:
            for words, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", read(page)):
                self.assertTrue(words, f"{page.name}: {target}")
                path = (page.parent / target).resolve()
                self.assertTrue(path.is_file(), path)
                shown.add(path)
        self.assertEqual({path.name for path in PICTURES.iterdir()} - {path.name for path in shown}, set())

    def test_each_is_small_and_loads_nothing(self) -> None:
        for path in PICTURES.iterdir():
            with self.subTest(path.name):
                self.assertLess(path.stat().st_size, LARGEST)
                if path.suffix == ".svg":
                    raw = path.read_text()
                    ElementTree.fromstring(raw)
                    self.assertNotRegex(raw, r"url\(\"?http|href=\"http|<script")


if __name__ == "__main__":
    unittest.main()
