"""Sparse files in tars: old GNU, and PAX 0.0, 0.1 and 1.0. Their data is stored, their holes are not.

Source: the GNU tar manual, appendix "Sparse Formats".
"""

from __future__ import annotations

from lading.objects.tarbase import BLOCK, Member, Source, TarLimits, TarSink, bad_header, number, pax_number


def read_old_sparse(source: Source, sink: TarSink, limits: TarLimits, header: bytes, member: Member) -> None:
    """Read the regions of an old GNU sparse file: four in the header, 21 in each block behind it."""
    regions = _old_regions(header, 386, 4)
    extended = header[482]
    while extended:
        block = source.take(BLOCK)
        sink.literal(block)
        regions += _old_regions(block, 0, 21)
        extended = block[504]
        if len(regions) > limits.sparse_regions_max:
            raise bad_header("its sparse map is too long", member.name)
    member.size = number(header, 483, 495, "real size")
    member.sparse = tuple(regions)


def _old_regions(block: bytes, start: int, count: int) -> list[tuple[int, int]]:
    regions = []
    for position in range(start, start + 24 * count, 24):
        if block[position] == 0:
            break
        regions.append(
            (
                number(block, position, position + 12, "sparse map"),
                number(block, position + 12, position + 24, "sparse map"),
            )
        )
    return regions


def read_pax_sparse(
    source: Source,
    sink: TarSink,
    limits: TarLimits,
    pax: dict[bytes, bytes],
    pairs: list[tuple[bytes, bytes]],
    member: Member,
) -> int:
    """Read the regions of a PAX sparse file of version 0.0, 0.1 or 1.0.

    Args:
        source: behind the header.
        sink: takes a map that lies in front of the data.
        limits: bounds the map.
        pax: the file's PAX records.
        pairs: those of version 0.0, whose keys repeat, in order.
        member: gets size and regions.

    Returns:
        Bytes that the map took of the file's stored bytes.
    """
    taken = 0
    if pax.get(b"GNU.sparse.major") == b"1":
        numbers, taken = _map_in_data(source, sink, limits, member)
    elif b"GNU.sparse.map" in pax:
        numbers = [_map_number(text, member) for text in pax[b"GNU.sparse.map"].split(b",") if text]
    else:
        numbers = [_map_number(value, member) for _, value in pairs]
        if any(key != (b"GNU.sparse.offset", b"GNU.sparse.numbytes")[i % 2] for i, (key, _) in enumerate(pairs)):
            raise bad_header("its sparse map is out of order", member.name)
    if len(numbers) % 2 or len(numbers) > 2 * limits.sparse_regions_max:
        raise bad_header("its sparse map is odd or too long", member.name)
    key = b"GNU.sparse.realsize" if b"GNU.sparse.realsize" in pax else b"GNU.sparse.size"
    if key not in pax:
        raise bad_header("its sparse map has no size", member.name)
    member.size = pax_number(pax, key, member.name)
    member.sparse = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    return taken


def _map_number(text: bytes, member: Member) -> int:
    if not text.isdigit() or len(text) > 19:
        raise bad_header("its sparse map has something that is no number", member.name)
    return int(text)


def _map_in_data(source: Source, sink: TarSink, limits: TarLimits, member: Member) -> tuple[list[int], int]:
    """Read a map of version 1.0: decimal lines in front of the data, padded to a block."""
    numbers: list[int] = []
    wanted, taken, rest = 1, 0, b""
    while len(numbers) < wanted:
        if taken + BLOCK > member.size:
            raise bad_header("its sparse map is cut", member.name)
        block = source.take(BLOCK)
        sink.literal(block)
        taken += BLOCK
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            if len(numbers) < wanted:
                numbers.append(_map_number(line, member))
                if len(numbers) == 1:
                    wanted = 1 + 2 * numbers[0]
                    if numbers[0] > limits.sparse_regions_max:
                        raise bad_header("its sparse map is too long", member.name)
    return numbers[1:], taken


def check_regions(member: Member, stored: int, limits: TarLimits) -> None:
    """Refuse a sparse map that does not describe a file of this size with these bytes."""
    if not member.sparse and member.type != b"S" and member.size == stored:
        return
    if not 0 <= member.size <= limits.size_max:
        raise bad_header(f"its real size {member.size} is out of range", member.name)
    end = total = 0
    for offset, length in member.sparse:
        if offset < end or length < 0 or offset + length > member.size:
            raise bad_header("its sparse map is not in order", member.name)
        end = offset + length
        total += length
    if total != stored:
        raise bad_header("its sparse map does not fit its data", member.name)
    regions = tuple((offset, length) for offset, length in member.sparse if length)
    whole = len(regions) == 1 and regions[0] == (0, member.size)
    member.sparse = () if whole else regions
