"""Layer tars: headers parsed by code of ours over a bounded buffer, content and all other bytes told apart.

v7, ustar, PAX and GNU headers, GNU and PAX sparse files. What is accepted, kept and refused is listed in
docs/tar.md. Everything a header says is checked before it is believed or allocated for; nothing recurses.

Sources: POSIX.1-2017 pax and ustar; the GNU tar manual, appendix "Tar Internals".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, Protocol
from zlib import adler32

from lading.errors import InvalidInput
from lading.values import Entry, printable

BLOCK: Final = 512
_ZEROS: Final = bytes(BLOCK)

#: Bytes asked of the source at a time.
READ_SIZE: Final = 1 << 20

#: Content up to this size is handed over whole, larger content chunk by chunk.
WHOLE_SIZE_MAX: Final = 8 << 20

_INT64_MAX: Final = (1 << 63) - 1


class TarSink(Protocol):
    """Takes a stream apart. Calls come in stream order: literals and contents together are the stream."""

    @property
    def literal(self) -> Callable[[bytes], object]:
        """Take bytes that are no file's content."""
        ...

    def put(self, data: bytes) -> bytes:
        """Take a whole content of at most ``WHOLE_SIZE_MAX`` bytes; return its digest."""
        ...

    def stream(self, chunks: Iterator[bytes], size: int) -> bytes:
        """Take a content chunk by chunk; return its digest."""
        ...


@dataclass(frozen=True, slots=True)
class TarLimits:
    """Bounds of what one layer tar may ask for."""

    entries_max: int = 4_000_000  #: names; a model of the tree is kept in memory
    size_max: int = 1 << 40  #: bytes of the stream, and of one sparse file
    extension_size_max: int = 1 << 20  #: bytes of one extension header
    extensions_max: int = 64  #: extension headers before one file
    sparse_regions_max: int = 1 << 16  #: regions of one sparse file
    path_size_max: int = 4095  #: bytes of a path or link target
    name_size_max: int = 255  #: bytes of one component
    xattr_size_max: int = 64 << 10  #: bytes of one attribute's value


@dataclass(frozen=True, slots=True)
class TarSummary:
    """What a layer tar holds."""

    entries: list[Entry]  #: the effective tree, sorted by ``values.component_key``
    uids: tuple[int, ...]  #: distinct owners in the headers, sorted; removals not counted
    gids: tuple[int, ...]
    warnings: tuple[str, ...]
    diff_bytes: int  #: sizes of all non-directories, an inode once


@dataclass(slots=True)
class Member:
    """One file of the stream as its headers describe it; names are as written."""

    name: bytes
    type: bytes
    mode: int
    uid: int
    gid: int
    size: int  #: of the file: with holes for a sparse one
    mtime_ns: int
    target: bytes
    major: int
    minor: int
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    sparse: tuple[tuple[int, int], ...] = ()
    digest: bytes = b""


class TarError(InvalidInput):
    """The stream is no layer tar, or one that must not be unpacked."""


def cut() -> TarError:
    """The stream ends too early."""
    return TarError("unexpected EOF: the tar is cut")


def bad_header(why: str, name: bytes = b"") -> TarError:
    """A header that cannot be believed."""
    of = f' of "{printable(name)}"' if name else ""
    return TarError(f"invalid tar header{of}: {why}")


def refused(name: bytes, why: str) -> TarError:
    """An entry that is well formed and must not be unpacked."""
    return TarError(f'"{printable(name)}": {why}')


class _Source:
    """A buffer over ``read``. Bytes that were taken as literals have gone to the sink."""

    def __init__(self, read: Callable[[int], bytes], limit: int) -> None:
        self._read = read
        self._limit = limit
        self._total = 0
        self.data = b""
        self.position = 0

    def fill(self, size: int) -> bool:
        """Have at least ``size`` bytes in the buffer; False at the stream's end."""
        while len(self.data) - self.position < size:
            more = self._read(READ_SIZE)
            if not more:
                return False
            self._total += len(more)
            if self._total > self._limit:
                raise TarError(f"the tar has more than {self._limit} bytes")
            self.data = self.data[self.position :] + more if self.position < len(self.data) else more
            self.position = 0
        return True

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        if len(self.data) - self.position < size and not self.fill(size):
            raise cut()
        found = self.data[self.position : self.position + size]
        self.position += size
        return found

    def chunks(self, size: int) -> Iterator[bytes]:
        """The next ``size`` bytes, in pieces as they come."""
        while size:
            if self.position == len(self.data) and not self.fill(1):
                raise cut()
            part = self.data[self.position : self.position + size]
            self.position += len(part)
            size -= len(part)
            yield part

    def rest(self) -> Iterator[bytes]:
        """Everything up to the stream's end."""
        if self.position < len(self.data):
            yield self.data[self.position :]
        self.data, self.position = b"", 0
        while self.fill(1):
            yield self.data
            self.data, self.position = b"", 0


def ingest_tar(read: Callable[[int], bytes], sink: TarSink, limits: TarLimits | None = None) -> TarSummary:
    """Read a layer tar to the stream's end.

    Args:
        read: returns up to so many plain bytes, none at the end.
        sink: takes literals and contents.
        limits: bounds; the defaults when None.

    Raises:
        TarError: the stream is cut, junk, or holds what docs/tar.md refuses.
    """
    from lading.objects.tree import Tree

    limits = limits or TarLimits()
    tree = Tree(limits)
    source = _Source(read, limits.size_max)
    for member in _members(source, sink, limits):
        tree.add(member)
    for part in source.rest():
        sink.literal(part)
    return tree.summary()


@dataclass(slots=True)
class _Extensions:
    """What extension headers said of the next file."""

    name: bytes | None = None
    target: bytes | None = None
    pax: dict[bytes, bytes] = field(default_factory=dict)
    sparse_map: list[tuple[bytes, bytes]] = field(default_factory=list)
    count: int = 0


def _members(source: _Source, sink: TarSink, limits: TarLimits) -> Iterator[Member]:
    """Read members up to the end marker or the stream's end."""
    pending = _Extensions()
    while True:
        if not source.fill(BLOCK):
            if source.position < len(source.data) or pending.count:
                raise cut()
            return
        header = source.take(BLOCK)
        if header == _ZEROS:
            sink.literal(header)
            if pending.count:
                raise cut()
            return
        kind = _checked(header)
        sink.literal(header)
        if kind in b"xgLK":
            _read_extension(source, sink, limits, header, kind, pending)
            continue
        yield _read_member(source, sink, limits, header, kind, pending)
        pending = _Extensions()


def _checked(header: bytes) -> bytes:
    """Compare a header's checksum; return its type.

    The sum is compared through adler32, whose low half is the same sum modulo 65521, in C: seven times as
    fast as ``sum``. No flipped or lost byte changes a sum by exactly that modulus.
    """
    try:
        stored = _octal(header[148:156])
    except ValueError:
        raise bad_header("its checksum is no number") from None
    fast = adler32(header[156:], adler32(b"        ", adler32(header[:148]))) & 0xFFFF
    if fast != (1 + stored) % 65521 or stored > BLOCK * 255:
        signed = sum(byte - 256 if byte > 127 else byte for byte in header) + 256
        signed -= sum(byte - 256 if byte > 127 else byte for byte in header[148:156])
        if signed != stored:
            raise bad_header("its checksum is wrong")
    return header[156:157]


@lru_cache(4096)
def _octal(field_: bytes) -> int:
    """Read an octal number, ended by NUL or space; an empty one is 0. Most fields of a tar repeat."""
    text = field_.partition(b"\0")[0].strip(b" ")
    if not text:
        return 0
    if not text.isdigit() or b"8" in text or b"9" in text:
        raise ValueError
    return int(text, 8)


@lru_cache(8192)
def _parsed(raw: bytes) -> int:
    """Read a number field: octal, or base 256 when the first bit is set. Raises ValueError for neither."""
    if raw[0] & 0x80:
        if raw[0] == 0xFF:
            return int.from_bytes(raw, "big", signed=True)
        return int.from_bytes(bytes([raw[0] & 0x7F]) + raw[1:], "big")
    return _octal(raw)


def _number(header: bytes, start: int, end: int, what: str) -> int:
    """Read a header's number field."""
    try:
        return _parsed(header[start:end])
    except ValueError:
        raise bad_header(f"its {what} is no number") from None


def _size(header: bytes, limits: TarLimits) -> int:
    size = _number(header, 124, 136, "size")
    if size < 0 or size > limits.size_max:
        raise bad_header(f"its size {size} is out of range")
    return size


def _padded(size: int) -> int:
    return -size % BLOCK


def _read_extension(
    source: _Source, sink: TarSink, limits: TarLimits, header: bytes, kind: bytes, pending: _Extensions
) -> None:
    """Read a PAX or GNU extension header; global ones are only recorded."""
    size = _size(header, limits)
    pending.count += 1
    if size > limits.extension_size_max:
        raise bad_header(f"an extension header has {size} bytes")
    if pending.count > limits.extensions_max:
        raise bad_header(f"more than {limits.extensions_max} extension headers in a row")
    body = source.take(size + _padded(size))
    sink.literal(body)
    data = body[:size]
    match kind:
        case b"L":
            pending.name = data.partition(b"\0")[0]
        case b"K":
            pending.target = data.partition(b"\0")[0]
        case b"x":
            for key, value in _pax_records(data):
                if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
                    pending.sparse_map.append((key, value))
                    if len(pending.sparse_map) > 2 * limits.sparse_regions_max:
                        raise bad_header("its sparse map is too long")
                else:
                    pending.pax[key] = value
        case _:  # global: what it says of names and sizes is never believed
            for _ in _pax_records(data):
                pass
            pending.count -= 1 if pending.count == 1 else 0


def _pax_records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Read ``LENGTH KEY=VALUE\\n`` records."""
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 12)
        text = data[position:space] if space >= 0 else b""
        if not text.isdigit() or text.startswith(b"0"):
            raise bad_header("a PAX record has no length")
        end = position + int(text)
        if end > len(data) or end <= space + 1 or data[end - 1 : end] != b"\n":
            raise bad_header("a PAX record has a wrong length")
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or not key:
            raise bad_header("a PAX record has no key")
        yield key, value
        position = end


#: Types that a layer may hold; "7" is a file, NUL a file of old tars.
_FILE_TYPES: Final = b"0\x007"
_TYPES: Final = b"0\x007123456S"
_XATTR: Final = b"SCHILY.xattr."


def _read_member(
    source: _Source, sink: TarSink, limits: TarLimits, header: bytes, kind: bytes, pending: _Extensions
) -> Member:
    """Read a file's header fields and its content."""
    member = _described(header, kind, pending, limits)
    if kind not in _TYPES or not kind:
        raise refused(member.name, f'unknown entry type "{printable(kind)}"')
    stored = member.size
    if kind == b"S":
        _read_old_sparse(source, sink, limits, header, member)
    elif kind in _FILE_TYPES and (
        pending.sparse_map or b"GNU.sparse.size" in pending.pax or b"GNU.sparse.realsize" in pending.pax
    ):
        stored -= _read_pax_sparse(source, sink, limits, pending, member)
    if kind in _FILE_TYPES or kind == b"S":
        if kind in b"0\x00" and member.name.endswith(b"/"):
            member.type = b"5"  # how tars from before directories had a type write them
        _check_regions(member, stored, limits)
        if stored:
            member.digest = (
                sink.put(source.take(stored))
                if stored <= WHOLE_SIZE_MAX
                else sink.stream(source.chunks(stored), stored)
            )
    elif stored:
        for part in source.chunks(stored):
            sink.literal(part)
    padding = _padded(stored)
    if padding:
        sink.literal(source.take(padding))
    return member


def _described(header: bytes, kind: bytes, pending: _Extensions, limits: TarLimits) -> Member:
    """Put together what a header and its extensions say."""
    pax = pending.pax
    name = pending.name if pending.name is not None else _name(header)
    target = pending.target if pending.target is not None else header[157:257].partition(b"\0")[0]
    if pax:
        for key in (b"path", b"linkpath", b"GNU.sparse.name"):
            if b"\0" in pax.get(key, b""):
                raise bad_header(f"a PAX {key.decode()} has a NUL byte")
        name = pax.get(b"GNU.sparse.name") or pax.get(b"path") or name
        target = pax.get(b"linkpath") or target
    size = _pax_number(pax, b"size", name) if b"size" in pax else _size(header, limits)
    if size > limits.size_max:
        raise bad_header(f"its size {size} is out of range", name)
    if kind in b"123456":
        size = 0  # nothing follows links, devices, directories and fifos, whatever the field says
    return Member(
        name, kind, _number(header, 100, 108, "mode") & 0o7777,
        _owner(header, pax, b"uid", 108, name), _owner(header, pax, b"gid", 116, name),
        size, _mtime(header, pax, name), target,
        _number(header, 329, 337, "device") if kind in b"34" else 0, _number(header, 337, 345, "device") if kind in b"34" else 0,
        _xattrs(pax, name, limits) if pax else {},
    )  # fmt: skip


def _name(header: bytes) -> bytes:
    """A header's name, with the prefix that ustar headers may have."""
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0":
        prefix = header[345:500].partition(b"\0")[0]
        if prefix:
            return prefix + b"/" + name
    return name


def _pax_number(pax: dict[bytes, bytes], key: bytes, name: bytes) -> int:
    text = pax[key]
    if not text.isdigit() or len(text) > 19:
        raise bad_header(f"its {key.decode(errors='replace')} is no number", name)
    return int(text)


def _owner(header: bytes, pax: dict[bytes, bytes], key: bytes, start: int, name: bytes) -> int:
    found = _pax_number(pax, key, name) if pax and key in pax else _number(header, start, start + 8, key.decode())
    if not 0 <= found <= (1 << 32) - 2:  # one more means "leave as it is", two more wrap to root
        raise refused(name, f"{key.decode()} {found} is out of range")
    return found


_TIME: Final = re.compile(rb"(-?)(\d{1,19})(?:\.(\d*))?")


def _mtime(header: bytes, pax: dict[bytes, bytes], name: bytes) -> int:
    """A file's time in nanoseconds, clamped to what 64 bits hold."""
    if pax and b"mtime" in pax:
        match = _TIME.fullmatch(pax[b"mtime"])
        if match is None:
            raise bad_header("its mtime is no number", name)
        fraction = int((match[3] or b"")[:9].ljust(9, b"0"))
        found = int(match[2]) * 1_000_000_000 + fraction
        found = -found if match[1] else found
    else:
        found = _number(header, 136, 148, "mtime") * 1_000_000_000
    return max(-_INT64_MAX, min(_INT64_MAX, found))


_NAMESPACES: Final = (b"user.", b"trusted.", b"security.", b"system.")


def _xattrs(pax: dict[bytes, bytes], name: bytes, limits: TarLimits) -> dict[bytes, bytes]:
    """A file's extended attributes, as written."""
    found = {}
    for key, value in pax.items():
        if key.startswith(_XATTR):
            attribute = key[len(_XATTR) :]
            if len(attribute) > limits.name_size_max or not attribute.startswith(_NAMESPACES) or b"\0" in attribute:
                raise refused(name, f'extended attribute "{printable(attribute)}" cannot be kept')
            if len(value) > limits.xattr_size_max:
                raise refused(name, f'extended attribute "{printable(attribute)}" has {len(value)} bytes')
            found[attribute] = value
    return found


def _read_old_sparse(source: _Source, sink: TarSink, limits: TarLimits, header: bytes, member: Member) -> None:
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
    member.size = _number(header, 483, 495, "real size")
    member.sparse = tuple(regions)


def _old_regions(block: bytes, start: int, count: int) -> list[tuple[int, int]]:
    regions = []
    for position in range(start, start + 24 * count, 24):
        if block[position] == 0:
            break
        regions.append(
            (
                _number(block, position, position + 12, "sparse map"),
                _number(block, position + 12, position + 24, "sparse map"),
            )
        )
    return regions


def _read_pax_sparse(source: _Source, sink: TarSink, limits: TarLimits, pending: _Extensions, member: Member) -> int:
    """Read the regions of a PAX sparse file of version 0.0, 0.1 or 1.0.

    Returns:
        Bytes that the map took of the file's stored bytes.
    """
    pax = pending.pax
    taken = 0
    if pax.get(b"GNU.sparse.major") == b"1":
        numbers, taken = _map_in_data(source, sink, limits, member)
    elif b"GNU.sparse.map" in pax:
        numbers = [_map_number(text, member) for text in pax[b"GNU.sparse.map"].split(b",") if text]
    else:
        numbers = [_map_number(value, member) for _, value in pending.sparse_map]
        if any(
            key != (b"GNU.sparse.offset", b"GNU.sparse.numbytes")[i % 2]
            for i, (key, _) in enumerate(pending.sparse_map)
        ):
            raise bad_header("its sparse map is out of order", member.name)
    if len(numbers) % 2 or len(numbers) > 2 * limits.sparse_regions_max:
        raise bad_header("its sparse map is odd or too long", member.name)
    key = b"GNU.sparse.realsize" if b"GNU.sparse.realsize" in pax else b"GNU.sparse.size"
    if key not in pax:
        raise bad_header("its sparse map has no size", member.name)
    member.size = _pax_number(pax, key, member.name)
    member.sparse = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    return taken


def _map_number(text: bytes, member: Member) -> int:
    if not text.isdigit() or len(text) > 19:
        raise bad_header("its sparse map has something that is no number", member.name)
    return int(text)


def _map_in_data(source: _Source, sink: TarSink, limits: TarLimits, member: Member) -> tuple[list[int], int]:
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


def _check_regions(member: Member, stored: int, limits: TarLimits) -> None:
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
