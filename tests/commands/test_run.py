"""`run` believes nothing that somebody else may change: neither at its start nor when it is told to read again."""

from __future__ import annotations

import unittest
from unittest import mock

from nixfleet_agent.errors import ConfigError
from nixfleet_agent.runtime import daemon
from tests.commands.host_case import HostCase


class Believes(HostCase):
    def test_nothing_that_others_may_change(self) -> None:
        for path in (self.trust, self.ca, self.certificate, self.state, self.folder):
            with self.subTest(path.name), mock.patch.object(daemon, "run", return_value=0) as started:
                mode = path.stat().st_mode & 0o7777
                path.chmod(mode | 0o002)
                ran = self.call("run")
                path.chmod(mode)
                self.assertEqual((ran.code, started.called), (78, False))
                self.assertIn(f"run `chmod go-w {path}`", ran.err)

    def test_nor_when_it_reads_again(self) -> None:
        with mock.patch.object(daemon, "run", return_value=0) as started:
            self.assertEqual(self.call("run").code, 0)
        config, read_again = started.call_args.args[:2]
        self.assertEqual(read_again(), config)
        self.ca.chmod(0o666)
        with self.assertRaisesRegex(ConfigError, f"chmod go-w {self.ca}"):
            read_again()


if __name__ == "__main__":
    unittest.main()
