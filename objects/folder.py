"""Packs in a local folder: ``packs/ab/abcd….pack``."""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lading.objects.backend import PackMissing, PackUnreadable, ShortRead
from lading.objects.durable import fsync_dir, publish
from lading.objects.layout import PACK_SUFFIX

#: Packs kept open for reading: enough for any sequential read, few enough for a limit of 64 descriptors.
OPEN_MAX: Final = 10


#: Errors of reading that mean that bytes are lost: the disk's, a filesystem's own checksums, and what comes of something
#: else than a file in a pack's place.
_LOST: Final = frozenset(
    {
        errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.ENODATA, errno.EREMOTEIO, errno.EILSEQ, errno.ELOOP,
        errno.EISDIR, errno.ENXIO, errno.ENOTDIR, errno.ESPIPE,
    }
)  # fmt: skip


class FolderBackend:
    """Keeps packs below a folder.

    Concurrency: safe from several threads; a pack deleted meanwhile is served as long as it is open.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()

    def path(self, name: str) -> Path:
        """A pack's file."""
        return self._folder / name[:2] / f"{name}{PACK_SUFFIX}"

    def publish(self, staged: Path, name: str) -> bool:
        """Rename a synced file into place and sync its folder."""
        return publish(staged, self.path(name))

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Read exactly ``size`` bytes of a pack."""
        try:
            with self._lock:  # the descriptor must not be closed between look-up and read
                descriptor = self._descriptor(name)
                duplicate = os.dup(descriptor)
            try:
                return _read_all(name, duplicate, offset, size)
            finally:
                os.close(duplicate)
        except OSError as error:
            raise _meaning(name, error) from error

    def _descriptor(self, name: str) -> int:
        found = self._open.get(name)
        if found is not None:
            self._open.move_to_end(name)
            return found
        try:
            descriptor = os.open(self.path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError as error:
            raise PackMissing(name) from error
        self._open[name] = descriptor
        if len(self._open) > OPEN_MAX:
            os.close(self._open.popitem(last=False)[1])
        return descriptor

    def size(self, name: str) -> int | None:
        """Tell a pack's bytes."""
        try:
            return self.path(name).stat(follow_symlinks=False).st_size
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _meaning(name, error) from error

    def delete(self, name: str) -> bool:
        """Remove a pack's file. Its folder stays: another process may be about to publish into it."""
        with self._lock:
            descriptor = self._open.pop(name, None)
            if descriptor is not None:
                os.close(descriptor)
        path = self.path(name)
        try:
            os.unlink(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        fsync_dir(path.parent)
        return True

    def __iter__(self) -> Iterator[str]:
        try:
            folders = sorted(item.name for item in os.scandir(self._folder) if item.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            return
        for folder in folders:
            try:
                names = sorted(os.listdir(self._folder / folder))
            except FileNotFoundError:
                continue
            yield from (name.removesuffix(PACK_SUFFIX) for name in names if name.endswith(PACK_SUFFIX))

    def close(self) -> None:
        """Close all open packs."""
        with self._lock:
            while self._open:
                os.close(self._open.popitem()[1])


def _meaning(name: str, error: OSError) -> PackUnreadable | OSError:
    """What an error says of a pack: that its bytes are lost, or nothing."""
    return PackUnreadable(name, os.strerror(error.errno or 0).lower()) if error.errno in _LOST else error


def _read_all(name: str, descriptor: int, offset: int, size: int) -> bytes:
    data = os.pread(descriptor, size, offset)
    if len(data) == size:
        return data
    parts = [data]
    done = len(data)
    while done < size and parts[-1]:
        parts.append(os.pread(descriptor, size - done, offset + done))
        done += len(parts[-1])
    if done < size:
        raise ShortRead(name, offset, size, done)
    return b"".join(parts)
