"""The evidence runner: which controls of the verified evidence a probe asks for, and whether they pass."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime

from nixfleet_agent.probes.declarations import EvidenceDecl, Override
from nixfleet_agent.probes.runners.context import RunnerContext
from nixfleet_agent.probes.runners.evidence_file import Control, Evidence, EvidenceError
from nixfleet_agent.probes.runners.outcome import RunnerOutcome, failed, passed
from nixfleet_agent.state_machine.events import SubResult
from nixfleet_agent.state_machine.states import Mode, ProbeStatus

#: The framework that a control covering none is reported under.
CUSTOM = "custom"
#: Evidence dated later than this many seconds from now would never grow old.
FUTURE_SECS = 300.0
#: Bytes of the results in one event. The control plane takes bodies of 1 MiB; of a larger one it would never learn, and
#: refuse the Converged that follows.
RESULTS_LIMIT = 900 * 1024


def run(decl: EvidenceDecl, ctx: RunnerContext) -> RunnerOutcome:
    """Judge the collector's latest evidence; the collector is never started from here."""
    try:
        evidence = ctx.evidence.read(decl.path)
        _require_fresh(decl, evidence, ctx.clock.now())
    except EvidenceError as error:
        return failed(str(error))
    return judge(decl, evidence)


def _require_fresh(decl: EvidenceDecl, evidence: Evidence, now: datetime) -> None:
    if decl.max_age is None:
        return
    age = (now - evidence.collected_at).total_seconds()
    # Not the age itself: a reason that changes with every run would make every run an event.
    collected = f"{decl.path} was collected at {evidence.collected_at:%F %T}Z"
    if age > decl.max_age:
        raise EvidenceError(f"{collected}, longer ago than maxAgeSecs ({decl.max_age:.10g})")
    if age < -FUTURE_SECS:
        raise EvidenceError(f"{collected}, which is in the future: check the clock")


def judge(decl: EvidenceDecl, evidence: Evidence) -> RunnerOutcome:
    """Pass when every control whose effective mode is enforce passes; a control asked for by name must be there."""
    asked = [control for control in evidence.controls if _covers(decl, control)]
    results = [result for control in asked for result in _results(decl, control)]
    if not results:
        return failed("no control is left to judge: the evidence has none that is asked for and not disabled")
    there = {control.control_id for control in asked}
    missing = [
        result
        for name in decl.controls or ()
        if name not in there
        for result in _results(decl, Control(name, False, ()))
    ]
    everything = tuple(results + missing)
    if sum(map(_size, everything)) > RESULTS_LIMIT:
        return failed(f"its {len(everything)} results do not fit into one event: ask for fewer controls in each probe")
    failing = sorted({r.control_id for r in results if _counts(r)})
    absent = sorted({r.control_id for r in missing if _counts(r)})
    if not failing and not absent:
        return passed(everything)
    reasons = [f"{len(failing)} failing: {', '.join(failing)}"] if failing else []
    reasons += [f"{len(absent)} not in the evidence: {', '.join(absent)}"] if absent else []
    return failed(f"controls {'; '.join(reasons)}", everything)


def _covers(decl: EvidenceDecl, control: Control) -> bool:
    if decl.controls is not None:
        return control.control_id in decl.controls
    return any(framework == decl.framework for framework, _ in control.articles)


def _size(result: SubResult) -> int:
    """Bytes in the event, at most: the names of its fields take 110."""
    texts = (result.control_id, result.framework, result.article, result.override_reason)
    return 110 + len(json.dumps(texts))


def _counts(result: SubResult) -> bool:
    return result.status is ProbeStatus.FAIL and result.effective_mode is Mode.ENFORCE


def _results(decl: EvidenceDecl, control: Control) -> Iterator[SubResult]:
    """One for each framework and article that is asked for; none for a disabled control."""
    override = _override(decl, control.control_id)
    mode = override.mode if override is not None and override.mode is not None else decl.mode
    if mode is Mode.DISABLED:
        return
    asked = [(f, articles) for f, articles in control.articles if decl.framework in (None, f)]
    for framework, articles in asked or [(CUSTOM, ())]:
        for article in articles or (None,):
            yield SubResult(
                control_id=control.control_id,
                status=ProbeStatus.PASS if control.passed else ProbeStatus.FAIL,
                framework=framework,
                article=article,
                effective_mode=mode,
                override_reason=None if override is None else override.reason,
            )


def _override(decl: EvidenceDecl, control_id: str) -> Override | None:
    """The first rule that names a mode for this control."""
    for rules in (decl.controls or {}, decl.overrides):
        rule = rules.get(control_id)
        if rule is not None and rule.mode is not None:
            return rule
    return None
