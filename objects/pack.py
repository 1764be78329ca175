"""The pack file: many frames, closed by an index and a footer. See docs/format-pack.md.

A pack needs nothing beside itself to be read: the footer names the index, the index lists every object with
kind, sizes, codec and frame table. Objects lie one behind the other from the head on, in index order, so
offsets are sums of stored sizes. Nothing is ever changed in place.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Final

import pyzstd
from blake3 import blake3

from lading.errors import Corrupt
from lading.objects.backend import PackBackend, PackMissing
from lading.objects.durable import translating, write_all
from lading.values import CODEC_RAW, CODEC_ZSTD, FRAME_SIZE, Location, PackContents

VERSION: Final = 1
HEAD: Final = struct.Struct("<8sII")
HEAD_BYTES: Final = HEAD.pack(b"LADPACK\0", VERSION, 0)
#: digest, kind, codec, number of frames, stored bytes, plain bytes
RECORD: Final = struct.Struct("<32sBBIQQ")
#: magic, version, number of objects, offset, stored and plain bytes of the index, BLAKE3
FOOTER: Final = struct.Struct("<8sIIQQQ32s")
FOOTER_MAGIC: Final = b"LADINDEX"
_INDEX_LEVEL: Final = 3

#: Plain bytes of an index that is believed: 64 MiB is a million objects in one pack.
INDEX_SIZE_MAX: Final = 64 << 20


def new_pack_name() -> str:
    """Draw a pack's name: 32 hex digits, never used again."""
    return os.urandom(16).hex()


class PackWriter:
    """Writes one pack into a staged file. Not safe from several threads at once."""

    def __init__(self, path: Path, descriptor: int, name: str) -> None:
        """Start a pack in an empty file.

        Args:
            path: the staged file.
            descriptor: open for writing; closed by :meth:`finish` or :meth:`abort`.
            name: the name it will be published under.
        """
        self.path = path
        self.name = name
        self._descriptor = descriptor
        self._objects: list[Location] = []
        self._end = len(HEAD_BYTES)
        self._write(HEAD_BYTES)

    @property
    def size(self) -> int:
        """Bytes written so far, without index and footer."""
        return self._end

    def _write(self, data: bytes) -> None:
        with translating(self.path):
            write_all(self._descriptor, data)

    def add_many(self, frames: Sequence[tuple[bytes, int, int, int, bytes]]) -> None:
        """Append objects of one frame each in one write: (digest, kind, codec, plain size, stored bytes)."""
        self._write(b"".join([frame[4] for frame in frames]))
        for digest, kind, codec, size, stored in frames:
            self._objects.append(Location(digest, kind, self.name, self._end, len(stored), size, codec))
            self._end += len(stored)

    def add(self, digest: bytes, kind: int, codec: int, size: int, frames: Sequence[bytes]) -> Location:
        """Append one object of any number of frames."""
        for frame in frames:
            self._write(frame)
        return self.note(digest, kind, codec, size, [len(frame) for frame in frames])

    def append(self, frame: bytes) -> None:
        """Append a frame of an object that :meth:`note` describes once it is complete."""
        self._write(frame)

    def note(self, digest: bytes, kind: int, codec: int, size: int, frame_sizes: Sequence[int]) -> Location:
        """Describe an object whose frames were appended last."""
        stored = sum(frame_sizes)
        table = struct.pack(f"<{len(frame_sizes)}I", *frame_sizes) if len(frame_sizes) > 1 else b""
        location = Location(digest, kind, self.name, self._end, stored, size, codec, table)
        self._objects.append(location)
        self._end += stored
        return location

    def sync(self) -> None:
        """Put what was written so far onto stable storage; :meth:`finish` does so for all of it."""
        with translating(self.path):
            os.fdatasync(self._descriptor)

    def finish(self) -> PackContents:
        """Write index and footer and sync the file."""
        self._write(tail(self._objects, self._end))
        try:
            with translating(self.path):
                os.fsync(self._descriptor)
                size = os.fstat(self._descriptor).st_size
        except BaseException:
            with contextlib.suppress(OSError):  # after a failed sync nobody knows what is on the disk
                self.path.unlink()
            raise
        finally:
            self.abort()
        return PackContents(self.name, size, tuple(self._objects))

    def abort(self) -> None:
        """Close the file; the staging folder removes it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def tail(objects: Sequence[Location], end: int) -> bytes:
    """Index and footer of a pack whose frames end at ``end``."""
    parts = []
    for item in objects:
        parts.append(
            RECORD.pack(item.digest, item.kind, item.codec, len(item.frames) // 4 or 1, item.stored_size, item.size)
        )
        parts.append(item.frames)
    plain = b"".join(parts)
    stored = pyzstd.compress(plain, _INDEX_LEVEL)
    footer = FOOTER.pack(FOOTER_MAGIC, VERSION, len(objects), end, len(stored), len(plain), bytes(32))
    digest = blake3(stored + footer).digest()
    return stored + footer[:-32] + digest


def pack_size_of(objects: Sequence[Location]) -> int:
    """Bytes of a pack file that holds these objects, in this order."""
    end = len(HEAD_BYTES) + sum(item.stored_size for item in objects)
    return end + len(tail(objects, end))


def overhead_of(contents: PackContents) -> int:
    """Bytes of a pack that are no object's: head, index and footer."""
    return contents.size - sum(item.stored_size for item in contents.objects)


@dataclass(frozen=True, slots=True)
class Footer:
    """What the end of a pack says, fitting the pack's size."""

    size: int  #: bytes of the pack
    raw: bytes
    count: int  #: objects
    offset: int  #: of the index
    stored_size: int  #: of the index
    plain_size: int  #: of the index
    digest: bytes  #: of index and footer


def read_footer(backend: PackBackend, name: str) -> Footer:
    """Read a pack's two ends.

    Raises:
        PackMissing: there is no such pack.
        Corrupt: they are damaged, or say what cannot be.
    """
    size = backend.size(name)
    if size is None:
        raise PackMissing(name)
    if size < len(HEAD_BYTES) + FOOTER.size:
        raise Corrupt(f"pack {name} has only {size} bytes")
    if backend.read(name, 0, len(HEAD_BYTES)) != HEAD_BYTES:
        raise Corrupt(f"pack {name} does not begin like one")
    raw = backend.read(name, size - FOOTER.size, FOOTER.size)
    magic, version, count, offset, stored_size, plain_size, digest = FOOTER.unpack(raw)
    if magic != FOOTER_MAGIC or version != VERSION:
        raise Corrupt(f"pack {name} has no footer of version {VERSION}")
    if offset + stored_size + FOOTER.size != size or plain_size > INDEX_SIZE_MAX or count * RECORD.size > plain_size:
        raise Corrupt(f"pack {name} has a footer that does not fit its size")
    return Footer(size, raw, count, offset, stored_size, plain_size, digest)


def read_index(backend: PackBackend, name: str) -> PackContents:
    """Read what a pack holds from the pack alone.

    Raises:
        PackMissing: there is no such pack.
        Corrupt: head, footer or index are damaged, or say what cannot be.
    """
    footer = read_footer(backend, name)
    stored = backend.read(name, footer.offset, footer.stored_size)
    if blake3(stored + footer.raw[:-32] + bytes(32)).digest() != footer.digest:
        raise Corrupt(f"pack {name} has a damaged index")
    objects = tuple(_records(name, _plain_index(name, stored, footer.plain_size), footer.count))
    if len(HEAD_BYTES) + sum(item.stored_size for item in objects) != footer.offset:
        raise Corrupt(f"pack {name} has an index that does not fill it")
    return PackContents(name, footer.size, objects)


def _plain_index(name: str, stored: bytes, size: int) -> bytes:
    decompressor = pyzstd.ZstdDecompressor()
    try:
        plain = decompressor.decompress(stored, size + 1)
    except pyzstd.ZstdError as error:
        raise Corrupt(f"pack {name} has an index that cannot be decompressed") from error
    if len(plain) != size or not decompressor.eof:
        raise Corrupt(f"pack {name} has an index of the wrong size")
    return plain


def _records(name: str, plain: bytes, count: int) -> Iterator[Location]:
    position, offset = 0, len(HEAD_BYTES)
    for _ in range(count):
        if position + RECORD.size > len(plain):
            raise Corrupt(f"pack {name} has an index that is too short")
        digest, kind, codec, frames, stored_size, size = RECORD.unpack_from(plain, position)
        position += RECORD.size
        table = b""
        if frames > 1:
            table = plain[position : position + 4 * frames]
            position += 4 * frames
        _check_record(name, codec, frames, stored_size, size, table)
        yield Location(digest, kind, name, offset, stored_size, size, codec, table)
        offset += stored_size
    if position != len(plain):
        raise Corrupt(f"pack {name} has an index that is too long")


def _check_record(name: str, codec: int, frames: int, stored_size: int, size: int, table: bytes) -> None:
    """Refuse an index record that no writer makes."""
    if codec not in (CODEC_RAW, CODEC_ZSTD) or frames != max(1, -(-size // FRAME_SIZE)):
        raise Corrupt(f"pack {name} has an impossible object in its index")
    if frames > 1 and (len(table) != 4 * frames or sum(struct.unpack(f"<{frames}I", table)) != stored_size):
        raise Corrupt(f"pack {name} has an impossible frame table in its index")


def frames_of(location: Location) -> list[tuple[int, int, int]]:
    """Where an object's frames lie.

    Returns:
        (offset in the pack, stored bytes, plain bytes) of each frame.
    """
    if not location.frames:
        return [(location.offset, location.stored_size, location.size)]
    sizes = struct.unpack(f"<{len(location.frames) // 4}I", location.frames)
    offsets = accumulate(sizes[:-1], initial=location.offset)
    last = location.size - FRAME_SIZE * (len(sizes) - 1)
    plain = [FRAME_SIZE] * (len(sizes) - 1) + [last]
    return list(zip(offsets, sizes, plain, strict=True))
