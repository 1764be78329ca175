"""Layers as entries: what a layer changes, what its whole tree is, where the bytes come from.

Sealed contents come from the catalog. A write area that is not sealed yet is walked; its files are then
read from where they lie.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from lading import trees
from lading.catalog import content as catalog_content
from lading.errors import Corrupt, LayerUnknown
from lading.flows import areas, stores
from lading.flows.context import Context
from lading.idmaps import Maps
from lading.materialize.beneath import open_beneath
from lading.values import PRESENT, ContentSource, Entry, Inode, Layer, component_key, printable

if TYPE_CHECKING:
    from lading.materialize.capture import Store

#: Bytes read at a time from a file of a write area.
READ_SIZE: Final = 1 << 20

Entries = Sequence[Entry]


def capture(context: Context, layer: Layer, base: Mapping[bytes, Entry], store: Store) -> list[Entry]:
    """Read a layer's write area as entries, sorted, the root's own first.

    Args:
        context: the store.
        layer: whose area.
        base: what a "tree" area was made from: the full tree without the area; unused for an "upper".
        store: called with an open file and its size for each regular file; returns the digest.
    """
    from lading.materialize.capture import capture_tree, capture_upper
    from lading.materialize.copy import read_stat_index

    area = areas.current(context, layer)
    maps = areas.maps_of(area)
    if layer.write_kind == "upper":
        return maps.read_back(capture_upper(area / "upper", store))
    index = read_stat_index(area / "index")
    shown = {entry.path: entry for entry in maps.shown(base.values())} if maps else base
    found = capture_tree(area / "tree", shown, index, store, as_root=os.geteuid() == 0)
    return _with_owners(found, maps, base, shown) if maps else found


def _with_owners(
    found: Sequence[Entry], maps: Maps, base: Mapping[bytes, Entry], shown: Mapping[bytes, Entry]
) -> list[Entry]:
    """Translate owners back; what still has the owner it was shown with has the one it had before.

    Several owners may have been shown as one, those that the map has no place for.
    """
    result = []
    for entry in found:
        before, then, now = base.get(entry.path), shown.get(entry.path), entry.inode
        if (
            before
            and then
            and now
            and before.inode
            and then.inode
            and (now.uid, now.gid) == (then.inode.uid, then.inode.gid)
        ):
            result.append(entry._replace(inode=now._replace(uid=before.inode.uid, gid=before.inode.gid)))
        else:
            result += maps.read_back([entry])
    return result


class LiveFiles:
    """Contents of files that lie in write areas, by digest; falls back to the store's objects."""

    def __init__(self, objects: ContentSource) -> None:
        self._objects = objects
        self._files: dict[bytes, tuple[Path, str]] = {}
        self._uses: list[areas.Use] = []

    def fresh(self) -> LiveFiles:
        """One like this that knows no files."""
        return LiveFiles(self._objects)

    def adopt(self, other: LiveFiles) -> None:
        """Know what another one knows, too."""
        self._files.update(other._files)
        self._uses += other._uses

    def keep(self, use: areas.Use) -> None:
        """Keep an area from being removed while files may be read from it."""
        self._uses.append(use)

    def store(self, root: Path) -> Store:
        """Make a callback for a capture: hashes a file and remembers where it lies."""

        def remember(descriptor: int, size: int) -> bytes:
            del size
            state = blake3()
            while chunk := os.read(descriptor, READ_SIZE):
                state.update(chunk)
            digest = state.digest()
            self._files[digest] = (root, os.readlink(f"/proc/self/fd/{descriptor}"))
            return digest

        return remember

    def contents(self, digests: Iterable[bytes]) -> Iterator[Iterator[bytes]]:
        """Hand out contents in order, from the areas or from objects."""
        if not self._files:
            yield from self._objects.contents(digests)
            return
        for digest in digests:
            found = self._files.get(digest)
            if found is None:
                yield from self._objects.contents([digest])
            else:
                yield self._read(digest, *found)

    def _read(self, digest: bytes, root: Path, path: str) -> Iterator[bytes]:
        relative = os.fsencode(os.path.relpath(path, os.path.realpath(root)))
        root_descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            descriptor = open_beneath(root_descriptor, relative)
        finally:
            os.close(root_descriptor)
        state = blake3()
        try:
            while chunk := os.read(descriptor, READ_SIZE):
                state.update(chunk)
                yield chunk
        finally:
            os.close(descriptor)
        if state.digest() != digest:
            raise Corrupt(f"{printable(relative)} was changed while it was read")


class NoObjects:
    """The contents of a store that has none: whatever is asked for was to be a file."""

    def contents(self, digests: Iterable[bytes]) -> Iterator[Iterator[bytes]]:
        """Find none."""
        for digest in digests:
            raise Corrupt(f"content {digest.hex()} was changed while it was read")
        yield from ()


@dataclass
class Stack:
    """A layer and its ancestors as contents, lowest first."""

    own: list[Entries] = field(default_factory=list)  #: the layer's own contents, lowest first
    below: list[Entries] = field(default_factory=list)  #: all contents of the ancestors, lowest first

    def tree(self) -> dict[bytes, Entry]:
        """The full tree, whole with the layer's own contents."""
        return {entry.path: entry for entry in trees.flatten([*self.below, *self.own])}

    def lower_tree(self) -> dict[bytes, Entry]:
        """The full tree that the layer lies on."""
        return {entry.path: entry for entry in trees.flatten(self.below)}

    def changes(self) -> list[Entry]:
        """The layer's own contents as one change set."""
        return trees.stack_changes(self.own, self.lower_tree)


def chain_of(context: Context, layer: Layer) -> list[Layer]:
    """A layer and its ancestors, the layer first."""
    return stores.chain(context, layer)


def stack(context: Context, layer: Layer, live: LiveFiles) -> Stack:
    """Read a layer and its ancestors as contents, walking the write areas that are not sealed.

    The areas stay as long as ``live`` does. What is sealed meanwhile is looked up again.

    Raises:
        LayerUnknown: a record is gone.
    """
    while True:
        found = live.fresh()
        try:
            result = _stack(context, layer, found)
        except areas.Moved:
            own = stores.layer_by_id(context, layer.id, layer.origin)
            if own is None:
                raise LayerUnknown() from None
            layer = own if layer.write_kind else replace(own, write_kind="")
        else:
            live.adopt(found)
            return result


def _stack(context: Context, layer: Layer, live: LiveFiles) -> Stack:
    result = Stack()
    steps = list(reversed(chain_of(context, layer)))
    for step in steps:
        target = result.own if step is steps[-1] else result.below
        target += sealed(context, step)
        if step.write_kind:
            target.append(_live(context, step, result, live))
    return result


def sealed(context: Context, layer: Layer) -> list[Entries]:
    """A layer's sealed contents, lowest first."""
    with stores.home(context, layer).catalog.read() as conn:
        return [catalog_content.entries(conn, key) for key in layer.contents]


def _live(context: Context, layer: Layer, so_far: Stack, live: LiveFiles) -> Entries:
    base = so_far.tree() if layer.write_kind == "tree" else {}
    part = stores.home(context, layer)
    used = areas.use(part, layer)
    root = areas.current(part, layer) / ("upper" if layer.write_kind == "upper" else "tree")
    if used is None or not root.is_dir():
        return []
    live.keep(used)
    return [entry for entry in capture(part, layer, base, live.store(root)) if entry.path]


def walked(upper: Path) -> list[Entry]:
    """The entries of a live upper directory, with container IDs; contents are not read."""
    from lading.materialize.capture import capture_upper

    found = areas.maps_of(upper.parent).read_back(capture_upper(upper, lambda _, __: b""))
    return [entry for entry in found if entry.path]


def base_tree(context: Context, layer: Layer) -> dict[bytes, Entry]:
    """The full tree that a layer's write area lies on, its own sealed contents included."""
    return stack(context, replace(layer, write_kind=""), LiveFiles(context.objects)).tree()


def with_root(layer: Layer, tree: dict[bytes, Entry]) -> list[Entry]:
    """A full tree as entries, sorted, with the layer's root attributes on its root."""
    # An ordinary user needs to write to the top of a tree of their own; root does whatever the mode says.
    mode = layer.root_mode if os.geteuid() == 0 else layer.root_mode | 0o200
    root = Entry(b"", PRESENT, Inode("d", mode, layer.root_uid, layer.root_gid, 0))
    if b"" in tree and (found := tree[b""].inode) is not None:
        root = root._replace(inode=found._replace(mode=mode, uid=layer.root_uid, gid=layer.root_gid))
    rest = sorted((entry for entry in tree.values() if entry.path), key=lambda entry: component_key(entry.path))
    return [root, *rest]
