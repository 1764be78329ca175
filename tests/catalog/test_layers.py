"""Layer records."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lading.catalog import images, layers, names
from lading.catalog.database import Catalog
from lading.errors import Corrupt
from lading.values import IDMap, Image, Layer
from tests.catalog.conftest import add_content


def get(catalog: Catalog, layer_id: str) -> Layer | None:
    with catalog.read() as conn:
        return layers.get_layer(conn, layer_id)


def test_a_layer_comes_back_as_it_was_given(catalog: Catalog) -> None:
    """One by one and in the list, oldest first, with contents in their order."""
    keys = tuple(add_content(catalog, key) for key in ("sha256:b", "sha256:a", "native:c"))
    full = Layer(
        "z", names=("2", "1"), parent="p", metadata="m", mount_label="l", created_ns=-1, compressed_digest="sha256:c",
        compressed_size=1 << 40, diff_digest="sha256:d", diff_size=7, toc_digest="t", compression=4, uids=(0, 4294967294),
        gids=(5,), flags={"incomplete": True}, uidmap=(IDMap(0, 1, 2),), gidmap=(IDMap(3, 4, 5),),
        contents=(*keys, keys[0]), replay=keys[1], write_area=2, write_kind="upper", root_mode=0o755, root_uid=1, root_gid=2,
    )  # fmt: skip
    with catalog.write("x") as tx:
        layers.create_layer(tx, full)
        layers.create_layer(tx, Layer("a"))

    assert (get(catalog, "z"), get(catalog, "a"), get(catalog, "2")) == (full, Layer("a"), None)
    with catalog.read() as conn:
        assert layers.list_layers(conn) == [full, Layer("a")]


def test_an_update_keeps_names_and_replaces_contents(catalog: Catalog) -> None:
    """The list may grow, shrink or change its order."""
    one, two = (add_content(catalog, key) for key in ("sha256:1", "sha256:2"))
    with catalog.write("x") as tx:
        layers.create_layer(tx, Layer("a", names=("n",), contents=(one, two), replay=two))
    wanted = Layer("a", names=("n",), contents=(two,), write_area=1, write_kind="upper", diff_size=3)
    with catalog.write("x") as tx:
        layers.update_layer(tx, wanted)

    assert get(catalog, "a") == wanted


def test_a_content_that_is_not_ready_cannot_be_used(catalog: Catalog) -> None:
    """The layer stays as it was."""
    with catalog.write("x") as tx:
        layers.create_layer(tx, Layer("a"))

    with pytest.raises(Corrupt, match="sha256:none is not stored"), catalog.write("x") as tx:
        layers.update_layer(tx, replace(Layer("a"), contents=("sha256:none",)))
    assert get(catalog, "a") == Layer("a")


def test_a_deleted_layer_leaves_the_images_that_had_it_as_a_copy(catalog: Catalog) -> None:
    """Top layers are not touched: who deletes has asked before."""
    with catalog.write("x") as tx:
        for layer_id in ("top", "copy", "copy2"):
            layers.create_layer(tx, Layer(layer_id, names=(f"n{layer_id}",)))
        images.create_image(tx, Image("i", layer="top", mapped_layers=("copy", "copy2")))
        images.create_image(tx, Image("other", layer="copy"))
    with catalog.write("delete-layer") as tx:
        layers.delete_layer(tx, "copy")

    with catalog.read() as conn:
        assert [image.mapped_layers for image in images.list_images(conn)] == [("copy2",), ()]
        assert [layer.id for layer in layers.list_layers(conn)] == ["top", "copy2"]
        assert names.resolve(conn, "layer", "ncopy") is None
        rows = conn.execute(
            "SELECT kind, record_id, after IS NULL FROM event WHERE verb = 'delete-layer' ORDER BY kind"
        )
        assert [tuple(row) for row in rows] == [("image", "i", 0), ("layer", "copy", 1)]


def test_who_uses_a_layer(catalog: Catalog) -> None:
    """Layers on it, images with it on top or as a copy; oldest first."""
    with catalog.write("x") as tx:
        for layer_id, parent in (("p", ""), ("z", "p"), ("a", "p"), ("deep", "a")):
            layers.create_layer(tx, Layer(layer_id, parent=parent))
        images.create_image(tx, Image("i", layer="p"))
        images.create_image(tx, Image("j", layer="z", mapped_layers=("p", "q")))

    with catalog.read() as conn:
        assert layers.children(conn, "p") == ["z", "a"]
        assert layers.top_of_images(conn, "p") == ["i"]
        assert sorted(layers.images_of_layer(conn, "p")) == ["i", "j"]


def test_layers_are_found_by_each_of_their_digests(catalog: Catalog) -> None:
    """An empty digest is none."""
    with catalog.write("x") as tx:
        layers.create_layer(tx, Layer("a", compressed_digest="c", diff_digest="d"))
        layers.create_layer(tx, Layer("b", diff_digest="d", toc_digest="t"))
        layers.create_layer(tx, Layer("none"))

    with catalog.read() as conn:
        found = [
            [layer.id for layer in layers.layers_by_digest(conn, column, digest)]  # type: ignore[arg-type]
            for column, digest in (
                ("compressed_digest", "c"),
                ("diff_digest", "d"),
                ("toc_digest", "t"),
                ("toc_digest", ""),
            )
        ]
    assert found == [["a"], ["a", "b"], ["b"], []]


def test_listing_takes_as_many_queries_for_many_as_for_one(catalog: Catalog) -> None:
    """Names, contents and data come in bulk."""
    key = add_content(catalog, "sha256:1")

    def queries() -> int:
        statements: list[str] = []
        connection = catalog.connection()
        connection.set_trace_callback(statements.append)
        with catalog.read() as conn:
            layers.list_layers(conn)
        connection.set_trace_callback(None)
        return len(statements)

    with catalog.write("x") as tx:
        layers.create_layer(tx, Layer("a", names=("n",), contents=(key,)))
    few = queries()
    with catalog.write("x") as tx:
        for number in range(50):
            layers.create_layer(tx, Layer(f"l{number}", names=(f"n{number}",), contents=(key,)))

    assert queries() == few
