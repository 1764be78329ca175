"""Frames: decoding in pieces gives, and refuses, what decoding at once does."""

from __future__ import annotations

import pytest
import pyzstd
from hypothesis import given
from hypothesis import strategies as st

from lading.errors import Corrupt
from lading.objects.frame import PIECE_SIZE, compress, compress_frame, decompress, pieces
from lading.values import CODEC_RAW, CODEC_ZSTD, FRAME_SIZE


def told(codec: int, stored: bytes, size: int) -> tuple[bytes | str, bytes | str]:
    """What the two ways of decoding say."""
    try:
        whole: bytes | str = decompress(codec, stored, size)
    except Corrupt as error:
        whole = str(error)
    gathered = bytearray()
    try:
        for piece in pieces(codec, stored, size):
            gathered += piece
            assert len(gathered) <= size + 1
    except Corrupt as error:
        return whole, str(error)
    return whole, bytes(gathered)


@pytest.mark.parametrize("size", [0, 1, PIECE_SIZE, PIECE_SIZE + 1, 3 * PIECE_SIZE, 1 << 20, FRAME_SIZE])
def test_pieces_are_the_whole(size: int) -> None:
    data = (b"seven pieces of %d\n" * (size // 10 + 1))[:size]
    for codec, stored in (compress(data, 3), (CODEC_RAW, data), (CODEC_ZSTD, compress_frame(data, 3))):
        assert told(codec, stored, size) == (data, data)
    assert all(len(piece) <= PIECE_SIZE for piece in pieces(CODEC_ZSTD, compress_frame(data, 3), size))


@given(
    lines=st.integers(0, 40_000), claimed=st.integers(-70_000, 70_000), at=st.integers(0), byte=st.integers(0, 255),
    cut=st.integers(0, 20), tail=st.binary(max_size=3),
)  # fmt: skip
def test_both_refuse_the_same(lines: int, claimed: int, at: int, byte: int, cut: int, tail: bytes) -> None:
    data = b"".join(b"%d\n" % (line * line) for line in range(lines))
    stored = bytearray(compress_frame(data, 3))
    stored[at % len(stored)] = byte
    damaged = bytes(stored[: len(stored) - cut % len(stored)]) + tail
    size = max(0, len(data) + claimed)
    whole, gathered = told(CODEC_ZSTD, damaged, size)
    assert isinstance(whole, str) == isinstance(gathered, str)
    assert isinstance(whole, str) or whole == gathered


def test_a_frame_that_gives_more_is_not_expanded() -> None:
    bomb = compress_frame(bytes(FRAME_SIZE), 19)
    given_back: list[int] = []
    with pytest.raises(Corrupt, match="gives 100001 bytes instead of 100000"):
        given_back.extend(len(piece) for piece in pieces(CODEC_ZSTD, bomb, 100_000))
    assert sum(given_back) == 100_001


def test_two_frames_are_not_one() -> None:
    half = bytes(range(256)) * 400
    twice = pyzstd.compress(half) * 2
    for size in (len(half), 2 * len(half)):
        whole, gathered = told(CODEC_ZSTD, twice, size)
        assert isinstance(whole, str)
        assert isinstance(gathered, str)
