"""Container records."""

from __future__ import annotations

import json
from typing import Any

from lading.catalog import bigdata, names
from lading.catalog.database import WriteTransaction
from lading.catalog.engine import Connection
from lading.catalog.records import id_maps, id_maps_text
from lading.values import BigData, Container

_SELECT = "SELECT seq, id, image, layer, metadata, created_ns, uidmap, gidmap, flags FROM container"


def _container(row: tuple[Any, ...], own_names: tuple[str, ...], data: tuple[BigData, ...]) -> Container:
    _, container_id, image, layer, metadata, created_ns, uidmap, gidmap, flags = row
    return Container(
        container_id, names=own_names, image=image, layer=layer, metadata=metadata, big_data=data, created_ns=created_ns,
        uidmap=id_maps(uidmap), gidmap=id_maps(gidmap), flags=json.loads(flags),
    )  # fmt: skip


def get_container(conn: Connection, container_id: str) -> Container | None:
    """Read a container by its exact id."""
    row = conn.execute(f"{_SELECT} WHERE id = ?", (container_id,)).fetchone()
    if row is None:
        return None
    return _container(row, names.names_of(conn, "container", row[0]), bigdata.data_of(conn, "container", row[0]))


def list_containers(conn: Connection) -> list[Container]:
    """Read all containers, oldest first, in a constant number of queries."""
    owned = names.names_by_owner(conn, "container")
    data = bigdata.data_by_owner(conn, "container")
    return [
        _container(row, tuple(owned.get(row[0], ())), tuple(data.get(row[0], ())))
        for row in conn.execute(f"{_SELECT} ORDER BY seq")
    ]


def create_container(tx: WriteTransaction, container: Container) -> None:
    """Insert a container with its names.

    Raises:
        DuplicateID, DuplicateName.
    """
    names.check_new(tx.conn, "container", container.id, container.names)
    tx.touch("container", container.id)
    tx.conn.execute(
        "INSERT INTO container (id, image, layer, metadata, created_ns, uidmap, gidmap, flags) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            container.id, container.image, container.layer, container.metadata, container.created_ns,
            id_maps_text(container.uidmap), id_maps_text(container.gidmap), json.dumps(dict(container.flags)),
        ),
    )  # fmt: skip
    seq = names.seq_of(tx.conn, "container", container.id)
    assert seq is not None
    names.insert_names(tx.conn, "container", seq, container.names)


def delete_container(tx: WriteTransaction, container_id: str) -> None:
    """Delete a container's record with its names and data rows."""
    tx.touch("container", container_id)
    seq = names.seq_of(tx.conn, "container", container_id)
    if seq is not None:
        bigdata.suspect_replaced(tx.conn, "container", seq)
    tx.conn.execute("DELETE FROM container WHERE id = ?", (container_id,))


def container_of_layer(conn: Connection, layer_id: str) -> str | None:
    """Id of the container whose own layer this is."""
    row = conn.execute("SELECT id FROM container WHERE layer = ? ORDER BY seq LIMIT 1", (layer_id,)).fetchone()
    return None if row is None else str(row[0])


def containers_of_image(conn: Connection, image_id: str) -> list[str]:
    """Ids of the containers made from an image, oldest first."""
    return [row[0] for row in conn.execute("SELECT id FROM container WHERE image = ? ORDER BY seq", (image_id,))]
