"""The daemon as a process: signals, a second one, and a while of random faults."""

from __future__ import annotations

from tests.faults import signals, soak
from tests.faults_slow.case import FaultCase


class ProcessTest(FaultCase):
    def test_sigterm_with_a_long_poll_open(self) -> None:
        self.holds(signals.ITEMS["sigterm-long-poll"])

    def test_sigterm_in_the_middle_of_a_download(self) -> None:
        self.holds(signals.ITEMS["sigterm-realise"])

    def test_sigterm_in_the_middle_of_a_switch(self) -> None:
        self.holds(signals.ITEMS["sigterm-switch"])

    def test_stopped_again_and_again(self) -> None:
        self.holds(signals.ITEMS["sigterm-storm"])

    def test_sigkill_of_the_process_group(self) -> None:
        self.holds(signals.ITEMS["sigkill-group"])

    def test_a_stuck_name_lookup_holds_up_no_end(self) -> None:
        self.holds(signals.ITEMS["stuck-name-lookup"])

    def test_a_second_agent_on_the_same_state_directory(self) -> None:
        self.holds(signals.ITEMS["second-agent"])

    def test_sigusr1_tells_every_stack(self) -> None:
        self.holds(signals.ITEMS["sigusr1"])

    def test_a_stdout_that_nobody_reads_stops_no_rollback(self) -> None:
        self.holds(signals.ITEMS["unread-stdout"])

    def test_a_textfile_whose_folder_hangs_stops_no_rollback(self) -> None:
        self.holds(signals.ITEMS["hung-textfile"])

    def test_sighup_reads_again(self) -> None:
        self.holds(signals.ITEMS["sighup"])

    def test_random_faults_over_random_releases(self) -> None:
        self.holds(soak.ITEMS["soak"])
