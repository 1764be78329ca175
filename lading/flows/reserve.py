"""Room for deleting on a full disk: space and file names that are given up when nothing else is left.

Deleting needs a little room itself: the catalog's log and shared memory, a journal line, a lock's file. The reserve is a
folder of files made with the store. They are given up one by one, by whatever command finds no room, and put back when
that command closes the store, or by any later one. When the reserve is used up, views that nobody has mounted go.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from lading import private
from lading.catalog.database import Catalog
from lading.errors import FileTooLarge, Full, LadingError
from lading.objects.durable import NO_ROOM, debris
from lading.objects.layout import Layout

if TYPE_CHECKING:
    from lading.materialize.inuse import Used

#: Bytes kept aside: some thousands of deleted records, and the rows of one batch of a collection.
RESERVE_SIZE: Final = 8 << 20

#: Files that they are in. Each is a name too, for filesystems that have run out of inodes; one deletion makes up to six.
PARTS: Final = 16

_PART_SIZE: Final = RESERVE_SIZE // PARTS

#: A part is put back when so many bytes stay free beside it: what was given up on a full disk is taken back at once.
_ROOM: Final = 64 << 10

#: Bytes of a log that are worth trying again for.
_LOG_MIN: Final = 256 << 10

#: What a deletion needs at least, for the message when nothing is left to give up.
_NEEDED: Final = "1 MiB and 8 inodes"

#: Bytes written after which it is asked again how many are free.
_ASK_EVERY: Final = 8 << 20

_Result = TypeVar("_Result")


def with_room(layout: Layout, act: Callable[[], _Result], catalog: Catalog | None = None) -> _Result:
    """Do something that must work on a full disk; when there is no room to do it with, make some and do it again.

    Args:
        layout: the store's.
        act: may be repeated after it failed.
        catalog: its log is emptied first.
    """
    while True:
        try:
            return act()
        except (Full, OSError) as error:
            if isinstance(error, FileTooLarge) or (isinstance(error, OSError) and error.errno not in NO_ROOM):
                raise
            if not _make_room(layout, catalog):
                words = f"store {layout.root}: no space left on device, and the reserve is used up; make {_NEEDED} free"
                raise Full(words) from error


def _make_room(layout: Layout, catalog: Catalog | None) -> bool:
    """Give up the least that is left.

    Returns:
        Whether anything was given up. A log counts only when much was committed since it was last emptied, so that a step
        that fails for another reason comes to the next means.
    """
    if catalog is not None and catalog.empty_log() > _LOG_MIN:
        return True
    return _give_up(layout.reserve) or _remove_debris(layout) or _evict(layout)


def _give_up(folder: Path) -> bool:
    try:
        names = sorted(os.listdir(folder), reverse=True)
    except FileNotFoundError:
        return False
    except NotADirectoryError:  # one file, as it was at first
        names = [""]
    for name in names:
        with contextlib.suppress(FileNotFoundError):  # another process was quicker
            os.unlink(folder / name if name else folder)
            return True
    return False


def _remove_debris(layout: Layout) -> bool:
    from lading.materialize.beneath import remove_tree

    return sum(remove_tree(folder) for folder, _ in debris(layout.staging)) > 0


def _evict(layout: Layout) -> bool:
    """Remove the views that are not mounted: all of them can be made again."""
    from lading.materialize import cache

    try:
        return cache.evict(layout.cache, keep=partial(_kept, layout), budget=0, wait_s=0).bytes > 0
    except (LadingError, OSError):  # somebody builds one, or there is not even room for the lock
        return False


def _kept(layout: Layout) -> set[str]:
    from lading.flows.lowers import views_in_use

    return views_in_use(_used(layout), layout.cache)


def _used(layout: Layout) -> Used:
    """What this boot's mounts use, found by what the store remembers of its run root: it may be opened by another one."""
    from lading.materialize.inuse import Used, used
    from lading.materialize.mounttable import MountTable

    try:
        run = json.loads((layout.root / "run").read_bytes())["run"]
        store_id = json.loads(layout.format_marker.read_bytes())["id"]
    except FileNotFoundError:
        return Used(frozenset(), frozenset(), False)
    return used(MountTable(Path(run, store_id)), layout.layers, layout.trees)


def put_back(layout: Layout) -> None:
    """Make what is missing of the reserve, as far as there is room for it."""
    folder = layout.reserve
    try:
        with os.scandir(folder) as parts:
            sizes = {part.name: part.stat(follow_symlinks=False).st_size for part in parts}
    except FileNotFoundError:
        sizes = {}
    except NotADirectoryError:
        return
    present = {name for name, size in sizes.items() if size >= _PART_SIZE}  # a kill may have left one empty
    if len(present) >= PARTS:
        return
    with contextlib.suppress(OSError):  # room was taken meanwhile, or the filesystem cannot: there is none, then
        private.make_folders(folder)
        for name in (f"{number:02d}" for number in range(PARTS)):
            if name not in present:
                space = os.statvfs(folder)
                if space.f_bavail * space.f_frsize < _ROOM + _PART_SIZE:
                    return
                if name in sizes:
                    os.unlink(folder / name)
                _make_part(folder / name)


def _make_part(path: Path) -> None:
    descriptor = private.opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        os.posix_fallocate(descriptor, 0, _PART_SIZE)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        raise
    finally:
        os.close(descriptor)


class Floor:
    """Refuses to store more where less than a floor would stay free. Deleting and collecting never ask."""

    def __init__(self, root: Path, floor: int, wanted: int | None) -> None:
        """Measure nothing yet.

        Args:
            root: a folder on the filesystem in question.
            floor: bytes to be left free; 0 for none.
            wanted: bytes that are to be stored at most, for the message; None when nobody knows.
        """
        self._root = root
        self._floor = floor
        self._wanted = wanted
        self._done = self._asked = 0

    def __call__(self, size: int) -> None:
        """Ask before bytes are written.

        Raises:
            Full: with what is free, what is to be left, and what is needed.
        """
        self._done += size
        if not self._floor or (self._asked and self._done - self._asked < _ASK_EVERY):
            return
        self._asked = max(self._done, 1)
        space = os.statvfs(self._root)
        free = space.f_bavail * space.f_frsize
        if free - size < self._floor:
            raise Full(f"store {self._root}: {self._words(free, size)}; delete something and run gc")

    def _words(self, free: int, size: int) -> str:
        words = f"{free} bytes are free, and {self._floor} are to be left (min_free)"
        if self._wanted is None:
            return f"{words}; storing this needs {self._floor + size} bytes free, or more"
        left = max(self._wanted - self._done + size, size)
        return f"{words}; storing this needs {self._floor + left} bytes free at most"


def input_size(stream: object) -> int | None:
    """Bytes that are left of a stream that is a plain file; None when nobody knows."""
    try:
        descriptor = stream.fileno()  # type: ignore[attr-defined]
        found = os.fstat(descriptor)
        return found.st_size - os.lseek(descriptor, 0, os.SEEK_CUR) if stat.S_ISREG(found.st_mode) else None
    except (AttributeError, OSError, ValueError):
        return None
