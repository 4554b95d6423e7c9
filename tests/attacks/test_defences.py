"""The list of defences that mutation takes out one by one stays true to the code, without the time mutation takes."""

from __future__ import annotations

import unittest

from tests.attacks.defences import DEFENCES
from tests.attacks.mutants import TOP


class TheList(unittest.TestCase):
    def test_each_text_to_take_out_stands_once_in_its_file(self) -> None:
        for defence in DEFENCES:
            with self.subTest(defence.name):
                source = (TOP / "nixfleet_agent" / defence.file).read_text()
                self.assertEqual(source.count(defence.old), 1, f"{defence.old!r} in {defence.file}")

    def test_without_it_the_code_still_compiles(self) -> None:
        """A mutant that does not even start is noticed by every test, and proves nothing of any."""
        for defence in DEFENCES:
            with self.subTest(defence.name):
                source = (TOP / "nixfleet_agent" / defence.file).read_text()
                mutant = source.replace(defence.old, defence.new)
                self.assertTrue(mutant != source, "it changes nothing")
                if defence.file.endswith(".py"):
                    compile(mutant, defence.file, "exec")

    def test_each_names_tests_that_exist(self) -> None:
        for name in sorted({test for defence in DEFENCES for test in defence.tests}):
            with self.subTest(name):
                loader = unittest.TestLoader()
                found = loader.loadTestsFromName(name)
                self.assertEqual(loader.errors, [])
                self.assertGreater(found.countTestCases(), 0)

    def test_no_two_have_the_same_name(self) -> None:
        names = [defence.name for defence in DEFENCES]
        self.assertEqual(len(names), len(set(names)))


if __name__ == "__main__":
    unittest.main()
