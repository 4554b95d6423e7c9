"""What programs and people on the host itself can't do to a switch or to the way back."""

from __future__ import annotations

from tests.attacks.defence import Defence, gone

_LOCK = "tests.activation.test_host.LocksTest.test_"

_INHIBITORS = "tests.activation.test_inhibitors.InhibitorsTest.test_"

_ROLLBACK = "tests.activation_slow.test_rollback.RollbackTest.test_"

_OWN = "tests.runtime.rollout.test_reducer_ticks.ItsOwnAgent.test_"

_CHANGE = "tests.runtime.workers.test_activation_agent.AnotherAgent.test_"

_GUARD = "tests.activation_slow.test_guard.GuardTest.test_"

#: Other users of the host, and what a release brings, against a switch and the way back.
_HOST = (
    Defence(
        "lock: a holder of any user counts",
        "activation/locks.py",
        "if _users(pid, proc) <= trusted and _has_open",
        "if _has_open",
        (_LOCK + "a_holder_that_is_not_root_is_none_and_the_claimed_file_is_closed_to_it",),
    ),
    gone(
        "lock: its file stays open to all",
        "activation/locks.py",
        'not status.st_mode & _OTHERS or not sys.platform.startswith("linux")',
        _ROLLBACK + "a_lock_that_another_user_holds_turns_no_rollback_away",
        to="True",
    ),
    Defence(
        "inhibitors: a file of any size is read",
        "activation/inhibitors.py",
        "_MAX_BYTES = 64 * 1024",
        "_MAX_BYTES = 1 << 40",
        (_INHIBITORS + "a_broken_file_of_the_release_fails_before_anything_is_changed",),
    ),
    Defence(
        "switch: the agent's environment overrides the checks of a release",
        "activation/context.py",
        '_OF_AN_OPERATOR = ("NIXOS_NO_CHECK", ',
        "_OF_AN_OPERATOR = (",
        (_INHIBITORS + "the_agents_own_word_is_not_an_operators",),
    ),
    Defence(
        "rollback: the prior's own checks stop it",
        "activation/switches.py",
        "[*UNCHECKED, *command] if job.unchecked else command",
        "command",
        (_ROLLBACK + "all_other_inhibitors_and_checks_of_the_prior_are_overridden",),
    ),
    Defence(
        "guard: the prior's own checks stop it",
        "activation/scripts/guard.sh",
        "NIXOS_NO_CHECK=1\n",
        "NIXOS_NO_CHECK=0\n",
        (_GUARD + "the_priors_own_pre_switch_check_does_not_stop_it",),
    ),
    gone(
        "rollback: D-Bus is replaced under a running host",
        "activation/rollback.py",
        "found is None",
        _ROLLBACK + "a_bus_that_can_not_be_replaced_live_is_gone_back_to_by_a_reboot",
        to="True",
    ),
    Defence(
        "rollback: a full /boot keeps the release running",
        "activation/rollback.py",
        '            self._switch("test")\n',
        "",
        (_ROLLBACK + "a_full_boot_partition_does_not_keep_the_release_running",),
    ),
    Defence(
        "rollback: a failed attempt leaves the release's boot entry",
        "activation/rollback.py",
        "            self._salvage(failure)\n",
        "",
        (_ROLLBACK + "a_live_switch_that_fails_leaves_a_good_boot_entry",),
    ),
    Defence(
        "forward: a refused release keeps the profile",
        "activation/forward.py",
        "            self._restore_profile(before)\n",
        "",
        (_INHIBITORS + "a_bootloader_that_fails_leaves_the_profile_where_the_boot_entry_is",),
    ),
    Defence(
        "containers: the wrapper's boot id decides",
        "activation/backends/setsid.py",
        "return host.same_boot(record.intent.boot, self._context.machine.boot_id())",
        'return f"boot={host.read_boot_id()}" in (record.path / "started").read_text()',
        (
            "tests.activation.test_forward.ForwardTest.test_a_wrapper_that_sees_another_boot_id_than_the_agent_is_followed_to_its_end",
        ),
    ),
)

_OWN_AGENT = (
    Defence(
        "own agent: the one that leaves ends the soak",
        "runtime/rollout/evaluate.py",
        "rollout.hands_over or rollout.awaits_ready",
        "rollout.awaits_ready",
        (_OWN + "it_is_handed_over_to_once_and_this_agent_does_not_end_the_soak",),
    ),
    Defence(
        "own agent: one that is not ready ends the soak",
        "runtime/rollout/evaluate.py",
        "rollout.hands_over or rollout.awaits_ready",
        "rollout.hands_over",
        (_OWN + "but_not_before_it_is_ready",),
    ),
    gone(
        "own agent: what the guard took back soaks for ever",
        "runtime/rollout/evaluate.py",
        "record.state is State.SOAKING and rollout.taken_back is not None",
        _OWN + "what_the_guard_took_back_meanwhile_is_told_as_that_and_reverted",
    ),
    gone(
        "own agent: one whose check fails is left for",
        "runtime/start_gate.py",
        "trial.verdict is Verdict.BAD",
        "tests.runtime.test_start_gate.Outcomes.test_a_bad_one_fails_with_its_words_and_is_not_told",
    ),
    Defence(
        "own agent: it is left for without a guard",
        "runtime/agent_change.py",
        "            why = self._guard(intent, self._unit)\n",
        "            why = None\n",
        (_CHANGE + "it_is_left_for_only_when_its_time_is_guarded",),
    ),
    Defence(
        "own agent: a newer release on its way ends its guard",
        "activation/forward.py",
        "        self._parts.guard.disarm(keep_hand_over=True)\n        patience",
        "        self._parts.guard.disarm()\n        patience",
        (_GUARD + "a_newer_release_leaves_the_new_agents_guard_until_its_own_switch",),
    ),
    Defence(
        "own agent: its guard runs out while a newer release comes",
        "runtime/workers/activation.py",
        "        self._renew_guard(idle=False)\n        waiting",
        "        waiting",
        (_CHANGE + "while_a_newer_release_comes_it_stays_guarded",),
    ),
    Defence(
        "own agent: a reboot ends its guard",
        "activation/guard.py",
        "            if action == HAND_OVER:",
        "            if False:",
        (_GUARD + "after_a_boot_the_new_agent_has_its_time_again",),
    ),
    Defence(
        "own agent: a boot guards it against whatever was armed once",
        "activation/scripts/rearm.sh",
        '[ "$(field running)" = "${running##*/}" ] || exit 0\n',
        "",
        (_GUARD + "nothing_is_armed_after_a_boot_for_what_was_disarmed_or_does_not_run_or_waits_already",),
    ),
    Defence(
        "own agent: its guard is disarmed before it is ready",
        "runtime/agent_change.py",
        "(self._unit is None or self._unit.is_ready()) and",
        "",
        (_CHANGE + "the_new_one_ends_the_guard_when_systemd_counts_it_as_ready_and_takes_no_order_before",),
    ),
    Defence(
        "guard: one switch that was turned away is the end of it",
        "activation/scripts/guard.sh",
        '        go_back "$@"\n        finish',
        "        finish",
        (_GUARD + "a_switch_that_was_turned_away_once_is_tried_again_when_the_boot_entry_could_be_written",),
    ),
    Defence(
        "guard: the agent that hangs in its start is left there",
        "activation/scripts/guard.sh",
        '        systemctl restart --no-block "$agent"\n',
        "",
        (_GUARD + "an_agent_that_is_not_ready_in_time_has_the_host_taken_back_and_is_started_anew",),
    ),
)


DEFENCES = (*_HOST, *_OWN_AGENT)
