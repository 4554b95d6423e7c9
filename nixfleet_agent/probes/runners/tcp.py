"""The tcp runner: pass when a connection opens."""

from __future__ import annotations

from nixfleet_agent.probes.declarations import TcpDecl
from nixfleet_agent.probes.runners.context import RunnerContext
from nixfleet_agent.probes.runners.outcome import RunnerOutcome, failed, passed
from nixfleet_agent.probes.runners.sockets import connect
from nixfleet_agent.threads.deadline import Deadline


def run(decl: TcpDecl, ctx: RunnerContext) -> RunnerOutcome:
    """Open a connection and close it again."""
    deadline = Deadline(ctx.clock, decl.connect_timeout)
    try:
        connect(decl.host, decl.port, deadline, ctx.cancel, ctx.resolver).close()
    except TimeoutError:
        return failed(f"no connection to {decl.host} port {decl.port} within {decl.connect_timeout:g} s")
    except OSError as error:
        return failed(f"can't connect to {decl.host} port {decl.port}: {error.strerror or error}")
    return passed()
