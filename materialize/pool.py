"""The pool: one file for every distinct inode (content, mode, owner, times, attributes), ready to be linked.

``cache/pool/ab/abcdef…`` is named by :func:`lading.values.inode_key`; where the filesystem's link limit
was met, ``….1``, ``….2`` continue it. Pool files are written once and never handed
to a writer. Files without content are never pooled: they save nothing, and they are what meets link limits.

Nothing here is synced. What this boot has written or verified is listed in ``cache/pool/.boot-ID``; any
other pool file is compared with what it should be before it is linked.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

from blake3 import blake3

from lading import locks, private
from lading.materialize.attributes import Attributes
from lading.materialize.beneath import DIRECTORY
from lading.materialize.build import stored_bytes
from lading.materialize.cachelock import make_private
from lading.values import Inode, inode_key

#: One line of the list of verified files: key and number.
_RECORD: Final = struct.Struct("<20sI")
_LEDGER_PREFIX: Final = ".boot-"

#: Times that every filesystem in use can hold; others are clamped by the kernel and not compared.
_COMPARABLE_S: Final = range(0, 1 << 31)
_NS: Final = 1_000_000_000


def pool_name(key: bytes, number: int = 0) -> str:
    """Path of a pool file below the pool."""
    text = key.hex()
    return f"{text[:2]}/{text}.{number}" if number else f"{text[:2]}/{text}"


class Pool:
    """The pool of one cache folder, as seen by one build. Concurrency: used by several threads of it."""

    def __init__(self, cache_root: Path, attributes: Attributes, boot: str) -> None:
        self._attributes = attributes
        self._boot = boot
        self._numbers: dict[bytes, int] = {}
        self._new: list[bytes] = []
        folder = cache_root / "pool"
        make_private(folder)
        self._fd = os.open(folder, DIRECTORY)
        self._verified = self._read_ledger()

    def close(self) -> None:
        """Write down what was verified or made, and let go of the folder."""
        try:
            self._write_ledger()
        finally:
            os.close(self._fd)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def link_out(self, key: bytes, inode: Inode, name: bytes, parent: int) -> bool:
        """Give a pool inode a name in a tree.

        Returns:
            False when the pool has no sound file for it.
        """
        number = self._numbers.get(key, 0)
        while True:
            if not self._is_sound(key, number, inode):
                self._numbers[key] = number
                return False
            try:
                source = pool_name(key, number)
                os.link(source, name, src_dir_fd=self._fd, dst_dir_fd=parent, follow_symlinks=False)
            except FileNotFoundError:
                return False
            except OSError as error:
                if error.errno != errno.EMLINK:
                    raise
                number += 1
                self._numbers[key] = number
            else:
                return True

    def has(self, key: bytes, inode: Inode) -> bool:
        """Say whether the pool has a sound first file of an inode."""
        try:
            os.stat(pool_name(key), dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return self._is_sound(key, 0, inode)

    def open(self, inode: Inode) -> int | None:
        """Open the sound file of an inode for reading; None when there is none."""
        key = inode_key(inode)
        if not self.has(key, inode):
            return None
        return os.open(pool_name(key), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)

    def skip_full(self, key: bytes) -> None:
        """Go on to a further inode, since the present one cannot take as many names as are needed."""
        self._numbers[key] = self._numbers.get(key, 0) + 1

    def publish(self, key: bytes, name: bytes, parent: int) -> None:
        """Put a complete file of a tree into the pool. If another build was first, its file stays the pool's."""
        number = self._numbers.get(key, 0)
        target = pool_name(key, number)
        try:
            self._link_in(name, parent, target)
        except FileNotFoundError:
            with suppress(FileExistsError):
                private.make_folder(target[:2], dir_fd=self._fd)
            self._link_in(name, parent, target)

    def _link_in(self, name: bytes, parent: int, target: str) -> None:
        with suppress(FileExistsError):
            os.link(name, target, src_dir_fd=parent, dst_dir_fd=self._fd, follow_symlinks=False)
            self._note(target)

    def _note(self, target: str) -> None:
        text, _, number = target[3:].partition(".")
        record = _RECORD.pack(bytes.fromhex(text), int(number or 0))
        self._verified.add(record)
        self._new.append(record)

    def _is_sound(self, key: bytes, number: int, inode: Inode) -> bool:
        """Compare a file of another boot with what it should be; drop it if it differs."""
        if _RECORD.pack(key, number) in self._verified:
            return True
        target = pool_name(key, number)
        try:
            descriptor = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=self._fd)
        except FileNotFoundError:
            return False
        except PermissionError:  # a mode that shuts out its own owner, who cannot look, only write it again
            os.unlink(target, dir_fd=self._fd)
            return False
        try:
            sound = is_as_recorded(descriptor, inode, self._attributes)
        finally:
            os.close(descriptor)
        if sound:
            self._note(target)
        else:
            os.unlink(target, dir_fd=self._fd)
        return sound

    def drop(self, key: bytes) -> None:
        """Remove all pool files of an inode; trees that link them keep theirs."""
        number = 0
        try:
            while True:
                os.unlink(pool_name(key, number), dir_fd=self._fd)
                number += 1
        except FileNotFoundError:
            self._verified -= {_RECORD.pack(key, dropped) for dropped in range(number)}

    def _read_ledger(self) -> set[bytes]:
        for item in os.listdir(self._fd):
            if item.startswith(_LEDGER_PREFIX) and item != _LEDGER_PREFIX + self._boot:
                with suppress(FileNotFoundError):
                    os.unlink(item, dir_fd=self._fd)
        try:
            descriptor = os.open(_LEDGER_PREFIX + self._boot, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self._fd)
        except FileNotFoundError:
            return set()
        with open(descriptor, "rb") as ledger:
            data = ledger.read()
        size = _RECORD.size
        return {data[start : start + size] for start in range(0, len(data) - len(data) % size, size)}

    def _write_ledger(self) -> None:
        if not self._new:
            return
        descriptor = private.opened(_LEDGER_PREFIX + self._boot, os.O_WRONLY | os.O_CREAT, dir_fd=self._fd)
        try:
            locks.take(descriptor, fcntl.LOCK_EX, "the list of verified pool files")
            end = os.fstat(descriptor).st_size
            os.pwrite(descriptor, b"".join(self._new), end - end % _RECORD.size)  # over what a kill left half
        finally:
            os.close(descriptor)
        self._new = []


def is_as_recorded(descriptor: int, inode: Inode, attributes: Attributes) -> bool:
    """Compare an open file with its inode: kind, size, owner, mode, time, and every stored byte."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size != inode.size:
        return False
    if not has_attributes(status, inode, attributes):
        return False
    state = blake3()
    for chunk in stored_bytes(descriptor, inode):
        state.update(chunk)
    return not inode.digest or state.digest() == inode.digest


def has_attributes(status: os.stat_result, inode: Inode, attributes: Attributes) -> bool:
    """Compare owner, mode and, in whole seconds where every filesystem can hold it, the time."""
    second = inode.mtime_ns // _NS
    return (
        stat.S_IMODE(status.st_mode) == attributes.mode(inode)
        and (status.st_uid, status.st_gid) == attributes.owner(inode)
        and (second not in _COMPARABLE_S or status.st_mtime_ns // _NS == second)
    )
