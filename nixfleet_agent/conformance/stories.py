"""Stories of a fleet on a good day, and of releases that are bad: enrolling, converging, failing, going back."""

from __future__ import annotations

import json
from datetime import timedelta
from http import HTTPStatus

from nixfleet_agent.conformance import judging
from nixfleet_agent.conformance.judging import Event
from nixfleet_agent.conformance.stand import INSTALLED, Stand
from nixfleet_agent.conformance.verdicts import Judge, Story, unless
from nixfleet_agent.demo.closures import System
from nixfleet_agent.local_cp.server import Request, Response
from nixfleet_agent.proto.times import format_time, parse_time
from nixfleet_agent.state_machine import State

ENROLL, REPORT, RENEW = "/v1/enroll", "/v1/agent/bootstrap-report", "/v1/agent/renew"
#: Minutes of a soak that outlasts a story.
LONG_SOAK = 5


def log_of(stand: Stand, rollout: str) -> list[Event]:
    return judging.log(stand.recorder.exchanges, rollout)


def runs(stand: Stand, version: str) -> str | None:
    """By the host's own links."""
    host, closure = stand.host, stand.closure(version)
    return (
        unless(host.running_closure() == closure, f"{host.running_closure()} runs, not {closure}")
        or unless(host.profile_closure() == closure, f"the profile names {host.profile_closure()}, not {closure}")
        or unless(host.booting_closure() == closure, f"{host.booting_closure()} would boot, not {closure}")
    )


def enrolls(stand: Stand, judge: Judge) -> None:
    bad = [
        (HTTPStatus.UNAUTHORIZED, {"error": "the token is not on the list that CI published"}),
        (HTTPStatus.OK, {"certPem": "nothing of the kind", "notAfter": format_time(stand.clock.now())}),
    ]

    def bad_at_first(request: Request) -> Response | None:
        if request.path != ENROLL or not bad:
            return None
        status, body = bad.pop(0)
        return Response(status=status, body=json.dumps(body).encode())

    stand.recorder.instead = bad_at_first
    rollout = stand.publish(INSTALLED)
    stand.host.start()
    stand.until(lambda: len(bad) < 2, "an enrollment")
    stand.until(lambda: not bad, "another one after the 401")
    judge.row("tries-again", None)
    stand.until(lambda: sum(e.path == ENROLL for e in stand.recorder.exchanges) > 2, "another one after a bad answer")
    stand.until(lambda: any(e.peer for e in stand.recorder.exchanges), "a call with the new certificate")
    judge.row("enrolls", None)
    judge.row("reports", unless(any(e.path == REPORT for e in stand.recorder.exchanges), "there was no report"))
    stand.until_state(rollout, State.CONVERGED)
    judge.row("noop", unless(not stand.host.switches(), f"it ran {stand.host.switches()}"), runs(stand, INSTALLED))
    judge.row("first-heartbeat", judging.first_heartbeat(stand.recorder.exchanges, stand.closure(INSTALLED)))


def converges(stand: Stand, judge: Judge) -> None:
    before = stand.host.running_closure()
    rollout = stand.publish("v1")
    stand.until_state(rollout, State.CONVERGED)
    log, target = log_of(stand, rollout), stand.closure("v1")
    judge.row("ack", judging.fields(log[:1], "DispatchAck", seq=1, currentClosureAtDispatch=before))
    judge.row("started-first", judging.in_order(log, "DispatchAck", "ActivationStarted", "ActivationCompleted"))
    judge.row("completed", judging.fields(log, "ActivationCompleted", observedCurrentClosure=target, exitCode=0))
    judge.row(
        "probes",
        judging.in_order(log, "ActivationCompleted", "ProbeTopologyDeclared", "ProbeObservedFirst", "ProbeResult"),
        judging.probes_declared_first(log),
    )
    judge.row("soak", judging.soaked(log, parse_time(stand.turns(rollout)[0]["soak_due_at"])))
    judge.row("converged", judging.fields(log, "Converged", currentClosure=target), runs(stand, "v1"))
    stand.rest()
    later = log_of(stand, rollout)[len(log) :]
    judge.row("over", unless(not later, f"after Converged came {[event.get('kind') for event in later]}"))


def rolls_back(stand: Stand, judge: Judge) -> None:
    before = stand.host.running_closure()
    rollout = stand.publish("sick")
    stand.until_state(rollout, State.REVERTED)
    log = log_of(stand, rollout)
    judge.row("failure-first", judging.in_order(log, "ProbeFailureFirst", "ProbeResult", "Failed"))
    judge.row(
        "failed",
        judging.fields(log, "Failed", failingProbes=["app"], policyApplied="rollback-and-halt"),
        judging.fields(log, "Failed", sustainedDurationSecs=lambda secs: isinstance(secs, int) and secs >= 0),
    )
    judge.row("goes-back", judging.fields(log, "RollbackComplete", revertedToClosure=before, exitCode=0))
    judge.row("never-converged", judging.without(log, "Converged"))
    running = stand.host.running_closure()
    judge.row("runs-before", unless(running == before, f"{running} runs, not {before}"))
    stand.again(stand.turns(rollout)[0])
    stand.rest()
    called = [call for call in stand.host.switches() if call == f"switch {stand.closure('sick')}"]
    judge.row("not-again", unless(len(called) == 1, f"it was switched to {len(called)} times"))


def switch_fails(stand: Stand, judge: Judge) -> None:
    before = stand.host.running_closure()
    rollout = stand.publish("broken")
    stand.until_state(rollout, State.REVERTED)
    log = log_of(stand, rollout)
    judge.row("told", judging.in_order(log, "DispatchAck", "ActivationStarted", "ActivationFailed", "RollbackComplete"))
    judge.row("why", judging.fields(log, "ActivationFailed", exitCode=lambda code: code != 0, stderrTail=bool))
    judge.row("undone", unless(stand.host.running_closure() == before, f"{stand.host.running_closure()} runs"))
    judge.row("not-completed", judging.without(log, "ActivationCompleted", "Converged"))


def defers(stand: Stand, judge: Judge) -> None:
    before = stand.host.running_closure()
    rollout = stand.publish("reboot")
    stand.until_state(rollout, State.DEFERRED)
    log = log_of(stand, rollout)
    judge.row("deferred", judging.in_order(log, "ActivationStarted", "ActivationDeferred"))
    judge.row("component", judging.fields(log, "ActivationDeferred", component=lambda name: bool(name)))
    judge.row("untouched", unless(stand.host.running_closure() == before, f"{stand.host.running_closure()} runs"))
    booting, target = stand.host.booting_closure(), stand.closure("reboot")
    judge.row("boots-it", unless(booting == target, f"{booting} would boot, not {target}"))


def unreadable(stand: Stand, judge: Judge) -> None:
    link, before = stand.host.current_system, stand.host.running_closure()
    target = link.readlink()
    link.unlink()
    try:
        rollout = stand.publish("readable")
        stand.until_refused(rollout)
        judge.row("waits", unless(not log_of(stand, rollout), "it said something"))
    finally:
        link.symlink_to(target)
    stand.until_state(rollout, State.CONVERGED)
    judge.row("ack", judging.fields(log_of(stand, rollout), "DispatchAck", seq=1, currentClosureAtDispatch=before))
    judge.row("goes-on", runs(stand, "readable"))


def absent(stand: Stand, judge: Judge) -> None:
    before, switched = stand.host.running_closure(), stand.host.switches()
    rollout = stand.publish_absent()
    stand.until(lambda: judging.fields(log_of(stand, rollout), "ActivationStarted") is None, "a start")
    judge.row("started", None)
    stand.rest()
    judge.row("untouched", unless(stand.host.running_closure() == before, f"{stand.host.running_closure()} runs"))
    judge.row("not-switched", unless(stand.host.switches() == switched, f"it ran {stand.host.switches()[-1:]}"))
    newer = stand.publish("there")
    stand.until_state(newer, State.CONVERGED)
    judge.row("goes-on", runs(stand, "there"))
    judge.row("never-completed", judging.without(log_of(stand, rollout), "ActivationCompleted", "Converged"))


def supersedes(stand: Stand, judge: Judge) -> None:
    older = stand.publish("older", soak_minutes=LONG_SOAK)
    stand.until_state(older, State.SOAKING)
    newer = stand.publish("newer")
    stand.until_state(newer, State.CONVERGED)
    judge.row("newer", runs(stand, "newer"))
    stand.rest()
    judge.row("older", judging.without(log_of(stand, older), "Converged", "RollbackComplete"))


def renews(stand: Stand, judge: Judge) -> None:
    certificates = [e for e in stand.recorder.exchanges if e.path in (ENROLL, RENEW) and e.taken]
    lifetime = timedelta(seconds=stand.settings.certificate)
    stand.until(
        lambda: any(e.path == RENEW and e.taken for e in stand.recorder.exchanges),
        "a renewal",
        max(stand.settings.patience, lifetime.total_seconds()),
    )
    renewal = next(e for e in stand.recorder.exchanges if e.path == RENEW and e.taken)
    judge.row("renewed", unless(renewal.peer == stand.host.name, f"it came with the certificate of {renewal.peer}"))
    early = renewal.began - certificates[0].ended
    judge.row("in-time", unless(early <= lifetime.total_seconds(), f"it came after {early:.0f} s"))
    stand.until(
        lambda: any(e.peer and e.began > renewal.ended for e in stand.recorder.exchanges),
        "a call with the renewed certificate",
    )
    judge.row("goes-on", None)


GOOD_DAYS = (
    Story(
        name="enrolls",
        title="a first boot, of a host that is not listed yet and then gets a bad answer",
        tell=enrolls,
        rows={
            "tries-again": "a 401 while the token is not listed yet is not the end",
            "reports": "a certificate that it can't use is reported to /v1/agent/bootstrap-report",
            "enrolls": "the certificate that it got is used on the next call",
            "first-heartbeat": "the first heartbeat names no rollout, and what runs",
            "noop": "a release that runs already converges without a switch",
        },
    ),
    Story(
        name="converges",
        title="a good release",
        tell=converges,
        systems=(System("v1"),),
        rows={
            "ack": "DispatchAck is seq 1, with the closure that runs as currentClosureAtDispatch",
            "started-first": "ActivationStarted comes before ActivationCompleted",
            "completed": "ActivationCompleted says exit code 0 and the closure that runs",
            "probes": "the topology comes before results, a first observation before its result",
            "soak": "it does not converge before the soak is over",
            "converged": "Converged, and the target is what runs, is in the profile and would boot",
            "over": "after Converged nothing more is said",
        },
    ),
    Story(
        name="rolls-back",
        title="a release whose health check fails",
        tell=rolls_back,
        systems=(System("sick", healthy=False),),
        rows={
            "failure-first": "ProbeFailureFirst and ProbeResult come before Failed",
            "failed": "Failed names the failing probe and the signed policy",
            "goes-back": "RollbackComplete names the closure from before",
            "runs-before": "what ran before runs again",
            "never-converged": "it is never called converged",
            "not-again": "its turn again does not run it again",
        },
    ),
    Story(
        name="switch-fails",
        title="a release whose switch fails",
        tell=switch_fails,
        systems=(System("broken", starts=False),),
        rows={
            "told": "ActivationStarted, then ActivationFailed, then RollbackComplete",
            "why": "ActivationFailed has an exit code that is not 0, and the last words",
            "undone": "what ran before runs",
            "not-completed": "it is never called completed or converged",
        },
    ),
    Story(
        name="defers",
        title="a release that takes a reboot",
        tell=defers,
        systems=(System("reboot", dbus="2"),),
        rows={
            "deferred": "ActivationStarted comes before ActivationDeferred",
            "component": "ActivationDeferred names the component",
            "untouched": "what ran before runs on",
            "boots-it": "the target is what boots next",
        },
    ),
    Story(
        name="unreadable",
        title="a turn while it can't be read what runs",
        tell=unreadable,
        systems=(System("readable"),),
        rows={
            "waits": "nothing is said while it can't be read what runs",
            "ack": "once it can, DispatchAck has it as currentClosureAtDispatch",
            "goes-on": "the release converges",
        },
    ),
    Story(
        name="absent",
        title="a release that no cache has",
        tell=absent,
        systems=(System("there"),),
        rows={
            "started": "ActivationStarted is sent before anything is fetched",
            "untouched": "what ran before runs on",
            "not-switched": "no switch is begun",
            "never-completed": "it is never called completed or converged",
            "goes-on": "a newer release converges",
        },
    ),
    Story(
        name="supersedes",
        title="a newer release while an older one soaks",
        tell=supersedes,
        systems=(System("older"), System("newer")),
        rows={
            "newer": "the newer release converges, and runs",
            "older": "the older one is neither converged nor rolled back any more",
        },
    ),
)

RENEWAL = Story(
    name="renews",
    title="a certificate that comes to the end of its life",
    tell=renews,
    rows={
        "renewed": "POST /v1/agent/renew, with the certificate that there is",
        "in-time": "it comes before the certificate expires",
        "goes-on": "calls go on with what came",
    },
)
