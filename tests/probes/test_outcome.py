"""Reasons that fit an event, and the order to stop."""

from __future__ import annotations

import unittest

from nixfleet_agent.probes.declarations import BadDecl, ProbeDecl
from nixfleet_agent.probes.runners import failed, passed, run
from nixfleet_agent.state_machine.states import ProbeStatus
from tests.probes.support import context


class Reasons(unittest.TestCase):
    def reason(self, text: str) -> str:
        return failed(text).failure_reason or ""

    def test_up_to_512_bytes_are_kept_as_they_are(self) -> None:
        self.assertEqual(self.reason("x" * 512), "x" * 512)
        self.assertEqual(self.reason("é" * 256), "é" * 256)

    def test_longer_ones_are_cut_at_a_character(self) -> None:
        self.assertEqual(self.reason("x" * 513), "x" * 512 + "...[truncated]")
        self.assertEqual(self.reason("x" + "é" * 256), "x" + "é" * 255 + "...[truncated]")
        self.assertEqual(self.reason("\U0001f600" * 200), "\U0001f600" * 128 + "...[truncated]")
        self.assertEqual(self.reason("x" * 10**6), "x" * 512 + "...[truncated]")

    def test_what_would_act_on_a_terminal_is_escaped_before_the_cut(self) -> None:
        self.assertEqual(self.reason("a\nb\x1b[31m"), "a\\nb\\x1b[31m")
        self.assertLessEqual(len(self.reason("\x1b" * 10**5).encode()), 512 + 14)

    def test_a_fail_always_has_a_reason_and_a_pass_never(self) -> None:
        self.assertEqual(self.reason(""), "no reason was given")
        self.assertIsNone(passed().failure_reason)


class Dispatch(unittest.TestCase):
    def test_a_bad_declaration_fails_with_its_reason(self) -> None:
        outcome = run(BadDecl(name="p", reason="no such kind"), context())
        self.assertEqual((outcome.status, outcome.failure_reason), (ProbeStatus.FAIL, "no such kind"))

    def test_a_type_without_a_runner_is_our_own_mistake(self) -> None:
        with self.assertRaises(RuntimeError):
            run(ProbeDecl(name="p", kind="x"), context())


class Contexts(unittest.TestCase):
    def test_a_new_set_has_its_own_order_to_stop_and_reads_the_trusted_authorities_anew(self) -> None:
        """The release that it probes may have brought others."""
        old = context()
        new = old.for_new_set()
        self.assertIsNot(new.cancel, old.cancel)
        self.assertIsNot(new.tls, old.tls)
        self.assertIs(new.resolver, old.resolver)
        self.assertIs(new.unreaped, old.unreaped)


if __name__ == "__main__":
    unittest.main()
