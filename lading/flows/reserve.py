"""Room for deleting on a full disk: a file that is given up when a deletion finds no space.

Deleting needs a little room itself (the catalog's log, a journal line). The file is made with the store and
put back by a collection once there is room again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from lading.errors import Full
from lading.flows.context import Context

#: Bytes kept aside: some thousands of deleted records, and the rows of one batch of a collection.
RESERVE_SIZE: Final = 8 << 20

#: The file is put back when so many times its size is free.
_ROOM: Final = 4

_Result = TypeVar("_Result")


def with_room(context: Context, act: Callable[[], _Result]) -> _Result:
    """Do something that frees space; when there is none to do it with, give up the reserve and do it again.

    Args:
        context: the store.
        act: may be repeated after it failed.
    """
    try:
        return act()
    except Full:
        try:
            context.layout.reserve.unlink()
        except FileNotFoundError:
            pass
        else:
            return act()
        raise


def put_back(path: Path) -> None:
    """Make the reserve when it is missing and there is room for it."""
    if path.exists():
        return
    space = os.statvfs(path.parent)
    if space.f_bavail * space.f_frsize < _ROOM * RESERVE_SIZE:
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, RESERVE_SIZE)
    except OSError:  # room was taken meanwhile, or the filesystem cannot: there is none, then
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
    finally:
        os.close(descriptor)
