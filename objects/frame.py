"""One frame: up to ``FRAME_SIZE`` plain bytes, stored with zstd or raw where zstd does not help."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Final

import pyzstd

from lading.errors import Corrupt
from lading.values import CODEC_RAW, CODEC_ZSTD, FRAME_SIZE

#: zstd level of new objects: see docs/benchmarks.md for what other levels give.
DEFAULT_LEVEL: Final = 3

#: A frame is kept raw unless zstd saves at least one byte in this many.
GAIN: Final = 50

#: Plain bytes that :func:`pieces` hands on at a time: few enough that their memory is used again and again, instead of
#: being fetched from the kernel, and cleared by it, for each piece.
PIECE_SIZE: Final = 64 << 10

_local = threading.local()


def _compressor(level: int) -> pyzstd.ZstdCompressor:
    """This thread's compressor: making one costs more than compressing a small frame."""
    compressors: dict[int, pyzstd.ZstdCompressor] | None = getattr(_local, "compressors", None)
    if compressors is None:
        compressors = _local.compressors = {}
    if level not in compressors:
        compressors[level] = pyzstd.ZstdCompressor(level)
    return compressors[level]


def compress(data: bytes | memoryview, level: int) -> tuple[int, bytes]:
    """Encode a frame.

    Args:
        data: at most ``FRAME_SIZE`` plain bytes.
        level: zstd level.

    Returns:
        The codec and the stored bytes.

    Concurrency: any thread; each keeps a compressor, because making one costs more than a small frame.
    """
    stored = _compressor(level).compress(data, pyzstd.ZstdCompressor.FLUSH_FRAME)
    if len(stored) + len(data) // GAIN >= len(data):
        return CODEC_RAW, bytes(data)
    return CODEC_ZSTD, stored


def decompress(codec: int, stored: bytes | memoryview, size: int) -> bytes:
    """Decode a frame.

    Args:
        codec: CODEC_RAW or CODEC_ZSTD.
        stored: the frame, whole.
        size: plain bytes it must give, at most ``FRAME_SIZE``.

    Raises:
        Corrupt: the frame is cut, damaged, or gives another number of bytes.
    """
    if codec == CODEC_RAW:
        data = bytes(stored)
    elif codec == CODEC_ZSTD and size <= FRAME_SIZE:
        # The limit is one byte more than wanted: a frame that gives more is caught, not expanded.
        decompressor = pyzstd.ZstdDecompressor()
        try:
            data = decompressor.decompress(stored, size + 1)
        except pyzstd.ZstdError as error:
            raise Corrupt(f"frame cannot be decompressed: {error}") from error
        if not decompressor.eof or decompressor.unused_data:
            raise Corrupt("frame does not end where it should")
    else:
        raise Corrupt(f"frame has unknown codec {codec} or size {size}")
    if len(data) != size:
        raise Corrupt(f"frame gives {len(data)} bytes instead of {size}")
    return data


def pieces(codec: int, stored: bytes | memoryview, size: int) -> Iterator[bytes | memoryview]:
    """Decode a frame for somebody who needs its bytes only once; faster than :func:`decompress` for large ones.

    Args:
        codec, stored, size: see there.

    Yields:
        Its bytes in pieces, never more than one above ``size``. They are not known to be right before the last.

    Raises:
        Corrupt: see there.
    """
    if codec != CODEC_ZSTD or not PIECE_SIZE < size <= FRAME_SIZE:
        yield stored if codec == CODEC_RAW and len(stored) == size else decompress(codec, stored, size)
        return
    decompressor = pyzstd.ZstdDecompressor()
    left = size + 1
    data = stored
    try:
        while piece := decompressor.decompress(data, min(PIECE_SIZE, left)):
            left -= len(piece)
            yield piece
            if decompressor.eof or not left:
                break
            data = b""
    except pyzstd.ZstdError as error:
        raise Corrupt(f"frame cannot be decompressed: {error}") from error
    if left and (not decompressor.eof or decompressor.unused_data):
        raise Corrupt("frame does not end where it should")
    if left != 1:
        raise Corrupt(f"frame gives {size + 1 - left} bytes instead of {size}")


def compress_frame(data: bytes | memoryview, level: int) -> bytes:
    """Encode a frame of an object that has several: always zstd, so that one codec serves them all."""
    return _compressor(level).compress(data, pyzstd.ZstdCompressor.FLUSH_FRAME)
