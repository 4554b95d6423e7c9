"""Disks that refuse, that are full, whose files are damaged; and a week's events on one."""

from __future__ import annotations

from tests.faults import damage, disk_errors, full_disk, outage
from tests.faults_slow.case import FaultCase


class DisksTest(FaultCase):
    def test_nothing_fires_before_it_is_durable(self) -> None:
        self.holds(disk_errors.ITEMS["disk-forward"], disk_errors.ITEMS["journal-rollback"])

    def test_a_release_that_fills_the_disk_is_taken_back(self) -> None:
        self.holds(*full_disk.ITEMS.values())

    def test_foreign_files_in_every_folder(self) -> None:
        self.holds(damage.foreign)

    def test_an_outage_stays_small_and_drains_in_order(self) -> None:
        self.holds(outage.week)
