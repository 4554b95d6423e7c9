"""The daemon's main thread: signals, deaths of workers, the watchdog, and an end within two seconds."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from nixfleet_agent import __version__
from nixfleet_agent.config.model import Config
from nixfleet_agent.errors import EXIT_ENROLLMENT_REFUSED, EXIT_INTERNAL, EXIT_OK, AgentError, EnrollmentRefusedError
from nixfleet_agent.runtime.assembly import Agent, assemble
from nixfleet_agent.runtime.own_unit import UnitChanged
from nixfleet_agent.runtime.platform import Platform
from nixfleet_agent.runtime.state_dir import StateDir
from nixfleet_agent.telemetry import logs as logging_setup
from nixfleet_agent.telemetry.line_writer import write_if_ready
from nixfleet_agent.telemetry.logs import Logs
from nixfleet_agent.telemetry.notify import Notifier
from nixfleet_agent.telemetry.status import SILENT_WORKERS
from nixfleet_agent.threads.clock import Clock
from nixfleet_agent.threads.main_events import signals
from nixfleet_agent.threads.supervisor import WorkerDied

log = logging.getLogger("nixfleet_agent.daemon")

#: Threads are small: blocking I/O and shallow stacks. The default of 8 MiB counts against memory limits of units.
STACK_BYTES = 512 * 1024
#: How long the workers get to end, in seconds. The reducer gets until the hard stop: it may be inside an fsync.
STOP_GRACE = 1.5
HARD_STOP = 25.0
#: Without a watchdog to feed, the main thread still looks after silent workers this often, in seconds.
LOOK_AROUND = 30.0

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def run(config: Config, reload_config: Callable[[], Config] | None = None, warning: str | None = None) -> int:
    """The agent until it is told to stop; returns the process's exit code.

    ``reload_config`` reads the configuration anew at SIGHUP, of which the log level, the maintenance windows and the
    rules for reboots are taken. ``warning`` is logged once, at the start.

    Raises:
        ConfigError, StateDirBusyError: before anything was started.
    """
    platform = Platform()
    clock = platform.clock
    notifier = Notifier.from_environment(os.environ, clock)
    threading.stack_size(STACK_BYTES)
    state_dir = StateDir.take(config.state_dir)
    logs = logging_setup.configure(config.logging, clock)
    threading.excepthook = _log_defect
    if warning:
        log.warning("%s", warning)
    try:
        with signals(_SIGNALS) as events:
            agent = assemble(config, platform, events, logs)
            code = MainLoop(agent, events, notifier, clock, Process(logs), reload_config).run()
    finally:
        logs.close()
    state_dir.release_lock()
    return code


class Inbox(Protocol):
    """What the main thread waits on, as ``MainEvents``."""

    def wait(self, seconds: float) -> object: ...


class Process:
    """The process that the agent is: how it is left."""

    def __init__(self, logs: Logs) -> None:
        self._logs = logs

    def set_level(self, level: str) -> None:
        """Of the log, from now on."""
        self._logs.set_level(level)

    @contextmanager
    def ends_within(self, seconds: float, code: int) -> Iterator[None]:
        """The process ends with ``code`` when the block takes longer."""
        hard_stop = threading.Timer(seconds, os._exit, (code,))
        hard_stop.daemon = True
        hard_stop.start()
        yield
        hard_stop.cancel()

    def left_behind(self) -> list[str]:
        """The names of the threads that this one would wait for at the end of the process."""
        return sorted(
            thread.name
            for thread in threading.enumerate()
            if not thread.daemon and thread is not threading.current_thread()
        )

    def leave(self, code: int) -> None:
        """End now, whatever other threads do."""
        self._logs.close()
        os._exit(code)


class MainLoop:
    """The main thread, from the start of the workers to their end."""

    def __init__(
        self,
        agent: Agent,
        events: Inbox,
        notifier: Notifier,
        clock: Clock,
        process: Process,
        reload_config: Callable[[], Config] | None = None,
    ) -> None:
        self._agent = agent
        self._events = events
        self._notifier = notifier
        self._clock = clock
        self._process = process
        self._reload_config = reload_config
        self._silent: list[str] = []

    def run(self) -> int:
        """Start, look after, stop."""
        agent = self._agent
        code: int | None = None
        try:
            agent.supervisor.start()
            self._notifier.ready(f"nixfleet-agent {__version__}")
            log.info("started", extra={"version": __version__, "machine_id": agent.machine_id})
            while code is None:
                code = self._handle(self._next_event())
            self._notifier.stopping()
        finally:
            # Also after a defect in this thread: workers that nobody looks after would keep the process for ever.
            if code is None:
                log.critical("the main thread died", exc_info=True)
            stopped = self._stop(EXIT_INTERNAL if code is None else code)
        return stopped

    def _next_event(self) -> object:
        """The next signal or death; None when it is time to restart a worker or to feed the watchdog."""
        pulse = (self._notifier.watchdog_secs or 2 * LOOK_AROUND) / 2
        due = self._agent.supervisor.restart_due()
        wait = pulse if due is None else min(pulse, max(0.0, due - self._clock.monotonic()))
        return self._events.wait(wait)

    def _handle(self, event: object) -> int | None:
        """What an event means; an exit code when it is the end."""
        match event:
            case signal.Signals.SIGTERM | signal.Signals.SIGINT:
                log.info("stopping: %s", "SIGTERM" if event is signal.Signals.SIGTERM else "SIGINT")
                return EXIT_OK
            case signal.SIGHUP:
                self._reload()
            case signal.SIGUSR1:
                dump_stacks()
            case WorkerDied() if not self._agent.supervisor.died(event):
                return EXIT_INTERNAL
            case UnitChanged():
                log.info("ending to make room for what the unit starts now: %s", event.command)
                return EXIT_OK
            case EnrollmentRefusedError():
                log.error("%s", event)
                write_if_ready(sys.stderr.fileno(), f"nixfleet-agent: {event}\n")
                return EXIT_ENROLLMENT_REFUSED
        self._look_around()
        return None

    def _look_around(self) -> None:
        supervisor = self._agent.supervisor
        silent = supervisor.silent()
        if silent and silent != self._silent:
            log.error("worker unresponsive: %s", ", ".join(silent))
        self._silent = silent
        self._agent.board.publish(SILENT_WORKERS, tuple(silent))
        if not supervisor.endangered():
            self._notifier.watchdog()

    def _reload(self) -> None:
        self._notifier.reloading()
        good = True
        for step in (self._reload_settings, *self._agent.reload):
            try:
                step()
            except AgentError as error:
                good = False
                log.error("reload: %s", error)
        if good:
            log.info("reloaded certificate, trust file, health checks, log level, windows and reboots")
        self._notifier.ready()

    def _reload_settings(self) -> None:
        if self._reload_config is not None:
            config = self._reload_config()
            self._process.set_level(config.logging.level)
            self._agent.reconfigure(config)

    def _stop(self, code: int) -> int:
        """Wake every wait, join every thread, and leave without those that the system holds."""
        agent = self._agent
        with self._process.ends_within(HARD_STOP, code):
            agent.stop()
            if agent.reducer.name in agent.supervisor.join(STOP_GRACE):
                agent.supervisor.join(HARD_STOP)
        agent.close()
        log.info("stopped")
        # Threads below the workers too: a probe's inside getaddrinfo, or in the exec of a program on a dead disk. They
        # can't be woken, and Python would wait for them; the journal is safe.
        if left := self._process.left_behind():
            log.warning("left behind: %s", ", ".join(left))
            self._process.leave(code)
        return code


def _log_defect(defect: threading.ExceptHookArgs) -> None:
    """A thread below a worker (a probe's) died: its owner starts it again, and this says why it had to."""
    name = defect.thread.name if defect.thread else "?"
    log.error("thread %s died: %s", name, defect.exc_value, exc_info=defect.exc_value)


def dump_stacks() -> None:
    """Every thread's stack to the log, one record a thread."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        stack = "".join(traceback.format_stack(frame))
        log.info("stack of %s", names.get(ident, ident), extra={"stack": stack})
