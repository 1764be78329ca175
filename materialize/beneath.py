"""Touching trees by directory descriptors: opening, walking, removing, attributes.

No name that a tree holds is ever resolved in the host's namespace. A path below a root is opened with
``openat2`` (``RESOLVE_BENEATH`` and ``RESOLVE_NO_SYMLINKS``) where the kernel has it, else component by
component with ``O_NOFOLLOW``. Nothing here recurses, and the number of open descriptors is bounded
whatever the depth of a tree.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Final

from lading.errors import Full, ReadOnly
from lading.values import printable

#: Directories kept open at a time. With the batches of a build this stays well below a limit of 64.
OPEN_DIRECTORIES: Final = 12

#: Longest path given to the kernel at once; it takes 4096 bytes with the NUL.
PATH_SIZE: Final = 4000

DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_SYS_OPENAT2: Final = 437
_RESOLVE_NO_XDEV: Final = 0x01
_RESOLVE_NO_SYMLINKS: Final = 0x04
_RESOLVE_BENEATH: Final = 0x08
_OPENAT2_TRIES: Final = 16  # EAGAIN means that a rename raced with the look-up


@contextmanager
def told(what: str | Path) -> Iterator[None]:
    """Translate errors of the filesystem whose meaning is known.

    Args:
        what: the file or folder that is being made, for the message.

    Raises:
        Full: no space, inodes or quota, or the file size limit.
        ReadOnly: the filesystem cannot be written.
    """
    try:
        yield
    except OSError as error:
        words = f"{printable(str(what))}: {error.strerror}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise Full(words) from error
        if error.errno == errno.EROFS:
            raise ReadOnly(words) from error
        if error.errno is not None and not isinstance(error.filename, str | bytes):
            raise OSError(error.errno, error.strerror, str(what)) from error
        raise


def split(path: bytes) -> tuple[bytes, bytes]:
    """Split a path into its directory (``b""`` for the root) and its last component."""
    parent, _, name = path.rpartition(b"/")
    return parent, name


def open_beneath(root: int, path: bytes, flags: int = os.O_RDONLY, *, same_mount: bool = False) -> int:
    """Open what lies below a directory without leaving it and without following any symlink.

    Args:
        root: descriptor of the directory.
        path: relative to it, of any length; ``b""`` is the directory itself.
        flags: as for ``os.open``; nothing is created. ``O_NOFOLLOW`` and ``O_CLOEXEC`` are added, and
            ``O_NONBLOCK``, so that a fifo in the tree cannot block the caller.
        same_mount: refuse to cross a mount point.

    Raises:
        OSError: ELOOP for a symlink on the way, ENOENT, ENOTDIR, EXDEV for leaving the root or the mount.
    """
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC
    if not flags & os.O_PATH:
        flags |= os.O_NONBLOCK | os.O_NOCTTY
    *steps, last = _pieces(path)
    current = root
    try:
        for step in steps:
            following = _open_piece(current, step, DIRECTORY, same_mount)
            if current != root:
                os.close(current)
            current = following
        return _open_piece(current, last, flags, same_mount)
    finally:
        if current != root:
            os.close(current)


def _pieces(path: bytes) -> list[bytes]:
    """Cut a path into pieces that the kernel takes."""
    if len(path) <= PATH_SIZE:
        return [path or b"."]
    pieces, piece = [], b""
    for component in path.split(b"/"):
        if piece and len(piece) + len(component) >= PATH_SIZE:
            pieces.append(piece)
            piece = b""
        piece = piece + b"/" + component if piece else component
    return [*pieces, piece]


def _open_piece(root: int, path: bytes, flags: int, same_mount: bool) -> int:
    if path == b".":
        return os.open(path, flags, dir_fd=root)
    call = _openat2()
    if call is not None:
        return call(root, path, flags, _RESOLVE_NO_XDEV if same_mount else 0)
    return _open_by_component(root, path, flags, same_mount)


def _open_by_component(root: int, path: bytes, flags: int, same_mount: bool) -> int:
    """Do what openat2 does, for kernels before 5.6 and for sandboxes that refuse it."""
    device = os.fstat(root).st_dev
    *parents, name = path.split(b"/")
    current = root
    try:
        for component in parents:
            following = os.open(_component(component), DIRECTORY, dir_fd=current)
            if current != root:
                os.close(current)
            current = following
        opened = os.open(_component(name), flags, dir_fd=current)
    finally:
        if current != root:
            os.close(current)
    if same_mount and os.fstat(opened).st_dev != device:
        os.close(opened)
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), os.fsdecode(path))
    return opened


def _component(name: bytes) -> bytes:
    if name in (b"", b".", b".."):
        raise OSError(errno.EXDEV, "not a name below a directory", os.fsdecode(name))
    return name


@cache
def _openat2() -> Callable[[int, bytes, int, int], int] | None:
    """Find the system call; None where the kernel or a sandbox refuses it."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    how_type = ctypes.c_uint64 * 3  # flags, mode, resolve

    def call(root: int, path: bytes, flags: int, resolve: int) -> int:
        if b"\0" in path:
            raise ValueError("a path cannot hold a NUL")
        how = how_type(flags, 0, resolve | _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS)
        for _ in range(_OPENAT2_TRIES):
            opened: int = libc.syscall(_SYS_OPENAT2, root, path, ctypes.byref(how), ctypes.c_size_t(24))
            if opened >= 0:
                return opened
            number = ctypes.get_errno()
            if number not in (errno.EAGAIN, errno.EINTR):
                break
        raise OSError(number, os.strerror(number), os.fsdecode(path))

    try:
        os.close(call(_AT_FDCWD, b"./", os.O_PATH | os.O_CLOEXEC, 0))
    except OSError:
        return None
    return call


_AT_FDCWD: Final = -100


class Directories:
    """Directories of one tree, opened as needed, the oldest closed when there are too many.

    A descriptor handed out stays open for at least the next ``bound - 2`` calls.
    """

    def __init__(self, root: int, *, bound: int = OPEN_DIRECTORIES, same_mount: bool = False) -> None:
        self._root = root
        self._bound = bound
        self._same_mount = same_mount
        self._open: dict[bytes, int] = {}

    def fd(self, path: bytes) -> int:
        """Open a directory of the tree; ``b""`` is the root. The descriptor stays ours."""
        if not path:
            return self._root
        found = self._open.get(path)
        if found is not None:
            return found
        parent, name = split(path)
        above = self._open.get(parent) if parent else self._root
        if above is None:
            opened = open_beneath(self._root, path, DIRECTORY, same_mount=self._same_mount)
        elif self._same_mount:
            opened = open_beneath(above, name, DIRECTORY, same_mount=True)
        else:
            opened = os.open(_component(name), DIRECTORY, dir_fd=above)
        if len(self._open) >= self._bound:
            os.close(self._open.pop(next(iter(self._open))))
        self._open[path] = opened
        return opened

    def close(self) -> None:
        """Close what is open, except the root."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __enter__(self) -> Directories:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def walk(
    root: int, *, same_mount: bool = True, skip_mounts: bool = False
) -> Iterator[tuple[bytes, int, list[os.DirEntry[str]]]]:
    """Walk a tree, parents before their contents.

    Args:
        root: descriptor of the top directory; stays the caller's.
        same_mount: fail with EXDEV at a mount point instead of entering it.
        skip_mounts: leave it out instead.

    Returns:
        For each directory: its path, a descriptor that is open until the next step, and what it holds,
        sorted by name. Directories that vanish meanwhile are left out.
    """
    pending = [b""]
    with Directories(root, same_mount=same_mount) as directories:
        while pending:
            path = pending.pop()
            try:
                descriptor = directories.fd(path)
            except FileNotFoundError:
                if path:
                    continue  # removed since its parent was read
                raise
            except OSError as error:
                if skip_mounts and error.errno == errno.EXDEV:
                    continue
                raise
            with os.scandir(descriptor) as scan:
                items = sorted(scan, key=lambda item: os.fsencode(item.name))
            yield path, descriptor, items
            prefix = path + b"/" if path else b""
            pending += [prefix + os.fsencode(item.name) for item in reversed(items) if is_folder(item)]


def is_folder(item: os.DirEntry[str]) -> bool:
    """Say whether a name is a directory itself, not a link to one."""
    return item.is_dir(follow_symlinks=False)


def remove_tree(path: Path | str | bytes, *, dir_fd: int | None = None) -> int:
    """Remove a directory and all below it; a file or link is unlinked. Nothing there is no error.

    Mounts inside the tree are never entered: the removal fails with EXDEV and leaves the rest.

    Args:
        path: of the tree, or its name when ``dir_fd`` is given.
        dir_fd: the directory the name lies in.

    Returns:
        Sizes of the regular files removed, in bytes; an inode counts when its last name goes.
    """
    try:
        root = _open_to_remove(path, dir_fd)
    except FileNotFoundError:
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        status = os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
        return _unlink(path, dir_fd, status)
    try:
        freed = _remove_contents(root)
    finally:
        os.close(root)
    with suppress(FileNotFoundError):  # someone else removes the same tree
        os.rmdir(path, dir_fd=dir_fd)
    return freed


def _open_to_remove(name: Path | str | bytes, dir_fd: int | None) -> int:
    """Open a directory whose permissions may shut out its own owner."""
    try:
        opened = os.open(name, DIRECTORY, dir_fd=dir_fd)
    except PermissionError:
        handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
        try:
            os.chmod(f"/proc/self/fd/{handle}", 0o700)
        finally:
            os.close(handle)
        opened = os.open(name, DIRECTORY, dir_fd=dir_fd)
    if os.geteuid() != 0:
        os.fchmod(opened, 0o700)
    return opened


def _remove_contents(root: int) -> int:
    freed = 0
    found = [b""]
    with Directories(root, same_mount=True) as directories:
        for path in found:  # grows while it is gone through
            descriptor = directories.fd(path)
            prefix = path + b"/" if path else b""
            with os.scandir(descriptor) as scan:
                items = list(scan)
            for item in items:
                name = os.fsencode(item.name)
                if is_folder(item):
                    if os.geteuid() != 0:
                        os.close(_open_to_remove(name, descriptor))
                    found.append(prefix + name)
                else:
                    freed += _unlink(name, descriptor, None)
        for path in reversed(found[1:]):
            parent, name = split(path)
            os.rmdir(name, dir_fd=directories.fd(parent))
    return freed


def _unlink(name: Path | str | bytes, dir_fd: int | None, status: os.stat_result | None) -> int:
    """Unlink a name; return the bytes that went with it."""
    try:
        status = status or os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return 0  # someone else removes the same tree
    return status.st_size if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 else 0
