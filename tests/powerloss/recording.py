"""Recording a disk, and making the disks that a loss of power could have left of it."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lading.materialize import loop, syscalls
from tests.filesystems import make_filesystem
from tests.powerloss.device import FLUSH, MARK, RECORD, WRITE

#: Bytes of the disk, and how it is formatted. XFS and btrfs take no smaller one.
FILESYSTEMS: Final[dict[str, tuple[int, list[str]]]] = {
    "ext4": (64 << 20, ["mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"]),
    "xfs": (304 << 20, ["mkfs.xfs", "-q", "-f", "-K"]),
    "btrfs": (128 << 20, ["mkfs.btrfs", "-q", "-f", "-K"]),
}

#: What a disk writes at once: of a longer request, any of these pieces may be there and others not.
SECTOR: Final = 4096

#: Flag of umount2: the name goes at once.
_DETACH: Final = 2

#: Flag of a loop device: past the page cache of its file.
_DIRECT_IO: Final = 16


@dataclass(frozen=True, slots=True)
class Interval:
    """What happened between two barriers, or before the first, or after the last."""

    writes: tuple[tuple[int, bytes], ...]  #: offset and bytes, in the order in which they came
    marks: int  #: acknowledgements until its end, those of earlier intervals included


@dataclass(frozen=True, slots=True)
class Recording:
    """A disk as it was at the beginning, and all that was written to it."""

    base: Path
    filesystem: str
    intervals: tuple[Interval, ...]


class Recorder:
    """A mounted filesystem on a recording disk."""

    def __init__(self, root: Path, marker: int) -> None:
        self.root = root
        self._marker = marker

    def mark(self) -> None:
        """Log that what came before was acknowledged."""
        os.write(self._marker, b"acknowledged")


@contextmanager
def recording(folder: Path, filesystem: str) -> Iterator[Recorder]:
    """Mount a fresh filesystem whose writes are recorded; :func:`recorded` reads them afterwards.

    Args:
        folder: an empty folder, where much fits.
        filesystem: one of ``FILESYSTEMS``.
    """
    size, make = FILESYSTEMS[filesystem]
    image = folder / "disk.img"
    with image.open("wb") as file:
        file.truncate(size)
    make_filesystem(make, image)
    copy_sparse(image, folder / "base.img")
    for name in ("fuse", "root"):
        (folder / name).mkdir()
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.powerloss.device", str(image), str(folder / "log"), str(folder / "fuse")],
        stdout=subprocess.PIPE,
    )
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    try:
        with (
            (folder / "fuse/marker").open("wb", buffering=0) as marker,
            _loop(folder / "fuse/disk.img") as path,
            mounted(path, folder / "root", filesystem) as root,
        ):
            yield Recorder(root, marker.fileno())
    finally:
        # A process with a mount namespace of its own may have a copy of these mounts, and keep both disk and server alive.
        syscalls.umount2(os.fsencode(folder / "fuse"), _DETACH)
        server.kill()
        server.wait(timeout=30)
        server.stdout.close()


@contextmanager
def _loop(file: Path) -> Iterator[Path]:
    """A loop device that keeps nothing back: writes and flushes reach the file as they come."""
    with file.open("r+b") as opened:
        device, path = _attached(opened.fileno(), direct=True)
    try:
        queue = Path("/sys/block", path.name)
        assert (queue / "loop/dio").read_text().strip() == "1"
        assert (queue / "queue/write_cache").read_text().strip() == "write back"  # else nobody would flush
        yield path
    finally:
        os.close(device)


@contextmanager
def mounted(source: Path, target: Path, filesystem: str) -> Iterator[Path]:
    """Mount a disk, or a file with one; by system calls, since it is done so often."""
    if source.is_block_device():
        _mount(source, target, filesystem)
    else:
        with source.open("r+b") as file:
            device, path = _attached(file.fileno())
        try:
            _mount(path, target, filesystem)
        finally:
            os.close(device)
    try:
        yield target
    finally:
        syscalls.umount2(os.fsencode(target), 0)


def _mount(device: Path, target: Path, filesystem: str) -> None:
    """Mount a disk that may be a copy of another one, which somebody's mount namespace still has for a moment."""
    options = b"nouuid" if filesystem == "xfs" else b""
    deadline = time.monotonic() + 30
    while True:
        try:
            return syscalls.mount(os.fsencode(device), os.fsencode(target), filesystem.encode(), 0, options)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.EBUSY) or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _attached(file: int, *, direct: bool = False) -> tuple[int, Path]:
    """Make a writable loop device that goes with its last user, whose descriptor the first is."""
    with open("/dev/loop-control", "rb") as control:
        for _ in range(64):  # others take devices at the same time
            path = Path(f"/dev/loop{fcntl.ioctl(control, loop._GET_FREE)}")
            device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            flags = loop._AUTOCLEAR | (_DIRECT_IO if direct else 0)
            info = loop._INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, b"", b"", b"", 0, 0)
            try:
                fcntl.ioctl(device, loop._CONFIGURE, loop._CONFIG.pack(file, 0, info, b""))
            except OSError as error:
                os.close(device)
                if error.errno not in (errno.EBUSY, errno.ENXIO):
                    raise
            else:
                return device, path
    raise OSError(errno.EBUSY, "no loop device is free")


def recorded(folder: Path, filesystem: str) -> Recording:
    """Read what a recorder logged."""
    intervals: list[Interval] = []
    writes: list[tuple[int, bytes]] = []
    marks = 0
    with (folder / "log").open("rb") as log:
        while head := log.read(RECORD.size):
            kind, offset, size = RECORD.unpack(head)
            data = log.read(size)
            if kind == WRITE:
                writes.append((offset, data))
            elif kind == MARK:
                marks += 1
            elif kind == FLUSH:
                intervals.append(Interval(tuple(writes), marks))
                writes = []
    intervals.append(Interval(tuple(writes), marks))
    return Recording(folder / "base.img", filesystem, tuple(intervals))


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file's bytes, leaving holes where it has some."""
    with source.open("rb") as old, target.open("wb") as new:
        size = os.fstat(old.fileno()).st_size
        new.truncate(size)
        position = 0
        while position < size:
            try:
                start = os.lseek(old.fileno(), position, os.SEEK_DATA)
            except OSError:  # nothing but a hole up to the end
                return
            position = os.lseek(old.fileno(), start, os.SEEK_HOLE)
            os.lseek(old.fileno(), start, os.SEEK_SET)
            os.lseek(new.fileno(), start, os.SEEK_SET)
            while (left := position - os.lseek(old.fileno(), 0, os.SEEK_CUR)) > 0:
                os.sendfile(new.fileno(), old.fileno(), None, left)


#: Ways in which a disk with a volatile cache may have kept what was not flushed.
WAYS: Final = ("nothing", "prefix", "some", "pieces")


def kept(interval: Interval, way: str, seed: int) -> list[tuple[int, bytes]]:
    """Choose what of an interval's writes a loss of power leaves.

    Args:
        interval: what was not flushed.
        way: "nothing" of it, those up to a point in "prefix", "some" of them, or "pieces" of a sector each.
        seed: which.
    """
    dice = random.Random(seed)
    writes = list(interval.writes)
    match way:
        case "nothing":
            return []
        case "prefix":
            return writes[: dice.randint(1, len(writes))] if writes else []
        case "some":
            share = dice.choice((0.15, 0.5, 0.85))
            return [item for item in writes if dice.random() < share]
        case "pieces":
            share = dice.choice((0.3, 0.7, 0.95))
            return [piece for item in writes for piece in _pieces(*item) if dice.random() < share]
    raise ValueError(way)


def _pieces(offset: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    for start in range(0, len(data), SECTOR):
        yield offset + start, data[start : start + SECTOR]


def apply(image: int, writes: Iterable[tuple[int, bytes]]) -> None:
    """Write to an open image."""
    for offset, data in writes:
        os.pwrite(image, data, offset)
