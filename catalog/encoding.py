"""Small lists as bytes of one column: extended attributes, the regions of a sparse file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def pack_pairs(pairs: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Encode extended attributes: for each, lengths of name and value (4 bytes little-endian), name, value."""
    return b"".join(
        len(name).to_bytes(4, "little") + len(value).to_bytes(4, "little") + name + value for name, value in pairs
    )


def unpack_pairs(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Decode extended attributes."""
    position = 0
    while position < len(data):
        name = int.from_bytes(data[position : position + 4], "little")
        value = int.from_bytes(data[position + 4 : position + 8], "little")
        position += 8
        yield data[position : position + name], data[position + name : position + name + value]
        position += name + value


def pack_regions(regions: Sequence[tuple[int, int]]) -> bytes:
    """Encode a sparse map: offset and length of each region, 8 bytes little-endian each."""
    return b"".join(offset.to_bytes(8, "little") + length.to_bytes(8, "little") for offset, length in regions)


def unpack_regions(data: bytes) -> Iterator[tuple[int, int]]:
    """Decode a sparse map."""
    for position in range(0, len(data), 16):
        yield (
            int.from_bytes(data[position : position + 8], "little"),
            int.from_bytes(data[position + 8 : position + 16], "little"),
        )
