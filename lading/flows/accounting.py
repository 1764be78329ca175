"""Where every byte of a store is: classes of bytes that sum to the sizes of the files on disk."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lading.catalog import accounts
from lading.flows.context import Context
from lading.materialize import cache

#: Classes of a balance, in the order they are shown.
CLASSES: Final = (
    "packs: live", "packs: dead", "packs: overhead", "packs: unrecorded", "cache", "catalog", "journal", "staging",
    "write areas", "userdata", "other",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Balance:
    """A store's bytes by class.

    Each class is a sum of file sizes (``st_size``, an inode with several names once, directories not
    counted); ``packs`` are split by what the catalog says of them.
    """

    classes: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes of all files below the store's root."""
        return sum(self.classes.values())


def files_below(folder: Path) -> int:
    """Sum the sizes of the regular files below a folder, each inode once; 0 when it is not there.

    The walk follows no links and goes by entries, so nothing a layer holds can lead it elsewhere.
    """
    seen: set[tuple[int, int]] = set()
    total = 0
    for status in _walk(folder):
        if status.st_nlink > 1:
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
        total += status.st_size
    return total


def _walk(folder: Path) -> Iterator[os.stat_result]:
    pending = [str(folder)]
    while pending:
        try:
            scan = os.scandir(pending.pop())
        except (FileNotFoundError, NotADirectoryError):
            continue  # removed meanwhile: it has no size any more
        with scan:
            for item in scan:
                try:
                    status = item.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat.S_ISDIR(status.st_mode):
                    pending.append(item.path)
                elif stat.S_ISREG(status.st_mode):
                    yield status


def balance(context: Context) -> Balance:
    """Measure everything below the root, and let the catalog split the packs."""
    layout = context.layout
    if context.writable:
        _note_cache(context)  # first, since it writes to the catalog
    classes = dict.fromkeys(CLASSES, 0)
    with context.catalog.read() as conn:
        packs = accounts.pack_classes(conn)
    on_disk = files_below(layout.packs)
    classes["packs: live"] = packs.live
    classes["packs: dead"] = packs.dead
    classes["packs: overhead"] = packs.overhead
    classes["packs: unrecorded"] = on_disk - packs.live - packs.dead - packs.overhead
    classes["cache"] = files_below(layout.cache)
    classes["catalog"] = sum(_size(Path(f"{layout.catalog_db}{suffix}")) for suffix in ("", "-wal", "-shm"))
    classes["journal"] = files_below(layout.journal)
    classes["staging"] = files_below(layout.staging)
    classes["write areas"] = files_below(layout.layers)
    classes["userdata"] = files_below(layout.images) + files_below(layout.containers)
    classes["other"] = files_below(context.root) - sum(classes.values())
    return Balance(classes)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _note_cache(context: Context) -> None:
    """Let the catalog's view of the cache follow the disk."""
    measured = cache.measure(context.layout.cache)
    with context.catalog.read() as conn:
        known = accounts.cache_rows(conn)
    if sorted(measured) != sorted(known):
        with context.catalog.write_rows() as conn:
            accounts.replace_cache_rows(conn, measured)
