"""Small filesystems that can be filled to the last byte and the last inode."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.filesystems import make_filesystem

#: Kind of filesystem, and its smallest useful size in MiB: xfs cannot be smaller.
KINDS = {"ext4": 64, "xfs": 320, "tmpfs": 64}


@contextmanager
def disk(kind: str, place: Path, *, inodes: int | None = None) -> Iterator[Path]:
    """Mount an empty filesystem of a kind at ``place/disk``; ``inodes`` bounds their number where that can be."""
    point, image = place / "disk", place / "disk.img"
    point.mkdir()
    if kind == "tmpfs":
        bound = f",nr_inodes={inodes}" if inodes else ""
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={KINDS[kind]}m{bound}", "small", point], check=True)
    else:
        with image.open("wb") as file:
            file.truncate(KINDS[kind] << 20)
        make = {
            "ext4": ["mkfs.ext4", "-q", "-m", "0", *(["-N", str(inodes)] if inodes else [])],
            "xfs": ["mkfs.xfs", "-q"],
        }[kind]
        make_filesystem(make, image)
        subprocess.run(["mount", "-o", "loop", image, point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)
        image.unlink(missing_ok=True)


def fill(folder: Path, name: str = "filler") -> Path:
    """Take all bytes that are left: large writes first, then ever smaller ones, down to one."""
    path = folder / name
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        size = 1 << 20
        while size:
            try:
                os.write(descriptor, bytes(size))
            except OSError:
                size //= 2
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return path


def fill_inodes(folder: Path) -> Path:
    """Take all inodes that are left."""
    heap = folder / "heap"
    heap.mkdir()
    number = 0
    with suppress(OSError):
        while True:
            os.close(os.open(heap / str(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            number += 1
    return heap
