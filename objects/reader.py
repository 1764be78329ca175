"""Reading objects: look up in batches, read neighbours in one go, decompress and verify ahead of the caller.

Every object is hashed before, or while, its bytes are handed on: wrong bytes end in ``DigestMismatch``,
which names the object. A pack that a repack has replaced meanwhile is looked up once more.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Final

from blake3 import blake3

from lading.errors import Corrupt
from lading.objects.backend import PackBackend, PackMissing
from lading.objects.frame import decompress
from lading.objects.pack import frames_of
from lading.values import FRAME_SIZE, Location

#: Digests that are looked up together.
LOOKUP: Final = 512

#: Plain bytes of the objects that are read as one task.
TASK_SIZE: Final = 4 << 20

#: Stored bytes that are read and thrown away rather than read in two goes.
GAP_SIZE: Final = 32 << 10

Locate = Callable[[Sequence[bytes]], Mapping[bytes, Location]]
#: Makes of a damaged object the error that its reader gets.
Explain = Callable[["DigestMismatch"], Exception]


class DigestMismatch(Corrupt):
    """An object's bytes are not what its name says."""

    def __init__(self, digest: bytes, why: str) -> None:
        super().__init__(f"object {digest.hex()}: {why}")
        self.digest = digest


class ObjectReader:
    """Reads objects wherever they lie. See ``values.ContentSource``.

    Memory: at most ``workers + 2`` tasks of ``TASK_SIZE`` are in flight.
    Concurrency: safe from several threads; each iteration belongs to one.
    """

    def __init__(
        self, backend: PackBackend, locate: Locate, *, workers: int = 2, explain: Explain | None = None
    ) -> None:
        self._backend = backend
        self._locate = locate
        self._explain = explain or (lambda error: error)
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, "lading-read")
        # One thread looks ahead: each that asks the catalog has a connection of its own, and with it open files.
        self._lookup = ThreadPoolExecutor(1, "lading-locate")

    def contents(self, digests: Iterable[bytes], *, verify: bool = True) -> Iterator[Iterator[bytes]]:
        """Open many objects, in order; see ``values.ContentSource.contents``.

        Args:
            digests: see there.
            verify: compare each object's digest. Without it only what cannot be decompressed is noticed: for
                callers who check a digest over everything, and look closer when that one is wrong.
        """
        tasks: deque[tuple[list[Location], Future[list[bytes]] | None]] = deque()
        try:
            for group in self._groups(digests):
                large = len(group) == 1 and group[0].size > FRAME_SIZE
                tasks.append((group, None if large else self._pool.submit(self._load, group, verify)))
                if len(tasks) > self._workers + 1:
                    yield from self._take(*tasks.popleft(), verify)
            while tasks:
                yield from self._take(*tasks.popleft(), verify)
        except DigestMismatch as error:
            raise self._explain(error) from error

    def _take(self, group: list[Location], task: Future[list[bytes]] | None, verify: bool) -> Iterator[Iterator[bytes]]:
        if task is None:
            yield self._stream(group[0], verify)
        else:
            for data in task.result():
                yield iter((data,))

    def _groups(self, digests: Iterable[bytes]) -> Iterator[list[Location]]:
        """Look digests up in batches and group them into tasks; an object of several frames is alone."""
        for wanted, found in self._found(digests):
            group: list[Location] = []
            size = 0
            for digest in wanted:
                location = found[digest]
                if group and (size + location.size > TASK_SIZE or location.size > FRAME_SIZE):
                    yield group
                    group, size = [], 0
                if location.size > FRAME_SIZE:
                    yield [location]
                    continue
                group.append(location)
                size += location.size
            if group:
                yield group

    def _found(self, digests: Iterable[bytes]) -> Iterator[tuple[list[bytes], Mapping[bytes, Location]]]:
        """Look digests up batch by batch, one batch ahead of whoever asks."""
        source = iter(digests)
        wanted = list(islice(source, LOOKUP))
        pending = self._lookup.submit(self._find, wanted) if wanted else None
        while pending is not None:
            following = list(islice(source, LOOKUP))
            ahead = self._lookup.submit(self._find, following) if following else None
            yield wanted, pending.result()
            wanted, pending = following, ahead

    def _find(self, digests: Sequence[bytes]) -> Mapping[bytes, Location]:
        found = self._locate(digests)
        for digest in digests:
            if digest not in found:
                raise DigestMismatch(digest, "is in no pack")
        return found

    def _load(self, group: list[Location], verify: bool) -> list[bytes]:
        """Read, decompress and verify objects of one frame each."""
        try:
            return self._load_once(group, verify)
        except PackMissing:
            found = self._find([location.digest for location in group])
        try:
            return self._load_once([found[location.digest] for location in group], verify)
        except PackMissing as error:
            lost = next(location for location in found.values() if location.pack == error.name)
            raise DigestMismatch(lost.digest, str(error)) from error

    def _load_once(self, group: list[Location], verify: bool) -> list[bytes]:
        result: dict[bytes, bytes] = {}
        for span in _spans(sorted(set(group), key=lambda location: (location.pack, location.offset))):
            start = span[0].offset
            size = span[-1].offset + span[-1].stored_size - start
            raw = None
            try:
                raw = memoryview(self._backend.read(span[0].pack, start, size))
            except PackMissing:
                raise
            except Corrupt:
                pass  # cut, or unreadable in part: only the objects whose bytes are gone are damaged
            for location in span:
                begin = location.offset - start
                stored = raw[begin : begin + location.stored_size] if raw is not None else self._stored(location)
                result[location.digest] = _checked(location, stored, verify)
        return [result[location.digest] for location in group]

    def _stored(self, location: Location) -> memoryview:
        try:
            return memoryview(self._backend.read(location.pack, location.offset, location.stored_size))
        except PackMissing:
            raise
        except Corrupt as error:
            raise DigestMismatch(location.digest, str(error)) from error

    def _stream(self, location: Location, verify: bool) -> Iterator[bytes]:
        """Read a large object; see :meth:`_frames`."""
        try:
            yield from self._frames(location, verify)
        except DigestMismatch as error:
            raise self._explain(error) from error

    def _frames(self, location: Location, verify: bool) -> Iterator[bytes]:
        """Read an object frame by frame, decompressing ahead."""
        state = blake3()
        tasks: deque[Future[bytes]] = deque()
        frames = iter(frames_of(location))
        for frame in islice(frames, self._workers):
            tasks.append(self._pool.submit(self._frame, location, *frame))
        while tasks:
            data = tasks.popleft().result()
            if verify:
                state.update(data)
            for frame in islice(frames, 1):
                tasks.append(self._pool.submit(self._frame, location, *frame))
            if verify and not tasks and state.digest() != location.digest:  # before the last bytes are handed on
                raise DigestMismatch(location.digest, "has other bytes than it should")
            yield data

    def _frame(self, location: Location, offset: int, stored_size: int, size: int) -> bytes:
        try:
            try:
                raw = self._backend.read(location.pack, offset, stored_size)
            except PackMissing:
                moved = self._find([location.digest])[location.digest]
                raw = self._backend.read(moved.pack, moved.offset + offset - location.offset, stored_size)
            return decompress(location.codec, raw, size)
        except DigestMismatch:
            raise
        except Corrupt as error:
            raise DigestMismatch(location.digest, str(error)) from error

    def read(self, digest: bytes) -> bytes:
        """Read a whole object into memory."""
        return b"".join(next(self.contents([digest])))

    def read_range(self, digest: bytes, offset: int, size: int) -> bytes:
        """Read a part of an object; only the frames that hold it are read, so the digest is not verified.

        Returns:
            The bytes from ``offset`` on, fewer than ``size`` at the object's end.
        """
        try:
            return self._range(self._find([digest])[digest], offset, size)
        except DigestMismatch as error:
            raise self._explain(error) from error

    def _range(self, location: Location, offset: int, size: int) -> bytes:
        parts = []
        position = 0
        for frame_offset, stored_size, plain_size in frames_of(location):
            if position < offset + size and offset < position + plain_size:
                data = self._frame(location, frame_offset, stored_size, plain_size)
                parts.append(data[max(0, offset - position) : offset + size - position])
            position += plain_size
        return b"".join(parts)

    def open(self, digest: bytes) -> io.BufferedReader:
        """Open an object as a file, not seekable; it verifies when the end is read."""
        return io.BufferedReader(_Chunks(next(self.contents([digest]))))

    def close(self) -> None:
        """Stop the threads."""
        self._lookup.shutdown(cancel_futures=True)
        self._pool.shutdown(cancel_futures=True)


class _Chunks(io.RawIOBase):
    """A file over an iterator of chunks."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while not self._rest:
            try:
                self._rest = memoryview(next(self._chunks))
            except StopIteration:
                return 0
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def _spans(locations: list[Location]) -> Iterator[list[Location]]:
    """Group neighbours that are worth reading in one go."""
    span: list[Location] = []
    for location in locations:
        if span:
            last = span[-1]
            gap = location.offset - last.offset - last.stored_size
            if location.pack != last.pack or gap > GAP_SIZE or location.offset - span[0].offset > TASK_SIZE:
                yield span
                span = []
        span.append(location)
    if span:
        yield span


def _checked(location: Location, stored: memoryview, verify: bool) -> bytes:
    """Decompress a frame and compare its digest."""
    try:
        data = decompress(location.codec, stored, location.size)
    except Corrupt as error:
        raise DigestMismatch(location.digest, str(error)) from error
    if verify and blake3(data).digest() != location.digest:
        raise DigestMismatch(location.digest, "has other bytes than it should")
    return data
