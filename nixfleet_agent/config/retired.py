"""Settings of the Rust agent that mean nothing here: accepted, so that its units start this agent unchanged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

#: Variables that no key of the configuration has, and what does their work now. Their values are not looked at.
VARIABLES: Mapping[str, str] = {
    "NIXFLEET_AGENT_POLL_INTERVAL": "turns come by long poll, which tuning.dispatch_wait holds open",
    "NIXFLEET_AGENT_COMPLIANCE_GATE_MODE": "each probe in health_checks_file has a mode of its own",
    "NIXFLEET_TAGS": "a host has the tags that the signed fleet gives it",
}
#: Flags, by the variable that they stand for.
FLAGS: Mapping[str, str] = {
    "--poll-interval": "NIXFLEET_AGENT_POLL_INTERVAL",
    "--compliance-gate-mode": "NIXFLEET_AGENT_COMPLIANCE_GATE_MODE",
}


def warning(environ: Mapping[str, str], flags: Iterable[str]) -> str | None:
    """One sentence about all of them that are set, in variables or ``flags``; None when none is."""
    found = {name: VARIABLES[name] for name in VARIABLES if environ.get(name)}
    found |= {flag: VARIABLES[FLAGS[flag]] for flag in flags}
    if not found:
        return None
    told = "; ".join(f"{name} ({replacement})" for name, replacement in found.items())
    return f"settings of another agent are ignored: {told}: take them out of the unit"
