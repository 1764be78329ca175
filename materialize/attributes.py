"""Owner, mode, extended attributes and times of what is built, and what to do when they are refused."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Final

from lading.materialize.whiteout import Xattrs, plain_xattrs
from lading.values import Inode, printable

_NS: Final = 1_000_000_000
#: Range of a 64-bit time_t; filesystems clamp further by themselves.
_TIME_MIN: Final = -(1 << 63) * _NS
_TIME_MAX: Final = ((1 << 63) - 1) * _NS

#: A filesystem answers "no space" to an attribute larger than its own bound; below this it is the disk.
_LARGE_XATTRS: Final = 2048

#: Errors that mean "not here": the attribute stays in the catalog, and the caller is told once.
_REFUSED: Final = (errno.EOPNOTSUPP, errno.E2BIG, errno.ERANGE, errno.EINVAL)


class Attributes:
    """Puts attributes on new files of a tree and remembers, once per kind, what was refused.

    The order is owner, mode, extended attributes, times: each may undo part of the ones after it. Calls
    that would change nothing are left out, since they are half of the cost of a small file.

    Concurrency: may be used by several threads.
    """

    def __init__(self, *, as_root: bool, choose: Callable[[Xattrs], Xattrs] = plain_xattrs) -> None:
        """Note who we are.

        Args:
            as_root: give owners, make devices, and fail where a supported attribute is not permitted.
            choose: selects and spells the extended attributes to be applied.
        """
        self.as_root = as_root
        self._choose = choose
        self._own = (os.geteuid(), os.getegid())
        self._hidden = _umask() | 0o7000
        self._warnings: dict[str, str] = {}
        self._plans: dict[tuple[str, int, int, int], tuple[int, bool]] = {}

    @property
    def warnings(self) -> tuple[str, ...]:
        """What could not be applied, one sentence a kind."""
        return tuple(self._warnings.values())

    def warn(self, kind: str, sentence: str) -> None:
        """Remember a sentence unless there is one of its kind."""
        self._warnings.setdefault(kind, sentence)

    def owner(self, inode: Inode) -> tuple[int, int]:
        """Owner and group that a file gets."""
        return (inode.uid, inode.gid) if self.as_root else self._own

    def mode(self, inode: Inode) -> int:
        """Permission bits that a file gets: setuid and setgid only together with the right owner."""
        mode = inode.mode & 0o7777
        if not self.as_root and mode & 0o6000:
            kept = (stat.S_ISUID if inode.uid == self._own[0] else 0) | (
                stat.S_ISGID if inode.gid == self._own[1] else 0
            )
            dropped = mode & 0o6000 & ~kept
            if dropped:
                self.warn("setuid", "setuid and setgid bits of files that belong to others are left out")
            mode &= ~dropped
        return mode

    def creation_mode(self, inode: Inode) -> int:
        """Mode to create a file or directory with.

        Returns:
            The final mode where creation alone gives it, else one that shuts everybody else out.
        """
        return self._plan(inode)[0]

    def _plan(self, inode: Inode) -> tuple[int, bool]:
        """Creation mode, and whether it leaves owner and mode complete; the same few answers for whole trees."""
        found = self._plans.get((inode.type, inode.mode, inode.uid, inode.gid))
        if found is None:
            mode = self._choose_mode(inode)
            complete = mode == inode.mode and self.owner(inode) == self._own
            found = self._plans[inode.type, inode.mode, inode.uid, inode.gid] = (mode, complete)
        return found

    def _choose_mode(self, inode: Inode) -> int:
        mode = inode.mode
        private = 0o700 if inode.type == "d" else 0o600
        if mode & self._hidden or self.owner(inode) != self._own:
            return private
        if not self.as_root and mode & private != private:
            return private
        return mode

    def is_complete(self, inode: Inode) -> bool:
        """Say whether creation alone gives owner, mode and extended attributes."""
        return not inode.xattrs and self._plan(inode)[1]

    def apply(self, descriptor: int, inode: Inode) -> None:
        """Put attributes on an open file or directory, whatever it has now."""
        if self.as_root:
            os.fchown(descriptor, inode.uid, inode.gid)
        os.fchmod(descriptor, self.mode(inode))
        self._finish(descriptor, inode)

    def complete(self, descriptor: int, inode: Inode) -> None:
        """Put on attributes that creation did not give.

        Args:
            descriptor: of a file or directory that was made with :meth:`creation_mode` in a tree begun with
                :func:`prepare_root`, and has all its content.
            inode: what it is to be.
        """
        if self._plan(inode)[1]:
            self._finish(descriptor, inode)
        else:
            self.apply(descriptor, inode)

    def _finish(self, descriptor: int, inode: Inode) -> None:
        if inode.xattrs:
            self._set_xattrs(descriptor, inode)
        moment = clamp_time(inode.mtime_ns)
        os.utime(descriptor, ns=(moment, moment))

    def apply_at(self, name: bytes, dir_fd: int, inode: Inode) -> None:
        """Put attributes on what must not be opened: a symlink, device, fifo or socket, whatever it has now."""
        if self.as_root:
            os.chown(name, inode.uid, inode.gid, dir_fd=dir_fd, follow_symlinks=False)
        if inode.type != "l":
            handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
            try:
                os.chmod(f"/proc/self/fd/{handle}", self.mode(inode))
            finally:
                os.close(handle)
        if inode.xattrs:
            self._set_xattrs(b"/proc/self/fd/%d/%s" % (dir_fd, name), inode)
        moment = clamp_time(inode.mtime_ns)
        os.utime(name, ns=(moment, moment), dir_fd=dir_fd, follow_symlinks=False)

    def _set_xattrs(self, target: int | bytes, inode: Inode) -> None:
        for name, value in self._choose(inode.xattrs):
            try:
                if isinstance(target, int):
                    os.setxattr(target, name, value)
                else:
                    os.setxattr(target, name, value, follow_symlinks=False)
            except OSError as error:
                if not self._refused(error, inode, name, target):
                    raise
                namespace = name.partition(b".")[0]
                self.warn(
                    f"xattr {namespace!r} {error.errno}",
                    f"extended attributes {printable(namespace)}.* cannot be set here: {error.strerror}",
                )

    def _refused(self, error: OSError, inode: Inode, name: bytes, target: int | bytes) -> bool:
        """Tell an attribute that cannot be here from a fault."""
        if error.errno in _REFUSED:
            return True
        if error.errno in (errno.EPERM, errno.EACCES):
            supported = name.startswith((b"user.", b"trusted.", b"security."))
            return not (self.as_root and supported and inode.type in "fd")
        if error.errno == errno.ENOSPC:
            return sum(len(key) + len(value) for key, value in inode.xattrs) > _LARGE_XATTRS and _has_room(target)
        return False


def _has_room(target: int | bytes) -> bool:
    where = target if isinstance(target, int) else os.path.dirname(target)
    return os.statvfs(where).f_bavail > 0


def clamp_time(moment_ns: int) -> int:
    """Bring a time into what a 64-bit kernel takes."""
    return min(max(moment_ns, _TIME_MIN), _TIME_MAX)


def _umask() -> int:
    """Read the process's umask without changing it; all bits where the kernel does not show it."""
    try:
        with open("/proc/self/status", "rb") as status:
            for line in status:
                if line.startswith(b"Umask:"):
                    return int(line.split()[1], 8)
    except FileNotFoundError:
        return 0o777  # no /proc: every mode is then set by itself
    return 0o777


def prepare_root(descriptor: int) -> None:
    """Free a new directory of what it inherited (ACLs, setgid, group) before a tree is built in it."""
    for name in (b"system.posix_acl_default", b"system.posix_acl_access"):
        try:
            os.removexattr(descriptor, name)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
                raise
    os.fchown(descriptor, os.geteuid(), os.getegid())
    os.fchmod(descriptor, 0o700)
