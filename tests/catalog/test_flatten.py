"""The catalog lays contents over each other as the algebra of trees does."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from lading import Store, trees
from lading.catalog import content as catalog_content
from lading.catalog import flatten
from lading.flows import sealing
from lading.materialize.beneath import remove_tree
from lading.values import Entry
from tests.test_trees import contents


@settings(max_examples=80, deadline=None)
@given(st.lists(contents(), min_size=1, max_size=5))
def test_it_is_the_tree_of_the_algebra(stack: list[list[Entry]]) -> None:
    """Removals, opaque and implied directories, files over directories, hard links."""
    folder = Path(tempfile.mkdtemp(prefix="lading-flat-"))
    try:
        with Store.open(folder / "root", run=folder / "run") as store:
            keys = _stored_all(store, stack)
            with store._context.catalog.read() as conn:
                wanted = trees.flatten([catalog_content.entries(conn, key) for key in keys])
                assert trees.settled_tree(*flatten.visible(conn, keys)) == wanted
    finally:
        remove_tree(folder)


def _stored_all(store: Store, stack: list[list[Entry]]) -> list[str]:
    """Store contents as if they had been sealed; their keys."""
    context = store._context
    keys = []
    with context.epochs.shared() as epoch:
        for content in stack:
            if not content:
                continue
            with context.writer() as writer:
                native = sealing.store_native(context, writer, [_stored(entry, writer) for entry in content], epoch)
            with context.catalog.write("test") as tx:
                keys.append(native.commit(tx))
    return keys


def _stored(entry: Entry, writer: object) -> Entry:
    """An entry whose content is an object: the algebra's examples only have digests."""
    if entry.inode is None or entry.inode.type != "f":
        return entry
    stream = writer.stream(0)  # type: ignore[attr-defined]
    stream.write(entry.inode.digest)
    return entry._replace(inode=entry.inode._replace(digest=stream.close(), size=32, sparse=(), xattrs=()))


@settings(max_examples=60, deadline=None)
@given(st.lists(contents(), min_size=1, max_size=4), contents())
def test_what_lies_below_implied_directories_alone(stack: list[list[Entry]], above: list[Entry]) -> None:
    """The same attributes are inherited as from the whole tree."""
    folder = Path(tempfile.mkdtemp(prefix="lading-flat-"))
    try:
        with Store.open(folder / "root", run=folder / "run") as store:
            keys = _stored_all(store, [*stack, above])
            if len(keys) < 2:
                return
            with store._context.catalog.read() as conn:
                stored = [catalog_content.entries(conn, key) for key in keys]
                whole = {entry.path: entry for entry in trees.flatten(stored[:-1])}
                found = flatten.below_implied(conn, keys[:-1], keys[-1])
            part = {entry.path: entry for entry in trees.settled_tree(found, dict.fromkeys((e.path for e in found), 0))}
            assert trees.inherit(part, stored[-1]) == trees.inherit(whole, stored[-1])
    finally:
        remove_tree(folder)
