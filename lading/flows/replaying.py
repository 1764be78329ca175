"""A content's entries made again from the object that gives its stream back, without storing anything.

A recipe's literals go through the tar reader as they are. In place of the files' bytes, which it never looks at, go
zeros: their digests stand in the recipe. So what is damaged in a file does not matter here, and little is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from lading import trees
from lading.catalog import content as catalog_content
from lading.catalog.database import WriteTransaction
from lading.catalog.draft import Draft
from lading.errors import Corrupt, LadingError
from lading.flows.context import Context
from lading.flows.export import assemble
from lading.flows.ingest import shadowed
from lading.materialize.listing import read_listing
from lading.objects.recipe import MAGIC, Literal, Reference, read_recipe
from lading.objects.streams import Hasher
from lading.objects.tar import ingest_tar
from lading.objects.tarbase import TarLimits, TarSummary
from lading.values import KIND_DATA, KIND_LISTING, KIND_RECIPE, Location

#: What was accepted once is accepted now, whatever is configured.
_LIMITS = TarLimits(entries_max=1 << 40, size_max=1 << 62, tree_size_max=1 << 62)

_ZEROS = bytes(1 << 20)

#: A recipe ends with the sha256 of its stream.
_SHA256_SIZE = 32


@dataclass(frozen=True, slots=True)
class Replayed:
    """A tar that went through the reader once more."""

    tar: TarSummary
    size: int
    named: dict[bytes, int]  #: digests and sizes of the objects that the recipe names


class _Stream:
    """The stream of a recipe, with zeros for content; takes it apart again as the reader does."""

    def __init__(self, parts: Iterator[Literal | Reference]) -> None:
        self._parts = parts
        self._zeros = 0
        self._waiting: deque[Reference] = deque()
        self.size = 0
        self.named: dict[bytes, int] = {}

    def read(self, size: int) -> bytes:
        """The next bytes; none at the end."""
        found: list[bytes] = []
        have = 0
        while have < size:
            if self._zeros:
                data = _ZEROS[: min(self._zeros, len(_ZEROS), size - have)]
                self._zeros -= len(data)
            else:
                part = next(self._parts, None)
                if part is None:
                    break
                if isinstance(part, Reference):
                    self._waiting.append(part)
                    self.named[part.digest] = part.size
                    self._zeros = part.size
                    continue
                data = part.data
            found.append(data)
            have += len(data)
        self.size += have
        return b"".join(found)

    def literal(self, data: bytes) -> None:
        """Bytes that are no file's content."""

    def put(self, data: bytes) -> bytes:
        """A whole content."""
        return self._next(len(data))

    def stream(self, chunks: Iterator[bytes], size: int) -> bytes:
        """A content chunk by chunk."""
        return self._next(sum(map(len, chunks)))

    def _next(self, size: int) -> bytes:
        part = self._waiting.popleft() if self._waiting else None
        if part is None or part.size != size:
            raise Corrupt("recipe does not agree with the tar that it gives")
        return part.digest


def replay(context: Context, recipe: bytes) -> Replayed:
    """Read the tar of a recipe.

    Raises:
        Corrupt: the recipe is damaged.
        TarError: what it gives is refused nowadays.
    """
    stream = _Stream(read_recipe(next(context.reader.contents([recipe]))))
    tar = ingest_tar(stream.read, stream, _LIMITS)
    return Replayed(tar, stream.size, stream.named)


def stream_key(context: Context, place: Location) -> str:
    """Tell which content a recipe says it is of; empty when it says nothing.

    Only the end is read, so nothing is verified.
    """
    if place.size <= len(MAGIC) + _SHA256_SIZE:
        return ""
    try:
        return "sha256:" + context.reader.read_range(place.digest, place.size - _SHA256_SIZE, _SHA256_SIZE).hex()
    except LadingError:
        return ""


def looks_like_recipe(context: Context, place: Location) -> bool:
    """Tell whether an object begins as a recipe does."""
    try:
        return context.reader.read_range(place.digest, 0, len(MAGIC)) == MAGIC
    except LadingError:
        return False


def gives(context: Context, recipe: bytes, key: str) -> bool:
    """Tell, reading everything, whether a recipe gives the stream of a content."""
    state = Hasher()
    try:
        for chunk in assemble(context, recipe):
            state.update(chunk)
        return state.finish() == key
    except LadingError:
        return False
    finally:
        state.close()


def add_tar(context: Context, draft: Draft, key: str, recipe: bytes) -> int:
    """Make the rows of a content that came as a tar.

    Returns:
        Bytes of its stream.

    Raises:
        LadingError: the recipe cannot be read.
    """
    found = replay(context, recipe)
    draft.missing(found.named, KIND_DATA)
    content_id = catalog_content.store_content(
        context.catalog, diff_id=key, size=found.size, recipe=recipe, entries=found.tar.entries, uids=found.tar.uids,
        gids=found.tar.gids, diff_bytes=found.tar.diff_bytes, epoch=0, shadowed=shadowed(found.named, found.tar.entries),
    )  # fmt: skip
    _ready(context, draft, key, content_id)
    return found.size


def add_native(context: Context, draft: Draft, key: str, listing: bytes) -> int:
    """Make the rows of a content that was sealed from a write area.

    Returns:
        Bytes of its stream.

    Raises:
        LadingError: its listing cannot be read.
    """
    entries = list(read_listing(next(context.reader.contents([listing]))))
    sizes = {
        entry.inode.digest: sum(length for _, length in entry.inode.sparse) or entry.inode.size
        for entry in entries
        if entry.inode is not None and entry.inode.digest
    }
    draft.missing(sizes, KIND_DATA)
    content_id = catalog_content.store_content(
        context.catalog, diff_id=None, size=0, recipe=listing, entries=entries, uids=(), gids=(),
        diff_bytes=trees.diff_size(entries), epoch=0,
    )  # fmt: skip
    _ready(context, draft, key, content_id)
    return sum(sizes.values())


def _ready(context: Context, draft: Draft, key: str, content_id: int) -> None:
    with context.catalog.write_rows("rebuild", durable=False) as conn:
        catalog_content.ready(WriteTransaction(conn, "rebuild"), content_id, key)
    draft.done(key)


def add_hollow(draft: Draft, key: str, recipe: bytes | None) -> None:
    """Keep the place of a content whose entries cannot be made again."""
    if key.startswith("native:"):
        draft.add_hollow(key, bytes.fromhex(key.removeprefix("native:")), KIND_LISTING)
    else:
        draft.add_hollow(key, recipe, KIND_RECIPE)
