"""Every finding of a check, in the words that scripts look for."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from lading import Store
from tests.contract.samples import BASE

pytestmark = [pytest.mark.privileged, pytest.mark.damages]


def messages(store: Store, kind: str, *, content: bool = False) -> list[str]:
    """What a check says of records of a kind."""
    return [finding.message for finding in store.check(content=content).findings if finding.kind == kind]


def spoil(store: Store, digest: bytes) -> None:
    """Change a byte of an object on disk."""
    location = store._context.locate([digest])[digest]
    path = store._context.layout.pack(location.pack)
    data = bytearray(path.read_bytes())
    data[location.offset + location.stored_size // 2] ^= 0xFF
    path.chmod(0o600)
    path.write_bytes(data)


def execute(store: Store, statement: str, *values: object) -> None:
    """Damage the catalog."""
    with store._context.catalog.write_rows() as conn:
        conn.execute(statement, values)


def test_a_damaged_file(store: Store) -> None:
    """Of the layer, of images above it, of their containers."""
    layer = store.layers.import_(io.BytesIO(BASE))
    container = store.containers.create(store.images.create(layer.id).id)
    with store._context.catalog.read() as conn:
        (digest,) = conn.execute(
            "SELECT o.digest FROM entry e JOIN path p ON p.id = e.path_id JOIN inode i ON i.id = e.inode_id "
            "JOIN object o ON o.id = i.object_id WHERE p.path = 'etc/b'"
        ).fetchone()
    assert store.check().findings == ()
    spoil(store, bytes(digest))

    words = [f'layer {layer.id}: file integrity checksum failed for "etc/b"']
    for kind in ("layer", "image", "container"):
        assert messages(store, kind, content=True) == words
    report = store.check(content=True)
    assert store.repair(report) != []
    assert store.repair(report, containers_too=True) == []
    assert not store.layers.exists(layer.id)
    assert not store.containers.exists(container.id)


def test_a_damaged_recipe_and_damaged_data(store: Store) -> None:
    """The one makes the diff another, the other names its item."""
    layer = store.layers.import_(io.BytesIO(BASE))
    image = store.images.create(layer.id, big_data={"k": b"data" * 100})
    with store._context.catalog.read() as conn:
        (recipe,) = conn.execute("SELECT o.digest FROM content c JOIN object o ON o.id = c.recipe_id").fetchone()
    spoil(store, bytes(recipe))
    spoil(store, store.images.get(image.id).big_data[0].object)

    assert messages(store, "layer", content=True) == [f"layer {layer.id}: layer content incorrect digest"]
    assert any(
        words.startswith(f'image {image.id}: data item "k": ') for words in messages(store, "image", content=True)
    )


def test_a_pack_that_is_gone(store: Store) -> None:
    """Everything in it is missing, without reading anything."""
    container = store.containers.create(big_data={"k": b"container's"})
    store.layers.create(id="l", big_data={"k": b"layer's"})
    image = store.images.create(big_data={"k": b"image's"})
    for path in Path(store.root, "objects/packs").rglob("*.pack"):
        path.unlink()

    assert messages(store, "layer") == ['layer l: data item "k": layer data item is missing']
    assert messages(store, "image") == [f'image {image.id}: data item "k": image data item is missing']
    assert messages(store, "container") == [f'container {container.id}: data item "k": container data item is missing']


def test_records_that_say_something_else(store: Store) -> None:
    """Sizes and digests are compared with what is stored."""
    layer = store.layers.import_(io.BytesIO(BASE))
    container = store.containers.create(big_data={"k": b"12345"})
    image = store.images.create(big_data={"k": b"12345"})
    execute(store, "UPDATE layer SET diff_size = 5, diff_digest = 'sha256:0' WHERE id = ?", layer.id)
    execute(store, "UPDATE image_data SET size = 4")
    execute(store, "UPDATE container_data SET size = 6")

    assert messages(store, "layer") == [
        f"layer {layer.id}: layer content incorrect digest",
        f"layer {layer.id}: read {len(BASE)} bytes instead of 5 bytes: layer content incorrect size",
    ]
    assert messages(store, "image") == [f'image {image.id}: data item "k": image data item has incorrect size']
    assert messages(store, "container") == [
        f'container {container.id}: data item "k": container data item has incorrect size'
    ]
