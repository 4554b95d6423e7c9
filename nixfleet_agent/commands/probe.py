"""``probe``: run the declared probes once, here and now, and show what they say."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nixfleet_agent.commands.invocation import Invocation, Parser
from nixfleet_agent.errors import EXIT_CHECK_FAILED, EXIT_OK, EXIT_USAGE, AgentError
from nixfleet_agent.probes import runners
from nixfleet_agent.probes.declarations import ProbeDecl
from nixfleet_agent.probes.runners import RunnerOutcome
from nixfleet_agent.runtime.workers.probe import read_declarations
from nixfleet_agent.state_machine.states import Mode
from nixfleet_agent.threads.clock import SystemClock
from nixfleet_agent.threads.interrupts import terminable


class UnknownProbeError(AgentError):
    """No probe of that name is declared."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True, slots=True)
class Ran:
    """One probe's run; ``outcome`` is None for a probe that is disabled."""

    decl: ProbeDecl
    outcome: RunnerOutcome | None
    seconds: float


def configure(parser: Parser) -> None:
    parser.details("Exit code 1 when a probe that gates a rollout fails, or the one that was asked for.")
    parser.example("nixfleet-agent probe", "nixfleet-agent probe web")
    parser.add_argument("name", metavar="NAME", nargs="?", help="only this probe, even if it is disabled")


def run(call: Invocation) -> int:
    """Exit 1 when a probe that gates a rollout fails, or the one that was asked for."""
    config, only = call.config, call.options.name
    declared = read_declarations(config.health_checks_file, config.tuning.probe_min_interval).probes
    names = sorted(decl.name for decl in declared)
    if only is not None and only not in names:
        listed = ", ".join(names) or "none"
        raise UnknownProbeError(f"no probe {only!r} is declared in {config.health_checks_file}: it declares {listed}")
    clock = SystemClock()
    context = runners.make_context(config, clock)
    rows = []
    with _answering_for_children():
        for decl in declared:
            if only is not None and decl.name != only:
                continue
            began = clock.monotonic()
            skipped = decl.mode is Mode.DISABLED and only is None
            outcome = None if skipped else runners.run(decl, context)
            rows.append(Ran(decl, outcome, clock.monotonic() - began))
    _show(call, rows)
    return EXIT_CHECK_FAILED if any(_counts(ran, only) for ran in rows) else EXIT_OK


@contextmanager
def _answering_for_children() -> Iterator[None]:
    """Whatever ends this command first kills what a probe runs: it has a session of its own."""
    # Where a parent ignored the ends of its children, every one would seem to end with code 0.
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        with terminable():
            yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def _counts(ran: Ran, only: str | None) -> bool:
    """Whether this failure is the command's failure."""
    if ran.outcome is None or ran.outcome.passed:
        return False
    return only is not None or ran.decl.mode is Mode.ENFORCE


def _result(ran: Ran) -> str:
    return "disabled" if ran.outcome is None else str(ran.outcome.status)


def _show(call: Invocation, rows: list[Ran]) -> None:
    if call.json:
        call.print_json([_as_json(ran) for ran in rows])
        return
    if not rows:
        call.print(f"no probes are declared in {call.config.health_checks_file}: a rollout only has to soak.")
        return
    head = ("NAME", "KIND", "MODE", "RESULT", "SECONDS", "REASON")
    table = []
    for ran in rows:
        reason = (ran.outcome.failure_reason if ran.outcome else None) or ""
        table.append((ran.decl.name, ran.decl.kind, str(ran.decl.mode), _result(ran), f"{ran.seconds:.2f}", reason))
        for sub in (ran.outcome.sub_results if ran.outcome else None) or ():
            what = f"{sub.framework} {sub.article}" if sub.article else sub.framework
            table.append((f"  {sub.control_id}", "", str(sub.effective_mode), str(sub.status), "", what))
    call.table(head, table)


def _as_json(ran: Ran) -> dict[str, object]:
    subs = (ran.outcome.sub_results if ran.outcome else None) or ()
    return {
        "name": ran.decl.name,
        "kind": ran.decl.kind,
        "mode": str(ran.decl.mode),
        "result": _result(ran),
        "reason": ran.outcome.failure_reason if ran.outcome else None,
        "seconds": round(ran.seconds, 3),
        "controls": [
            {
                "control": sub.control_id,
                "status": str(sub.status),
                "framework": sub.framework,
                "article": sub.article,
                "mode": str(sub.effective_mode),
            }
            for sub in subs
        ],
    }
