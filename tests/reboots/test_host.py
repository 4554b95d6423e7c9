"""What systemd's programs say of blockers and users, and what becomes of it when they are not there."""

from __future__ import annotations

import json
import tempfile
import unittest
from pathlib import Path

from nixfleet_agent.reboots.host import RebootHost, parse_inhibitors, parse_sessions
from nixfleet_agent.threads.clock import SystemClock

#: Of systemd 252 (no class column), 255 (class, idle, since) and 257 (leader).
SESSIONS = {
    "252": "      1 1000 alice seat0 tty2\n      c1 0 root        \n",
    "255": "1 1000 alice seat0 tty2 active no -\n3 0 root - pts/0 active no -\n",
    "257": (
        "1 1000 alice seat0 1203 user tty2 no -\n2 1000 alice - 1210 manager - no -\n3 0 root - 9 user pts/0 no -\n"
        "c1 120 gdm seat0 900 greeter tty1 no -\n"
    ),
}


def inhibitors(*rows: list[object]) -> str:
    return json.dumps({"type": "a(ssssuu)", "data": [list(rows)]})


class Answers(unittest.TestCase):
    def test_users_of_each_version(self) -> None:
        for version, said in SESSIONS.items():
            self.assertEqual(parse_sessions(said), ("alice", "root"), version)
        self.assertEqual(parse_sessions("\nshort line\n"), ())

    def test_only_what_blocks_a_shutdown_blocks(self) -> None:
        said = inhibitors(
            ["shutdown:sleep", "backup", "nightly", "block", 0, 7],
            ["shutdown", "NetworkManager", "turns off", "delay", 0, 8],
            ["sleep", "player", "music", "block", 0, 9],
            ["idle:shutdown", "\x1b[31mupdater", "firmware", "block-weak", 0, 10],
        )
        self.assertEqual(parse_inhibitors(said), ("backup (nightly)", "\\x1b[31mupdater (firmware)"))

    def test_an_answer_of_another_form_blocks_nothing(self) -> None:
        for said in ("", "[]", '{"data": 5}', '{"data": [[5]]}', inhibitors([5, 5, 5, 5]), inhibitors([])):
            self.assertEqual(parse_inhibitors(said), (), said)


class Programs(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.host = RebootHost(SystemClock(), {"PATH": str(self.folder)}, lambda: None)

    def program(self, name: str, script: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def test_where_there_are_none_nobody_blocks_and_nobody_is_there(self) -> None:
        self.assertEqual((self.host.blockers(), self.host.users()), ((), ()))
        self.assertIn("systemctl", self.host.reboot() or "")
        self.assertIn("wall", self.host.warn("soon") or "")

    def test_without_a_login_manager_who_is_asked(self) -> None:
        self.program("loginctl", "echo 'Failed to connect to bus' >&2; exit 1")
        self.program("who", "echo 'kim  pts/0  Nov 28'; echo 'kim  pts/1  Nov 28'; echo 'lee tty1'")
        self.assertEqual(self.host.users(), ("kim", "lee"))

    def test_a_refusal_is_told_in_its_own_words(self) -> None:
        self.program("systemctl", '[ "$1" = reboot ] && echo "Operation inhibited by backup" >&2; exit 1')
        self.assertEqual(self.host.reboot(), "Operation inhibited by backup")
        self.program("systemctl", "exit 3")
        self.assertEqual(self.host.reboot(), "systemctl ended with 3")

    def test_a_warning_is_one_safe_line(self) -> None:
        self.program("wall", f'printf "%s" "$1" >{self.folder}/told')
        self.assertIsNone(self.host.warn("kernel\x1b[31m\nsoon"))
        self.assertEqual((self.folder / "told").read_text(), "kernel\\x1b[31m\\nsoon")


if __name__ == "__main__":
    unittest.main()
