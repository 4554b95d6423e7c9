"""The demo from its first line to its last: checks, sets up, tells the story, judges, and cleans up."""

from __future__ import annotations

import io
import json
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from nixfleet_agent import durable
from nixfleet_agent.demo import report
from nixfleet_agent.demo.errors import DemoError
from nixfleet_agent.demo.fleet import DemoFleet, require_tools
from nixfleet_agent.demo.processes import remove_tree
from nixfleet_agent.demo.report import Outcome
from nixfleet_agent.demo.scenario import INSTALLER, PLAIN, Scenario, load
from nixfleet_agent.demo.story import Story
from nixfleet_agent.demo.timeline import Timeline
from nixfleet_agent.demo.verdict import problems
from nixfleet_agent.demo.view import View, view_on
from nixfleet_agent.errors import EXIT_CHECK_FAILED, EXIT_OK, StorageError
from nixfleet_agent.threads.clock import Clock, SystemClock
from nixfleet_agent.threads.interrupts import terminable, uninterrupted

#: After its last event an agent still has to file it as delivered.
SETTLE_SECS = 10.0
INTERRUPTED = 130
LOCK_FILE = "demo.lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What the command line asks for.

    ``scenario`` is a name or a path, ``agents`` None takes the scenario's number, ``folder`` None makes one under the
    system's temporary folder, ``port`` 0 takes a free one for the control plane.
    """

    scenario: str = PLAIN
    agents: int | None = None
    keep: bool = False
    json: bool = False
    folder: Path | None = None
    port: int = 0


def run(options: DemoOptions, view: View | None = None) -> int:
    """Tell the story on stdout and stderr; the process's exit code. ``view`` takes the place of what shows it there.

    Raises:
        AgentError: it can't begin on this machine, or the scenario is wrong; nothing is left behind.
    """
    # None where the caller has closed it: then the story is told to nobody.
    out, err = sys.stdout or io.StringIO(), sys.stderr or io.StringIO()
    view = view or view_on(err if options.json else out)
    scenario = load(options.scenario)
    agents = options.agents or scenario.agents
    require_tools(_nearest(options.folder), agents)
    was_there = options.folder is not None and options.folder.exists()
    with terminable():
        folder = _folder(options)
        demo = _Demo(options, scenario, agents, folder, SystemClock(), view)
        try:
            outcome = demo.tell()
            demo.report(outcome, out)
            if options.keep:
                demo.keep(out)
        except KeyboardInterrupt:
            demo.discard(keep_empty=was_there)
            print("interrupted: every process is ended, and every file removed", file=err)
            return INTERRUPTED if demo.outcome is None else _exit_code(demo.outcome)
        except BaseException:
            demo.discard(keep_empty=was_there)
            raise
        with uninterrupted():
            demo.close()
    return _exit_code(outcome)


class _Demo:
    """One demo in one folder."""

    def __init__(
        self, options: DemoOptions, scenario: Scenario, agents: int, folder: Path, clock: Clock, view: View
    ) -> None:
        self.outcome: Outcome | None = None
        self._options = options
        self._scenario = scenario
        self._agents = agents
        self._folder = folder
        self._clock = clock
        self._view = view
        self._timeline = Timeline(clock, view.show)
        self._fleet: DemoFleet | None = None

    def tell(self) -> Outcome:
        """The whole story, and how it ended.

        Raises:
            AgentError: it could not begin on this machine.
        """
        self._view.follow(self._scenario.title, self._timeline)
        with self._view:
            fleet = self._set_up()
            set_up_secs = self._timeline.seconds
            self._view.watch(fleet)
            self.outcome = Outcome(self._tell_on(fleet), set_up_secs, self._timeline.seconds)
        return self.outcome

    def _set_up(self) -> DemoFleet:
        timeline = self._timeline
        hosts = "one host" if self._agents == 1 else f"{self._agents} hosts"
        timeline.note(f"making keys, closures and {hosts} in {self._folder}")
        fleet = DemoFleet(self._folder, self._agents, self._scenario, self._clock, timeline, self._options.port)
        self._fleet = fleet
        fleet.start_services()
        timeline.note(f"the control plane is at {fleet.plane.url}")
        timeline.note(f"its status page, for a browser: {fleet.plane.page_url}")
        fleet.install()
        fleet.start_agents()
        timeline.note(f"{hosts} installed with {INSTALLER}, and their agents started")
        return fleet

    def _tell_on(self, fleet: DemoFleet) -> list[str]:
        """What is not as it should be at the end."""
        found: list[str] = []

        def all_well() -> bool:
            found[:] = [*problems(fleet, self._scenario), *self._timeline.breaches]
            return not found

        try:
            Story(fleet, self._timeline).tell(self._scenario)
            self._timeline.wait(all_well, SETTLE_SECS, fleet.look_after)
        except DemoError as error:
            return [str(error), *self._timeline.breaches]
        return found

    def report(self, outcome: Outcome, out: TextIO) -> None:
        """What happened, and where the files are."""
        if self._fleet is None:
            raise RuntimeError("there is no fleet to report of")
        told = (self._scenario, self._fleet, self._timeline, outcome, self._folder)
        if self._options.json:
            print(json.dumps(report.document(*told), indent=1), file=out, flush=True)
            return
        for line in report.lines(*told):
            print(line, file=out)
        if not self._options.keep:
            print(report.remove_hint(self._folder), file=out)
            print(report.MORE, file=out)
        out.flush()

    def keep(self, out: TextIO) -> None:
        """Leave everything running until Ctrl-C."""
        fleet = self._fleet
        if fleet is not None and not self._options.json:
            print(
                "\nEverything keeps running until Ctrl-C, which also removes the files. In another terminal:", file=out
            )
            for command, shows in report.commands(fleet):
                print(f"\n# {shows}\n{command}", file=out)
            print(f"\nThe status page: {fleet.plane.page_url}", file=out, flush=True)
        threading.Event().wait()

    def discard(self, *, keep_empty: bool) -> None:
        """End what runs and remove what it made; a folder that was there before stays, empty."""
        with uninterrupted():
            self.close()
            remove_tree(self._folder)
            if keep_empty:
                durable.make_directory(self._folder)

    def close(self) -> None:
        """End what runs; safe to call twice."""
        fleet, self._fleet = self._fleet, None
        if fleet is not None:
            self._view.watch(None)
            fleet.close()


def _nearest(folder: Path | None) -> Path:
    """The folder that exists already and that the demo's files will go below."""
    if folder is None:
        try:
            return Path(tempfile.gettempdir())
        except OSError as error:
            raise DemoError("no temporary folder can be written to: set TMPDIR, or choose a --dir") from error
    return next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())


def _folder(options: DemoOptions) -> Path:
    """The folder for this demo alone."""
    if options.folder is None:
        try:
            return Path(tempfile.mkdtemp(prefix="nixfleet-demo-")).resolve()
        except OSError as error:
            raise DemoError(f"no folder for the files: {error.strerror or error}: set TMPDIR or --dir") from error
    folder = options.folder.absolute()
    if folder.is_dir() and any(folder.iterdir()):
        raise DemoError(f"{folder} is not empty: choose another --dir")
    if not all(c.isalnum() or c in "/._-+" for c in str(folder)):
        raise DemoError(f"{folder} has characters that Nix can't have in the address of a store: choose another --dir")
    try:
        durable.make_directory(folder)
        (folder / LOCK_FILE).open("x").close()
    except FileExistsError as error:
        raise DemoError(f"{folder} is in use by another demo: choose another --dir") from error
    except StorageError as error:
        raise DemoError(f"{error}: choose another --dir") from error
    except OSError as error:
        raise DemoError(f"can't write in {folder}: {error.strerror or error}: choose another --dir") from error
    return folder.resolve()


def _exit_code(outcome: Outcome) -> int:
    return EXIT_CHECK_FAILED if outcome.problems else EXIT_OK
