"""Having a store to oneself: the writer lock, every epoch, and nobody who has its catalog open.

For work that puts another file in the catalog's place. Locks die with their owner; none is waited for but the
writer's, and a refusal says who is there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from lading import locks
from lading.catalog.database import Catalog
from lading.errors import Busy, InUse
from lading.objects.durable import make_dir
from lading.objects.epoch import Epochs
from lading.objects.layout import Layout

#: SQLite's locks in a ``-shm`` file: every open connection holds one of these bytes shared.
_SHM_LOCKS: Final = (120, 9)


@contextmanager
def alone(layout: Layout, verb: str, wait_s: float) -> Iterator[None]:
    """Hold a store alone.

    Args:
        layout: the store's.
        verb: what is done, for whoever has to wait.
        wait_s: longest wait for the writer lock.

    Raises:
        Busy: another process works with the store; the message names it.
        InUse: this process has the store open.
    """
    refuse_open_here(layout)
    if not layout.objects.is_dir():
        make_dir(layout.objects)
    with ExitStack() as stack:
        stack.enter_context(writing(layout, verb, wait_s))
        held = stack.enter_context(Epochs(layout.objects).alone())
        if held is not None:
            raise Busy(f"store {layout.root} is in use by {holders(held)}; try again when that has ended")
        refuse_open(layout)
        yield


@contextmanager
def writing(layout: Layout, verb: str, wait_s: float) -> Iterator[None]:
    """Hold the writer lock alone, for work on the catalog's files themselves; there need not be a catalog.

    Raises:
        Busy: another writer held it for too long.
    """
    catalog = Catalog(layout.catalog_db, layout.journal, layout.writer_lock, None, read_only=False, wait_s=wait_s)
    with catalog.exclusive(verb):
        yield


def refuse_open_here(layout: Layout) -> None:
    """Refuse when this process has the catalog open: its connection would go on with the old file.

    Raises:
        InUse: it has.
    """
    try:
        wanted = os.stat(layout.catalog_db)
    except FileNotFoundError:
        return
    for name in os.listdir("/proc/self/fd"):
        try:
            found = os.stat(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
            raise InUse(f"store {layout.root} is open in this process: close it first")


def refuse_open(layout: Layout, shared: Path | None = None) -> None:
    """Refuse when another process has the catalog open, working or not.

    Args:
        layout: the store's.
        shared: the catalog's shared memory, when it is not in its place.

    Raises:
        Busy: one has; the message names it.
    """
    path = shared or Path(f"{layout.catalog_db}-shm")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        who = locks.range_holder(descriptor, *_SHM_LOCKS)
    finally:
        os.close(descriptor)
    if who:
        raise Busy(f"store {layout.root} is open in {who}; try again when that has ended")


def holders(path: Path) -> str:
    """Name the processes that hold a ``flock`` lock on a file, as the kernel lists them."""
    try:
        status = path.stat()
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return "another process"
    wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    pids = []
    for line in lines:
        fields = line.split()
        if len(fields) > 5 and fields[1] == "FLOCK" and fields[5] == wanted and fields[4].isdigit():
            pids.append(int(fields[4]))
    return " and ".join(locks.described(pid) for pid in dict.fromkeys(pids) if pid) or "another process"
