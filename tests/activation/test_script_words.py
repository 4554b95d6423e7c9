"""What a switch script's words mean, in the wordings of the Perl and of the Rust script; and what they do not mean."""

from __future__ import annotations

import unittest

from nixfleet_agent.activation import script_words

LOCK_PERL = (
    "Could not acquire lock - Resource temporarily unavailable at /nix/store/x/bin/switch-to-configuration line 88."
)
INHIBITED = """There are changes to critical components of the system:

dbus-implementation : broker -> dbus
systemd-version : 257 -> 258

Switching into this system is not recommended.
Pre-switch check 'switchInhibitors' failed
"""


class LockTest(unittest.TestCase):
    def test_each_wording_is_known(self) -> None:
        for words in ("Could not acquire lock\n", f"{LOCK_PERL}\n", "warning: x\ncould not acquire lock\n\n"):
            self.assertTrue(script_words.lock_refused(words), words)

    def test_a_units_lock_or_words_in_the_middle_are_not_the_scripts(self) -> None:
        for words in ("", "could not acquire lock on /var/lib/db\n", "Could not acquire lock\nerror: app failed\n"):
            self.assertFalse(script_words.lock_refused(words), words)


class CheckTest(unittest.TestCase):
    def test_the_check_that_refused_is_named(self) -> None:
        for words, name in (
            ("Pre-switch check 'disk' failed\n", "disk"),
            ("low on space\nPre-switch check 'disk' failed\nPre-switch checks failed\n", "disk"),
            ("Pre-switch checks failed\n", "unnamed"),
            ("Pre-switch check 'disk' failed\nstopping the following units: app.service\n", None),
            ("no\n", None),
            ("", None),
        ):
            self.assertEqual(script_words.refused_by(words), name, words)

    def test_the_components_that_inhibit_are_named(self) -> None:
        for end in ("", "Pre-switch checks failed\n"):
            both = ("dbus-implementation", "systemd-version")
            self.assertEqual(script_words.inhibited_by(INHIBITED + end), both)
        self.assertEqual(script_words.inhibited_by("Pre-switch check 'switchInhibitors' failed"), ("switchInhibitors",))
        self.assertEqual(script_words.inhibited_by("a : b -> c\nPre-switch check 'disk' failed\n"), ())


class UnitsTest(unittest.TestCase):
    def test_each_wording_names_its_units(self) -> None:
        for words, units in (
            ("warning: the following units failed: a.service, b@1.service\n", ("a.service", "b@1.service")),
            ("warning: the following user units failed: a.service\nSee `systemctl`", ("a.service",)),
            (
                "Failed to start a.service\nFailed to restart b.mount: Unit b.mount not found\n",
                ("a.service", "b.mount"),
            ),
            ("Job for a.service failed because the control process exited with error code.\n", ("a.service",)),
            ("A dependency job for a.service failed. See 'journalctl -xe' for details.\n", ("a.service",)),
            ("warning: user activation for alice failed\n", ("user units of alice",)),
            ("Failed to start a.service\nwarning: the following units failed: a.service\n", ("a.service",)),
            ("Too few arguments.\n", ()),
            ("Nov 1 host systemd[1]: Failed to start a.service - App.\nFailed to start something else\n", ()),
            ("", ()),
        ):
            self.assertEqual(script_words.failed_units(words), units, words)

    def test_no_script_makes_the_list_long(self) -> None:
        words = "".join(f"Failed to start a{number}.service\n" for number in range(10_000))
        self.assertEqual(len(script_words.failed_units(words)), 50)


if __name__ == "__main__":
    unittest.main()
