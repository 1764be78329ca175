"""What the tar modules share: limits, members, errors, the buffer over the source, number fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, Protocol

from lading.errors import InvalidInput
from lading.values import Entry, printable

BLOCK: Final = 512
ZEROS: Final = bytes(BLOCK)

#: Bytes asked of the source at a time.
READ_SIZE: Final = 1 << 20

#: Bytes of a name that a message shows.
SHOWN_MAX: Final = 255

#: Content up to this size is handed over whole, larger content chunk by chunk.
WHOLE_SIZE_MAX: Final = 8 << 20


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
    tree_size_max: int = 1 << 30  #: bytes of all paths, link targets and attributes of that model together
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


def shown(name: bytes) -> str:
    """A name for a message: escaped, and cut where nobody reads on."""
    return printable(name) if len(name) <= SHOWN_MAX else f"{printable(name[:SHOWN_MAX])}…"


def bad_header(why: str, name: bytes = b"") -> TarError:
    """A header that cannot be believed."""
    of = f' of "{shown(name)}"' if name else ""
    return TarError(f"invalid tar header{of}: {why}")


def refused(name: bytes, why: str) -> TarError:
    """An entry that is well formed and must not be unpacked."""
    return TarError(f'"{shown(name)}": {why}')


class Source:
    """A buffer over ``read``. Bytes that were taken as literals have gone to the sink."""

    def __init__(self, read: Callable[[int], bytes], limit: int) -> None:
        self._read = read
        self._limit = limit
        self._total = 0
        self.data = b""
        self.position = 0

    def fill(self, size: int) -> bool:
        """Have at least ``size`` bytes in the buffer; False at the stream's end."""
        if len(self.data) - self.position >= size:
            return True
        parts = [self.data[self.position :]]
        have = len(parts[0])
        while have < size:
            more = self._read(READ_SIZE)
            if not more:
                break
            self._total += len(more)
            if self._total > self._limit:
                raise TarError(f"the tar has more than {self._limit} bytes")
            parts.append(more)
            have += len(more)
        # Joined once: a source may hand out single bytes.
        self.data, self.position = b"".join(parts) if parts[0] or len(parts) > 2 else parts[-1], 0
        return have >= size

    def take(self, size: int) -> bytes:
        """Take the next ``size`` bytes."""
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


@lru_cache(4096)
def octal(field_: bytes) -> int:
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
    return octal(raw)


def number(header: bytes, start: int, end: int, what: str) -> int:
    """Read a header's number field."""
    try:
        return _parsed(header[start:end])
    except ValueError:
        raise bad_header(f"its {what} is no number") from None


def pax_number(pax: dict[bytes, bytes], key: bytes, name: bytes) -> int:
    """Read a number of a PAX record."""
    text = pax[key]
    if not text.isdigit() or len(text) > 19:
        raise bad_header(f"its {key.decode(errors='replace')} is no number", name)
    return int(text)
