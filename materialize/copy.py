"""Plain trees whose files are nobody else's, and the list that tells later what was changed in them."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from blake3 import blake3

from lading import private
from lading.errors import AlreadyExists
from lading.materialize import reflink
from lading.materialize.attributes import Attributes, prepare_root
from lading.materialize.beneath import DIRECTORY, remove_tree, split, told
from lading.materialize.build import THREADS, File, Progress, TreeBuilder
from lading.values import ContentSource, Entry, Inode

#: Folders in which trees are built beside their destination.
BUILDING_PREFIX: Final = ".lading-"

_NS: Final = 1_000_000_000
_INDEX_MAGIC: Final = b"LADSTAT\x01"
_INDEX_HEAD: Final = struct.Struct("<8sQ")  # magic, number of records
_INDEX_RECORD: Final = struct.Struct("<QQqIqII")  # inode, size, mtime s + ns, ctime s + ns, bytes of the path
_DIGEST_SIZE: Final = 32


class StatRecord(NamedTuple):
    """What a regular file looked like when it was made: equal now means not written since."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


StatIndex = Mapping[bytes, StatRecord]


@dataclass(frozen=True, slots=True)
class CopyReport:
    """What a copy made."""

    files: int  #: names of regular files
    bytes: int  #: their sizes, each inode once
    warnings: tuple[str, ...] = ()  #: what could not be applied, one sentence a kind
    index: StatIndex = field(default_factory=dict)  #: by path


def stat_record(status: os.stat_result) -> StatRecord:
    """Reduce a file's status to what tells that it was written."""
    return StatRecord(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class Clonable(Protocol):
    """Has files whose blocks may be shared."""

    def open(self, inode: Inode) -> int | None:
        """Open one for reading; None when it is not there."""


class _CopyBuilder(TreeBuilder):
    """A tree of its own files; remembers how each looked."""

    def __init__(
        self, root: int, source: ContentSource, attributes: Attributes, progress: Progress | None, pool: Clonable | None
    ) -> None:
        super().__init__(root, source, attributes, progress=progress, threads=THREADS)
        self._pool = pool
        self.index: dict[bytes, StatRecord] = {}
        self._linked: set[bytes] = set()

    def regular(self, entry: Entry, inode: Inode) -> None:
        """Share the blocks of the pool's file if there is one, else write."""
        if self._pool is None or not inode.size or not self._cloned(entry, inode, self._pool):
            self.write_later(File(entry.path, inode))

    def _cloned(self, entry: Entry, inode: Inode, pool: Clonable) -> bool:
        found = pool.open(inode)
        if found is None:
            return False
        parent, name = split(entry.path)
        folder = self.directories.fd(parent)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(name, flags, self.attributes.creation_mode(inode), dir_fd=folder)
            try:
                if not reflink.clone(found, descriptor):
                    os.unlink(name, dir_fd=folder)
                    return False
                self.attributes.complete(descriptor, inode)
                self.written(descriptor, name, folder, File(entry.path, inode))
            finally:
                os.close(descriptor)
        finally:
            os.close(found)
        return True

    def written(self, descriptor: int, name: bytes, parent: int, file: File) -> None:
        """Note how the complete file looks."""
        del name, parent
        self.index[file.path] = stat_record(os.fstat(descriptor))

    def link_further(self, path: bytes, leader: bytes, inode: Inode) -> None:
        """Link, and note both names: a further name changes an inode's ctime."""
        super().link_further(path, leader, inode)
        if inode.type == "f":
            self._linked |= {path, leader}

    def finish_links(self) -> None:
        """Look again at every inode that got a further name."""
        for path in sorted(self._linked):
            parent, name = split(path)
            status = os.stat(name, dir_fd=self.directories.fd(parent), follow_symlinks=False)
            self.index[path] = stat_record(status)


def copy_tree(
    destination: Path,
    tree: Sequence[Entry],
    source: ContentSource,
    *,
    as_root: bool | None = None,
    progress: Progress | None = None,
    pool: Clonable | None = None,
) -> CopyReport:
    """Write a full tree into a new folder.

    The tree is built in a folder beside the destination and renamed into place, so that it appears complete
    or not at all; where the destination is an empty folder that cannot be replaced (a mount point, or a
    parent that we cannot write), it is filled in place. Debris of copies that were killed is removed from the
    destination's parent.

    Args:
        destination: must not exist, or be an empty folder.
        tree: all entries of the tree, sorted, without deletions; an entry with the empty path describes
            the root.
        source: where contents come from.
        as_root: give owners and make devices; None: if we are root. Without it files belong to the caller,
            devices are left out, and setuid is kept only where the owner is right.
        progress: called with the bytes written so far.
        pool: whose files' blocks are shared where it has them.

    Raises:
        AlreadyExists: the destination is a file, or not empty.
        InvalidInput: the entries make no tree.
        Corrupt: a content is missing or damaged.
        Full, ReadOnly: as told by the filesystem.
    """
    if as_root is None:
        as_root = os.geteuid() == 0
    destination = Path(os.path.abspath(destination))
    with told(destination):
        require_free(destination)
        parent = os.open(destination.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return _copy_into(parent, destination, tree, source, Attributes(as_root=as_root), progress, pool)
        finally:
            os.close(parent)


def require_free(destination: Path) -> None:
    """Raise ``AlreadyExists`` unless a path is free, or an empty folder."""
    try:
        status = os.lstat(destination)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(status.st_mode):
        raise AlreadyExists(f"{destination} exists and is not a directory")
    if os.listdir(destination):
        raise AlreadyExists(f"{destination} exists and is not empty")


def _copy_into(
    parent: int,
    destination: Path,
    tree: Sequence[Entry],
    source: ContentSource,
    attributes: Attributes,
    progress: Progress | None,
    pool: Clonable | None,
) -> CopyReport:
    clean_building(parent, BUILDING_PREFIX)
    try:
        name, root = make_building(parent, BUILDING_PREFIX)
    except PermissionError:
        return _copy_in_place(parent, destination, tree, source, attributes, progress, pool)
    try:
        report = _build(root, tree, source, attributes, progress, pool)
        try:
            os.rename(name, destination.name, src_dir_fd=parent, dst_dir_fd=parent)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise AlreadyExists(f"{destination} was made by somebody else meanwhile") from error
            if error.errno != errno.EBUSY:
                raise
            return _copy_in_place(parent, destination, tree, source, attributes, progress, pool)
        return report
    finally:
        remove_tree(name, dir_fd=parent)  # nothing is left of it when it was renamed
        os.close(root)


def _copy_in_place(
    parent: int,
    destination: Path,
    tree: Sequence[Entry],
    source: ContentSource,
    attributes: Attributes,
    progress: Progress | None,
    pool: Clonable | None,
) -> CopyReport:
    """Fill an empty folder that cannot be replaced; emptied again when that fails."""
    root = os.open(destination.name, DIRECTORY, dir_fd=parent)
    try:
        if os.listdir(root):
            raise AlreadyExists(f"{destination} exists and is not empty")
        try:
            return _build(root, tree, source, attributes, progress, pool)
        except BaseException:
            for item in os.listdir(root):
                remove_tree(os.fsencode(item), dir_fd=root)
            raise
    finally:
        os.close(root)


def _build(
    root: int,
    tree: Sequence[Entry],
    source: ContentSource,
    attributes: Attributes,
    progress: Progress | None,
    pool: Clonable | None,
) -> CopyReport:
    prepare_root(root)
    builder = _CopyBuilder(root, source, attributes, progress, pool)
    builder.build(tree)
    return CopyReport(builder.files, builder.bytes, attributes.warnings, builder.index)


def make_building(parent: int, prefix: str) -> tuple[str, int]:
    """Make a private folder to build in, locked as long as its descriptor is open.

    Returns:
        Its name and its descriptor. Closing that makes the folder debris for anybody to remove.
    """
    while True:
        name = prefix + secrets.token_hex(8)
        private.make_folder(name, dir_fd=parent)
        try:
            descriptor = os.open(name, DIRECTORY, dir_fd=parent)
        except FileNotFoundError:
            continue  # somebody tidying up was quicker still
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except (BlockingIOError, FileNotFoundError):
            os.close(descriptor)  # somebody tidying up was quicker than our lock
            continue
        if (found.st_ino, found.st_dev) == (os.fstat(descriptor).st_ino, os.fstat(descriptor).st_dev):
            return name, descriptor
        os.close(descriptor)


def clean_building(parent: int, prefix: str) -> int:
    """Remove folders of builds whose process is gone.

    Only folders of our own user whose lock is free are touched.

    Returns:
        Bytes of the files removed.
    """
    freed = 0
    for name in os.listdir(parent):
        if not name.startswith(prefix):
            continue
        try:
            descriptor = os.open(name, DIRECTORY, dir_fd=parent)
        except (PermissionError, NotADirectoryError, FileNotFoundError):
            continue  # no folder, or none that we may enter: not made by a build of ours
        try:
            if os.fstat(descriptor).st_uid == os.geteuid():
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                freed += remove_tree(name, dir_fd=parent)
        except BlockingIOError:
            continue  # its builder lives
        finally:
            os.close(descriptor)
    return freed


def write_stat_index(path: Path, index: StatIndex) -> None:
    """Write how the regular files of a tree looked; replaces the file in one step.

    Source: docs/materialize.md, "The stat index".
    """
    parts = [_INDEX_HEAD.pack(_INDEX_MAGIC, len(index))]
    for name in sorted(index):
        record = index[name]
        times = (*divmod(record.mtime_ns, _NS), *divmod(record.ctime_ns, _NS))
        parts += (_INDEX_RECORD.pack(record.inode, record.size, *times, len(name)), name)
    data = b"".join(parts)
    temporary = path.with_name(path.name + ".new")
    with told(path):
        with suppress(FileNotFoundError):
            temporary.unlink()
        descriptor = private.opened(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        with open(descriptor, "wb") as file:
            file.write(data + blake3(data).digest())
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)


def read_stat_index(path: Path) -> dict[bytes, StatRecord]:
    """Read what :func:`write_stat_index` wrote.

    Returns:
        Records by path. Empty when there is no index or a damaged one: then every file is read again.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    body, digest = data[:-_DIGEST_SIZE], data[-_DIGEST_SIZE:]
    if len(body) < _INDEX_HEAD.size or blake3(body).digest() != digest:
        return {}
    magic, count = _INDEX_HEAD.unpack_from(body)
    if magic != _INDEX_MAGIC:
        return {}
    index, offset = {}, _INDEX_HEAD.size
    for _ in range(count):
        inode, size, mtime, mtime_ns, ctime, ctime_ns, length = _INDEX_RECORD.unpack_from(body, offset)
        offset += _INDEX_RECORD.size
        record = StatRecord(inode, size, mtime * _NS + mtime_ns, ctime * _NS + ctime_ns)
        index[body[offset : offset + length]] = record
        offset += length
    return index
