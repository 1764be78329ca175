"""A layer comes out: its diff as a tar stream, its changes, its size.

The diff of a layer that a tar was applied to is that tar, byte for byte, put together from its recipe.
Every other diff is generated from entries, which come from the catalog or from a walk of the write area.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from lading import trees
from lading.catalog import content as catalog_content
from lading.errors import Corrupt, NotFound
from lading.flows import layers, stores, views
from lading.flows.context import Context
from lading.objects.recipe import Literal, Reference, read_recipe, read_references
from lading.objects.streams import Hasher, compress_stream
from lading.objects.tarwrite import write_diff
from lading.values import Change, Layer, component_key, printable

#: Output is handed on in pieces of about this size: small ones cost more to pass than to make.
CHUNK_SIZE: Final = 1 << 20


class DiffStream(Iterable[bytes]):
    """The chunks of a diff; to be iterated over once."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks


@contextmanager
def diff(context: Context, ref: str, against: str | None, *, compression: int | None) -> Iterator[DiffStream]:
    """Open a layer's diff as a tar stream.

    The epoch lock is held until the block ends, so that a collection meanwhile takes nothing away.

    Args:
        context: the store.
        ref: the layer.
        against: reference of another layer; None, or one that is not known, for the parent.
        compression: index into ``values.COMPRESSIONS``; None for the layer's recorded one.

    Raises:
        InvalidInput: bzip2 or xz was asked for.
        Corrupt: from the iteration: stored bytes are damaged. It is raised by the last chunk at the latest.
    """
    with stores.epochs(context):
        layer = layers.get(context, ref)
        reference = _reference(context, layer, against)
        plain = _plain_diff(context, layer, reference)
        chunks = compress_stream(plain, layer.compression if compression is None else compression)
        yield DiffStream(chunks)


def _reference(context: Context, layer: Layer, against: str | None) -> Layer | None:
    """Find the layer to compare with; None means the parent."""
    if not against:
        return None
    found = layers.find(context, against)
    if found is None and not layer.parent:
        raise NotFound(f"stat {context.layout.layers / printable(against)}: no such file or directory")
    return None if found is None or found.id == layer.parent else found


def _plain_diff(context: Context, layer: Layer, reference: Layer | None) -> Iterator[bytes]:
    if reference is None and layer.replay:
        return replay(stores.home(context, layer), layer.replay)
    live = views.LiveFiles(context.objects)
    stack = views.stack(context, layer, live)
    if reference is None:
        entries = stack.changes()
    else:
        entries = trees.diff_between(views.stack(context, reference, live).tree(), stack.tree())
    return write_diff(sorted(entries, key=lambda entry: component_key(entry.path)), live)


def replay(context: Context, key: str) -> Iterator[bytes]:
    """Put a layer tar together from its recipe, checking its digest on the way.

    Raises:
        Corrupt: an object is missing or damaged, or the whole is not what was stored.
    """
    with context.catalog.read() as conn:
        recipe = catalog_content.recipe_of(conn, key)
    if recipe is None:
        raise Corrupt(f"content {key} has no recipe")
    state = Hasher()
    try:
        for chunk in _gathered(assemble(context, recipe)):
            state.update(chunk)
            yield chunk
        found = state.finish()
    finally:
        state.close()
    if found != key:
        _find_damage(context, recipe)
        raise Corrupt(f"content {key} came out as {found}")


def _find_damage(context: Context, recipe: bytes) -> None:
    """Read a recipe and all it names once more, verifying each object.

    The digest of the whole is enough to know that it is right, and cheaper; only when it is wrong does it
    matter which object is.

    Raises:
        Corrupt: with the object that is damaged.
    """
    parts = read_references(next(context.reader.contents([recipe])))
    for content in context.reader.contents(part.digest for part in parts):
        for _ in content:
            pass


def assemble(context: Context, recipe: bytes) -> Iterator[bytes]:
    """Follow a recipe: literals as they are, references by their objects' bytes.

    The reader runs ahead of the output; the parts it has passed wait in a queue of the same bound.
    """
    parts = read_recipe(next(context.reader.contents([recipe])))
    passed: deque[Literal | Reference] = deque()

    def digests() -> Iterator[bytes]:
        for part in parts:
            passed.append(part)
            if isinstance(part, Reference):
                yield part.digest

    for content in context.reader.contents(digests(), verify=False):
        while isinstance(part := passed.popleft(), Literal):
            yield part.data
        yield from content
    for part in passed:
        if isinstance(part, Literal):
            yield part.data


def _gathered(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Join small chunks into ones of about ``CHUNK_SIZE``."""
    pending: list[bytes] = []
    size = 0
    for chunk in chunks:
        pending.append(chunk)
        size += len(chunk)
        if size >= CHUNK_SIZE:
            yield b"".join(pending)
            pending, size = [], 0
    if pending:
        yield b"".join(pending)


def changes(context: Context, ref: str, against: str | None) -> list[Change]:
    """List what differs between a layer and its parent, or another layer."""
    with stores.epochs(context):
        layer = layers.get(context, ref)
        reference = _reference(context, layer, against)
        live = views.LiveFiles(context.objects)
        stack = views.stack(context, layer, live)
        if reference is None and context.driver == "overlay":
            return trees.changes_upper(stack.lower_tree(), stack.changes())
        old = stack.lower_tree() if reference is None else views.stack(context, reference, live).tree()
        return trees.changes_naive(old, stack.tree())


def diffsize(context: Context, ref: str, against: str | None) -> int:
    """Estimate the bytes of the files that differ; never the length of the tar."""
    with stores.epochs(context):
        layer = layers.get(context, ref)
        reference = _reference(context, layer, against)
        live = views.LiveFiles(context.objects)
        stack = views.stack(context, layer, live)
        if reference is None and context.driver == "overlay":
            return trees.diff_size(stack.changes())
        old = stack.lower_tree() if reference is None else views.stack(context, reference, live).tree()
        return trees.diff_size(trees.diff_between(old, stack.tree()))
