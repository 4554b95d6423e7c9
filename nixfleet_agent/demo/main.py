"""The demo from its first line to its last: checks, sets up, tells the story, judges, and cleans up."""

from __future__ import annotations

import importlib.util
import json
import shlex
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from nixfleet_agent import durable
from nixfleet_agent.clock import Clock, SystemClock
from nixfleet_agent.demo import scenario, verdict
from nixfleet_agent.demo.agents import remove_tree
from nixfleet_agent.demo.errors import DemoError
from nixfleet_agent.demo.fleet import DemoFleet, require_tools
from nixfleet_agent.demo.scenario import Story
from nixfleet_agent.demo.timeline import Timeline
from nixfleet_agent.demo.view import Lines, Live, View
from nixfleet_agent.errors import EXIT_CHECK_FAILED, EXIT_OK, AgentError
from nixfleet_agent.text import printable

#: After its last event an agent still has to file it as delivered.
SETTLE_SECS = 10.0
INTERRUPTED = 130
#: Signals that end the demo; while it cleans up they are ignored.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What the command line asks for; ``folder`` None makes one under the system's temporary folder."""

    agents: int = 3
    keep: bool = False
    fault: str | None = None
    json: bool = False
    folder: Path | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the story ended; ``problems`` is empty when every host is where it should be."""

    problems: list[str]
    seconds: float


def run(options: DemoOptions, out: TextIO = sys.stdout, err: TextIO = sys.stderr) -> int:
    """Tell the story; the process's exit code.

    Raises:
        AgentError: it can't begin on this machine; nothing is left behind.
    """
    require_tools(_nearest(options.folder), options.agents)
    was_there = options.folder is not None and options.folder.exists()
    folder = _folder(options)
    demo = _Demo(options, folder, SystemClock(), err if options.json else out)
    try:
        with _terminable():
            demo.set_up()
            outcome = demo.tell()
            demo.report(outcome, out)
            if options.keep:
                demo.keep()
    except (KeyboardInterrupt, AgentError) as error:
        with _uninterrupted():
            demo.close()
            _remove(folder, keep_empty=was_there)
        if isinstance(error, AgentError):
            raise
        print("interrupted: every process is ended, and every file removed", file=err)
        return INTERRUPTED if demo.outcome is None else _exit_code(demo.outcome)
    finally:
        with _uninterrupted():
            demo.close()
    return _exit_code(outcome)


class _Demo:
    """One demo in one folder."""

    def __init__(self, options: DemoOptions, folder: Path, clock: Clock, shown_on: TextIO) -> None:
        self.outcome: Outcome | None = None
        self._options = options
        self._folder = folder
        self._clock = clock
        self._out = shown_on
        self._view = _view(shown_on)
        self._timeline = Timeline(clock, self._view.show)
        self._fleet: DemoFleet | None = None

    def set_up(self) -> None:
        """Make everything and start the agents.

        Raises:
            AgentError: it can't be had on this machine.
        """
        self._timeline.note(f"making keys, closures and {self._options.agents} hosts in {self._folder}")
        self._fleet = fleet = DemoFleet(self._folder, self._options.agents, self._clock, self._timeline.watch)
        fleet.install()
        fleet.start_agents()
        self._timeline.note(f"{len(fleet.names)} agents started; control plane at {fleet.control_plane.url}")

    def tell(self) -> Outcome:
        """The story, and how it ended."""
        fleet = self._fleet
        if fleet is None:
            raise RuntimeError("there is no fleet to tell of: set_up comes first")
        story = Story(fleet, self._timeline)
        found: list[str] = []

        def all_well() -> bool:
            found[:] = verdict.problems(fleet, story.expected)
            return not found

        try:
            with _view_of(self._view, fleet, self._timeline):
                (scenario.FAULTS[self._options.fault] if self._options.fault else scenario.plain)(story)
                self._timeline.wait(all_well, SETTLE_SECS, fleet.look_after)
        except DemoError as error:
            found[:] = [str(error)]
        self.outcome = Outcome(found, self._timeline.seconds)
        return self.outcome

    def report(self, outcome: Outcome, out: TextIO) -> None:
        """What happened, and where the files are."""
        if self._options.json:
            print(json.dumps(self._as_json(outcome), indent=1), file=out, flush=True)
            return
        print(file=out)
        if self._fleet is not None:
            versions = {release.closure: version for version, release in self._fleet.releases.items()}
            for name, host in self._fleet.hosts.items():
                running = host.running_closure() or "nothing"
                print(f"{name}: runs {versions.get(running, running)}; {self._states(name)}", file=out)
        for problem in outcome.problems:
            print(f"PROBLEM: {printable(problem)}", file=out)
        how = "every host ended where it should" if not outcome.problems else "it did not end as it should"
        print(f"\nAfter {outcome.seconds:.0f} s {how}.", file=out)
        print(f"Files: {self._folder} (hosts/*/agent.log, cp/cp.sqlite, cp/published, ci/cache)", file=out)
        if not self._options.keep:
            place = shlex.quote(str(self._folder))
            print(f"Remove them with: chmod -R u+w {place} && rm -r {place}", file=out)
        out.flush()

    def keep(self) -> None:
        """Leave everything running until Ctrl-C."""
        if self._fleet is None:
            return
        print("\n".join(self._commands(self._fleet)), file=self._out, flush=True)
        threading.Event().wait()

    def close(self) -> None:
        """End what runs; safe to call twice."""
        fleet, self._fleet = self._fleet, None
        if fleet is not None:
            fleet.close()

    def _states(self, name: str) -> str:
        states = self._timeline.states
        told = [f"{v} {states[v, name]}" for v in self._timeline.versions if (v, name) in states]
        return ", ".join(told) or "no rollout"

    def _as_json(self, outcome: Outcome) -> dict[str, Any]:
        fleet, states = self._fleet, self._timeline.states
        return {
            "ok": not outcome.problems,
            "fault": self._options.fault,
            "seconds": round(outcome.seconds, 1),
            "problems": outcome.problems,
            "folder": str(self._folder),
            "hosts": [
                {
                    "name": name,
                    "pid": host.pid,
                    "runs": host.running_closure(),
                    "states": {version: state.value for (version, of), state in states.items() if of == name},
                }
                for name, host in (fleet.hosts.items() if fleet else ())
            ],
            "timeline": [
                {"seconds": round(e.seconds, 2), "host": e.hostname, "version": e.version, "text": e.text}
                for e in self._timeline.entries
            ],
        }

    def _commands(self, fleet: DemoFleet) -> list[str]:
        """Lines that can be pasted into another terminal."""
        host = next(iter(fleet.hosts.values()))
        ca = shlex.quote(str(fleet.control_plane.ca_file))
        agent = f"{shlex.quote(sys.executable)} -m nixfleet_agent"
        config = f"--config {shlex.quote(str(host.config_file))}"
        return [
            "",
            "Everything keeps running until Ctrl-C, which also removes the files. In another terminal:",
            f"  curl --cacert {ca} {fleet.control_plane.url}/status.json",
            f"  {agent} status {config}",
            f"  {agent} why {config}",
            f"  {agent} history {config}",
            f"  {agent} quarantine list {config}",
            f"  tail -f {shlex.quote(str(host.log_file))}",
            f"In a browser (its warning about the demo's own CA is right): {fleet.control_plane.url}/",
        ]


def _view(out: TextIO) -> View:
    """Rich draws only for people who look; without rich there are lines."""
    if out.isatty() and importlib.util.find_spec("rich") is not None:
        return Live(out)
    return Lines(out)


@contextmanager
def _view_of(view: View, fleet: DemoFleet, timeline: Timeline) -> Iterator[None]:
    view.watch(fleet, timeline)
    with view:
        yield


def _nearest(folder: Path | None) -> Path:
    """The folder that exists already and that the demo's files will go below."""
    if folder is None:
        return Path(tempfile.gettempdir())
    return next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())


def _folder(options: DemoOptions) -> Path:
    if options.folder is None:
        return Path(tempfile.mkdtemp(prefix="nixfleet-demo-")).resolve()
    folder = options.folder.absolute()
    if folder.is_dir() and any(folder.iterdir()):
        raise DemoError(f"{folder} is not empty: choose another --dir")
    if not all(c.isalnum() or c in "/._-+" for c in str(folder)):
        raise DemoError(f"{folder} has characters that Nix can't have in the address of a store: choose another --dir")
    durable.make_directory(folder)
    return folder.resolve()


def _remove(folder: Path, *, keep_empty: bool) -> None:
    """All that the demo made; a folder that was there before stays, empty."""
    remove_tree(folder)
    if keep_empty:
        durable.make_directory(folder)


def _exit_code(outcome: Outcome) -> int:
    return EXIT_CHECK_FAILED if outcome.problems else EXIT_OK


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM and a closed terminal end the demo as Ctrl-C does."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """An impatient second Ctrl-C must not leave processes behind."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
