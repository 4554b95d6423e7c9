"""Signals at every awkward moment: SIGTERM ends the agent with 0 in under two seconds and loses nothing, a detached
switch goes on; SIGHUP reads again, SIGUSR1 tells every thread's stack; one state directory has one agent."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from nixfleet_agent.state_machine import State
from nixfleet_agent.telemetry.line_writer import FLUSH_SECS
from tests.faults.ending import MILESTONES
from tests.faults.nursery import TOP
from tests.faults.processes import processes_of
from tests.faults.rig import STOP_SECS, Problem, Rig
from tests.faults.runs import KEPT, Outcome, Runs, keep

EXIT_BUSY = 75


def item(tell: Callable[[Rig], None], **config: Any) -> Callable[[Runs], Outcome]:
    return partial(_item, tell=tell, config=config)


def _item(runs: Runs, tell: Callable[[Rig], None], config: dict[str, Any]) -> Outcome:
    outcome = Outcome(tries=1)
    rig = runs.rig(tell.__name__.replace("_", "-"), **config)
    try:
        finished = runs.finish(rig, tell)
        outcome.problems += finished.flaws
    except Problem as problem:
        outcome.problems.append(f"{problem} [{KEPT / rig.folder.name}]")
    return outcome


def stop_in_time(rig: Rig) -> None:
    """SIGTERM; less than two seconds."""
    took = rig.stop()
    if took >= STOP_SECS:
        keep(rig)
        raise Problem(f"SIGTERM took {took:.2f} s: {rig.last_words()}")


def term_long_poll(rig: Rig) -> None:
    """A request for work is held open by the control plane."""
    rig.publish("good")
    rig.start()
    rig.until_state("good", State.CONVERGED)
    time.sleep(1.2)  # the next poll may begin a second after the last
    stop_in_time(rig)
    rig.publish("next")
    rig.start()
    rig.until_state("next", State.CONVERGED)


def term_realise(rig: Rig) -> None:
    """A download that drips: Nix is ended, and begun again by the next process."""
    cache = rig.world.nixery.server
    cache.drip = (64, 0.05)
    try:
        rig.publish("good")
        rig.start()
        rig.until(lambda: any("nix-store" in line for line in children(rig)), "a download")
        time.sleep(0.1)
        stop_in_time(rig)
        if left := children(rig):
            raise Problem(f"left after SIGTERM in the middle of a download: {left}")
    finally:
        cache.drip = None
    rig.start()
    rig.until_state("good", State.CONVERGED)


def term_switch(rig: Rig) -> None:
    """A switch that runs goes on without the agent, and is judged by the next process, not fired again."""
    rig.publish("settling")
    rig.start()
    rig.until(lambda: rig.host.running() == rig.world.closures["settling"], "the flip")
    stop_in_time(rig)
    if not any("settling" in line or "wrapper" in line for line in children(rig)):
        raise Problem("the detached switch was ended with the agent")
    rig.start()
    rig.until_state("settling", State.CONVERGED)
    if rig.host.switches() != [f"switch {rig.world.closures['settling']}"]:
        raise Problem(f"switches: {rig.host.switches()}")


def killed_group(rig: Rig) -> None:
    """SIGKILL of the agent's whole process group in the middle of a switch: the switch is in a session of its own."""
    rig.publish("slow")
    rig.start()
    rig.until(lambda: rig.has_event("slow", "ActivationStarted") and rig.host.switches(), "the switch")
    os.killpg(os.getpgid(rig.pid), signal.SIGKILL)
    rig.until_state("slow", State.CONVERGED)
    if rig.host.switches() != [f"switch {rig.world.closures['slow']}"]:
        raise Problem(f"switches: {rig.host.switches()}")


def term_storm(rig: Rig) -> None:
    """Stopped and started at random moments of a rollback until it is done."""
    rig.publish("sick")
    rig.start()
    for pause in (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35):
        rig.until_started()
        time.sleep(pause)
        stop_in_time(rig)
        rig.start()
    rig.until_state("sick", State.REVERTED)
    kinds = [event["kind"] for event in rig.events("sick") if event["kind"] in MILESTONES]
    expected = ["DispatchAck", "ActivationStarted", "ActivationCompleted", "Failed", "RollbackComplete"]
    if kinds != expected:
        raise Problem(f"milestones: {kinds}")


def stuck_name_lookup(rig: Rig) -> None:
    """getaddrinfo can't be interrupted: the process leaves without the threads that are inside it."""
    source = rig.folder / "stuck"
    source.mkdir()
    (source / "sitecustomize.py").write_text(_STUCK)
    url = rig.url.replace("127.0.0.1", "stuck.invalid")
    rig.write_config({"agent": {"control_plane_url": url}})
    rig.start(extra_path=source)
    rig.until(lambda: (source / "asked").exists(), "a name lookup")
    stop_in_time(rig)
    rig.write_config()
    rig.publish("good")
    rig.start()
    rig.until_state("good", State.CONVERGED)


_STUCK = """
import pathlib, socket, threading
real = socket.getaddrinfo
def stuck(host, *arguments, **options):
    if host == "stuck.invalid":
        pathlib.Path(__file__).with_name("asked").touch()
        threading.Event().wait()
    return real(host, *arguments, **options)
socket.getaddrinfo = stuck
"""


def second_agent(rig: Rig) -> None:
    """Another agent on the same state directory says so and ends with 75; the first one does not mind."""
    rig.publish("good", soak_minutes=0)
    rig.start()
    rig.until_started()
    second = subprocess.run(
        [sys.executable, "-m", "nixfleet_agent", "run", "--config", str(rig.folder / "agent.toml")],
        env=rig.host.environment | {"PYTHONPATH": str(TOP)},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    if second.returncode != EXIT_BUSY or "another agent" not in second.stderr:
        raise Problem(f"the second agent ended with {second.returncode}: {second.stderr}")
    rig.until_state("good", State.CONVERGED)


def usr1_dumps_stacks(rig: Rig) -> None:
    """One log record for each thread, named after its worker."""
    rig.publish("good")
    rig.start()
    rig.until_state("good", State.CONVERGED)
    os.kill(rig.pid, signal.SIGUSR1)
    rig.until(lambda: rig.logged("stack of outbound"), "the stacks")
    time.sleep(0.2)
    named = {str(line.get("message")).removeprefix("stack of ") for line in rig.log_lines() if line.get("stack")}
    wanted = {"MainThread", "reducer", "activation", "advance_ticker", "cert_renewal", "heartbeat", "longpoll"}
    if missing := (wanted | {"manifest_poll", "outbound", "probe"}) - named:
        raise Problem(f"no stack of {sorted(missing)}, only of {sorted(named)}")


def unread_stdout(rig: Rig) -> None:
    """A pipe under stdout that is full and that nobody reads: a release is taken back all the same, hosts are heard,
    and SIGTERM ends the agent in time."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writer, b"\n" * 4096)
    rig.stdout = writer
    try:
        rig.publish("sick")
        rig.start()
        rig.until_state("sick", State.REVERTED)
        rig.until_delivered()
        heard = rig.wire.heartbeats
        os.kill(rig.pid, signal.SIGUSR1)
        rig.until(lambda: rig.wire.heartbeats > heard, "a heartbeat after a dump of all stacks")
        assert rig.process is not None
        rig.send(signal.SIGTERM)
        try:
            code = rig.process.wait(STOP_SECS + FLUSH_SECS)
        except subprocess.TimeoutExpired:
            rig.kill()
            raise Problem("SIGTERM does not end an agent whose stdout nobody reads") from None
        if code != 0:
            raise Problem(f"SIGTERM ended an agent whose stdout nobody reads with {code}")
    finally:
        rig.stdout = None
        os.close(writer)
        os.close(reader)
    rig.publish("good")
    rig.start()
    rig.until_state("good", State.CONVERGED)


def hung_textfile(rig: Rig) -> None:
    """The folder of the metrics' textfile is on a file system that hangs: the same, and SIGTERM ends the agent though
    the write never returns."""
    textfile = rig.folder / "collector" / "nixfleet.prom"
    textfile.parent.mkdir()
    rig.levers.mkdir()
    rig.write_config({"metrics": {"textfile": str(textfile)}})
    rig.pull("hang", textfile.name)
    rig.publish("sick")
    rig.start()
    rig.until((rig.levers / "hung").exists, "the write that hangs")
    rig.until_state("sick", State.REVERTED)
    rig.until_delivered()
    heard = rig.wire.heartbeats
    rig.until(lambda: rig.wire.heartbeats > heard, "a heartbeat")
    stop_in_time(rig)
    rig.pull("hang", "")
    rig.publish("good")
    rig.start()
    rig.until_state("good", State.CONVERGED)
    rig.until(textfile.exists, "the textfile, once its folder is well again")


def hup_reads_again(rig: Rig) -> None:
    """A log level and health checks that were changed on disk count after SIGHUP; a broken file changes nothing."""
    rig.publish("good", soak_minutes=1)
    rig.start()
    rig.until_state("good", State.SOAKING)
    (rig.folder / "health-checks.json").write_text(json.dumps({"other": {"kind": "exec", "command": ["true"]}}))
    rig.write_config({"logging": {"level": "debug"}})
    os.kill(rig.pid, signal.SIGHUP)
    rig.until(lambda: _declares(rig, "good", {"other"}), "the new declarations")
    rig.control_plane.partition(True)  # what goes on not to work is told at debug
    rig.until(lambda: any(line.get("level") == "debug" for line in rig.log_lines()), "a line at debug")
    rig.control_plane.partition(False)
    (rig.folder / "trust.json").write_text("{")
    os.kill(rig.pid, signal.SIGHUP)
    rig.until(lambda: rig.logged("reload:"), "the complaint")
    (rig.folder / "trust.json").write_bytes(rig.world.ci.trust_file(issuance_ca_pems=[rig.control_plane.authority.pem]))
    os.kill(rig.pid, signal.SIGHUP)
    rig.publish("next")
    rig.until_state("next", State.CONVERGED)


def _declares(rig: Rig, name: str, probes: set[str]) -> bool:
    declared = [event for event in rig.events(name) if event["kind"] == "ProbeTopologyDeclared"]
    return bool(declared) and {probe["probeName"] for probe in declared[-1]["probes"]} == probes


def children(rig: Rig) -> list[str]:
    """Command lines of the run's processes but for the agent itself and guards that sleep."""
    own = rig.process.pid if rig.process is not None else 0
    return [line for pid, line in processes_of(rig.folder).items() if pid != own and Path(f"/proc/{pid}").exists()]


ITEMS: dict[str, Callable[[Runs], Outcome]] = {
    "sigterm-long-poll": item(term_long_poll),
    "sigterm-realise": item(term_realise),
    "sigterm-switch": item(term_switch),
    "sigterm-storm": item(term_storm),
    "sigkill-group": item(killed_group),
    "stuck-name-lookup": item(stuck_name_lookup),
    "second-agent": item(second_agent),
    "sigusr1": item(usr1_dumps_stacks),
    "unread-stdout": item(unread_stdout),
    "hung-textfile": item(hung_textfile),
    "sighup": item(hup_reads_again),
}
