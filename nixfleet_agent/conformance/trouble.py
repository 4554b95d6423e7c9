"""Stories of control planes that lie, forget, fail or are gone, and of an agent that is killed."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from http import HTTPStatus

from nixfleet_agent.conformance import judging
from nixfleet_agent.conformance.recording import event_of
from nixfleet_agent.conformance.stand import HOSTNAME, Stand, rollout_id
from nixfleet_agent.conformance.stories import log_of, runs
from nixfleet_agent.conformance.verdicts import Judge, Story, unless
from nixfleet_agent.demo.closures import System
from nixfleet_agent.local_cp.server import Request, Response
from nixfleet_agent.proto.contract import DISPATCH, EVENTS
from nixfleet_agent.state_machine import State

#: Within these seconds a control plane that forgot an event knows the truth.
HEALED_SECS = 60.0
STALE = timedelta(hours=2)
#: What each kind of event is lost of: a version, and how its rollout ends.
LOST = {
    "DispatchAck": ("lost-ack", State.CONVERGED),
    "ActivationCompleted": ("lost-completion", State.CONVERGED),
    "Converged": ("lost-convergence", State.CONVERGED),
    "Failed": ("lost-failure", State.REVERTED),
    "RollbackComplete": ("lost-rollback", State.REVERTED),
}


def forged(stand: Stand, judge: Judge) -> None:
    before, switched = stand.host.running_closure(), stand.host.switches()
    old = stand.signed("forged-old")

    def ignored(row: str, rollout: str) -> None:
        stand.until_refused(rollout)
        said = [event.get("kind") for event in log_of(stand, rollout)]
        judge.row(
            row,
            unless(not said, f"it said {said}"),
            unless(stand.host.running_closure() == before, f"{stand.host.running_closure()} runs"),
            unless(stand.host.switches() == switched, f"it ran {stand.host.switches()[-1:]}"),
        )

    rollout = rollout_id("forged-closure")
    evil = stand.closure("forged-evil")
    stand.plane.faults.wrong_closures = {rollout: evil}
    ignored("closure", stand.publish("forged-closure"))
    judge.row("closure", unless(not stand.host.has(evil), f"{evil} was fetched"))
    stand.plane.faults.tampered = frozenset({rollout_id("forged-signature")})
    ignored("signature", stand.publish("forged-signature"))
    stand.misaddress(rollout_id("forged-host"))
    ignored("host", stand.publish("forged-host"))
    ignored("stale", stand.publish("forged-stale", age=STALE))
    stand.publish("forged-good")
    stand.until_state(rollout_id("forged-good"), State.CONVERGED)
    judge.row("goes-on", runs(stand, "forged-good"))
    before, switched = stand.host.running_closure(), stand.host.switches()
    stand.plane.control.publish(old)
    ignored("older", rollout_id("forged-old"))


def repeats(stand: Stand, judge: Judge) -> None:
    rollout = stand.publish("repeated")
    stand.until_state(rollout, State.CONVERGED)
    stand.rest()
    before, switched = log_of(stand, rollout), stand.host.switches()
    since = stand.clock.monotonic()
    stand.again(stand.turns(rollout)[0])
    last = before[-1].get("seq")

    def again() -> list[judging.Event]:
        return judging.events_sent(stand.recorder.exchanges, rollout, since)

    try:
        stand.until(lambda: any(event.get("seq") == last for event in again()), "its log again", HEALED_SECS)
    finally:
        judge.row("not-run", unless(stand.host.switches() == switched, f"it ran {stand.host.switches()[-1:]}"))
    judge.row("log-again", judging.replayed(again(), before))


def forgets(stand: Stand, judge: Judge) -> None:
    for kind, (version, end) in LOST.items():
        _forgets(stand, judge, kind, version, end)
    rollout = stand.publish("lost-log")
    stand.until_state(rollout, State.CONVERGED)
    stand.rest()
    before, since = log_of(stand, rollout), stand.clock.monotonic()
    stand.plane.control.wipe()
    stand.until(lambda: stand.state(rollout) is State.CONVERGED, "the whole log again", HEALED_SECS)
    judge.row("log", judging.replayed(judging.events_sent(stand.recorder.exchanges, rollout, since), before))


def _forgets(stand: Stand, judge: Judge, kind: str, version: str, end: State) -> None:
    lost: list[float] = []

    def forget(request: Request) -> Response | None:
        if lost or event_of(request).get("kind") != kind:
            return None
        lost.append(stand.clock.monotonic())
        return Response(status=HTTPStatus.NO_CONTENT)

    stand.recorder.instead = forget
    rollout = stand.publish(version)
    stand.until(lambda: lost, f"a {kind}")
    healed = stand.recorder.wait(lambda: stand.state(rollout) is end, HEALED_SECS, stand.look_after)
    judge.row(
        kind, unless(healed, f"{HEALED_SECS:.0f} s later the control plane has {rollout} as {stand.state(rollout)}")
    )
    if not healed:
        # The next one needs a planner that is not held up by this one.
        stand.plane.control.store.halt(rollout, "the agent does not tell it again")


def outage(stand: Stand, judge: Judge) -> None:
    rollout = stand.publish("outage")
    stand.until(lambda: log_of(stand, rollout), "an acknowledgement")
    stand.plane.partition(True)
    stand.until(lambda: runs(stand, "outage") is None, "the host to switch without its control plane")
    judge.row("goes-on", None)
    stand.rest()
    since = stand.clock.monotonic()
    stand.plane.partition(False)
    stand.until(lambda: stand.recorder.asked(DISPATCH, since), "a long poll after the outage")
    judge.row("comes-back", None)
    stand.until_state(rollout, State.CONVERGED)
    judge.row("delivers", judging.in_order(log_of(stand, rollout), "DispatchAck", "ActivationCompleted", "Converged"))


def killed(stand: Stand, judge: Judge) -> None:
    rollout = stand.publish("killed", soak_minutes=0)
    stand.until(lambda: judging.fields(log_of(stand, rollout), "ActivationStarted") is None, "a start")
    stand.host.kill()
    stand.until_state(rollout, State.CONVERGED)
    judge.row("goes-on", runs(stand, "killed"))
    log = log_of(stand, rollout)
    again = [event for event in log if event.get("kind") in ("DispatchAck", "ActivationStarted", "Converged")]
    judge.row("once", unless(len(again) == 3, f"said twice: {[event.get('kind') for event in again]}"))
    called = [call for call in stand.host.switches() if call == f"switch {stand.closure('killed')}"]
    judge.row("one-switch", unless(len(called) == 1, f"it was switched to {len(called)} times"))


Answers = Callable[[Request], Response]


def _first(stand: Stand, answer: Answers, kind: str | None = None) -> list[Request]:
    """Answer the first event (of a kind) with this; the request that got it."""
    got: list[Request] = []

    def instead(request: Request) -> Response | None:
        event = event_of(request)
        if got or not event or kind not in (None, event.get("kind")):
            return None
        got.append(request)
        return answer(request)

    stand.recorder.instead = instead
    return got


def answers(stand: Stand, judge: Judge) -> None:
    page = b"<!doctype html><title>Sign in</title>"
    cases: dict[str, tuple[str, Answers]] = {
        "busy": ("answers-busy", lambda r: Response(status=503, body=b"busy", headers={"Retry-After": "1"})),
        "page": ("answers-page", lambda r: Response(status=200, body=page, content_type="text/html")),
        "redirect": ("answers-redirect", lambda r: Response(status=302, headers={"Location": "/elsewhere"})),
    }
    for row, (version, answer) in cases.items():
        got = _first(stand, answer)
        rollout = stand.publish(version)
        stand.until(lambda got=got: got, "an event")  # type: ignore[misc]
        stand.until_state(rollout, State.CONVERGED)
        sent = [e.body for e in stand.recorder.exchanges if e.path == EVENTS and e.body == got[0].body]
        judge.row(row, unless(len(sent) > 1, "the event was not sent again"))
    judge.row("redirect", judging.known_endpoints(stand.recorder.exchanges))
    refusal = json.dumps({"error": "not this one"}).encode()
    got = _first(stand, lambda r: Response(status=422, body=refusal), "ProbeObservedFirst")
    rollout = stand.publish("answers-refused")
    stand.until(lambda: got, "a first observation")
    refused = event_of(got[0])
    stand.until(lambda: log_of(stand, rollout)[-1] != refused, "the event after it")
    judge.row("refused", None)
    stand.until_state(rollout, State.CONVERGED)


def summing_up(stand: Stand, judge: Judge) -> None:
    exchanges = stand.recorder.exchanges
    nothing = unless(exchanges, "there was no request")
    silent = unless(judging.rollouts(exchanges), "no event was sent")
    wrong_headers, wrong_body = judging.contract(exchanges)
    judge.row("headers", nothing, wrong_headers)
    judge.row("bodies", nothing, wrong_body)
    judge.row("endpoints", nothing, judging.known_endpoints(exchanges))
    judge.row("identity", nothing, judging.identity(exchanges, HOSTNAME))
    judge.row("polls", judging.polls(exchanges))
    judge.row("fetches", judging.etags(exchanges))
    judge.row("seqs", silent, judging.gapless(exchanges))
    judge.row("one-in-flight", silent, judging.one_in_flight(exchanges))
    judge.row("same-bytes", silent, judging.same_bytes(exchanges))
    judge.row("signatures", silent, judging.signatures_or_none(exchanges))


def _systems(*versions: str, healthy: bool = True) -> tuple[System, ...]:
    return tuple(System(version, healthy) for version in versions)


FORGED = ("closure", "evil", "signature", "host", "stale", "old", "good")

TROUBLE = (
    Story(
        name="forged",
        title="a control plane that lies",
        tell=forged,
        systems=_systems(*(f"forged-{name}" for name in FORGED)),
        rows={
            "closure": "a turn with a closure that CI did not sign is ignored",
            "signature": "a manifest with a bad signature is ignored",
            "host": "a turn for another host is ignored",
            "stale": "a release that was signed too long ago is ignored",
            "older": "a release older than what was accepted is ignored",
            "goes-on": "a good release after all that converges",
        },
    ),
    Story(
        name="repeats",
        title="the turn of a rollout that has ended, once more",
        tell=repeats,
        systems=_systems("repeated"),
        rows={
            "not-run": "it does not run again",
            "log-again": "its log is sent again from seq 1, the same contents",
        },
    ),
    Story(
        name="forgets",
        title="a control plane that answers 204 and forgets, or loses its database",
        tell=forgets,
        systems=(
            *_systems(*(version for version, end in LOST.values() if end is State.CONVERGED), "lost-log"),
            *_systems(*(version for version, end in LOST.values() if end is State.REVERTED), healthy=False),
        ),
        rows={
            **{kind: f"a lost {kind} is told again within {HEALED_SECS:.0f} s" for kind in LOST},
            "log": f"a lost log is told again within {HEALED_SECS:.0f} s, lowest seq first",
        },
    ),
    Story(
        name="outage",
        title="a control plane that is gone in the middle of a rollout",
        tell=outage,
        systems=_systems("outage"),
        rows={
            "goes-on": "the host goes on without it",
            "comes-back": "it is asked for turns again once it is back",
            "delivers": "what happened meanwhile is told in order",
        },
    ),
    Story(
        name="killed",
        title="an agent that is killed in the middle of a switch",
        tell=killed,
        systems=_systems("killed"),
        rows={
            "goes-on": "the rollout converges",
            "once": "no step is told twice under another seq",
            "one-switch": "the release is switched to once",
        },
    ),
    Story(
        name="answers",
        title="answers that are no acknowledgement",
        tell=answers,
        systems=_systems("answers-busy", "answers-page", "answers-redirect", "answers-refused"),
        rows={
            "busy": "an event that got 503 is sent again",
            "page": "an event that got a page is sent again",
            "redirect": "an event that got a redirect is sent again, and the redirect is not followed",
            "refused": "after an event that got 422 the next one is sent",
        },
    ),
)

SUMMING_UP = Story(
    name="all",
    title="every request of all stories",
    tell=summing_up,
    rows={
        "headers": "the headers of the protocol are on every request",
        "bodies": "every body fits its schema in conf/schemas/wire",
        "endpoints": "no request is for anything else than the protocol's endpoints",
        "identity": "every call but two is made with the host's certificate",
        "polls": "long polls wait, and come at most once a second",
        "fetches": "the fleet is fetched with If-None-Match",
        "seqs": "the seqs of each rollout begin at 1, without a gap, lowest first",
        "one-in-flight": "of each rollout one event is under way at a time",
        "same-bytes": "what is sent again has the same bytes",
        "signatures": "an event's signature, where it has one, is by the host's key",
    },
)
