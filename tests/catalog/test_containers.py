"""Container records."""

from __future__ import annotations

from lading.catalog import bigdata, containers, names
from lading.catalog.database import Catalog
from lading.values import Container, IDMap
from tests.catalog.conftest import item


def test_a_container_comes_back_as_it_was_given(catalog: Catalog) -> None:
    """One by one and in the list, oldest first, data with sizes and digests."""
    data = item(catalog, "k", b"v")
    full = Container(
        "z", names=("2", "1"), image="i", layer="l", metadata="m", big_data=(data,), created_ns=9,
        uidmap=(IDMap(0, 1000, 10),), gidmap=(IDMap(0, 2000, 5), IDMap(5, 1, 1)), flags={"MountOpts": ["a"], "Volatile": True},
    )  # fmt: skip
    with catalog.write("x") as tx:
        containers.create_container(tx, full)
        bigdata.put_big_data(tx, "container", "z", data)
        containers.create_container(tx, Container("a"))

    with catalog.read() as conn:
        assert containers.get_container(conn, "z") == full
        assert containers.list_containers(conn) == [full, Container("a")]


def test_a_deleted_container_leaves_no_row_behind(catalog: Catalog) -> None:
    """Neither names nor data; the name is free again."""
    data = item(catalog, "k", b"v")
    with catalog.write("x") as tx:
        containers.create_container(tx, Container("a", names=("n",), layer="l", image="i"))
        bigdata.put_big_data(tx, "container", "a", data)
    with catalog.write("x") as tx:
        containers.delete_container(tx, "a")

    with catalog.read() as conn:
        left = [conn.execute(f"SELECT count(*) FROM container{part}").fetchone()[0] for part in ("", "_name", "_data")]
        users = (containers.container_of_layer(conn, "l"), containers.containers_of_image(conn, "i"))
        found = names.resolve(conn, "container", "n")
    assert (left, users, found) == ([0, 0, 0], (None, []), None)
    with catalog.write("x") as tx:
        containers.create_container(tx, Container("b", names=("n",)))


def test_containers_are_found_by_layer_and_image(catalog: Catalog) -> None:
    """Oldest first."""
    with catalog.write("x") as tx:
        for container_id, image in (("z", "i"), ("a", "i"), ("m", "")):
            containers.create_container(tx, Container(container_id, image=image, layer=f"layer-{container_id}"))

    with catalog.read() as conn:
        assert containers.containers_of_image(conn, "i") == ["z", "a"]
        assert containers.container_of_layer(conn, "layer-m") == "m"
        assert containers.container_of_layer(conn, "layer") is None
