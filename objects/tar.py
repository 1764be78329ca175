"""Layer tars: headers parsed by code of ours over a bounded buffer, content and all other bytes told apart.

v7, ustar, PAX and GNU headers, GNU and PAX sparse files. What is accepted, kept and refused is listed in
docs/tar.md. Everything a header says is checked before it is believed or allocated for; nothing recurses.

Sources: POSIX.1-2017 pax and ustar; the GNU tar manual, appendix "Tar Internals".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final
from zlib import adler32

from lading.objects.tarbase import (
    BLOCK,
    WHOLE_SIZE_MAX,
    ZEROS,
    Member,
    Source,
    TarLimits,
    TarSink,
    TarSummary,
    bad_header,
    cut,
    number,
    octal,
    pax_number,
    refused,
    shown,
)
from lading.objects.tarsparse import check_regions, read_old_sparse, read_pax_sparse
from lading.values import printable

#: Times are clamped to what 64 bits hold.
_INT64_MAX: Final = (1 << 63) - 1


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
    source = Source(read, limits.size_max)
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
    count: int = 0  #: of those that say something of it; global ones in front do not
    row: int = 0  #: of all that stand in a row


def _members(source: Source, sink: TarSink, limits: TarLimits) -> Iterator[Member]:
    """Read members up to the end marker or the stream's end."""
    pending = _Extensions()
    while True:
        if not source.fill(BLOCK):
            if source.position < len(source.data) or pending.count:
                raise cut()
            return
        header = source.take(BLOCK)
        if header == ZEROS:
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
        stored = octal(header[148:156])
    except ValueError:
        raise bad_header("its checksum is no number") from None
    fast = adler32(header[156:], adler32(b"        ", adler32(header[:148]))) & 0xFFFF
    if fast != (1 + stored) % 65521 or stored > BLOCK * 255:
        signed = sum(byte - 256 if byte > 127 else byte for byte in header) + 256
        signed -= sum(byte - 256 if byte > 127 else byte for byte in header[148:156])
        if signed != stored:
            raise bad_header("its checksum is wrong")
    return header[156:157]


def _size(header: bytes, limits: TarLimits) -> int:
    size = number(header, 124, 136, "size")
    if size < 0 or size > limits.size_max:
        raise bad_header(f"its size {size} is out of range")
    return size


def _padded(size: int) -> int:
    return -size % BLOCK


def _read_extension(
    source: Source, sink: TarSink, limits: TarLimits, header: bytes, kind: bytes, pending: _Extensions
) -> None:
    """Read a PAX or GNU extension header; global ones are only recorded."""
    size = _size(header, limits)
    pending.row += 1
    if size > limits.extension_size_max:
        raise bad_header(f"an extension header has {size} bytes")
    if pending.row > limits.extensions_max:
        raise bad_header(f"more than {limits.extensions_max} extension headers in a row")
    body = source.take(size + _padded(size))
    sink.literal(body)
    data = body[:size]
    if kind != b"g":
        pending.count += 1
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
        if b"\0" in value and not key.startswith(_XATTR):  # attributes alone may be anything
            raise bad_header(f"a PAX {printable(key)} has a NUL byte")
        yield key, value
        position = end


#: Types that a layer may hold; "7" is a file, NUL a file of old tars.
_FILE_TYPES: Final = b"0\x007"
_TYPES: Final = b"0\x007123456S"
_XATTR: Final = b"SCHILY.xattr."

#: Any of these makes a file a sparse one, for every reader of tars.
_SPARSE: Final = frozenset({b"GNU.sparse.size", b"GNU.sparse.realsize", b"GNU.sparse.map", b"GNU.sparse.major"})


def _read_member(
    source: Source, sink: TarSink, limits: TarLimits, header: bytes, kind: bytes, pending: _Extensions
) -> Member:
    """Read a file's header fields and its content."""
    member = _described(header, kind, pending, limits)
    if kind not in _TYPES or not kind:
        raise refused(member.name, f"unhandled tar header type {kind[0] if kind else 0}")
    stored = member.size
    if kind == b"S":
        read_old_sparse(source, sink, limits, header, member)
    elif kind in _FILE_TYPES and (pending.sparse_map or not _SPARSE.isdisjoint(pending.pax)):
        stored -= read_pax_sparse(source, sink, limits, pending.pax, pending.sparse_map, member)
    if kind in _FILE_TYPES or kind == b"S":
        if kind in b"0\x00" and member.name.endswith(b"/"):
            member.type = b"5"  # how tars from before directories had a type write them
        check_regions(member, stored, limits)
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
        name = pax.get(b"GNU.sparse.name") or pax.get(b"path") or name
        target = pax.get(b"linkpath") or target
    size = pax_number(pax, b"size", name) if b"size" in pax else _size(header, limits)
    if size > limits.size_max:
        raise bad_header(f"its size {size} is out of range", name)
    if kind in b"123456":
        size = 0  # nothing follows links, devices, directories and fifos, whatever the field says
    return Member(
        name, kind, number(header, 100, 108, "mode") & 0o7777,
        _owner(header, pax, b"uid", 108, name), _owner(header, pax, b"gid", 116, name),
        size, _mtime(header, pax, name), target,
        number(header, 329, 337, "device") if kind in b"34" else 0, number(header, 337, 345, "device") if kind in b"34" else 0,
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


def _owner(header: bytes, pax: dict[bytes, bytes], key: bytes, start: int, name: bytes) -> int:
    found = pax_number(pax, key, name) if pax and key in pax else number(header, start, start + 8, key.decode())
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
        found = number(header, 136, 148, "mtime") * 1_000_000_000
    return max(-_INT64_MAX, min(_INT64_MAX, found))


_NAMESPACES: Final = (b"user.", b"trusted.", b"security.", b"system.")


def _xattrs(pax: dict[bytes, bytes], name: bytes, limits: TarLimits) -> dict[bytes, bytes]:
    """A file's extended attributes, as written."""
    found = {}
    for key, value in pax.items():
        if key.startswith(_XATTR):
            attribute = key[len(_XATTR) :]
            if len(attribute) > limits.name_size_max or not attribute.startswith(_NAMESPACES) or b"\0" in attribute:
                raise refused(name, f'extended attribute "{shown(attribute)}" cannot be kept')
            if len(value) > limits.xattr_size_max:
                raise refused(name, f'extended attribute "{shown(attribute)}" has {len(value)} bytes')
            found[attribute] = value
    return found
