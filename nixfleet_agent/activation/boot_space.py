"""Whether the boot partition has room for a closure's kernel and initrd, where a bootloader copies them there.

Both of NixOS's installers name a copy after the store path it came from: systemd-boot's as
``EFI/nixos/<hash>-<package>-<file>.efi``, GRUB's as ``kernels/<hash>-<package>-<file>``. A folder of such copies is the
sign that they are made at all: GRUB reads the store itself where it can.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from nixfleet_agent.activation import host

#: Where the partition may be mounted.
PLACES = tuple(Path(place) for place in ("/boot", "/boot/efi", "/efi"))
_FOLDERS = (("EFI/nixos", ".efi"), ("kernels", ""))
_COPIED = ("kernel", "initrd")


def shortage(store_root: str, closure: str, places: Sequence[Path] = PLACES) -> str | None:
    """Why the boot entry of ``closure`` would not fit, for people; None where it fits, or nothing can be told."""
    for folder, suffix in _folders(places):
        needed = sum(size for name, size in _files(store_root, closure) if not (folder / f"{name}{suffix}").exists())
        try:
            disk = os.statvfs(folder)
        except OSError:
            continue
        free = disk.f_bavail * disk.f_frsize
        if needed > free:
            return f"its kernel and initrd take {needed} bytes in {folder}, {free} are free: remove old boot entries"
    return None


def _folders(places: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Each folder of copies once, with what is added to their names; a partition may be mounted in two places."""
    seen = set()
    for place in places:
        for name, suffix in _FOLDERS:
            folder = place / name
            try:
                status = folder.stat()
            except OSError:
                continue
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                yield folder, suffix


def _files(store_root: str, closure: str) -> Iterator[tuple[str, int]]:
    """The name of each copy, without what the bootloader adds, and its bytes; a closure may have neither file."""
    for name in _COPIED:
        found = host.resolve(store_root, f"{host.store_path(closure)}/{name}")
        if found is None:
            continue
        try:
            yield found.removeprefix(f"{host.STORE}/").replace("/", "-"), Path(store_root + found).stat().st_size
        except OSError:
            continue
