"""The demo's control plane: a process of its own, which is given orders, killed, and started again where it was."""

from __future__ import annotations

import base64
import itertools
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

from nixfleet_agent import durable
from nixfleet_agent.demo.errors import DemoError
from nixfleet_agent.local_cp.ca import CA_FILE
from nixfleet_agent.local_cp.catalogue import Publication, write
from nixfleet_agent.local_cp.happenings import Notification
from nixfleet_agent.local_cp.service import DATABASE_FILE, PUBLISHED
from nixfleet_agent.local_cp.store import Store
from nixfleet_agent.threads.interrupts import held

#: On a loaded machine an interpreter and its imports take seconds.
START_SECS = 60.0
ANSWER_SECS = 30.0
STOP_SECS = 10.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast the control plane lives."""

    certificate_lifetime: timedelta
    extra_soak: timedelta
    redeliver_after: timedelta


class ControlPlaneProcess:
    """One control plane in ``folder``. After ``kill`` it can be started again: same port, same CA, same database.

    Args:
        hosts: where the folders of the hosts are, whose agents its status page may ask.
        port: 0 takes a free one at the first start.
        watcher: called from a thread of this object for each thing that happens there.

    Raises:
        DemoError: from every method, when the process does not do what it should.
    """

    def __init__(
        self,
        folder: Path,
        org_root: bytes,
        environment: Mapping[str, str],
        watcher: Callable[[Notification], None],
        pace: Pace,
        *,
        hosts: Path,
        port: int = 0,
    ) -> None:
        durable.make_directory(folder)
        self.folder = folder
        self.log_file = folder / "cp.log"
        self.ca_file = folder / CA_FILE
        self.url = ""
        self.page_url = ""
        self._environment = dict(environment)
        self._watcher = watcher
        self._ports = [port, 0]
        self._options = [
            f"--dir={folder}",
            f"--hosts={hosts}",
            f"--org-root={base64.b64encode(org_root).decode('ascii')}",
            f"--certificate-secs={pace.certificate_lifetime.total_seconds()}",
            f"--extra-soak={pace.extra_soak.total_seconds()}",
            f"--redeliver-after={pace.redeliver_after.total_seconds()}",
            "--orders",
        ]
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._ids = itertools.count(1)

    def start(self) -> None:
        """Start it, and wait until it listens."""
        ports = [f"--port={self._ports[0]}", f"--page-port={self._ports[1]}"]
        self._answers = queue.SimpleQueue()
        with self.log_file.open("ab") as log, held():
            self._process = process = subprocess.Popen(  # nosec B603 # this program itself
                [sys.executable, "-m", "nixfleet_agent.local_cp", *self._options, *ports],
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                bufsize=1,
                # A Ctrl-C is for the demo, which ends its processes in order.
                start_new_session=True,
            )
            assert process.stdout is not None
            self._reader = threading.Thread(target=self._read, args=(process.stdout, self._answers), name="demo-plane")
            self._reader.start()
        try:
            listening = self._answers.get(timeout=START_SECS)["listening"]
        except (queue.Empty, KeyError) as error:
            self.kill()
            raise DemoError(self._last_words()) from error
        self.url, self.page_url = listening["url"], listening["page"]
        self._ports = [listening["port"], int(self.page_url.rstrip("/").rpartition(":")[2])]

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self._process is not None:
            self._process.kill()
        self._gather()

    def forget(self) -> None:
        """Lose the database, as a disk does; only between ``kill`` and ``start``."""
        for suffix in ("", "-wal", "-shm"):
            (self.folder / f"{DATABASE_FILE}{suffix}").unlink(missing_ok=True)

    def close(self) -> None:
        """End it in order, or by force if it does not end; safe to call twice."""
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_SECS)
            except subprocess.TimeoutExpired:
                process.kill()
        self._gather()

    def publish(self, publication: Publication) -> None:
        """Hand over what CI signed."""
        write(self.folder / PUBLISHED, publication)
        if self.pid is not None:  # one that is down reads the folder when it starts
            self._order("reload")

    def fault(self, name: str, value: object) -> None:
        """Turn one knob of ``local_cp.faults.Faults``; a restart turns all of them back."""
        self._order("fault", name=name, value=value)

    @contextmanager
    def store(self) -> Iterator[Store]:
        """Its database, to look at."""
        with closing(Store(self.folder / DATABASE_FILE, read_only=True)) as store:
            yield store

    @property
    def pid(self) -> int | None:
        """Of the process while it runs."""
        process = self._process
        return None if process is None or process.poll() is not None else process.pid

    def look_after(self) -> None:
        """Raises DemoError when it has ended and nobody ended it."""
        if self._process is not None and self._process.poll() is not None:
            raise DemoError(self._last_words())

    def _order(self, order: str, **details: object) -> None:
        process, id_ = self._process, next(self._ids)
        if process is None or process.stdin is None:
            raise DemoError("the control plane is down: it can't be given orders")
        try:
            process.stdin.write(json.dumps({"order": order, "id": id_, **details}) + "\n")
            process.stdin.flush()
            answer = self._answers.get(timeout=ANSWER_SECS)
        except (OSError, queue.Empty) as error:
            raise DemoError(f"the control plane does not take orders: {self._last_words()}") from error
        if answer.get("done") != id_ or "error" in answer:
            raise DemoError(f"the control plane can't {order}: {answer.get('error', 'it ended')}")

    def _read(self, lines: IO[str], answers: queue.SimpleQueue[dict[str, Any]]) -> None:
        for line in lines:
            if not line.endswith("\n"):  # killed in the middle of a line
                break
            value = json.loads(line)
            if "happening" in value:
                self._watcher(Notification.from_json(value["happening"]))
            else:
                answers.put(value)
        answers.put({})  # nobody must wait for an answer that can't come

    def _gather(self) -> None:
        """The ended process's status, thread and pipes."""
        process, self._process = self._process, None
        if process is None:
            return
        process.wait()
        if self._reader is not None:
            self._reader.join()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                # An order that a process did not live to read is still in the buffer, and nobody's any more.
                with suppress(BrokenPipeError):
                    pipe.close()

    def _last_words(self) -> str:
        said = self.log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it said nothing"]
        return f"{said[-1].removeprefix('nixfleet-agent: ')} (the control plane's log: {self.log_file})"
