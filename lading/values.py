"""Plain values that every room may hold; no I/O, no knowledge of any room.

Paths inside a tree are bytes, relative to its root, without leading or trailing slash; ``b""`` is the
root itself. Digests of objects are the 32 raw bytes of BLAKE3; digests of the OCI world are text,
``sha256:`` and 64 hex digits. Times are integers of nanoseconds since 1970, UTC.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, Protocol

from blake3 import blake3

RecordKind = Literal["layer", "image", "container"]
RECORD_KINDS: Final[tuple[RecordKind, ...]] = ("layer", "image", "container")

#: Object kinds, as kept in pack indexes and in the catalog. Numbers are part of the format.
KIND_DATA: Final = 0
KIND_RECIPE: Final = 1
KIND_BIG_DATA: Final = 2
KIND_SNAPSHOT: Final = 3
KIND_LISTING: Final = 4

#: How an object's frames are stored. Numbers are part of the format.
CODEC_RAW: Final = 0
CODEC_ZSTD: Final = 1

#: Name under which a catalog lists objects that are needed and in no pack. Real packs have random names.
LOST_PACK: Final = "0" * 32

#: Plain bytes in one frame; the last frame of an object may be shorter.
FRAME_SIZE: Final = 4 << 20

#: What a catalog entry is. Numbers are part of the catalog's schema.
PRESENT: Final = 0
IMPLIED: Final = 1
WHITEOUT: Final = 2

#: Compression of a diff as presented, numbered as in the record's ``compression`` field.
COMPRESSIONS: Final[tuple[str, ...]] = ("none", "bzip2", "gzip", "xz", "zstd")


class Inode(NamedTuple):
    """One file's metadata and content, apart from its names. Equal values share one catalog row."""

    type: str  #: ``f`` regular, ``d`` directory, ``l`` symlink, ``c``/``b`` device, ``p`` fifo, ``s`` socket
    mode: int  #: permission bits, at most 0o7777
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0  #: logical bytes of a regular file; 0 for all else
    digest: bytes = b""  #: BLAKE3 of a regular file's stored bytes; empty when there are none
    target: bytes = b""  #: where a symlink points
    rdev: int = 0  #: ``os.makedev(major, minor)`` of a device
    xattrs: tuple[tuple[bytes, bytes], ...] = ()  #: (name, value), sorted by name
    sparse: tuple[tuple[int, int], ...] = ()  #: (offset, length) of the stored bytes; () = all of them


class Entry(NamedTuple):
    """One name of a layer content: a file, a directory only implied by a path below it, or a removal."""

    path: bytes
    kind: int  #: PRESENT, IMPLIED or WHITEOUT
    inode: Inode | None = None  #: None unless PRESENT
    opaque: bool = False  #: a directory that hides whatever lower contents hold in it
    link: bytes | None = None  #: the first name, when this is a further name of one inode


def inode_key(inode: Inode) -> bytes:
    """Name an inode by everything it is made of.

    Returns:
        20 bytes: BLAKE3 over an unambiguous encoding (fixed-size numbers, length before each byte
        string), shortened. Equal inodes have equal keys.
    """
    parts = [
        _INODE_HEAD.pack(
            ord(inode.type),
            inode.mode,
            inode.uid,
            inode.gid,
            inode.mtime_ns >> 64,
            inode.mtime_ns & _U64,
            inode.size,
            inode.rdev,
            len(inode.digest),
            len(inode.target),
            len(inode.xattrs),
            len(inode.sparse),
        ),
        inode.digest,
        inode.target,
    ]
    for name, value in inode.xattrs:
        parts += (_U32.pack(len(name)), name, _U32.pack(len(value)), value)
    for offset, length in inode.sparse:
        parts.append(_REGION.pack(offset, length))
    return blake3(b"".join(parts)).digest(20)


_U64: Final = (1 << 64) - 1
_INODE_HEAD: Final = struct.Struct("<BHIIqQQQIIII")
_U32: Final = struct.Struct("<I")
_REGION: Final = struct.Struct("<QQ")


class Location(NamedTuple):
    """Where an object's frames lie."""

    digest: bytes  #: BLAKE3 of the plain bytes
    kind: int  #: one of the KIND_ numbers
    pack: str  #: name of the pack: 32 hex digits
    offset: int  #: of the first frame, in bytes from the pack's start
    stored_size: int  #: bytes of all frames together; they follow each other
    size: int  #: plain bytes
    codec: int  #: CODEC_RAW or CODEC_ZSTD
    frames: bytes = b""  #: stored size of each frame, little-endian u32 each; empty when there is one frame


@dataclass(frozen=True, slots=True)
class PackContents:
    """A published pack and what its index lists."""

    name: str
    size: int  #: bytes of the whole file
    objects: tuple[Location, ...]


class ContentSource(Protocol):
    """Hands out objects in bulk, in the order asked for, each verified by the time its last chunk is out."""

    def contents(self, digests: Iterable[bytes]) -> Iterator[Iterator[bytes]]:
        """Open many objects.

        Args:
            digests: BLAKE3 digests, consumed ahead of the results by a bounded number.

        Returns:
            For each digest, in order, an iterator over chunks of plain bytes. Each must be used up before
            the next is asked for.

        Raises:
            Corrupt: an object is missing or damaged; the message names it.
        """
        ...


class Readable(Protocol):
    """A stream of bytes, read forwards."""

    def read(self, size: int = -1, /) -> bytes:
        """Read up to ``size`` bytes; none at the end."""
        ...


@dataclass(frozen=True, slots=True)
class IDMap:
    """One contiguous range of an ID mapping."""

    container_id: int
    host_id: int
    size: int


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer as recorded."""

    id: str
    names: tuple[str, ...] = ()
    parent: str = ""
    metadata: str = ""
    mount_label: str = ""
    created_ns: int = 0
    compressed_digest: str = ""
    compressed_size: int = 0
    diff_digest: str = ""
    diff_size: int = 0
    toc_digest: str = ""
    compression: int = 0
    uids: tuple[int, ...] = ()
    gids: tuple[int, ...] = ()
    flags: Mapping[str, Any] = field(default_factory=dict)
    uidmap: tuple[IDMap, ...] = ()
    gidmap: tuple[IDMap, ...] = ()
    big_data_names: tuple[str, ...] = ()
    read_only: bool = False
    origin: int = 0  #: which of the open store's parts holds the record; 0 is the main one. Not recorded.
    contents: tuple[str, ...] = ()  #: keys of the sealed contents, lowest first
    replay: str = ""  #: key of the content that ``diff`` gives back
    write_area: int = 0  #: number of the current write area below ``layers/ID/``
    write_kind: str = ""  #: "" none yet, "upper" or "tree"
    root_mode: int = 0o555
    root_uid: int = 0
    root_gid: int = 0


@dataclass(frozen=True, slots=True)
class BigData:
    """One big data item of a record, without its bytes."""

    key: str
    size: int
    digest: str  #: sha256 of the bytes, or what the caller gave
    object: bytes  #: BLAKE3 of the bytes


@dataclass(frozen=True, slots=True)
class Image:
    """An image as recorded."""

    id: str
    digest: str = ""
    digests: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    names_history: tuple[str, ...] = ()
    layer: str = ""
    mapped_layers: tuple[str, ...] = ()
    metadata: str = ""
    big_data: tuple[BigData, ...] = ()
    created_ns: int = 0
    flags: Mapping[str, Any] = field(default_factory=dict)
    read_only: bool = False
    origin: int = 0  #: as in :class:`Layer`


@dataclass(frozen=True, slots=True)
class Container:
    """A container as recorded."""

    id: str
    names: tuple[str, ...] = ()
    image: str = ""
    layer: str = ""
    metadata: str = ""
    big_data: tuple[BigData, ...] = ()
    created_ns: int = 0
    uidmap: tuple[IDMap, ...] = ()
    gidmap: tuple[IDMap, ...] = ()
    flags: Mapping[str, Any] = field(default_factory=dict)


Record = Layer | Image | Container


class Change(NamedTuple):
    """One difference between two trees."""

    path: bytes  #: with leading slash
    kind: int  #: 0 modified, 1 added, 2 deleted


MODIFIED: Final = 0
ADDED: Final = 1
DELETED: Final = 2


def check_record_id(text: str) -> str | None:
    """Say why a text cannot be a record's id.

    Returns:
        None when it can be one: 1 to 255 bytes of UTF-8, no slash, no NUL or control character, not
        ``.`` or ``..``. Else a phrase for a message.
    """
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        return "is not valid UTF-8"
    if not encoded:
        return "is empty"
    if len(encoded) > 255:
        return "is longer than 255 bytes"
    if text in (".", ".."):
        return "names a directory"
    if "/" in text:
        return "contains a slash"
    if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text):
        return "contains a control character"
    return None


def printable(text: str | bytes) -> str:
    """Escape what a terminal would act on; keep printable Unicode.

    Returns:
        The text with backslashes, quotes, control and unprintable characters and invalid bytes as
        backslash escapes (``\\n``, ``\\"``, ``\\x1b``, ``\\u202e``).
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    return "".join("\\" + char if char in '\\"' else char if char.isprintable() else _escape(char) for char in text)


def tamed(text: str, keep: str = "\t") -> str:
    """Escape only what a terminal would act on or hide: a last guard for whole lines, whose parts may be escaped already.

    Args:
        text: what is about to be written.
        keep: control characters that are meant.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep or _is_space(char) else _escape(char) for char in text)


def _is_space(char: str) -> bool:
    import unicodedata

    return unicodedata.category(char) == "Zs"


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if char in _SHORT_ESCAPES:
        return _SHORT_ESCAPES[char]
    return f"\\x{code:02x}" if code < 128 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


_SHORT_ESCAPES: Final = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\v": "\\v"}


def component_key(path: bytes) -> list[bytes]:
    """Sort key that puts a directory before its contents and walks names byte by byte."""
    return path.split(b"/")


def unique(values: Sequence[str]) -> tuple[str, ...]:
    """Drop repetitions, keeping the first of each."""
    return tuple(dict.fromkeys(values))
