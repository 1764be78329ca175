"""The recipe: a byte stream written as literal bytes and references to objects. See docs/format-recipe.md.

It knows no tar. Replaying the literals and the referenced objects in order gives the stream back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from lading.errors import Corrupt

MAGIC: Final = b"LADRECIPE\x01"

#: Literals are joined up to this size, and a longer one is handed out in several.
LITERAL_SIZE_MAX: Final = 1 << 20

#: Tags in front of each part; the rest of the byte is zero.
_END: Final = 0
_LITERAL: Final = 1
_REFERENCE: Final = 2

_VARINT_BYTES_MAX: Final = 10
_PART_SIZE_MAX: Final = 1 + _VARINT_BYTES_MAX
_DIGEST_SIZE: Final = 32


class Literal(NamedTuple):
    """Bytes of the stream, as they are."""

    data: bytes


class Reference(NamedTuple):
    """Bytes of the stream that are a whole object."""

    digest: bytes
    size: int


@dataclass(frozen=True, slots=True)
class RecipeEnd:
    """What the recipe says of the whole stream."""

    size: int
    sha256: str


def varint(value: int) -> bytes:
    """Seven bits a byte, low ones first, the high bit set on all but the last."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class RecipeEncoder:
    """Writes a recipe as the stream goes by."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._out: list[bytes] = [MAGIC]
        self._out_size = len(MAGIC)
        self._literal: list[bytes] = []
        self._literal_size = 0

    def literal(self, data: bytes) -> None:
        """Note bytes that are no object's."""
        self._literal.append(data)
        self._literal_size += len(data)
        if self._literal_size >= LITERAL_SIZE_MAX:
            self._end_literal()

    def reference(self, digest: bytes, size: int) -> None:
        """Note that a whole object follows."""
        if self._literal:
            self._end_literal()
        self._add(b"\x02" + varint(size) + digest)

    def _end_literal(self) -> None:
        data = b"".join(self._literal)
        self._literal, self._literal_size = [], 0
        if data:
            self._add(b"\x01" + varint(len(data)) + data)

    def _add(self, part: bytes) -> None:
        self._out.append(part)
        self._out_size += len(part)
        if self._out_size >= LITERAL_SIZE_MAX:
            self._flush()

    def _flush(self) -> None:
        self._write(b"".join(self._out))
        self._out, self._out_size = [], 0

    def finish(self, total_size: int, sha256_hex: str) -> None:
        """End the recipe with what the whole stream must be."""
        self._end_literal()
        self._add(b"\x00" + varint(total_size) + bytes.fromhex(sha256_hex))
        self._flush()


class _Reader:
    """A cursor over chunks."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._data = b""
        self._position = 0

    def _more(self) -> None:
        """Put the next chunk behind what is left."""
        try:
            chunk = next(self._chunks)
        except StopIteration:
            raise Corrupt("recipe is cut") from None
        self._data = self._data[self._position :] + chunk
        self._position = 0

    def take(self, size: int) -> bytes:
        """The next bytes, at most as many as a literal may have."""
        while len(self._data) - self._position < size:
            self._more()
        found = self._data[self._position : self._position + size]
        self._position += size
        return found

    def number(self) -> int:
        """The next varint."""
        value = 0
        for index in range(_VARINT_BYTES_MAX):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return value
        raise Corrupt("recipe has a number that does not end")

    def part(self) -> tuple[int, int]:
        """The next part's tag and number; the common case reads the buffer in place."""
        data, at = self._data, self._position
        if len(data) - at < _PART_SIZE_MAX:
            return self.take(1)[0], self.number()
        tag, value, shift = data[at], 0, 0
        while True:
            at += 1
            byte = data[at]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                self._position = at + 1
                return tag, value
            shift += 7
            if shift >= 7 * _VARINT_BYTES_MAX:
                raise Corrupt("recipe has a number that does not end")

    def references(self) -> tuple[list[Reference], int]:
        """Pass over the parts that lie in the buffer whole.

        Returns:
            The references among them, and the bytes of the stream that all of them stand for.
        """
        data, at, total = self._data, self._position, 0
        found: list[Reference] = []
        end = len(data)
        last = end - _PART_SIZE_MAX - _DIGEST_SIZE
        while at <= last:
            tag, size, start = data[at], data[at + 1], at + 2
            shift = 7
            if size > 0x7F:
                size &= 0x7F
                while (byte := data[start]) > 0x7F and shift < 7 * (_VARINT_BYTES_MAX - 1):
                    size |= (byte & 0x7F) << shift
                    shift += 7
                    start += 1
                if byte > 0x7F:
                    break  # too long, as whoever reads it next will say
                size |= byte << shift
                start += 1
            if tag == _REFERENCE:
                found.append(Reference(data[start : start + _DIGEST_SIZE], size))
                at = start + _DIGEST_SIZE
            elif tag == _LITERAL and start + size <= end:
                at = start + size
            else:
                break
            total += size
        self._position = at
        return found, total

    def skip(self, size: int) -> None:
        """Pass over a literal, whatever its size."""
        while size > (here := len(self._data) - self._position):
            size -= here
            self._position += here
            self._more()
        self._position += size

    def begin(self) -> None:
        """Read the magic."""
        if self.take(len(MAGIC)) != MAGIC:
            raise Corrupt("recipe does not begin like one")

    def end(self, size: int, total: int) -> None:
        """Read what follows the last part."""
        if size != total:
            raise Corrupt("recipe has sizes that do not add up")
        self.take(_DIGEST_SIZE)
        if not self.at_end():
            raise Corrupt("recipe goes on after its end")

    def at_end(self) -> bool:
        """Tell whether nothing is left."""
        while self._position == len(self._data):
            try:
                self._more()
            except Corrupt:
                return True
        return False


def read_recipe(chunks: Iterable[bytes]) -> Iterator[Literal | Reference]:
    """Read a recipe's parts.

    Args:
        chunks: the recipe's bytes, in pieces of any size.

    Yields:
        Parts in stream order. A literal has at most ``LITERAL_SIZE_MAX`` bytes.

    Raises:
        Corrupt: no recipe, cut, or with sizes that do not add up.
    """
    reader = _Reader(chunks)
    reader.begin()
    total = 0
    while True:
        tag, size = reader.part()
        if tag == _END:
            break
        total += size
        if tag == _REFERENCE:
            yield Reference(reader.take(_DIGEST_SIZE), size)
        elif tag == _LITERAL:
            while size:
                part = min(size, LITERAL_SIZE_MAX)
                yield Literal(reader.take(part))
                size -= part
        else:
            raise Corrupt(f"recipe has an unknown part {tag}")
    reader.end(size, total)


def read_references(chunks: Iterable[bytes]) -> Iterator[Reference]:
    """Read only the objects that a recipe names, in half the time.

    Args:
        chunks: see :func:`read_recipe`.

    Yields:
        References in stream order.

    Raises:
        Corrupt: for what :func:`read_recipe` would raise it.
    """
    reader = _Reader(chunks)
    reader.begin()
    total = 0
    while True:
        found, size = reader.references()
        yield from found
        total += size
        tag, size = reader.part()
        if tag == _END:
            break
        total += size
        if tag == _REFERENCE:
            yield Reference(reader.take(_DIGEST_SIZE), size)
        elif tag == _LITERAL:
            reader.skip(size)
        else:
            raise Corrupt(f"recipe has an unknown part {tag}")
    reader.end(size, total)
