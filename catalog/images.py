"""Image records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lading.catalog import bigdata, names
from lading.catalog.database import WriteTransaction
from lading.catalog.engine import Connection
from lading.values import BigData, Image, unique

_SELECT = "SELECT seq, id, digest, layer, mapped_layers, names_history, metadata, created_ns, flags FROM image"


def _image(row: tuple[Any, ...], own_names: tuple[str, ...], data: tuple[BigData, ...]) -> Image:
    _, image_id, digest, layer, mapped, history, metadata, created_ns, flags = row
    manifests = [item.digest for item in data if item.key.startswith("manifest")]
    return Image(
        image_id, digest=digest, digests=unique([*([digest] if digest else []), *manifests]), names=own_names,
        names_history=tuple(json.loads(history)) if history != "[]" else (), layer=layer,
        mapped_layers=tuple(json.loads(mapped)) if mapped != "[]" else (), metadata=metadata, big_data=data,
        created_ns=created_ns, flags=json.loads(flags) if flags != "{}" else {},
    )  # fmt: skip


def get_image(conn: Connection, image_id: str) -> Image | None:
    """Read an image by its exact id."""
    row = conn.execute(f"{_SELECT} WHERE id = ?", (image_id,)).fetchone()
    if row is None:
        return None
    return _image(row, names.names_of(conn, "image", row[0]), bigdata.data_of(conn, "image", row[0]))


def list_images(conn: Connection) -> list[Image]:
    """Read all images, oldest first, in a constant number of queries."""
    owned = names.names_by_owner(conn, "image")
    data = bigdata.data_by_owner(conn, "image")
    return [
        _image(row, tuple(owned.get(row[0], ())), tuple(data.get(row[0], ())))
        for row in conn.execute(f"{_SELECT} ORDER BY seq")
    ]


def create_image(tx: WriteTransaction, image: Image) -> None:
    """Insert an image with its names; its data follows item by item.

    Raises:
        DuplicateID, DuplicateName.
    """
    names.check_new(tx.conn, "image", image.id, image.names)
    tx.touch("image", image.id)
    tx.conn.execute(
        "INSERT INTO image (id, digest, layer, mapped_layers, names_history, metadata, created_ns, flags) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            image.id, image.digest, image.layer, json.dumps(image.mapped_layers),
            json.dumps(image.names_history, ensure_ascii=False), image.metadata, image.created_ns, json.dumps(dict(image.flags)),
        ),
    )  # fmt: skip
    seq = names.seq_of(tx.conn, "image", image.id)
    assert seq is not None
    names.insert_names(tx.conn, "image", seq, image.names)


def set_names_history(tx: WriteTransaction, image_id: str, history: Sequence[str]) -> None:
    """Replace an image's history of names, newest first."""
    tx.touch("image", image_id)
    text = json.dumps(list(history), ensure_ascii=False, separators=(",", ":"))
    tx.conn.execute("UPDATE image SET names_history = ? WHERE id = ?", (text, image_id))


def add_mapped_layer(tx: WriteTransaction, image_id: str, layer_id: str) -> None:
    """Note one more copy of an image's top layer with maps of its own."""
    image = get_image(tx.conn, image_id)
    assert image is not None
    tx.touch("image", image_id)
    mapped = json.dumps([*image.mapped_layers, layer_id])
    tx.conn.execute("UPDATE image SET mapped_layers = ? WHERE id = ?", (mapped, image_id))


def delete_image(tx: WriteTransaction, image_id: str) -> None:
    """Delete an image's record with its names and data rows."""
    tx.touch("image", image_id)
    seq = names.seq_of(tx.conn, "image", image_id)
    if seq is not None:
        bigdata.suspect_replaced(tx.conn, "image", seq)
    tx.conn.execute("DELETE FROM image WHERE id = ?", (image_id,))


def images_by_digest(conn: Connection, digest: str) -> list[Image]:
    """Images whose digest, or a manifest's, this is; oldest first. An empty digest finds none."""
    if not digest:
        return []
    query = (
        "SELECT seq, id FROM image WHERE digest = ?1 UNION SELECT i.seq, i.id FROM image_data d JOIN image i ON i.seq = d.owner_id "
        "WHERE d.digest = ?1 AND d.key >= 'manifest' AND d.key < 'manifesu' ORDER BY 1"
    )
    found = (get_image(conn, row[1]) for row in conn.execute(query, (digest,)).fetchall())
    return [image for image in found if image is not None]
