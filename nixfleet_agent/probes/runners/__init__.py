"""Per-kind probe runners: a declaration goes in, an outcome comes out.

They emit nothing and know nothing of rollouts. Any error, timeout or malformed answer is a fail with a reason.
"""

from __future__ import annotations

from nixfleet_agent.probes.declarations import BadDecl, EvidenceDecl, ExecDecl, HttpDecl, ProbeDecl, TcpDecl
from nixfleet_agent.probes.runners import command, evidence, http, tcp
from nixfleet_agent.probes.runners.context import RunnerContext, make_context
from nixfleet_agent.probes.runners.outcome import RunnerOutcome, failed, passed

__all__ = ["RunnerContext", "RunnerOutcome", "failed", "make_context", "passed", "run"]


def run(decl: ProbeDecl, ctx: RunnerContext) -> RunnerOutcome:
    """Run one probe once; blocks until it has an outcome, its time is up or ``ctx.cancel`` is set."""
    match decl:
        case HttpDecl():
            return http.run(decl, ctx)
        case TcpDecl():
            return tcp.run(decl, ctx)
        case ExecDecl():
            return command.run(decl, ctx)
        case EvidenceDecl():
            return evidence.run(decl, ctx)
        case BadDecl():
            return failed(decl.reason)
    raise RuntimeError(f"no runner for {type(decl).__name__}")
