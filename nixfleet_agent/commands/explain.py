"""What the host waits for or refuses, in sentences: pure, from a snapshot of the agent and the time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from nixfleet_agent.commands.coming_release import in_a_sentence
from nixfleet_agent.commands.times import ago, length, local_time
from nixfleet_agent.proto.ids import channel_of
from nixfleet_agent.proto.times import parse_time

Snapshot = Mapping[str, Any]

#: Without an answer for this long the control plane counts as out of reach; a long poll may take a minute.
_SILENCE = timedelta(minutes=3)


def explain(snapshot: Snapshot, now: datetime, quarantine_hours: float) -> str:
    """One paragraph: what this host is waiting for or refusing, since when, what is next, and what would unblock it."""
    sentences = [
        *_agent(snapshot),
        *_trouble(snapshot, now),
        *_rollout(snapshot, now, quarantine_hours),
        *_dispatch(snapshot, now),
        *_behind(snapshot, now),
        *_next(snapshot, now),
        *_hold(snapshot, now),
        *_window(snapshot, now),
        *_contact(snapshot, now),
    ]
    return " ".join(sentences)


def _behind(snapshot: Snapshot, now: datetime) -> Iterator[str]:
    release = snapshot.get("release")
    if release and release["behind_since"]:
        yield (
            f"CI signed {release['rollout_id']} for this host {_ago(release['behind_since'], now)}; no turn has come: "
            "its wave is not there yet, or the control plane withholds it."
        )


def _next(snapshot: Snapshot, now: datetime) -> Iterator[str]:
    if coming := snapshot.get("next"):
        yield in_a_sentence(coming, now)


def active_record(snapshot: Snapshot) -> Mapping[str, Any] | None:
    """The record of the active rollout, None when there is none."""
    active_id = (snapshot.get("host") or {}).get("active_id")
    return next((r for r in snapshot.get("rollouts") or () if r["rollout_id"] == active_id), None)


def _agent(snapshot: Snapshot) -> Iterator[str]:
    reason = snapshot.get("not_running", "nobody answers")
    if not snapshot.get("running") and (pid := snapshot.get("holder_pid")):
        yield (
            f"The agent (pid {pid}) runs and does not answer ({reason}): it is just starting, or it hangs. If that "
            f"lasts, systemd restarts it; `kill -USR1 {pid}` writes its stacks to the log. As its files say:"
        )
    elif not snapshot.get("running"):
        yield (
            f"The agent does not run ({reason}), so nothing happens: "
            "start it with `systemctl start nixfleet-agent`. As its files say:"
        )
    if silent := snapshot.get("silent_workers"):
        yield f"Worker unresponsive: {', '.join(silent)}. If that lasts, systemd restarts the agent."


def _trouble(snapshot: Snapshot, now: datetime) -> Iterator[str]:
    if error := snapshot.get("journal_error"):
        yield f"Events can't be made durable ({error}), and nothing acts on what is not: free or repair the disk."
    if error := snapshot.get("trust_error"):
        yield f"Nothing can be verified, so no release is taken: {error}. The file is read again when it has changed."
    certificate = snapshot.get("certificate") or {}
    state = certificate.get("state")
    if state == "no_key":
        yield (
            f"The client key can't be used, so nothing is sent or received: {certificate.get('failure')}. The "
            f"certificate {certificate.get('path')} is of no use without it."
        )
    if state in ("missing", "unreadable", "expired"):
        why = f" ({certificate['failure']})" if certificate.get("failure") else ""
        is_what = "has expired" if state == "expired" else f"is {state}"
        yield f"The certificate {certificate.get('path')} {is_what}{why}: run `nixfleet-agent check`."
    elif state in ("valid", "due") and certificate.get("failure"):
        yield f"No new certificate: {certificate['failure']}."
    if (drift := snapshot.get("drift")) is not None:
        yield (
            f"Somebody switched this host by hand: {drift} runs, which is not what the rollout left. It is let be: "
            "switch back, or roll out what should run."
        )


def _rollout(snapshot: Snapshot, now: datetime, quarantine_hours: float) -> Iterator[str]:
    record = active_record(snapshot)
    if record is None:
        yield "This host has accepted no rollout yet."
        return
    yield from _STATES[record["state"]](record, snapshot, now, quarantine_hours)


def _pending(record: Mapping[str, Any], snapshot: Snapshot, now: datetime, hours: float) -> Iterator[str]:
    yield f"{record['rollout_id']} was accepted {_ago(record['dispatched_at'], now)} and is about to be activated."


def _activating(record: Mapping[str, Any], snapshot: Snapshot, now: datetime, hours: float) -> Iterator[str]:
    since = record["activation_started_at"] or record["dispatch_acked_at"] or record["dispatched_at"]
    phase = (snapshot.get("activation") or {}).get("phase")
    done = f", last finished step: {phase}" if phase and snapshot.get("running") else ""
    what = "being switched to" if snapshot.get("switching") else "being fetched and prepared"
    yield f"{record['target_closure']} ({record['rollout_id']}) is {what} since {_ago(since, now)}{done}."
    waiting = snapshot.get("waiting")
    if waiting and snapshot.get("running"):
        times = "once" if waiting["tries"] == 1 else f"{waiting['tries']} times"
        next_try = _time(waiting["next_try_at"])
        again = f" {ago(next_try, now)}" if next_try and next_try > now else ""
        yield f"Nothing has changed on this host yet: {waiting['reason']}. Tried {times}, it is tried again{again}."
    yield from _no_way_back(record)


def _deferred(record: Mapping[str, Any], snapshot: Snapshot, now: datetime, hours: float) -> Iterator[str]:
    component = record.get("deferred_component") or "a part of it"
    yield f"{record['rollout_id']} {needs_reboot(record['target_closure'], component)} {_who_reboots(snapshot, now)}"


def needs_reboot(closure: str, component: str) -> str:
    """Why a release or a rollback is not switched to: the same words wherever it is told."""
    return f"needs a reboot: {closure} is what boots next, and {component} can't be replaced while the host runs."


def _who_reboots(snapshot: Snapshot, now: datetime) -> str:
    reboot = snapshot.get("reboot")
    if not reboot:
        return "Reboot the host to go on."
    until = _time(reboot["until"])
    when = f" ({ago(until, now)}, at {local_time(until)})" if until and until > now else ""
    if reboot["waits_for"] == "operator":
        return f"Reboot the host to go on: {reboot['reason']}."
    if reboot["waits_for"] == "window":
        return f"{reboot['reason'].capitalize()}{when}; `nixfleet-agent run-now` lets it reboot before."
    return f"It reboots by itself, but not yet: {reboot['reason']}{when}."


def _soaking(record: Mapping[str, Any], snapshot: Snapshot, now: datetime, hours: float) -> Iterator[str]:
    rollout_id, due = record["rollout_id"], _time(record["soak_due_at"])
    gates = [probe for probe in record["topology"] or () if probe["mode"] == "enforce"]
    failing, silent = _judge(record, gates)
    if due is not None and now < due:
        yield f"{rollout_id} soaks for another {length(due - now)}, until {local_time(due)}."
    else:
        yield f"{rollout_id} has soaked long enough."
    if failing:
        yield f"It can't converge while these probes fail: {'; '.join(failing)}. If that lasts, it counts as failed."
    if record["topology"] is None:
        yield "Its health probes have not been declared yet."
    elif silent:
        yield f"It waits for the first result of: {', '.join(silent)}."
    yield from _no_way_back(record)
    if snapshot.get("drift") is not None:
        yield "While something else runs it neither converges nor goes back."
    elif not failing and not silent and record["topology"] is not None and due is not None:
        yield "Its probes pass: it converges when the soak is over." if now < due else "It converges within seconds."


def _no_way_back(record: Mapping[str, Any]) -> Iterator[str]:
    if record["current_closure_at_dispatch"] is None:
        yield "Nothing is known that ran here before: if it fails, there is no way back, and the host stays with it."


def _judge(record: Mapping[str, Any], gates: list[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    failing, silent = [], []
    for gate in gates:
        probe = record["probes"].get(gate["probe_name"])
        if probe is None:
            silent.append(gate["probe_name"])
        elif probe["status"] != "pass":
            since = _time(probe["failing_since"])
            failing.append(f"{gate['probe_name']} since {local_time(since)} ({probe['failure_reason']})")
    return failing, silent


def _converged(record: Mapping[str, Any], snapshot: Snapshot, now: datetime, hours: float) -> Iterator[str]:
    yield (
        f"{record['rollout_id']} converged {_ago(record['converged_at'], now)}: this host is where it should be and "
        "waits for the next release."
    )


def _failed(record: Mapping[str, Any], snapshot: Snapshot, now: datetime, hours: float) -> Iterator[str]:
    failed = f"{record['rollout_id']} failed {_ago(record['failed_at'], now)}{_cause(record)}"
    rollback = snapshot.get("rollback") or {}
    if not record["rollback_owed"]:
        prior = _way_back(record)
        policy = f"the policy is {record['policy_applied']}" if record["policy_applied"] else "nothing was changed"
        known = "" if prior else ", and no way back is known"
        yield f"{failed}, and no rollback follows: {policy}{known}. The host stays as it is until a newer release."
    elif rollback.get("given_up"):
        yield f"{failed}, and an operator gave its rollback up: `nixfleet-agent rollback retry` takes that back."
    elif rollback.get("drift"):
        yield (
            f"{failed}, and its rollback stands by, for an operator has switched this host to {rollback['drift']}. If "
            "that was not meant, switch back to what the rollout left, and `nixfleet-agent rollback retry`."
        )
    elif rollback.get("deferred"):
        yield (
            f"{failed}, and its rollback {needs_reboot(rollback['closure'], rollback['deferred'])} "
            f"{_who_reboots(snapshot, now)}"
        )
    elif rollback.get("failures"):
        times = "once" if rollback["failures"] == 1 else f"{rollback['failures']} times"
        next_try = _time(rollback.get("next_try_at"))
        again = f" {ago(next_try, now)}" if next_try and next_try > now else ""
        yield (
            f"{failed}, and its rollback has failed {times}, last with: {rollback.get('reason')}. "
            f"It is tried again{again}; `nixfleet-agent rollback retry` tries at once, `give-up` ends it."
        )
    else:
        yield f"{failed}, and the host is on its way back to {_way_back(record)}."


def _way_back(record: Mapping[str, Any]) -> str | None:
    """Where a rollback goes; agents before this rule went to what ran at the acceptance."""
    known = record.get("way_back")
    closure: str | None = known["closure"] if known else record["current_closure_at_dispatch"]
    return closure


def _cause(record: Mapping[str, Any]) -> str:
    """What a rollout failed of, as far as its record says."""
    if record["activation_failed_at"]:
        return " (its activation did: `nixfleet-agent history` shows where, and what was said)"
    failing = [
        f"probe {name}: {probe['failure_reason']}"
        for name, probe in sorted(record["probes"].items())
        if probe["mode"] == "enforce" and probe["status"] != "pass"
    ]
    return f" ({'; '.join(failing)})" if failing else ""


def _reverted(record: Mapping[str, Any], snapshot: Snapshot, now: datetime, hours: float) -> Iterator[str]:
    reverted = f"{record['rollout_id']} failed{_cause(record)} and was rolled back {_ago(record['reverted_at'], now)}"
    yield f"{reverted}: {record['reverted_to']} runs again. A rollout runs once on a host: going on needs a new one."
    for entry in snapshot.get("quarantine") or ():
        until = parse_time(entry["since"]) + timedelta(hours=hours)
        if entry["closure"] == record["target_closure"] and now < until:
            yield (
                f"The closure is refused on {channel_of(record['rollout_id'])} until {local_time(until)}; "
                f"`nixfleet-agent quarantine clear {entry['closure'].partition('-')[0]}` lifts that."
            )


_STATES = {
    "Pending": _pending,
    "Activating": _activating,
    "Deferred": _deferred,
    "Soaking": _soaking,
    "Converged": _converged,
    "Failed": _failed,
    "Reverted": _reverted,
}


def _dispatch(snapshot: Snapshot, now: datetime) -> Iterator[str]:
    dispatch = snapshot.get("dispatch")
    if dispatch:
        reason = dispatch.get("reason") or "it is being verified"
        kept = f"A Dispatch for {dispatch['rollout_id']} is kept since {_ago(dispatch['received_at'], now)}: {reason}."
        next_try = _time(dispatch.get("next_try_at"))
        yield f"{kept} It is tried again {ago(next_try, now)}." if next_try and next_try > now else kept
    # What was only kept was taken since, or is the one above.
    last = next((r for r in reversed(snapshot.get("refusals") or ()) if r["outcome"] != "kept"), None)
    if last:
        what = last["rollout_id"] or "something that was no Dispatch"
        yield f"The last Dispatch not taken was {what}, {last['outcome']} {_ago(last['at'], now)}: {last['reason']}."


def _hold(snapshot: Snapshot, now: datetime) -> Iterator[str]:
    hold = snapshot.get("hold")
    if hold:
        until = _time(hold["until"])
        end = f" until {local_time(until)}" if until else ""
        yield f"An operator holds back new activations{end}: {hold['reason']}. `nixfleet-agent release` ends the hold."


def _window(snapshot: Snapshot, now: datetime) -> Iterator[str]:
    maintenance = snapshot.get("maintenance")
    if not maintenance or maintenance["open"]:
        return
    opens = _time(maintenance["changes_at"])
    when = f"the next one opens {ago(opens, now)}, at {local_time(opens)}" if opens else "none opens within two weeks"
    if maintenance.get("run_now"):
        yield f"No maintenance window is open, but the next rollout need not wait: {maintenance['run_now']}."
    else:
        yield f"New activations wait for a maintenance window; {when}. `nixfleet-agent run-now` lets one through."


def _contact(snapshot: Snapshot, now: datetime) -> Iterator[str]:
    if foreign := snapshot.get("foreign"):
        told = "; ".join(sorted(set(foreign.values())))
        yield (
            f"Something answers in place of the control plane ({told}), and nothing that it says counts: look at what "
            "stands between this host and control_plane_url."
        )
    poll = snapshot.get("poll") or {}
    if poll.get("cut_after") and poll["wait"] < poll["longest"]:
        yield (
            f"Something between this host and the control plane cuts connections after about {poll['cut_after']:.0f} s "
            f"of quiet, so long polls ask for {poll['wait']:.0f} s instead of {poll['longest']:.0f} s."
        )
    contacts = snapshot.get("contacts") or {}
    answered = [parse_time(c["answered_at"]) for c in contacts.values() if c.get("answered_at")]
    queue = snapshot.get("queue") or {}
    queued = queue.get("queued")
    waiting = f" {'An event waits' if queued == 1 else f'{queued} events wait'} to be sent." if queued else ""
    if contacts and (not answered or now - max(answered) > _SILENCE):
        # The last word of an endpoint that was not asked since may be that all is well.
        failed = [c for c in contacts.values() if not c.get("answered_at") or c.get("last_at") != c["answered_at"]]
        outcomes = sorted({c["last_outcome"] for c in failed})
        since = f"for {length(now - max(answered))}" if answered else "since the agent started"
        yield f"The control plane has not answered {since} ({', '.join(outcomes)}); the host goes on alone.{waiting}"
    elif waiting and queue.get("trouble"):
        yield f"{waiting.strip()} The last answer to one was: {next(iter(queue['trouble'].values()))}."
    elif waiting and (oldest := _time(queue.get("oldest"))) and now - oldest > _SILENCE:
        yield f"{waiting.strip()} The oldest is from {ago(oldest, now)}."
    if rejected := queue.get("rejected"):
        what = "An event was" if rejected == 1 else f"{rejected} events were"
        yield f"{what} refused by the control plane for good: `nixfleet-agent queue list` shows its words."


def _time(text: object) -> datetime | None:
    return parse_time(text) if isinstance(text, str) else None


def _ago(text: object, now: datetime) -> str:
    at = _time(text)
    return ago(at, now) if at else "at an unknown time"
