"""What the agent's process leaves out of its memory, and that it is there again for who needs it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from nixfleet_agent.runtime.lean import ENCODING_GUESSERS, SECOND_OPENSSL, without
from tests.support.behaviours import Reply
from tests.support.https_server import HttpsServer
from tests.support.tls import Authority

#: As `run` imports the agent; then an https probe, whose TLS is Python's own.
_AGENT = """
import sys
from nixfleet_agent.runtime.lean import ENCODING_GUESSERS, SECOND_OPENSSL, without
with without(*ENCODING_GUESSERS, *SECOND_OPENSSL):
    from nixfleet_agent.runtime import daemon
print(sorted({"ssl", "_ssl", "_hashlib", "charset_normalizer", "chardet"} & set(sys.modules)))
from pathlib import Path
from nixfleet_agent.threads.clock import SystemClock
from nixfleet_agent.config.model import Config
from nixfleet_agent.probes import health_checks
from nixfleet_agent.probes import runners
config = Config(control_plane_url="https://cp.example", machine_id="web-01", health_checks_file=Path("/nowhere"))
for url in sys.argv[1:]:
    raw = ('{"p": {"kind": "http", "url": "%s", "timeoutSecs": 10, "intervalSeconds": 60}}' % url).encode()
    context = runners.make_context(config, SystemClock())
    outcome = runners.run(health_checks.parse(raw, 1).probes[0], context)
    print(outcome.status.value, outcome.failure_reason)
"""


class LeanImports(unittest.TestCase):
    def test_the_agents_modules_load_one_openssl_and_https_probes_still_judge_certificates(self) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            authority = Authority()
            ca = authority.write_ca(folder / "ca.pem")
            with HttpsServer(*authority.write_server(folder)) as server:
                server.route("GET", "/", Reply(200))
                trusted = self.run_agent({"SSL_CERT_FILE": str(ca)}, server.url + "/", "http://127.0.0.1:1/")
                stranger = self.run_agent({"SSL_CERT_FILE": "/dev/null"}, server.url + "/")
        self.assertEqual("[]", trusted[0])
        self.assertEqual("pass None", trusted[1])
        self.assertIn("Connection refused", trusted[2])
        self.assertRegex(stranger[1], "fail TLS: the server's certificate was refused: ")

    def run_agent(self, environment: dict[str, str], *urls: str) -> list[str]:
        command = [sys.executable, "-W", "error", "-c", _AGENT, *urls]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=Path.cwd())
        self.assertEqual((0, ""), (done.returncode, done.stderr))
        return done.stdout.splitlines()

    def test_a_module_left_out_can_be_imported_afterwards(self) -> None:
        with without("sched"), self.assertRaises(ImportError):
            __import__("sched")
        self.assertNotIn("sched", sys.modules)

    def test_a_module_that_is_loaded_stays(self) -> None:
        loaded = {
            name: sys.modules[name] for name in ("json", *ENCODING_GUESSERS, *SECOND_OPENSSL) if name in sys.modules
        }
        with without("json", *ENCODING_GUESSERS, *SECOND_OPENSSL):
            self.assertIs(loaded["json"], __import__("json"))
        self.assertLessEqual(loaded.items(), sys.modules.items())


if __name__ == "__main__":
    unittest.main()
