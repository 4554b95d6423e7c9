"""Durable writes: old content or new and never a part, in the one order that survives a power cut."""

from __future__ import annotations

import errno
import os
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from nixfleet_agent import durable
from nixfleet_agent.errors import StorageError


class Case(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.steps: list[tuple[str, str]] = []
        self.fail_at = ""
        patched = mock.patch.object(durable, "boundary", self.boundary)
        patched.start()
        self.addCleanup(patched.stop)

    def boundary(self, step: str, path: Path) -> None:
        self.steps.append((step, path.name))
        if step == self.fail_at:
            raise OSError(errno.EIO, "refused by the test")

    def names(self) -> list[str]:
        return sorted(os.listdir(self.folder))

    def test_a_write_syncs_the_file_before_its_name_and_the_folder_after_it(self) -> None:
        path = self.folder / "x"
        durable.write(path, b"new")
        self.assertEqual(
            self.steps, [("create", "x"), ("fsync", "x"), ("rename", "x"), ("fsync-dir", self.folder.name)]
        )
        self.assertEqual((path.read_bytes(), path.stat().st_mode & 0o777, self.names()), (b"new", 0o600, ["x"]))

    def test_what_is_synced_is_really_synced_whole_before_it_gets_its_name(self) -> None:
        real, synced = os.fsync, []

        def fsync(descriptor: int) -> None:
            synced.append((os.fstat(descriptor).st_size, (self.folder / "x").exists()))
            real(descriptor)

        with mock.patch.object(os, "fsync", fsync):
            durable.write(self.folder / "x", b"0123456789")
        self.assertEqual((len(synced), synced[0], synced[1][1]), (2, (10, False), True))

    def test_the_mode_is_the_one_asked_for_whatever_the_umask(self) -> None:
        before = os.umask(0o077)
        self.addCleanup(os.umask, before)
        durable.write(self.folder / "x", b"", mode=0o644)
        self.assertEqual((self.folder / "x").stat().st_mode & 0o777, 0o644)

    def test_nothing_that_another_user_put_into_the_folder_is_opened_or_followed(self) -> None:
        """A collector's folder may be its own user's, and that one may guess names: root would write `/etc/passwd`."""
        victim, path = self.folder / "victim", self.folder / "x"
        victim.write_bytes(b"precious")
        path.symlink_to(victim)
        with mock.patch.object(os, "urandom", return_value=b"\0" * 6):
            (self.folder / f".x.{'00' * 6}{durable.TEMPORARY_SUFFIX}").symlink_to(victim)
            with self.assertRaises(StorageError) as caught:
                durable.write(path, b"new")
        self.assertEqual((caught.exception.errno, victim.read_bytes()), (errno.EEXIST, b"precious"))
        durable.write(path, b"new", mode=0o644)
        self.assertEqual((path.is_symlink(), path.read_bytes(), victim.read_bytes()), (False, b"new", b"precious"))
        for opens in (durable.open_lock, lambda place: durable.fill(place, b"x"), lambda p: durable.allocate(p, 1)):
            link = self.folder / "link"
            link.symlink_to(victim)
            with self.assertRaises(OSError) as refused:
                opens(link)
            self.assertEqual((refused.exception.errno, victim.read_bytes()), (errno.ELOOP, b"precious"))
            link.unlink()

    def test_a_folder_that_is_replaced_in_the_middle_gets_no_half_of_the_write(self) -> None:
        inner, elsewhere = self.folder / "inner", self.folder / "elsewhere"
        inner.mkdir()

        def swap(step: str, path: Path) -> None:
            if step == "rename":
                inner.rename(elsewhere)
                inner.mkdir()

        with mock.patch.object(durable, "boundary", swap):
            durable.write(inner / "x", b"new")
        self.assertEqual(([p.name for p in inner.iterdir()], [p.name for p in elsewhere.iterdir()]), ([], ["x"]))

    def test_what_need_not_be_durable_is_whole_all_the_same(self) -> None:
        durable.write(self.folder / "x", b"new", mode=0o644, sync=False)
        self.assertEqual(self.steps, [("create", "x"), ("rename", "x")])
        self.assertEqual((self.names(), (self.folder / "x").stat().st_mode & 0o777), (["x"], 0o644))

    def test_a_write_that_fails_leaves_the_old_content_and_no_litter(self) -> None:
        path = self.folder / "x"
        path.write_bytes(b"old")
        for step in ("create", "fsync", "rename"):
            with self.subTest(step=step):
                self.fail_at = step
                with self.assertRaises(StorageError) as caught:
                    durable.write(path, b"new")
                self.assertEqual(caught.exception.errno, errno.EIO)
                self.assertIn(str(path), str(caught.exception))
                self.assertEqual((path.read_bytes(), self.names()), (b"old", ["x"]))

    def test_a_write_whose_folder_cant_be_synced_is_not_durable(self) -> None:
        self.fail_at = "fsync-dir"
        with self.assertRaises(StorageError):
            durable.write(self.folder / "x", b"new")
        self.assertEqual(self.names(), ["x"])

    def test_a_disk_that_refuses_the_cleaning_up_too_is_still_the_expected_error(self) -> None:
        self.fail_at = "rename"
        refused = mock.patch.object(os, "unlink", side_effect=OSError(errno.EROFS, "read-only"))
        with refused, self.assertRaises(StorageError) as caught:
            durable.write(self.folder / "x", b"new")
        self.assertEqual(caught.exception.errno, errno.EIO)
        (left,) = durable.remove_temporaries(self.folder)
        self.assertRegex(left, rf"^\.x\.[0-9a-f]{{12}}{durable.TEMPORARY_SUFFIX}$")
        self.assertEqual(self.names(), [])

    def test_short_writes_are_gone_on_with(self) -> None:
        real = os.write
        with mock.patch.object(os, "write", lambda descriptor, data: real(descriptor, bytes(data)[:3])):
            durable.write(self.folder / "x", b"0123456789")
        self.assertEqual((self.folder / "x").read_bytes(), b"0123456789")

    def test_a_name_as_long_as_a_file_system_allows_can_be_written(self) -> None:
        durable.write(self.folder / ("n" * 255), b"x")
        self.assertEqual(self.names(), ["n" * 255])

    def test_a_move_syncs_both_folders_where_asked_to(self) -> None:
        (self.folder / "a").mkdir()
        (self.folder / "a" / "x").write_bytes(b"x")
        durable.move(self.folder / "a" / "x", self.folder / "x", sync=True)
        self.assertEqual(self.steps, [("rename", "x"), ("fsync-dir", self.folder.name), ("fsync-dir", "a")])
        self.steps.clear()
        durable.move(self.folder / "x", self.folder / "y", sync=True)
        durable.move(self.folder / "y", self.folder / "z", sync=False)
        self.assertEqual(self.steps, [("rename", "y"), ("fsync-dir", self.folder.name), ("rename", "z")])
        with self.assertRaises(StorageError) as caught:
            durable.move(self.folder / "missing", self.folder / "w", sync=True)
        self.assertEqual(caught.exception.errno, errno.ENOENT)

    def test_removing_what_is_not_there_is_no_error_and_removing_a_folder_is_one(self) -> None:
        durable.remove(self.folder / "missing", sync=True)
        (self.folder / "sub").mkdir()
        with self.assertRaises(StorageError):
            durable.remove(self.folder / "sub")

    def test_folders_are_made_durable_one_in_the_other(self) -> None:
        durable.make_directory(self.folder / "a" / "b" / "c")
        self.assertEqual([step for step, _ in self.steps], ["fsync-dir"] * 3)
        self.assertEqual((self.folder / "a" / "b" / "c").stat().st_mode & 0o777, 0o700)
        self.steps.clear()
        durable.make_directory(self.folder / "a")
        self.assertEqual(self.steps, [])
        self.fail_at = "fsync-dir"
        with self.assertRaises(StorageError):
            durable.make_directory(self.folder / "d")
        self.fail_at = ""
        self.steps.clear()
        durable.make_directory(self.folder / "d")
        self.assertEqual(self.steps, [("fsync-dir", self.folder.name)], "made, but not durable, is as good as missing")

    def test_only_files_of_interrupted_writes_are_cleaned_up(self) -> None:
        for name in ("keep", f".x.1{durable.TEMPORARY_SUFFIX}"):
            (self.folder / name).write_bytes(b"")
        (self.folder / f"folder{durable.TEMPORARY_SUFFIX}").mkdir()
        self.assertEqual(durable.remove_temporaries(self.folder), [f".x.1{durable.TEMPORARY_SUFFIX}"])
        self.assertEqual(self.names(), [f"folder{durable.TEMPORARY_SUFFIX}", "keep"])
        self.assertEqual(durable.remove_temporaries(self.folder / "missing"), [])
        self.assertEqual(durable.remove_temporaries(self.folder / "keep"), [])


if __name__ == "__main__":
    unittest.main()
