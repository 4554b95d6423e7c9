"""The checks that stand between this host's own users and programs and the agent, for the table of defences."""

from __future__ import annotations

from tests.attacks.defence import Defence

_LINES = "tests.telemetry.test_line_writer.NobodyReads.test_"
_WRITES = "tests.test_durable.Case.test_nothing_that_another_user_put_into_the_folder_is_opened_or_followed"
_SWAPPED = "tests.test_durable.Case.test_a_folder_that_is_replaced_in_the_middle_gets_no_half_of_the_write"
_OWNERS = "tests.config.test_ownership."
_STARTS = "tests.commands.test_run.Believes.test_"
_AUDIT = "tests.attacks.test_audit.Audit.test_"
_HOOKS = "tests.hooks.test_hooks.Fitness"
_HTTP = "tests.telemetry.test_metrics.Http.test_"

DEFENCES = (
    Defence(
        "logs: who logs waits for who reads",
        "telemetry/line_writer.py",
        "                self._waiting.append(line)\n",
        "                self._sink.write(line)\n",
        (_LINES + "whoever_logs_never_waits_and_the_first_line_after_says_how_many_were_lost",),
    ),
    Defence(
        "logs: lines wait without an end",
        "telemetry/line_writer.py",
        "len(self._waiting) >= MAX_LINES or ",
        "",
        (_LINES + "whoever_logs_never_waits_and_the_first_line_after_says_how_many_were_lost",),
    ),
    Defence(
        "logs: long lines fill the memory",
        "telemetry/line_writer.py",
        " or self._chars + len(line) > MAX_CHARS",
        "",
        (_LINES + "long_lines_fill_no_more_memory_than_a_megabyte",),
    ),
    Defence(
        "logs: the end waits for a reader",
        "telemetry/line_writer.py",
        "            self._sink.abandon()\n",
        "            self._thread.join()\n",
        (_LINES + "the_end_of_the_process_waits_for_a_reader_a_bounded_time",),
    ),
    Defence(
        "watchdog: telemetry that hangs ends the agent",
        "threads/supervisor.py",
        "any(not worker.telemetry for worker in self._silent())",
        "bool(self._silent())",
        ("tests.threads.test_supervisor.Case.test_one_that_only_tells_of_the_agent_is_named_and_endangers_nothing",),
    ),
    Defence(
        "metrics: callers that hang are never ended",
        "telemetry/listener.py",
        "if len(self._calls) >= MAX_CALLERS:",
        "if False:",
        (_HTTP + "one_more_than_it_serves_ends_the_oldest_call_and_not_the_newest",),
    ),
    Defence(
        "files: a name that was guessed is opened",
        "durable.py",
        "_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC",
        "_NEW = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC",
        (_WRITES,),
    ),
    Defence(
        "files: the lock is a link to somewhere else",
        "durable.py",
        "os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC",
        "os.O_RDWR | os.O_CREAT | os.O_CLOEXEC",
        (_WRITES,),
    ),
    Defence(
        "files: the folder is looked up twice",
        "durable.py",
        "os.replace(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)",
        "os.replace(temporary, path, src_dir_fd=folder)",
        (_SWAPPED,),
    ),
    Defence(
        "owners: a file that others may write is believed",
        "commands/run.py",
        "    require_safe(believed(config, file))\n",
        "",
        (_STARTS + "nothing_that_others_may_change",),
    ),
    Defence(
        "owners: what others made of it since is read again",
        "commands/run.py",
        "        require_safe(believed(loaded.config, loaded.file))\n",
        "",
        (_STARTS + "nor_when_it_reads_again",),
    ),
    Defence(
        "owners: a trust file that others may write is believed",
        "artifacts/trust_store.py",
        "if (problem := unsafe(path)) is not None:",
        "if (problem := None) is not None:",
        ("tests.artifacts.test_trust_store",),
    ),
    Defence(
        "owners: the folders above do not count",
        "config/ownership.py",
        "    for place in _way(path):\n",
        "    for place in (path,):\n",
        (_OWNERS + "Modes", _OWNERS + "Links"),
    ),
    Defence(
        "owners: another user's own file is believed",
        "config/ownership.py",
        "if status.st_uid not in (0, os.geteuid()):",
        "if False:",
        (_OWNERS + "Modes.test_an_owner_can_change_what_is_his_whatever_its_mode",),
    ),
    Defence(
        "hooks: one that others may write is run",
        "hooks/folder.py",
        "    problem = unsafe(path)\n",
        "    problem = None\n",
        (_HOOKS,),
    ),
    Defence(
        "disk: a release takes every inode",
        "journal/reserve.py",
        "        return self._ensure_bytes() and self._ensure_inodes()\n",
        "        return self._ensure_bytes()\n",
        ("tests.journal.test_reserve.Case.test_its_inodes_are_held_and_given_up_with_its_bytes",),
    ),
    Defence(
        "memory: three artifacts at once before any is verified",
        "artifacts/cache.py",
        "self._fetching = threads.lock()",
        "self._fetching = threading.Semaphore(3)",
        ("tests.artifacts.test_cache.Fetching.test_one_artifact_is_fetched_at_a_time",),
    ),
    Defence(
        "memory: who waits for an artifact waits without an end",
        "artifacts/cache.py",
        "self._fetching.acquire(timeout=fetch.BODY_DEADLINE)",
        "self._fetching.acquire()",
        (
            "tests.artifacts.test_cache.Fetching.test_who_waits_for_another_ones_artifact_waits_no_longer_than_for_its_own",
        ),
    ),
    Defence(
        "caches: a tag of any bytes is sent back",
        "artifacts/fetch.py",
        "given if given and _TAG.fullmatch(given) else None",
        "given",
        ("tests.artifacts.test_cache.Fetching.test_a_tag_that_no_header_may_have_is_not_sent_back",),
    ),
    Defence(
        "caches: a tag that the server objects to is sent for ever",
        "artifacts/cache.py",
        "if error.objects and last is not None:",
        "if False:",
        ("tests.artifacts.test_cache.Fetching.test_after_any_4xx_the_tag_is_dropped",),
    ),
    Defence(
        "snapshots: one after the other, any seq is reached",
        "runtime/rollout/reducer.py",
        "durable = max(self._journal.last_seq(snapshot.rollout_id), known.accepted.adopted_seq)",
        "durable = known.record.last_event_seq",
        ("tests.runtime.rollout.test_reducer_hints", "tests.runtime.rollout.test_reducer_ticks"),
    ),
    Defence(
        "chain: an event may be left out",
        "journal/chain_check.py",
        "verdict = GOOD if previous == standing.previous else GAP",
        "verdict = GOOD",
        (_AUDIT + "an_event_that_is_left_out_is_a_gap",),
    ),
    Defence(
        "chain: an event of another rollout or host is as good",
        "journal/chain.py",
        'return {"hostname": hostname, "rolloutId": rollout_id, "event": dict(event), "previous": previous}',
        'return {"event": dict(event), "previous": previous}',
        (_AUDIT + "an_event_of_another_rollout_or_host_is_none_of_this_one",),
    ),
    Defence(
        "chain: a signature over it is not looked at",
        "journal/chain_check.py",
        'elif not verified(chain.statement(hostname, rollout_id, event, previous), envelope.get("chainSignature")):',
        "elif False:",
        (_AUDIT + "an_event_whose_link_is_taken_away_or_changed",),
    ),
    Defence(
        "chain: a link that was taken away was never there",
        "journal/chain_check.py",
        "(STRIPPED if standing.chained else MISSING)",
        "MISSING",
        (_AUDIT + "an_event_whose_link_is_taken_away_or_changed",),
    ),
    Defence(
        "chain: what is on disk begins anew in each process",
        "journal/chain.py",
        "follows = link(hostname, rollout_id, entry.event, entry.previous or follows)",
        "pass",
        ("tests.journal.test_chain",),
    ),
    Defence(
        "withholding: a release whose turn never comes does not show",
        "runtime/release.py",
        "since = None if had_its_turn else release.first_signed_at",
        "since = None",
        ("tests.runtime.test_release",),
    ),
    Defence(
        "withholding: a new signature hides how long",
        "runtime/release.py",
        "first = known.first_signed_at if known is not None and same else signed_at",
        "first = signed_at",
        ("tests.runtime.test_release",),
    ),
)
