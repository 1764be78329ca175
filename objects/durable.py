"""Bytes onto stable storage: staging, syncing, publishing. The only place that does it.

An fsync that failed is final: the kernel may have dropped the pages, so the file is thrown away and its
writer told. Nothing is published that was not synced, and nothing counts as published before its folder
was synced, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from lading import locks, private
from lading.errors import FileTooLarge, Full, LadingError, ReadOnly

#: What the operating system says when no room is left.
NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

_RENAME_NOREPLACE: Final = 1
_AT_FDCWD: Final = -100
_libc = ctypes.CDLL(None, use_errno=True)


def translated(error: OSError, path: Path | str) -> OSError | LadingError:
    """Give an operating system's refusal its meaning; others are handed back as they are."""
    if error.errno in NO_ROOM:
        return Full(f"{path}: {os.strerror(error.errno).lower()}; free some, or run gc")
    if error.errno == errno.EFBIG:
        return FileTooLarge(f"{path}: {os.strerror(errno.EFBIG).lower()}")
    if error.errno == errno.EROFS:
        return ReadOnly(f"{path}: {os.strerror(errno.EROFS).lower()}")
    if error.errno is not None and not isinstance(
        error.filename, str | bytes
    ):  # writing and syncing go by descriptor: say which file
        return OSError(error.errno, error.strerror, str(path))
    return error


@contextmanager
def translating(path: Path | str) -> Iterator[None]:
    """Translate what the operating system refuses inside the block."""
    try:
        yield
    except OSError as error:
        meaning = translated(error, path)
        if meaning is error:
            raise
        raise meaning from error


def fsync_dir(folder: Path) -> None:
    """Put a folder's names onto stable storage."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with translating(folder):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Put a file's bytes onto stable storage."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_dir(folder: Path) -> None:
    """Make a folder, and its parents, durably; each is the owner's alone.

    An existing folder is left as it is.
    """
    missing = []
    step = folder
    while not step.is_dir():
        missing.append(step)
        step = step.parent
    with translating(folder):
        for step in reversed(missing):
            with contextlib.suppress(FileExistsError):
                private.make_folder(step)
            fsync_dir(step)
            fsync_dir(step.parent)


def rename_new(source: Path, target: Path) -> None:
    """Rename without replacing.

    Raises:
        FileExistsError: the target is there.
    """
    result = _libc.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE)
    if result == 0:
        return
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS):  # a filesystem or kernel without the flag: files can be linked
        os.link(source, target)
        os.unlink(source)
        return
    raise OSError(code, os.strerror(code), str(target))


def publish(staged: Path, final: Path) -> bool:
    """Give a synced file its final name and make that durable.

    Returns:
        False when the name was taken; the staged file is then removed.
    """
    with translating(final):
        make_dir(final.parent.parent)
        with contextlib.suppress(FileExistsError):
            private.make_folder(final.parent)
        try:
            rename_new(staged, final)
        except FileExistsError:
            os.unlink(staged)
            return False
        fsync_dir(final.parent)
        # Always: whoever made the folder may have been killed before its name was durable.
        fsync_dir(final.parent.parent)
    return True


def write_durably(path: Path, data: bytes, *, replace: bool = True) -> None:
    """Write a small file so that it is either whole or as it was.

    Raises:
        FileExistsError: it is there and ``replace`` is false.
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    with translating(path):
        descriptor = private.opened(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            try:
                write_all(descriptor, data)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if replace:
                os.rename(temporary, path)
            else:
                rename_new(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        fsync_dir(path.parent)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write every byte; a short write goes on where it stopped."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


class Staging:
    """A folder of one writer's unfinished files; what lies in it after a crash is debris.

    Whoever can take a folder's lock owns what is in it.
    """

    def __init__(self, parent: Path) -> None:
        """Make the folder and take its lock."""
        self.path = parent / os.urandom(16).hex()
        with translating(parent), _held(parent, fcntl.LOCK_SH):
            private.make_folder(self.path)
            try:
                self._lock = private.opened(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_EXCL)
            except OSError:
                os.rmdir(self.path)
                raise
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def new_file(self, suffix: str = "") -> tuple[Path, int]:
        """Make an empty file.

        Returns:
            Its path and a descriptor for reading and writing; the caller closes it.
        """
        path = self.path / f"{os.urandom(16).hex()}{suffix}"
        with translating(path):
            return path, private.opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)

    def close(self) -> None:
        """Remove the folder and what is left in it."""
        if self._lock < 0:
            return
        _remove(self.path)
        os.close(self._lock)
        self._lock = -1


def _remove(folder: Path) -> int:
    """Remove a staging folder's files; trees in it are left to the next collection.

    The lock's file goes last: without it the folder is anybody's.
    """
    freed = 0
    for item in sorted(os.scandir(folder), key=lambda item: item.name == "lock"):
        if item.is_dir(follow_symlinks=False):
            continue
        freed += item.stat(follow_symlinks=False).st_size
        os.unlink(item.path)
    with contextlib.suppress(OSError):  # a tree that could not be removed keeps the folder; gc tries again
        os.rmdir(folder)
    return freed


#: Folders of dead owners that are looked for in one go: each takes a descriptor, and nobody makes one meanwhile.
_DEBRIS_MAX: Final = 8


@contextlib.contextmanager
def _held(parent: Path, operation: int) -> Iterator[None]:
    """Hold the lock of the folder that staging folders lie in, for as long as one is made, or looked at."""
    descriptor = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        locks.take(descriptor, operation, "the staging folder")
        yield
    finally:
        os.close(descriptor)


def debris(parent: Path) -> Iterator[tuple[Path, int]]:
    """Find staging folders whose owner is gone.

    Nobody makes one while the locks are tried: a folder that was just made, and is not locked yet, would look dead.

    Yields:
        Folder and the descriptor that holds its lock; closed when the iteration goes on.
    """
    after = ""
    while found := _dead(parent, after):
        try:
            while found:
                folder, lock = found.pop(0)
                after = folder.name
                try:
                    yield folder, lock
                finally:
                    os.close(lock)
        finally:
            for _, lock in found:
                os.close(lock)


def _dead(parent: Path, after: str) -> list[tuple[Path, int]]:
    """The next few folders whose owner is gone, by name, with their locks taken."""
    found: list[tuple[Path, int]] = []
    try:
        with _held(parent, fcntl.LOCK_EX):
            for name in sorted(os.listdir(parent)):
                if name > after and len(found) < _DEBRIS_MAX:
                    lock = _lock_of_the_dead(parent / name)
                    if lock is not None:
                        found.append((parent / name, lock))
    except FileNotFoundError:
        return []
    except BaseException:
        for _, lock in found:
            os.close(lock)
        raise
    return found


def _lock_of_the_dead(folder: Path) -> int | None:
    """Take the lock of a folder whose owner is gone; None when it lives, or the folder has gone.

    A folder without a lock's file was left half made, or half removed: it is locked itself, since there may be no room
    for a file.
    """
    try:
        try:
            lock = os.open(folder / "lock", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock
