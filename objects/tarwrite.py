"""Entries to a generated diff: one pure function, whatever the entries came from.

Used where no applied tar can be given back. Names carry no leading slash, directories end with one, removals
are ``.wh.`` files, times are whole seconds, and nothing but two zero blocks follows the last entry.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from os import major, minor
from typing import Final

from lading.objects.tarbase import BLOCK
from lading.values import IMPLIED, WHITEOUT, ContentSource, Entry, Inode

_TYPES: Final = {"f": b"0", "l": b"2", "c": b"3", "b": b"4", "d": b"5", "p": b"6"}
_NAME_SIZE: Final = 100
_PREFIX_SIZE: Final = 155
_OCTAL_8_MAX: Final = 0o7777777
_OCTAL_12_MAX: Final = 0o77777777777

#: Zeros of a hole are written in pieces of this size.
_HOLE_SIZE: Final = 1 << 20

_REMOVED: Final = Inode("f", 0, 0, 0, 0)


def write_diff(entries: Iterable[Entry], contents: ContentSource) -> Iterator[bytes]:
    """Write entries as a tar.

    Args:
        entries: sorted, parents first; implied directories and sockets are left out.
        contents: hands out the files' bytes.

    Yields:
        The tar in pieces.
    """
    kept = [entry for entry in entries if entry.kind != IMPLIED and entry.path and not _is_socket(entry)]
    opened = contents.contents(digest for digest in map(_digest, kept) if digest)
    for entry in kept:
        yield from _headers(entry)
        inode = entry.inode
        if inode is not None and inode.type == "f" and entry.link is None and inode.size:
            yield from _expanded(inode, next(opened) if inode.digest else iter(()))
            yield bytes(-inode.size % BLOCK)
    yield bytes(2 * BLOCK)


def _is_socket(entry: Entry) -> bool:
    return entry.inode is not None and entry.inode.type == "s"


def _digest(entry: Entry) -> bytes:
    """The object whose bytes follow an entry's header; empty for none."""
    return entry.inode.digest if entry.inode is not None and entry.inode.type == "f" and entry.link is None else b""


def _headers(entry: Entry) -> Iterator[bytes]:
    """The headers of an entry, the opaque marker's included."""
    if entry.kind == WHITEOUT:
        directory, slash, name = entry.path.rpartition(b"/")
        yield header(directory + slash + b".wh." + name, b"0", _REMOVED, 0)
        return
    inode = entry.inode
    assert inode is not None
    if entry.link is not None:
        yield header(entry.path, b"1", inode, 0, entry.link)
    elif inode.type == "d":
        yield header(entry.path + b"/", b"5", inode, 0)
        if entry.opaque:
            yield header(entry.path + b"/.wh..wh..opq", b"0", _REMOVED, 0)
    else:
        yield header(entry.path, _TYPES[inode.type], inode, inode.size, inode.target)


def _expanded(inode: Inode, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """A file's bytes with its holes as zeros."""
    if not inode.sparse and inode.digest:
        yield from chunks
        return
    position, rest = 0, b""
    for offset, length in inode.sparse:
        yield from _zeros(offset - position)
        while length:
            rest = rest or next(chunks)
            part, rest = rest[:length], rest[length:]
            length -= len(part)
            offset += len(part)
            yield part
        position = offset
    for _ in chunks:  # read to the end, where the content is verified
        pass
    yield from _zeros(inode.size - position)


def _zeros(size: int) -> Iterator[bytes]:
    while size > 0:
        yield bytes(min(size, _HOLE_SIZE))
        size -= _HOLE_SIZE


def header(name: bytes, kind: bytes, inode: Inode, size: int, target: bytes = b"") -> bytes:
    """One header block, with a PAX header in front where ustar has no room."""
    pax: dict[bytes, bytes] = {}
    prefix = b""
    if len(name) > _NAME_SIZE or not name.isascii():
        split = _split(name) if name.isascii() else None
        if split is None:
            pax[b"path"] = name
        else:
            prefix, name = split
    if len(target) > _NAME_SIZE or not target.isascii():
        pax[b"linkpath"] = target
    for key, value, limit in (
        (b"uid", inode.uid, _OCTAL_8_MAX),
        (b"gid", inode.gid, _OCTAL_8_MAX),
        (b"size", size, _OCTAL_12_MAX),
    ):
        if value > limit:
            pax[key] = b"%d" % value
    seconds = inode.mtime_ns // 1_000_000_000
    if not 0 <= seconds <= _OCTAL_12_MAX:
        pax[b"mtime"] = b"%d" % seconds
    if kind != b"1":
        pax.update((b"SCHILY.xattr." + key, value) for key, value in inode.xattrs if _is_kept(key))
    front = _pax_header(name, pax) if pax else b""
    return front + _block(name, prefix, kind, inode, size, seconds, target)


def _is_kept(key: bytes) -> bool:
    if key.startswith(b"user."):
        return not key.startswith(b"user.overlay.")
    return key in (b"security.capability", b"security.ima")


def _split(name: bytes) -> tuple[bytes, bytes] | None:
    """Split a long name at a slash into ustar's prefix and name; None when it does not fit."""
    if len(name) > _PREFIX_SIZE + 1 + _NAME_SIZE:
        return None
    cut = name.find(b"/", max(0, len(name.rstrip(b"/")) - _NAME_SIZE - 1))
    while 0 <= cut <= _PREFIX_SIZE:
        rest = name[cut + 1 :]
        if rest and len(rest) <= _NAME_SIZE and cut:
            return name[:cut], rest
        cut = name.find(b"/", cut + 1)
    return None


def _block(name: bytes, prefix: bytes, kind: bytes, inode: Inode, size: int, seconds: int, target: bytes) -> bytes:
    is_device = kind in b"34"
    block = b"".join(
        (
            name[:_NAME_SIZE].ljust(100, b"\0"), b"%07o\0" % inode.mode, _octal(inode.uid, 8), _octal(inode.gid, 8),
            _octal(size, 12), _octal(seconds, 12), b"        ", kind, target[:_NAME_SIZE].ljust(100, b"\0"), b"ustar\x0000",
            bytes(64), _octal(major(inode.rdev) if is_device else 0, 8), _octal(minor(inode.rdev) if is_device else 0, 8),
            prefix.ljust(_PREFIX_SIZE, b"\0"), bytes(12),
        )
    )  # fmt: skip
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _octal(value: int, width: int) -> bytes:
    """A number in its field; one that does not fit is 0 here and stands in the PAX header."""
    text = b"%0*o\0" % (width - 1, max(value, 0))
    return text if len(text) == width else b"0" * (width - 1) + b"\0"


def _pax_header(name: bytes, records: dict[bytes, bytes]) -> bytes:
    body = b"".join(_record(key, records[key]) for key in sorted(records))
    base = name.rstrip(b"/").rpartition(b"/")[2][:80]
    owner = Inode("f", 0o644, 0, 0, 0)
    block = _block(b"PaxHeaders.0/" + base, b"", b"x", owner, len(body), 0, b"")
    return block + body + bytes(-len(body) % BLOCK)


def _record(key: bytes, value: bytes) -> bytes:
    """``LENGTH KEY=VALUE\\n``, the length counting itself."""
    rest = len(key) + len(value) + 3
    size = rest + len(str(rest))
    size = rest + len(str(size))
    return b"%d %s=%s\n" % (size, key, value)
