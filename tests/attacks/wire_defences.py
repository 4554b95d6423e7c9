"""What the control plane, and whoever answers in its place, can't do with its hints and answers."""

from __future__ import annotations

from tests.attacks.defence import Defence, gone

_HINTS = (
    Defence(
        "snapshots: what does not run here costs requests",
        "runtime/workers/heartbeat.py",
        "or snapshot.target_closure != self._read_current():",
        "or False:",
        ("tests.attacks_slow.test_hints.Hints.test_malformed_snapshots",),
    ),
    Defence(
        "snapshots: another closure than the one that runs",
        "runtime/rollout/acceptances.py",
        "or current != acceptance.target_closure",
        "or False",
        (
            "tests.runtime.rollout.test_reducer_hints.Hints.test_it_is_not_adopted_where_something_else_runs_or_it_is_over_or_one_was_accepted",
        ),
    ),
    gone(
        "snapshots: of another host",
        "runtime/workers/heartbeat.py",
        "snapshot.hostname != self._journal.hostname",
        "tests.runtime.workers.test_heartbeat.WhatItTakes.test_snapshots_of_another_host_and_broken_ones_are_ignored",
    ),
    Defence(
        "snapshots: any seq begins a log",
        "runtime/rollout/acceptances.py",
        "or snapshot.last_event_seq > ADOPTED_SEQ_LIMIT",
        "or False",
        ("tests.attacks_slow.test_hints.Hints.test_huge_negative_and_overflowing_seqs",),
    ),
    Defence(
        "snapshots: any seq raises an open log's",
        "runtime/rollout/decisions.py",
        "raised = min(snapshot.last_event_seq, durable + SEQ_RAISE_LIMIT)",
        "raised = snapshot.last_event_seq",
        ("tests.attacks_slow.test_hints.Hints.test_seqs_of_an_open_rollout_rise_by_little",),
    ),
    Defence(
        "replay: the record of acceptance goes out too",
        "journal/journal.py",
        "if name.seq >= max(1, from_seq) and",
        "if name.seq >= from_seq and",
        ("tests.attacks_slow.test_hints.Hints.test_replay_from",),
    ),
    Defence(
        "replay: what was refused stays aside",
        "journal/journal.py",
        "for folder in (self._root / SENT / rollout_id, self._root / REJECTED):",
        "for folder in (self._root / SENT / rollout_id,):",
        (
            "tests.runtime.workers.test_outbound_refusals.InPlaceOfTheControlPlane."
            "test_what_was_set_aside_is_replayed_too_and_without_the_answer",
        ),
    ),
    Defence(
        "replay: as often as it is asked for",
        "runtime/rollout/replays.py",
        "if rollout_id in self._last:",
        "if False:",
        ("tests.attacks_slow.test_hints.Hints.test_replay_from",),
    ),
    Defence(
        "events are signed by another key than the one they are checked with",
        "runtime/assembly.py",
        "EventSigner(config.ssh_host_key_file)",
        "EventSigner(config.client_key)",
        ("tests.identity.test_event_signer.TwoKeys",),
    ),
    Defence(
        "an event that can't be signed ends the thread",
        "runtime/workers/outbound.py",
        "except (ProtoError, TrustError) as error:",
        "except ProtoError as error:",
        ("tests.attacks.test_audit.Audit.test_an_event_that_can_not_be_signed_holds_up_no_other",),
    ),
    Defence(
        "words: control characters reach the terminal",
        "text.py",
        'c if c.isprintable() else c.encode("unicode_escape").decode("ascii")',
        "c",
        ("tests.attacks.test_words.Words.test_terminal_escapes_and_newlines_in_a_text_log",),
    ),
    Defence(
        "words: the JSON log is not ASCII",
        "telemetry/logs.py",
        "json_ensure_ascii=True",
        "json_ensure_ascii=False",
        ("tests.attacks.test_words.Words.test_terminal_escapes_and_newlines", "tests.telemetry.test_logs"),
    ),
    Defence(
        "times: local time that overflows",
        "commands/times.py",
        "except OverflowError:",
        "except KeyError:",
        ("tests.commands.test_times",),
    ),
)

_LIVENESS = (
    Defence(
        "signs of life: a dripping fleet",
        "runtime/workers/manifest_poll.py",
        "LONGEST_FETCH = 350.0",
        "LONGEST_FETCH = 200.0",
        ("tests.attacks.test_liveness",),
    ),
    Defence(
        "signs of life: a dripping hint",
        "runtime/workers/heartbeat.py",
        "LONGEST_TURN = 500.0",
        "LONGEST_TURN = 120.0",
        ("tests.attacks.test_liveness",),
    ),
    Defence(
        "files: nesting that ends a recursive parser",
        "operator/quarantine.py",
        "loads_strict(read_regular(self.path, BODY_LIMIT))",
        "json.loads(read_regular(self.path, BODY_LIMIT))",
        ("tests.attacks.test_fuzz.Fuzz.test_files_that_end_a_recursive_parser",),
    ),
)

_FRONT = "tests.attacks.test_fronts.Fronts.test_"

_OUTBOUND = "tests.runtime.workers.test_outbound_refusals.InPlaceOfTheControlPlane.test_"

_CONNECTION = "tests.net.test_client."

_FRONTS = (
    Defence(
        "fronts: any 2xx acknowledges",
        "net/verdict.py",
        "return Verdict.ANSWER if fits else Verdict.FOREIGN",
        "return Verdict.ANSWER",
        (_OUTBOUND + "no_page_or_redirect_acknowledges_or_refuses_an_event",),
    ),
    gone(
        "fronts: JSON of another type acknowledges",
        "net/verdict.py",
        "kind in _HTML or (body.strip() and kind and not _is_json_type(kind))",
        "tests.net.test_verdict",
    ),
    Defence(
        "fronts: any 4xx is the control plane's verdict",
        "net/verdict.py",
        "return Verdict.ERROR if _is_json_error(headers, body) else Verdict.UNCLEAR",
        "return Verdict.ERROR",
        (_OUTBOUND + "no_page_or_redirect_acknowledges_or_refuses_an_event",),
    ),
    Defence(
        "fronts: a page reaches whoever asked",
        "net/client.py",
        "is not Verdict.FOREIGN:",
        "is not None:",
        (_FRONT + "no_front_is_taken_for_a_dispatch_or_raises_the_alarm_of_a_forged_one",),
    ),
    gone(
        "fronts: who refuses is not asked",
        "journal/delivery.py",
        "not own_error",
        _OUTBOUND + "no_page_or_redirect_acknowledges_or_refuses_an_event",
    ),
    Defence(
        "fronts: an event is given up whether others pass or not",
        "runtime/workers/outbound.py",
        "blocked_for >= BLOCKED_LIMIT and self._look_behind(rollout_id, lane, block)",
        "blocked_for >= BLOCKED_LIMIT and (self._look_behind(rollout_id, lane, block)"
        " or self._set_aside(rollout_id, block, self.clock.now()) is None)",
        (_OUTBOUND + "a_door_that_is_shut_to_all_costs_no_event",),
    ),
    Defence(
        "fronts: one event holds up its rollout for ever",
        "runtime/workers/outbound.py",
        "blocked_for >= BLOCKED_LIMIT and self._look_behind(rollout_id, lane, block)",
        "False",
        (_OUTBOUND + "one_event_that_is_refused_alone_goes_out_of_the_way_after_ten_minutes",),
    ),
    gone(
        "connections: an interim answer is the answer",
        "net/pool.py",
        "not _CONTINUE < status < 200",
        _CONNECTION + "KeepAlive.test_interim_answers_of_any_number_are_passed_over",
        to="True",
    ),
    Defence(
        "connections: a forgotten one is polled as long as ever",
        "runtime/dispatch/window.py",
        "if cut is not None:\n            return self._narrowed(cut, now)",
        "if cut is not None:\n            return replace(self, suspect=None)",
        ("tests.runtime.dispatch.test_window",),
    ),
    Defence(
        "connections: a hung control plane is asked ever more often",
        "runtime/dispatch/window.py",
        "return replace(self, suspect=None)  # nobody is there, quiet or not",
        "return replace(self, wait=max(1.0, self.wait / 2))",
        ("tests.runtime.dispatch.test_window",),
    ),
    Defence(
        "connections: their death is left to chance",
        "net/sockets.py",
        "        _notice_death(raw)\n",
        "",
        ("tests.net.test_proxy.DeadConnections",),
    ),
    Defence(
        "proxy: TLS is with the proxy's word for the name",
        "net/session.py",
        "handshake(raw, where.host, self._budget",
        "handshake(raw, host, self._budget",
        ("tests.net.test_proxy.Tunnel",),
    ),
    Defence(
        "connections: a second answer is the next one's",
        "net/session.py",
        "if stream is not None and stream.spoke_unasked():",
        "if False:",
        (_CONNECTION + "KeepAlive.test_a_second_answer_is_not_taken_for_that_to_the_next_request",),
    ),
)


DEFENCES = (*_HINTS, *_LIVENESS, *_FRONTS)
