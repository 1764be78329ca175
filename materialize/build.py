"""Building a tree from sorted entries: directories first, then contents, further names, attributes last.

The engine of farms and copies. It makes every name relative to an open directory, creates files with
``O_EXCL``, keeps a bounded number of descriptors open, and writes small files on a few threads: each
system call that changes a directory lets the other threads run.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Final, NamedTuple

from lading.errors import Corrupt, InvalidInput
from lading.materialize.attributes import Attributes, clamp_time
from lading.materialize.beneath import Directories, open_beneath, split
from lading.values import PRESENT, WHITEOUT, ContentSource, Entry, Inode, printable

#: Threads that write files. More only contend for the interpreter and for the journal.
THREADS: Final = 2
#: Batches given out and not finished. With BATCH_SIZE this bounds memory, with BATCH_DIRECTORIES descriptors.
BATCHES: Final = 4
BATCH_SIZE: Final = 4 << 20
BATCH_FILES: Final = 256
BATCH_DIRECTORIES: Final = 4
#: A larger file is written as its chunks come, by the thread that reads them.
LARGE_FILE: Final = 1 << 20
READ_SIZE: Final = 1 << 20

#: What an implied directory is when nobody gave it attributes.
BARE_DIRECTORY: Final = Inode("d", 0o755, 0, 0, 0)

_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DEVICE_TYPES: Final = {"c": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO, "s": stat.S_IFSOCK}

Progress = Callable[[int, int | None], None]


class File(NamedTuple):
    """A regular file to be made."""

    path: bytes
    inode: Inode
    key: bytes = b""  #: of its pool inode; empty when it is nobody's but the tree's


class _Batch:
    """Small files of a few directories, and descriptors of these that belong to the batch."""

    def __init__(self) -> None:
        self.files: list[tuple[int, bytes, File, bytes]] = []  # directory, name, file, content
        self.folders: dict[bytes, int] = {}
        self.size = 0
        self.given = False  #: a worker has it, and closes it

    def is_full(self) -> bool:
        return self.size >= BATCH_SIZE or len(self.files) >= BATCH_FILES

    def close(self) -> None:
        while self.folders:
            os.close(self.folders.popitem()[1])


class Workers:
    """Runs batches on threads, a bounded number at a time, and raises the first error of any."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tree")
        self._running: deque[Future[None]] = deque()

    def submit(self, work: Callable[[_Batch], None], batch: _Batch) -> None:
        """Hand out a batch, whose descriptors are closed after the work; waits while too many are out."""
        while len(self._running) >= BATCHES:
            self._running.popleft().result()
        batch.given = True
        self._running.append(self._pool.submit(_run, work, batch))

    def drain(self) -> None:
        """Wait for all batches."""
        while self._running:
            self._running.popleft().result()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._pool.shutdown(wait=True)  # batches own descriptors: they run even when another one failed


def _run(work: Callable[[_Batch], None], batch: _Batch) -> None:
    try:
        work(batch)
    finally:
        batch.close()


class TreeBuilder:
    """Builds one tree below an open, empty directory. Subclasses say what deletions and shared files mean."""

    def __init__(
        self,
        root: int,
        source: ContentSource,
        attributes: Attributes,
        *,
        progress: Progress | None = None,
        threads: int = THREADS,
    ) -> None:
        self.root = root
        self.attributes = attributes
        self.directories = Directories(root)
        self.files = 0  #: regular files, each name
        self.bytes = 0  #: their sizes, each inode of the tree once
        self._source = source
        self._progress = progress
        self._threads = threads
        self._made: dict[bytes, Entry] = {}  # directories, in the order they were made
        self.pending: list[File] = []  #: files put off by :meth:`write_later`
        self._links: list[Entry] = []
        self._skipped: set[bytes] = set()
        self.leaders: dict[bytes, bytes] = {}  # where a group of names was continued past the link limit

    # What a subclass may change.

    def whiteout(self, name: bytes, parent: int) -> None:
        """Make a deletion; a full tree has none."""
        del parent
        raise InvalidInput(f"a full tree cannot hold a deletion ({printable(name)})")

    def finish_directory(self, descriptor: int, entry: Entry) -> None:
        """Mark an open directory before it gets its times."""

    def needs_marks(self, entry: Entry) -> bool:
        """Say whether :meth:`finish_directory` has something to do."""
        del entry
        return False

    def regular(self, entry: Entry, inode: Inode) -> None:
        """Make a regular file now, or put it off by :meth:`write_later`."""
        self.write_later(File(entry.path, inode))

    def written(self, descriptor: int, name: bytes, parent: int, file: File) -> None:
        """Learn that a file is complete; runs on any thread."""

    def link_further(self, path: bytes, leader: bytes, inode: Inode) -> None:
        """Give an inode of the tree a further name; past the filesystem's link limit, start a further inode."""
        try:
            self.link_within(self.leaders.get(leader, leader), path)
        except OSError as error:
            if error.errno != errno.EMLINK or inode.type != "f":
                raise
            self.duplicate(self.leaders.get(leader, leader), path, inode)
            self.leaders[leader] = path

    def finish_links(self) -> None:
        """Learn that all names of all files are there."""

    # The engine.

    def build(self, entries: Sequence[Entry]) -> None:
        """Make everything.

        Args:
            entries: of one tree, sorted so that directories come before what they hold.

        Raises:
            InvalidInput: entries that make no tree.
            Corrupt: a content does not have its recorded size.
        """
        try:
            self._made[b""] = Entry(b"", PRESENT, BARE_DIRECTORY)
            for entry in entries:
                self._make(entry)
            self.write_pending()
            self._link_all()
            self.finish_links()
            self._finish_directories()
        finally:
            self.directories.close()

    def write_later(self, file: File) -> None:
        """Put a file on the list of those whose content is to be read."""
        self.pending.append(file)

    def write_pending(self) -> None:
        """Write the files put off so far, in their order."""
        pending, self.pending = self.pending, []
        if pending:
            with Workers(self._threads) as workers:
                try:
                    self._write(pending, workers)
                finally:
                    workers.drain()

    def link_within(self, leader: bytes, path: bytes) -> None:
        """Link a name of the tree to another one's inode."""
        parent, name = split(path)
        leader_parent, leader_name = split(leader)
        source, target = self.directories.fd(leader_parent), self.directories.fd(parent)
        os.link(leader_name, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)

    def duplicate(self, leader: bytes, path: bytes, inode: Inode) -> None:
        """Make a file from the bytes of another one of the tree."""
        parent, name = split(path)
        reader = open_beneath(self.root, leader)
        try:
            self._write_file(self.directories.fd(parent), name, File(path, inode), stored_bytes(reader, inode))
        finally:
            os.close(reader)

    def _make(self, entry: Entry) -> None:
        path, inode = entry.path, entry.inode
        if not path:
            self._made[b""] = entry if inode is not None else entry._replace(inode=BARE_DIRECTORY)
            return
        parent, name = split(path)
        if parent not in self._made:
            raise InvalidInput(f"{printable(path)} lies in no directory of its tree")
        if entry.kind == WHITEOUT:
            self.whiteout(name, self.directories.fd(parent))
        elif inode is None or inode.type == "d":
            inode = inode or BARE_DIRECTORY
            os.mkdir(name, self.attributes.creation_mode(inode), dir_fd=self.directories.fd(parent))
            self._made[path] = entry._replace(inode=inode)
        elif entry.link is not None:
            self._links.append(entry)
        elif inode.type == "f":
            self.files += 1
            self.bytes += inode.size
            self.regular(entry, inode)
        else:
            self._make_special(entry, inode, name, self.directories.fd(parent))

    def _make_special(self, entry: Entry, inode: Inode, name: bytes, parent: int) -> None:
        if inode.type == "l":
            os.symlink(inode.target, name, dir_fd=parent)
        elif inode.type in _DEVICE_TYPES:
            if inode.type in "cb" and not self.attributes.as_root:
                self._skipped.add(entry.path)
                self.attributes.warn("devices", "devices are left out: only root can make them")
                return
            kind = _DEVICE_TYPES[inode.type]
            os.mknod(name, kind | 0o600, inode.rdev, dir_fd=parent)
        else:
            raise InvalidInput(f"{printable(entry.path)} is of the unknown type {inode.type!r}")
        self.attributes.apply_at(name, parent, inode)

    def _write(self, files: Sequence[File], workers: Workers) -> None:
        contents = iter(self._source.contents(file.inode.digest for file in files if file.inode.digest))
        batch, done = _Batch(), 0
        try:
            for file in files:
                chunks = next(contents) if file.inode.digest else iter(())
                parent, name = split(file.path)
                if file.inode.size > LARGE_FILE:
                    self._write_file(self.directories.fd(parent), name, file, chunks)
                else:
                    batch = self._into(batch, file, b"".join(chunks), workers)
                done += file.inode.size
                if self._progress is not None:
                    self._progress(done, None)
            workers.submit(self._write_batch, batch)
        except BaseException:
            if not batch.given:
                batch.close()
            raise

    def _into(self, batch: _Batch, file: File, content: bytes, workers: Workers) -> _Batch:
        """Add a file to the batch; give out a full one and start the next."""
        parent, name = split(file.path)
        folder = batch.folders.get(parent)
        if (folder is None and len(batch.folders) >= BATCH_DIRECTORIES) or batch.is_full():
            workers.submit(self._write_batch, batch)
            batch, folder = _Batch(), None
        if folder is None:
            folder = batch.folders[parent] = os.dup(self.directories.fd(parent))
        batch.files.append((folder, name, file, content))
        batch.size += len(content)
        return batch

    def _write_batch(self, batch: _Batch) -> None:
        for folder, name, file, content in batch.files:
            self._write_file(folder, name, file, (content,) if content else ())

    def _write_file(self, parent: int, name: bytes, file: File, chunks: Iterable[bytes]) -> None:
        inode = file.inode
        descriptor = os.open(name, _CREATE, self.attributes.creation_mode(inode), dir_fd=parent)
        try:
            write_content(descriptor, inode, chunks, file.path)
            self.attributes.complete(descriptor, inode)
            self.written(descriptor, name, parent, file)
        finally:
            os.close(descriptor)

    def _link_all(self) -> None:
        for entry in self._links:
            leader, inode = entry.link, entry.inode
            if leader in self._skipped or leader is None or inode is None:
                continue
            try:
                self.link_further(entry.path, leader, inode)
            except FileNotFoundError as error:
                message = f"{printable(entry.path)} is a further name of {printable(leader)}, which is not there"
                raise InvalidInput(message) from error
            if inode.type == "f":
                self.files += 1

    def _finish_directories(self) -> None:
        """Give directories their attributes, those inside before those around them."""
        for path, entry in reversed(self._made.items()):
            inode = entry.inode
            if inode is None:
                continue
            if not path:
                self.finish_directory(self.root, entry)
                self.attributes.apply(self.root, inode)
                continue
            parent, name = split(path)
            folder = self.directories.fd(parent)
            if self.attributes.is_complete(inode) and not self.needs_marks(entry):
                moment = clamp_time(inode.mtime_ns)
                os.utime(name, ns=(moment, moment), dir_fd=folder, follow_symlinks=False)
                continue
            descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            try:
                self.finish_directory(descriptor, entry)
                self.attributes.complete(descriptor, inode)
            finally:
                os.close(descriptor)


def write_content(descriptor: int, inode: Inode, chunks: Iterable[bytes], path: bytes) -> None:
    """Write a file's stored bytes where they belong, leaving its holes.

    Args:
        descriptor: of a new, empty file.
        inode: tells size and regions.
        chunks: the stored bytes, in order.
        path: for messages.

    Raises:
        Corrupt: there are more or fewer bytes than recorded.
    """
    regions = inode.sparse or (((0, inode.size),) if inode.digest else ())
    position, left, following = 0, 0, iter([region for region in regions if region[1]])
    for chunk in chunks:
        view = memoryview(chunk)
        while view:
            if not left:
                position, left = next(following, (0, 0))
                if not left:
                    raise Corrupt(f"{printable(path)}: its content is longer than recorded")
                if position:
                    os.lseek(descriptor, position, os.SEEK_SET)
            count = os.write(descriptor, view[:left])
            view, left, position = view[count:], left - count, position + count
    if left or next(following, None) is not None:
        raise Corrupt(f"{printable(path)}: its content is shorter than recorded")
    if position < inode.size:
        os.ftruncate(descriptor, inode.size)


def stored_bytes(descriptor: int, inode: Inode) -> Iterator[bytes]:
    """Read a file's stored bytes, without its holes; less where the file is shorter than recorded."""
    for position, length in inode.sparse or (((0, inode.size),) if inode.digest else ()):
        end = position + length
        while position < end and (chunk := os.pread(descriptor, min(READ_SIZE, end - position), position)):
            yield chunk
            position += len(chunk)
