"""Streams in and out: compression told by magic, and the sha256 of both sides on the way.

Nothing here starts a process. A cut or damaged stream is an error even when the tar in it was complete.
"""

from __future__ import annotations

import bz2
import hashlib
import importlib
import lzma
import queue
import threading
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

import pyzstd

from lading.errors import InvalidInput
from lading.values import Readable

fast_zlib: Any
try:
    fast_zlib = importlib.import_module("isal.isal_zlib")
except ImportError:  # optional: twice as fast, otherwise the same
    fast_zlib = zlib

#: Bytes read from the source at a time.
READ_SIZE: Final = 1 << 20

#: Compressed bytes that a member's decoder is given first.
FEED_SIZE: Final = 4 << 10

#: Plain bytes made of one step at most: what is compressed well cannot grow in memory.
STEP_SIZE: Final = 4 << 20

#: Chunks a hashing thread may lag behind.
QUEUE_SIZE: Final = 8

#: zstd windows up to 128 MiB are accepted, as by the zstd command.
ZSTD_WINDOW_LOG_MAX: Final = 27

#: Most memory that an xz stream may ask for: its highest preset needs 65 MiB.
XZ_MEMORY_MAX: Final = 256 << 20

NONE: Final = 0
BZIP2: Final = 1
GZIP: Final = 2
XZ: Final = 3
ZSTD: Final = 4

_MAGICS: Final = ((GZIP, b"\x1f\x8b\x08"), (BZIP2, b"BZh"), (XZ, b"\xfd7zXZ\x00"), (ZSTD, b"\x28\xb5\x2f\xfd"))
_SKIPPABLE: Final = (b"\x50\x2a\x4d\x18", 0xF0)
_MAGIC_SIZE: Final = 6


@dataclass(frozen=True, slots=True)
class StreamSummary:
    """Both sides of a stream that was read to its end. Digests are ``sha256:…``."""

    compressed_digest: str
    compressed_size: int
    diff_digest: str
    diff_size: int
    compression: int


class Hasher:
    """sha256 in a thread of its own, fed through a bounded queue."""

    def __init__(self) -> None:
        self._state = hashlib.sha256()
        self._queue: queue.Queue[bytes | None] = queue.Queue(QUEUE_SIZE)
        self._thread = threading.Thread(target=self._run, name="lading-sha256", daemon=True)
        self._thread.start()
        self.size = 0

    def _run(self) -> None:
        while (data := self._queue.get()) is not None:
            self._state.update(data)

    def update(self, data: bytes) -> None:
        """Take the next bytes; waits when the thread is far behind."""
        self.size += len(data)
        self._queue.put(data)

    def finish(self) -> str:
        """Wait for the thread and return ``sha256:…``."""
        self.close()
        return f"sha256:{self._state.hexdigest()}"

    def close(self) -> None:
        """End the thread."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()


class _Decoder(Protocol):
    """One member of a compressed stream."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decode(self, data: bytes) -> bytes: ...
    @property
    def wants_input(self) -> bool: ...


class _Standard:
    """bz2, lzma and zstd: decompressors with ``needs_input``."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    @property
    def eof(self) -> bool:
        return bool(self._inner.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._inner.unused_data)

    @property
    def wants_input(self) -> bool:
        return bool(self._inner.needs_input)

    def decode(self, data: bytes) -> bytes:
        return bytes(self._inner.decompress(data, STEP_SIZE))


class _Zlib:
    """gzip: zlib's interface, with ``unconsumed_tail``. Its own checksum and length are checked by it."""

    def __init__(self) -> None:
        self._inner = fast_zlib.decompressobj(31)

    @property
    def eof(self) -> bool:
        return bool(self._inner.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._inner.unused_data)

    @property
    def wants_input(self) -> bool:
        return not self._inner.unconsumed_tail

    def decode(self, data: bytes) -> bytes:
        return bytes(self._inner.decompress(self._inner.unconsumed_tail + data, STEP_SIZE))


def _decoder(compression: int) -> _Decoder:
    if compression == GZIP:
        return _Zlib()
    if compression == BZIP2:
        return _Standard(bz2.BZ2Decompressor())
    if compression == XZ:
        return _Standard(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_MAX))
    options: dict[int, int] = {pyzstd.DParameter.windowLogMax: ZSTD_WINDOW_LOG_MAX}
    return _Standard(pyzstd.ZstdDecompressor(option=options))


def detect(head: bytes) -> int:
    """Tell the compression from a stream's first bytes."""
    for compression, magic in _MAGICS:
        if head.startswith(magic):
            return compression
    if len(head) >= 4 and head[0] & _SKIPPABLE[1] == _SKIPPABLE[0][0] and head[1:4] == _SKIPPABLE[0][1:]:
        return ZSTD
    return NONE


#: What the decompressors raise for damaged input.
_DAMAGE: Final[tuple[type[Exception], ...]] = (
    zlib.error, fast_zlib.error, OSError, lzma.LZMAError, pyzstd.ZstdError, EOFError, ValueError,
)  # fmt: skip


class CompressedStreamError(InvalidInput):
    """A compressed stream is cut or damaged."""


class _Packed:
    """The compressed side: hashed as it comes, handed out in pieces that may be given back in part."""

    def __init__(self, source: Iterator[bytes], outer: Hasher | None) -> None:
        self._source = source
        self._outer = outer
        self._data = b""
        self._position = 0

    def _more(self) -> bool:
        """Put the next piece behind what is left; False at the end."""
        more = next(self._source, b"")
        if more and self._outer is not None:
            self._outer.update(more)
        self._data, self._position = self._data[self._position :] + more, 0
        return bool(more)

    def peek(self, size: int) -> bytes:
        """The next bytes, at most so many, without taking them."""
        while len(self._data) - self._position < size and self._more():
            pass
        return self._data[self._position : self._position + size]

    def take(self, size: int) -> bytes:
        """At least one byte and at most so many; none at the end."""
        if self._position == len(self._data):
            self._more()
        found = self._data[self._position : self._position + size]
        self._position += len(found)
        return found

    def give_back(self, rest: bytes) -> None:
        """Return the end of what was taken last."""
        self._position -= len(rest)


class InputStream:
    """A layer tar as presented: hands out plain bytes and hashes both sides."""

    def __init__(self, raw: Readable) -> None:
        """Look at the first bytes of a stream.

        Args:
            raw: read from its current position to its end; not closed.
        """
        self._raw = raw
        self._head = self._read_head()
        self.compression = detect(self._head)
        self._outer = Hasher() if self.compression else None
        self._inner = Hasher()
        self._plain = self._members() if self.compression else self._source()
        self._rest = b""

    def _read_head(self) -> bytes:
        head = b""
        while len(head) < _MAGIC_SIZE and (more := self._raw.read(_MAGIC_SIZE - len(head))):
            head += more
        return head

    def _source(self) -> Iterator[bytes]:
        """The stream as presented."""
        data = self._head + self._raw.read(READ_SIZE)
        while data:
            yield data
            data = self._raw.read(READ_SIZE)

    def _members(self) -> Iterator[bytes]:
        """The stream's plain bytes, member by member.

        A member's decoder is given little at first, and twice as much each time: what lies behind its end is
        copied, and a stream may be nothing but members of a few bytes.
        """
        packed = _Packed(self._source(), self._outer)
        while True:
            decoder, feed = _decoder(self.compression), FEED_SIZE
            while not decoder.eof:
                data = b""
                if decoder.wants_input:
                    data = packed.take(feed)
                    feed = min(2 * feed, READ_SIZE)
                    if not data:
                        raise CompressedStreamError("unexpected EOF: the compressed stream is cut")
                try:
                    plain = decoder.decode(data)
                except _DAMAGE as error:
                    raise CompressedStreamError(
                        f"invalid tar header: the compressed stream is damaged ({error})"
                    ) from error
                if plain:
                    yield plain
            packed.give_back(decoder.unused_data)
            if self.compression == XZ:
                self._skip_padding(packed)
            head = packed.peek(_MAGIC_SIZE)
            if not head:
                return
            if detect(head) != self.compression:
                raise CompressedStreamError("invalid tar header: junk follows the compressed stream")

    @staticmethod
    def _skip_padding(packed: _Packed) -> None:
        """Skip the zeros between xz streams, which come in fours."""
        skipped = 0
        while packed.peek(1) == b"\0":
            data = packed.take(READ_SIZE)
            rest = data.lstrip(b"\0")
            skipped += len(data) - len(rest)
            packed.give_back(rest)
        if skipped % 4:
            raise CompressedStreamError("invalid tar header: the padding of the compressed stream is not in fours")

    def read(self, size: int) -> bytes:
        """Read plain bytes.

        Returns:
            At least one and at most ``size`` bytes; none at the end.
        """
        if not self._rest:
            self._rest = next(self._plain, b"")
            if not self._rest:
                return b""
            self._inner.update(self._rest)
        if len(self._rest) <= size:
            found, self._rest = self._rest, b""
            return found
        found, self._rest = self._rest[:size], self._rest[size:]
        return found

    def summary(self) -> StreamSummary:
        """Read what is left, and tell both sides' digests and sizes."""
        while self.read(READ_SIZE):
            pass
        diff_digest = self._inner.finish()
        outer = self._outer
        return StreamSummary(
            outer.finish() if outer else diff_digest, outer.size if outer else self._inner.size,
            diff_digest, self._inner.size, self.compression,
        )  # fmt: skip

    def close(self) -> None:
        """End the hashing threads; may be called at any time."""
        for hasher in (self._outer, self._inner):
            if hasher is not None:
                hasher.close()


def compress_stream(chunks: Iterable[bytes], compression: int) -> Iterator[bytes]:
    """Compress a stream.

    Raises:
        InvalidInput: bzip2 or xz; raised at once, before the first chunk.
    """
    if compression in (BZIP2, XZ):
        raise InvalidInput(f"unsupported compression format tar.{'bz2' if compression == BZIP2 else 'xz'}")
    if compression == NONE:
        return iter(chunks)
    return _gzipped(chunks) if compression == GZIP else _zstandard(chunks)


def _gzipped(chunks: Iterable[bytes]) -> Iterator[bytes]:
    compressor = zlib.compressobj(6, zlib.DEFLATED, 31)
    for chunk in chunks:
        if data := compressor.compress(chunk):
            yield data
    yield compressor.flush()


def _zstandard(chunks: Iterable[bytes]) -> Iterator[bytes]:
    compressor = pyzstd.ZstdCompressor(3)
    for chunk in chunks:
        if data := compressor.compress(chunk):
            yield data
    yield compressor.flush()
