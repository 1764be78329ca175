"""The catalog lays contents over each other as the algebra of trees does."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from lading import Store, trees
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
            context = store._context
            keys = []
            with context.epochs.shared() as epoch:
                for content in stack:
                    if not content:
                        continue
                    with context.writer() as writer:
                        prepared = [_stored(entry, writer) for entry in content]
                        native = sealing.store_native(context, writer, prepared, epoch)
                    with context.catalog.write("test") as tx:
                        keys.append(native.commit(tx))
            with context.catalog.read() as conn:
                from lading.catalog import content as catalog_content

                wanted = trees.flatten([catalog_content.entries(conn, key) for key in keys])
                assert trees.settled_tree(*flatten.visible(conn, keys)) == wanted
    finally:
        remove_tree(folder)


def _stored(entry: Entry, writer: object) -> Entry:
    """An entry whose content is an object: the algebra's examples only have digests."""
    if entry.inode is None or entry.inode.type != "f":
        return entry
    stream = writer.stream(0)  # type: ignore[attr-defined]
    stream.write(entry.inode.digest)
    return entry._replace(inode=entry.inode._replace(digest=stream.close(), size=32, sparse=(), xattrs=()))
