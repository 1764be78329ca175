"""Live mounts as the kernel shows them: in our mount namespace, and in others through the processes there."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from lading.materialize.holders import command
from lading.materialize.mounts import MountInfo, mountinfo

#: Inode of the PID namespace that a machine starts with, fixed by the kernel: who is in it sees every process.
_FIRST_PID_NAMESPACE: Final = 0xEFFFFFFC


#: Looks at the processes before "nobody" is believed: one that ends on the way may have started another that was missed.
_LOOKS_MAX: Final = 3


class LiveMounts:
    """The mounts of one moment. Each table is read once, and only if it is asked for."""

    @cached_property
    def here(self) -> list[MountInfo]:
        """The mount table of our own namespace, oldest first."""
        return mountinfo()

    @cached_property
    def _points(self) -> frozenset[Path]:
        return frozenset(mount.path for mount in self.here)

    def is_here(self, target: Path) -> bool:
        """Tell whether something is mounted exactly at a path, in our own namespace."""
        return Path(os.path.realpath(target)) in self._points

    @cached_property
    def _views(self) -> tuple[list[_View], bool]:
        """What other processes see, one for each namespace and root; and whether none has ended meanwhile."""
        settled = True
        own = os.stat("/proc/self/ns/mnt").st_ino
        found: dict[tuple[int | None, str], _View] = {}
        for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
            try:
                where, root = os.stat(f"/proc/{pid}/ns/mnt").st_ino, os.readlink(f"/proc/{pid}/root")
            except PermissionError:
                found[None, str(pid)] = _View(pid, None, "")
            except OSError:
                settled = settled and _is_dead(pid)
            else:
                if where != own:
                    found.setdefault((where, root), _View(pid, where, root))
        return list(found.values()), settled

    def viewer(self, namespace: int, pid_namespace: int, shows: Callable[[MountInfo], bool]) -> str | None:
        """Name a process that sees a mount which is not in our namespace.

        Args:
            namespace: inode of the mount namespace where it was made; copies of that count as well.
            pid_namespace: inode of the PID namespace of whoever made it; 0 when that was not noted.
            shows: recognises the mount in a mount table.

        Returns:
            ``PID (command)``; empty when nobody sees it; None when that cannot be told: there may be processes that
            we cannot see, or only such as see a part of the namespace.
        """
        for _ in range(_LOOKS_MAX):
            found, settled = self._look(namespace, shows)
            if found or settled:
                break
            self.__dict__.pop("_views", None)
        pinned = any(mount.fstype == "nsfs" and mount.root == f"mnt:[{namespace}]" for mount in self.here)
        return None if not found and (pinned or not _sees_all(pid_namespace)) else found

    def _look(self, namespace: int, shows: Callable[[MountInfo], bool]) -> tuple[str | None, bool]:
        """What :meth:`viewer` answers by the processes as they were listed, and whether none of these has ended since."""
        whole = partial = False
        views, settled = self._views
        for view in views:
            try:
                # A user may not know the namespaces of others' processes, but may read their mount tables.
                if any(shows(mount) for mount in mountinfo(view.pid)):
                    return f"{view.pid} ({command(view.pid)})", True
            except PermissionError:
                partial = True
            except OSError:  # it has ended; another may have the same view
                settled = False
            else:
                whole = whole or (view.namespace == namespace and view.root == "/")
                partial = partial or (view.namespace == namespace and view.root != "/")
        return None if partial and not whole else "", settled


def _is_dead(pid: int) -> bool:
    """Tell whether a process has ended and is only waited for: it stays so, and has no namespace any more."""
    try:
        status = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return status.rpartition(b")")[2].split()[:1] in ([b"Z"], [b"X"])


@dataclass(frozen=True, slots=True)
class _View:
    """One process that stands for all that see the same mounts."""

    pid: int
    namespace: int | None  #: None where we may not know it
    root: str  #: "/" for whoever sees the whole namespace


def _sees_all(pid_namespace: int) -> bool:
    """Tell whether we see all processes that a process in some PID namespace may have started."""
    mine = os.stat("/proc/self/ns/pid").st_ino
    hidden = not os.path.exists("/proc/1")  # by an option of /proc's mount, from users
    return not hidden and (pid_namespace in (0, mine) or mine == _FIRST_PID_NAMESPACE)
