"""What all users of the cache share: its lock, its file names, and the boot they belong to."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from lading import private
from lading.locks import file_lock

#: Begins the names of folders in which something is built.
BUILDING_PREFIX: Final = ".building-"
#: End the names of descriptions, of images, of lists of the pool files that an image without contents leads to, and of
#: files by which one process at a time builds a view.
MARKER_SUFFIX: Final = ".json"
IMAGE_SUFFIX: Final = ".img"
REFS_SUFFIX: Final = ".refs"
LOCK_SUFFIX: Final = ".lock"

#: Larger than any description.
_DESCRIPTION_SIZE_MAX: Final = 1 << 20

#: Seconds to wait for an eviction, or for builds when evicting.
LOCK_WAIT_S: Final = 30.0


def read_description(path: Path, needed: Collection[str]) -> Mapping[str, Any] | None:
    """Read what was noted of a view; None when there is nothing, or only what a power cut left of it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as file:
        data = file.read(_DESCRIPTION_SIZE_MAX)
    try:
        values = json.loads(data)
    except ValueError:
        return None
    return values if isinstance(values, dict) and values.keys() >= set(needed) else None


def boot_id() -> str:
    """The kernel's name for this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@contextmanager
def cache_lock(cache_root: Path, *, exclusive: bool = False, wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
    """Keep eviction and the users of cached trees apart.

    Builders, and whoever has found a farm and not mounted it yet, hold the lock shared; eviction holds it
    alone. It dies with its holder, and may be taken shared more than once.

    Raises:
        Busy: the other side did not let go within the limit.
    """
    make_private(cache_root)
    verb = "evict views" if exclusive else "build or mount views"
    with file_lock(cache_root / ".lock", "the cache", verb, wait_s=wait_s, shared=not exclusive):
        yield


def make_private(folder: Path) -> None:
    """Make a folder that only its owner can enter, unless it is there."""
    private.make_folders(folder)
