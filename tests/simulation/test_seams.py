"""Time, chance, threads, sockets and processes enter the agent by its seams only: a call beside them is named by line.

What decides a run has to be an input of it (``runtime.platform.Platform``, ``threads``, ``durable``): with one call
past these the same seed is another run.
"""

from __future__ import annotations

import ast
import unittest
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "nixfleet_agent"
#: Programs beside the agent: they may do as they like.
OTHERS = ("commands/", "conformance/", "demo/", "local_cp/", "cli.py", "__main__.py")
#: Calls by their dotted names, and the modules that are the seams for them.
SEAMS: dict[str, tuple[str, ...]] = {
    "time.time": (),
    "time.sleep": (),
    "time.monotonic": ("threads/clock.py",),
    "time.perf_counter": (),
    "datetime.now": ("threads/clock.py",),
    "datetime.utcnow": (),
    "datetime.today": (),
    "date.today": (),
    "random": ("threads/backoff.py",),
    "secrets": (),
    "uuid": (),
    # The name of a file that nobody reads; it is renamed or removed.
    "os.urandom": ("durable.py",),
    "threading.Thread": ("threads/threads.py", "net/resolver.py", "telemetry/line_writer.py"),
    # Ends a process that does not end; waits for room in a log that nobody reads.
    "threading.Timer": ("runtime/daemon.py",),
    "threading.Condition": ("telemetry/line_writer.py",),
    "threading.Semaphore": (),
    # The hooks' queue is never waited on.
    "queue.Queue": ("threads/threads.py", "runtime/workers/hooks.py"),
    "queue.SimpleQueue": (),
    "socket.socket": ("net/sockets.py", "probes/runners/sockets.py", "telemetry/"),
    "socket.socketpair": ("telemetry/listener.py",),
    "socket.create_connection": (),
    "socket.create_server": ("telemetry/",),
    "socket.getaddrinfo": ("net/resolver.py",),
    "select": ("net/budget.py", "threads/main_events.py", "telemetry/", "probes/runners/"),
    "selectors": ("activation/processes.py", "telemetry/"),
    "subprocess": ("activation/processes.py", "activation/host.py", "probes/runners/"),
    "os.fork": (),
    "os.system": (),
    # Waits are shared by seed only where they are made with the platform's chance.
    "Backoff/2": ("activation/context.py",),
}


def calls(source: str) -> Iterator[tuple[str, int, str]]:
    """(seam, line, name) of what one module's text calls, or imports by a name under which a call would go unseen."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call():
                named = [(ast.unparse(node.func), len(node.args) + len(node.keywords))]
            case ast.ImportFrom(module=str(origin)):
                named = [(f"{origin}.{each.name}", 99) for each in node.names]
            case ast.Import():
                named = [(f"{each.name}.", 99) for each in node.names if each.asname]
            case _:
                continue
        for name, given in named:
            yield from ((seam, node.lineno, name) for seam in SEAMS if _is_of(seam, name, given))


def _is_of(seam: str, name: str, given: int) -> bool:
    dotted, _, fewer = seam.partition("/")
    inner = "." in dotted and name.endswith(f".{dotted}")
    renamed = name.endswith(".") and dotted.startswith(name)
    return (name == dotted or name.startswith(f"{dotted}.") or inner or renamed) and (not fewer or given <= int(fewer))


def offences(source: str, module: str) -> Iterator[str]:
    """Of one module's text: ``module:line: call``."""
    for seam, line, name in calls(source):
        if not module.startswith(SEAMS[seam]):
            yield f"{module}:{line}: {name}"


class Seams(unittest.TestCase):
    def test_no_call_of_the_agent_passes_them_by(self) -> None:
        found: list[str] = []
        for path in sorted(PACKAGE.rglob("*.py")):
            module = path.relative_to(PACKAGE).as_posix()
            if not module.startswith(OTHERS):
                found += offences(path.read_text(encoding="utf-8"), module)
        self.assertEqual(found, [])

    def test_each_is_found_and_its_line_named(self) -> None:
        for call in ("time.time()", "random.random()", "uuid.uuid4()", "datetime.datetime.now()", "Backoff(1, 2)"):
            with self.subTest(call=call):
                source = f"import x\n\n{call}\n"
                self.assertEqual(list(offences(source, "journal/x.py")), [f"journal/x.py:3: {call.partition('(')[0]}"])
        for hidden in ("from time import monotonic", "from random import Random as R", "import uuid as u"):
            self.assertEqual(len(list(offences(hidden, "journal/x.py"))), 1, hidden)
        for harmless in (
            *("threading.Event()", "Backoff(1, 2, rng)", "clock.now()", "self._rng()"),
            *("from threading import Event", "from datetime import datetime", "import json as j"),
        ):
            self.assertEqual(list(offences(harmless, "journal/x.py")), [], harmless)

    def test_every_seam_is_still_one(self) -> None:
        """An exception that nothing needs any more goes from the table."""
        for seam, allowed in SEAMS.items():
            for place in allowed:
                modules = [PACKAGE / place] if place.endswith(".py") else sorted((PACKAGE / place).rglob("*.py"))
                made = {found for each in modules for found, _, _ in calls(each.read_text(encoding="utf-8"))}
                self.assertIn(seam, made, f"{place} makes no call of {seam}")


if __name__ == "__main__":
    unittest.main()
