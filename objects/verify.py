"""Looking for damage: packs that are missing or cut, objects whose bytes are not what they should be.

Bytes of a pack are read in long spans, whatever they are cut into, and every frame is decoded and hashed exactly as a
reader would do it: what passes here can be read, and what a reader refuses does not pass.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from lading.errors import Corrupt
from lading.objects.backend import PackBackend, PackMissing
from lading.objects.frame import PIECE_SIZE, decompress, pieces
from lading.objects.pack import frames_of, read_footer, read_index
from lading.values import FRAME_SIZE, LOST_PACK, Location

#: Stored bytes read and verified as one task: long enough for a disk to be read in sequence, small enough that a few in
#: flight are no memory to speak of.
SPAN_SIZE: Final = 2 << 20

#: Called with the stored bytes that are about to be read; may wait.
Pace = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    pack: str
    message: str
    location: Location | None = None  #: the object that is damaged; None when it is the whole pack

    @property
    def digest(self) -> bytes:
        """Of the object that is damaged; empty when it is the whole pack."""
        return self.location.digest if self.location is not None else b""


def check_presence(backend: PackBackend, expected: Mapping[str, int], *, index: bool = True) -> Iterator[Finding]:
    """Compare packs with what the catalog expects: there, of the right size, with a sound index.

    Args:
        backend: where they rest.
        expected: names and sizes in bytes.
        index: read and hash each index; else only its footer is looked at.
    """
    for name, size in expected.items():
        try:
            found = backend.size(name)
            if found is None:
                words = "objects that are needed are in no pack" if name == LOST_PACK else f"pack {name} is missing"
                yield Finding(name, words)
            elif found != size:
                yield Finding(name, f"pack {name} has {found} bytes instead of {size}")
            elif index:
                read_index(backend, name)
            else:
                read_footer(backend, name)
        except PackMissing:
            yield Finding(name, f"pack {name} is missing")
        except Corrupt as error:
            yield Finding(name, str(error))


def verify_objects(
    backend: PackBackend, locations: Iterable[Location], *, workers: int = 2, pace: Pace | None = None
) -> Iterator[Finding]:
    """Read and hash every byte of objects.

    Args:
        backend: where their packs rest.
        locations: sorted by pack and offset.
        workers: threads.
        pace: called before each read.

    Yields:
        What is damaged, in the order of the locations.

    Raises:
        OSError: something could not be read for a reason that says nothing about the bytes.
    """
    tasks: deque[Future[list[Finding]]] = deque()
    pool = ThreadPoolExecutor(workers, "lading-verify")
    try:
        for span in _spans(locations):
            if pace is not None:
                pace(sum(item.stored_size for item in span))
            tasks.append(pool.submit(_verify, backend, span))
            if len(tasks) > 2 * workers:
                yield from tasks.popleft().result()
        while tasks:
            yield from tasks.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _spans(locations: Iterable[Location]) -> Iterator[list[Location]]:
    """Group objects that lie one behind the other."""
    span: list[Location] = []
    size = 0
    for location in locations:
        if span and (
            location.pack != span[-1].pack
            or location.offset != span[-1].offset + span[-1].stored_size
            or size + location.stored_size > SPAN_SIZE
        ):
            yield span
            span, size = [], 0
        span.append(location)
        size += location.stored_size
    if span:
        yield span


def _verify(backend: PackBackend, span: list[Location]) -> list[Finding]:
    first = span[0]
    size = sum(item.stored_size for item in span)
    raw = None
    if size <= 2 * SPAN_SIZE:
        try:
            raw = memoryview(backend.read(first.pack, first.offset, size))
        except PackMissing as error:
            return [_finding(item, str(error)) for item in span]
        except Corrupt:
            pass  # cut, or a part is unreadable: each object is read by itself, as a reader would
    found = []
    for item in span:
        try:
            if raw is not None and item.size <= FRAME_SIZE:
                start = item.offset - first.offset
                sound = _hash(item.codec, raw[start : start + item.stored_size], item.size) == item.digest
            else:
                sound = _digest(backend, item) == item.digest
            if sound:
                continue
            why = "has other bytes than it should"
        except Corrupt as error:
            why = str(error)
        found.append(_finding(item, why))
    return found


def _finding(item: Location, why: str) -> Finding:
    return Finding(item.pack, f"object {item.digest.hex()} in pack {item.pack}: {why}", item)


def _hash(codec: int, stored: memoryview, size: int) -> bytes:
    """Hash an object of one frame."""
    if size <= PIECE_SIZE:
        return blake3(decompress(codec, stored, size)).digest()
    state = blake3()
    for piece in pieces(codec, stored, size):
        state.update(piece)
    return state.digest()


def _digest(backend: PackBackend, location: Location) -> bytes:
    """Hash an object, reading it frame by frame."""
    state = blake3()
    for offset, stored_size, size in frames_of(location):
        for piece in pieces(location.codec, backend.read(location.pack, offset, stored_size), size):
            state.update(piece)
    return state.digest()
