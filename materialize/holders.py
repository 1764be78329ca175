"""Who works in a folder: processes with a path below it, as the kernel's process table tells."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from lading.values import printable

#: Processes named in a message.
_HOLDERS_MAX: Final = 5


def holders(target: Path) -> list[str]:
    """Name processes that work below a path: their current folder, root, program or open files.

    A process in another mount namespace, as one in a container, can have a path of the same name that is something
    else: it counts when its file is on the target's filesystem.

    Returns:
        ``PID (command)`` of at most a handful, this process included.
    """
    prefix = os.path.realpath(target)
    namespace = _namespace("self")
    found = []
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        links = [link for link, path in _links_of(pid) if path == prefix or path.startswith(prefix + "/")]
        if links and (_namespace(str(pid)) == namespace or any(_shares_filesystem(link, prefix) for link in links)):
            found.append(f"{pid} ({command(pid)})")
            if len(found) >= _HOLDERS_MAX:
                break
    return found


def _links_of(pid: int) -> Iterator[tuple[str, str]]:
    """What a process has open: the kernel's link to it, and the path there."""
    base = f"/proc/{pid}"
    links = [f"{base}/cwd", f"{base}/root", f"{base}/exe"]
    with suppress(OSError):
        links += [f"{base}/fd/{name}" for name in os.listdir(f"{base}/fd")]
    for link in links:
        with suppress(OSError):
            yield link, os.readlink(link)


def _namespace(process: str) -> str | None:
    """The mount namespace of a process; None of one that has ended."""
    with suppress(OSError):
        return os.readlink(f"/proc/{process}/ns/mnt")
    return None


def _shares_filesystem(link: str, target: str) -> bool:
    with suppress(OSError):
        return os.stat(link).st_dev == os.stat(target).st_dev
    return False


def command(pid: int) -> str:
    """A process's name, in printable characters."""
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return printable(file.read().strip())
    except OSError:
        return "?"
