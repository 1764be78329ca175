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
    def _views(self) -> list[_View]:
        """Whatever other mount tables processes see: one process of each namespace and root stands for all."""
        own = os.stat("/proc/self/ns/mnt").st_ino
        found: dict[tuple[int | None, str], _View] = {}
        for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
            try:
                where, root = os.stat(f"/proc/{pid}/ns/mnt").st_ino, os.readlink(f"/proc/{pid}/root")
            except PermissionError:
                found[None, str(pid)] = _View(pid, None, "")
            except OSError:  # it has ended
                continue
            else:
                if where != own:
                    found.setdefault((where, root), _View(pid, where, root))
        return list(found.values())

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
        whole = partial = False
        for view in self._views:
            try:
                # A user may not know the namespaces of others' processes, but may read their mount tables.
                if any(shows(mount) for mount in mountinfo(view.pid)):
                    return f"{view.pid} ({command(view.pid)})"
            except PermissionError:
                partial = True
            except OSError:  # it has ended; whoever has the same view is looked at the next time
                partial = partial or view.namespace == namespace
            else:
                whole = whole or (view.namespace == namespace and view.root == "/")
                partial = partial or (view.namespace == namespace and view.root != "/")
        if whole:
            return ""
        pinned = any(mount.fstype == "nsfs" and mount.root == f"mnt:[{namespace}]" for mount in self.here)
        return None if partial or pinned or not _sees_all(pid_namespace) else ""


@dataclass(frozen=True, slots=True)
class _View:
    """One process that stands for all that see the same mounts."""

    pid: int
    namespace: int | None  #: None where we may not know it
    root: str  #: "/" for whoever sees the whole namespace


def _sees_all(pid_namespace: int) -> bool:
    """Tell whether we see all processes that a process in some PID namespace may have started."""
    mine = os.stat("/proc/self/ns/pid").st_ino
    return pid_namespace in (0, mine) or mine == _FIRST_PID_NAMESPACE
