"""A place for each attempt: the same path in a mount namespace of its own, so that nothing leaks from one to the next."""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
from pathlib import Path
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)

_CLONE_NEWNS: Final = 0x20000
_MS_BIND: Final = 0x1000
_MS_REC_PRIVATE: Final = 0x4000 | 0x40000

#: Files from this size are copied with holes instead of zeros: the reserve file, above all.
_SPARSE_SIZE: Final = 1 << 19


def _check(result: int, what: str) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def leave_namespace() -> None:
    """Give this process a mount table of its own; what it mounts goes with its last process."""
    _check(_libc.unshare(_CLONE_NEWNS), "unshare")
    _check(_libc.mount(None, b"/", None, _MS_REC_PRIVATE, None), "private mounts")


def mount_tmpfs(path: Path) -> None:
    """Put an empty memory filesystem on a folder."""
    _check(_libc.mount(b"faults", os.fsencode(path), b"tmpfs", 0, b"mode=0700,size=2g"), "tmpfs")


def bind(source: Path, target: Path) -> None:
    """Show a folder at another place."""
    _check(_libc.mount(os.fsencode(source), os.fsencode(target), None, _MS_BIND, None), "bind mount")


def mounts_below(path: Path) -> list[str]:
    """Mount points below a folder, the newest first."""
    prefix = f"{path}/"
    points = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in reversed(points) if point.startswith(prefix)]


def loops_below(path: Path) -> list[str]:
    """Loop devices on files below a folder."""
    found = []
    for item in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if item.read_text().startswith(f"{path}/"):
                found.append(item.parts[3])
        except OSError:
            continue  # it went meanwhile
    return found


def copy_tree(source: Path, target: Path) -> None:
    """Copy a prepared place exactly: owners, modes, times, attributes, devices, hard links, holes."""
    seen: dict[int, str] = {}
    target.mkdir(exist_ok=True)
    for above, folders, files in os.walk(source):
        here = target / os.path.relpath(above, source)
        for name in [*folders, *files]:
            _copy(os.path.join(above, name), str(here / name), seen)
    for above, _, _ in os.walk(source, topdown=False):  # times last: each new name changes its folder's
        _attributes(above, str(target / os.path.relpath(above, source)), os.lstat(above))


def _copy(source: str, target: str, seen: dict[int, str]) -> None:
    status = os.lstat(source)
    if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
        known = seen.setdefault(status.st_ino, target)
        if known != target:
            os.link(known, target, follow_symlinks=False)
            return
    if stat.S_ISDIR(status.st_mode):
        os.mkdir(target)
        return  # its attributes come later
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(source), target)
    elif stat.S_ISREG(status.st_mode):
        if status.st_size >= _SPARSE_SIZE and os.path.dirname(source).endswith("/reserve"):
            with open(target, "wb") as file:
                file.truncate(status.st_size)
        else:
            shutil.copyfile(source, target)
    else:
        os.mknod(target, status.st_mode, status.st_rdev)
    _attributes(source, target, status)


def _attributes(source: str, target: str, status: os.stat_result) -> None:
    os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(target, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(source, follow_symlinks=False):
        os.setxattr(target, name, os.getxattr(source, name, follow_symlinks=False), follow_symlinks=False)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)


def detach(point: str) -> None:
    """Take a mount away, whoever is in it."""
    _check(_libc.umount2(os.fsencode(point.encode().decode("unicode_escape")), 2), "umount")
