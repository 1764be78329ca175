"""The SQLite that the catalog runs on: which one, what a connection is, what its errors mean."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any, Final, Protocol

from lading import locks, private
from lading.errors import Busy, Corrupt, FileTooLarge, Full, InvalidInput, ReadOnly


def _load_peewee() -> Any:
    """Import peewee without the PostgreSQL drivers that it would load for nothing: they cost 300 ms."""
    hidden = [name for name in ("psycopg2", "psycopg") if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        import peewee as loaded
    finally:
        for name in hidden:
            sys.modules.pop(name, None)
    return loaded


peewee: Any = _load_peewee()
sqlite: Any = peewee.sqlite3


class Connection(Protocol):
    """A raw SQLite connection."""

    def execute(self, sql: str, parameters: Any = ..., /) -> Any:
        """Run one statement."""
        ...

    def executemany(self, sql: str, parameters: Any, /) -> Any:
        """Run one statement for many rows."""
        ...


class Tracked(sqlite.Connection):  # type: ignore[misc]
    """A connection that can be referred to weakly, so that closing the catalog finds it."""


#: Words of SQLite's behind which the operating system may have refused anything.
_VAGUE: Final = ("disk I/O error", "unable to open")

#: Bytes that must fit beside the catalog: its log's beginning and the shared memory.
_PROBE_SIZE: Final = 1 << 20

#: What SQLite says of a file that is none, or of rows that its own indexes and rules contradict.
_DAMAGE: Final = (
    "malformed", "not a database", "constraint failed", "no such table", "no such column", "no such index", "has no column named", "Could not decode",
    "unsupported file format", "database corruption",
)  # fmt: skip


def meaning(error: Exception, path: Path) -> Exception:
    """Translate what SQLite refuses where its meaning is known."""
    words = str(error)
    if isinstance(error, UnicodeDecodeError):  # also of a message of SQLite's that quotes what is damaged
        return Corrupt(f"{path} is damaged: it has text that is no UTF-8; run `lading catalog rebuild`")
    if "locked" in words or "busy" in words:
        return busy(words, path)
    if "full" in words:
        return Full(f"{path}: {os.strerror(errno.ENOSPC).lower()}; free some, or run gc")
    if "readonly" in words or "read-only" in words:
        return ReadOnly(f"{path} may not be written")
    if any(sign in words for sign in _DAMAGE):
        return Corrupt(f"{path} is damaged: {words}; run `lading catalog rebuild`")
    if any(vague in words for vague in _VAGUE):
        cause = _refused(path)
        if cause is not None and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return Full(f"{path}: {os.strerror(cause.errno).lower()}; free some, or run gc")
        if cause is not None and cause.errno == errno.EFBIG:
            return FileTooLarge(f"{path}: {os.strerror(cause.errno).lower()}")
        if cause is not None and cause.errno == errno.EROFS:
            return ReadOnly(f"{path} may not be written")
    if "unable to open" in words:
        return InvalidInput(f"{path} cannot be opened: {words}")
    if "disk I/O error" in words:
        return OSError(errno.EIO, os.strerror(errno.EIO), str(path))
    return error


#: Bytes that SQLite locks in the shared memory beside a database in WAL mode: for writing, checkpoints and recovery, each of
#: which one connection has at a time; then one for each mark of readers.
_SHM_ALONE: Final = (120, 3)

#: Bytes that it locks in the database file: whoever wants it alone, as in other modes, has some of them for writing.
_FILE_LOCKS: Final = (1 << 30, 512)


def busy(words: str, path: Path) -> Busy:
    """Say that a database is held by somebody who does not take our locks, and by whom if that can be found.

    Args:
        words: SQLite's.
        path: the database.
    """
    for file, (start, length), shared in ((Path(f"{path}-shm"), _SHM_ALONE, False), (path, _FILE_LOCKS, True)):
        try:
            own = _own_descriptor(file)
            if own is None:
                who = locks.listed_holder(file, start, length)
            else:
                who = locks.range_holder(own, start, length, shared=shared)
        except OSError:  # closed meanwhile, or a filesystem without such locks
            continue
        if who:
            return Busy(f"catalog is busy: {words}: held by {who}; try again")
    return Busy(f"catalog is busy: {words}; try again")


def _own_descriptor(file: Path) -> int | None:
    """A descriptor by which SQLite has a file open in this process.

    None is opened for the purpose: closing it would drop all locks that SQLite has on the file.
    """
    try:
        wanted = os.stat(file)
        numbers = [int(number) for number in os.listdir("/proc/self/fd")]
    except OSError:
        return None
    for number in numbers:
        try:
            found = os.fstat(number)
        except OSError:  # of the listing itself
            continue
        if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
            return number
    return None


def _refused(path: Path) -> OSError | None:
    """Try what SQLite may have tried, to learn what the operating system says to it: it keeps that to itself."""
    try:
        end = max(os.stat(f"{path}{suffix}").st_size for suffix in ("", "-wal") if os.path.exists(f"{path}{suffix}"))
    except (OSError, ValueError):
        end = 0
    probe = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    try:
        descriptor = private.opened(probe, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            os.unlink(probe)
            os.posix_fallocate(descriptor, end, _PROBE_SIZE)
        finally:
            os.close(descriptor)
    except OSError as error:
        return error
    return None
