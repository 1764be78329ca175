"""Rows of data items."""

from __future__ import annotations

import pytest

from lading.catalog import bigdata, containers, images, layers
from lading.catalog.database import Catalog
from lading.errors import Corrupt
from lading.values import BigData, Container, Image, Layer, RecordKind
from tests.catalog.conftest import item

KINDS: tuple[RecordKind, ...] = ("layer", "image", "container")


@pytest.fixture
def records(catalog: Catalog) -> Catalog:
    """A record of each kind, all with the id ``r``."""
    with catalog.write("create") as tx:
        layers.create_layer(tx, Layer("r"))
        images.create_image(tx, Image("r"))
        containers.create_container(tx, Container("r"))
    return catalog


def put(catalog: Catalog, kind: RecordKind, entry: BigData) -> None:
    with catalog.write("set-data") as tx:
        bigdata.put_big_data(tx, kind, "r", entry)


@pytest.mark.parametrize("kind", KINDS)
def test_items_keep_the_order_of_their_first_setting(records: Catalog, kind: RecordKind) -> None:
    """A new value stays in the old place; no bytes are an item too; keys are case-sensitive."""
    entries = {key: item(records, key, key.encode()) for key in ("b", "a", "B")}
    for entry in (*entries.values(), BigData("empty", 0, "sha256:e", b"")):
        put(records, kind, entry)
    changed = item(records, "b", b"other")
    put(records, kind, changed)

    with records.read() as conn:
        listed = bigdata.list_big_data(conn, kind, "r")
        assert bigdata.get_big_data(conn, kind, "r", "b") == changed
        assert bigdata.get_big_data(conn, kind, "r", "no") is None
        assert bigdata.get_big_data(conn, kind, "no", "b") is None
    assert listed == (changed, entries["a"], entries["B"], BigData("empty", 0, "sha256:e", b""))


@pytest.mark.parametrize("kind", KINDS)
def test_an_item_needs_its_object(records: Catalog, kind: RecordKind) -> None:
    """An object that is not recorded is refused; one that a record holds cannot be deleted."""
    with pytest.raises(Corrupt, match="is not recorded"):
        put(records, kind, BigData("k", 1, "", b"\1" * 32))
    held = item(records, "k", b"v")
    put(records, kind, held)
    with pytest.raises(Corrupt, match="FOREIGN KEY"), records.write_rows() as conn:
        conn.execute("DELETE FROM object WHERE digest = ?", (held.object,))


def test_what_is_replaced_or_deleted_is_looked_at_by_the_next_collection(records: Catalog) -> None:
    """And an object that was condemned meanwhile is taken back when it is set."""
    old, new = item(records, "k", b"old"), item(records, "k", b"new")
    put(records, "image", old)
    with records.write_rows() as conn:
        conn.execute("UPDATE object SET condemned = 1 WHERE digest = ?", (new.object,))
    put(records, "image", new)
    query = "SELECT o.digest FROM suspect s JOIN object o ON o.id = s.object_id ORDER BY s.object_id"
    with records.read() as conn:
        after_replacing = [bytes(row[0]) for row in conn.execute(query)]
        condemned = conn.execute("SELECT condemned FROM object WHERE digest = ?", (new.object,)).fetchone()[0]
    with records.write("x") as tx:
        images.delete_image(tx, "r")
    with records.read() as conn:
        after_deleting = [bytes(row[0]) for row in conn.execute(query)]

    assert (after_replacing, condemned, after_deleting) == ([old.object], None, [old.object, new.object])
