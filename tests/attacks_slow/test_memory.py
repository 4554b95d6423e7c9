"""Three fleets of 64 MiB at once that nobody signed: what they take of a small host's memory, and give back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.artifacts.release_base import FLEET_PATH, ReleaseTestCase
from tests.support.behaviours import Reply

MIB = 1024 * 1024
#: Above idle, and how much more than before may stay (MiB, share).
MOST, STAYS = 128, 1.10
TOP = Path(__file__).resolve().parents[2]
_CHILD = """
import json, sys, threading
from pathlib import Path
from nixfleet_agent.artifacts.cache import ManifestCache
from nixfleet_agent.artifacts.trust_store import TrustStore
from nixfleet_agent.config.model import Config
from nixfleet_agent.errors import AgentError
from nixfleet_agent.identity.credentials import Credentials
from nixfleet_agent.net.client import ControlPlane
from nixfleet_agent.telemetry.status import StatusBoard
from nixfleet_agent.threads.clock import SystemClock

folder, url = Path(sys.argv[1]), sys.argv[2]
clock = SystemClock()
places = {"trust_file": folder / "trust.json", "state_dir": folder / "state"}
config = Config(control_plane_url=url, machine_id="web-01", **places)
credentials = Credentials(folder / "agent-cert.pem", folder / "key")
credentials.reload()
control_plane = ControlPlane(url, ca_cert=folder / "ca.pem", credentials=credentials, clock=clock)
cache = ManifestCache(config, control_plane, TrustStore(config), clock, StatusBoard())

def kib(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))

refused = []
def fetch():
    try:
        cache.fetch_fleet()
    except AgentError as error:
        refused.append(str(error))

try:
    cache.fetch_manifest("stable@abc", window=None)  # nothing there: the client is warm
except AgentError:
    pass
idle = kib("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
threads = [threading.Thread(target=fetch) for _ in range(3)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(json.dumps({"idle": idle, "peak": kib("VmHWM"), "after": kib("VmRSS"), "refused": refused}))
"""


class Memory(ReleaseTestCase):
    def test_three_unsigned_fleets_at_once(self) -> None:
        self.publish()
        body = b'{"schemaVersion":1,"hosts":{' + b",".join(b'"h%07d":{"a":[1,2]}' % n for n in range(3_000_000))
        body = (body + b"}}").ljust(64 * MIB)[: 64 * MIB]
        self.server.route("GET", FLEET_PATH, Reply(200, body))
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, str(self.folder), self.server.url],
            capture_output=True,
            text=True,
            check=False,
            cwd=TOP,
            timeout=300,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        found = json.loads(done.stdout)
        self.assertEqual(len(found["refused"]), 3, found)
        for refusal in found["refused"]:
            self.assertIn("were not signed by an active CI release key", refusal)
        self.assertLess((found["peak"] - found["idle"]) / 1024, MOST, found)
        self.assertLess(found["after"], found["idle"] * STAYS, found)
