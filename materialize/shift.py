"""User namespaces as carriers of ID maps: what an id-mapped mount is given.

No process lives in them. A child enters a new one and waits; its maps are written from outside, and what is
kept is a descriptor.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from lading.errors import Unsupported
from lading.values import IDMap

_CLONE_NEWUSER: Final = 0x10000000

_IDENTITY: Final = (IDMap(0, 0, (1 << 32) - 1),)

_libc: Final = ctypes.CDLL(None, use_errno=True)


def namespace(uid: Sequence[IDMap], gid: Sequence[IDMap]) -> int:
    """Make a user namespace that has these maps.

    Args:
        uid: owners; empty for each as it is.
        gid: groups, likewise.

    Returns:
        A descriptor, which the caller closes.

    Raises:
        Unsupported: no namespace can be made here, or the kernel refuses the maps.
    """
    ready_read, ready_write = os.pipe()
    end_read, end_write = os.pipe()
    child = os.fork()
    if child == 0:
        _wait_inside(ready_write, end_read, (ready_read, end_write))
    os.close(ready_write)
    os.close(end_read)
    try:
        if os.read(ready_read, 1) != b"+":
            raise Unsupported("no user namespace can be made here")
        for name, ranges in (("uid_map", uid), ("gid_map", gid)):
            lines = [f"{item.container_id} {item.host_id} {item.size}\n" for item in ranges or _IDENTITY]
            Path(f"/proc/{child}/{name}").write_text("".join(lines))
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Unsupported(f"ID maps: {(error.strerror or '').lower()}") from error
    finally:
        os.close(ready_read)
        os.close(end_write)
        os.waitpid(child, 0)


def _wait_inside(ready: int, end: int, unused: Sequence[int]) -> None:
    """In the child: enter a namespace, and stay until the other side closes its end."""
    with suppress(BaseException):
        for descriptor in unused:
            os.close(descriptor)
        entered = _libc.unshare(_CLONE_NEWUSER) == 0
        os.write(ready, b"+" if entered else b"-")
        os.read(end, 1)
    os._exit(0)
