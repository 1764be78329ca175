"""Layer records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from lading.catalog import bigdata, names
from lading.catalog.content import LOOKUP_ROWS, batches
from lading.catalog.database import WriteTransaction
from lading.catalog.engine import Connection
from lading.catalog.records import id_maps, id_maps_text
from lading.errors import Corrupt
from lading.values import Layer

DigestColumn = Literal["compressed_digest", "diff_digest", "toc_digest"]

_PLAIN = (
    "id", "parent", "metadata", "mount_label", "created_ns", "compressed_digest", "compressed_size", "diff_digest",
    "diff_size", "toc_digest", "compression", "write_area", "write_kind", "root_mode", "root_uid", "root_gid",
)  # fmt: skip
_TEXTS = ("uids", "gids", "flags", "uidmap", "gidmap")
_COLUMNS = (*_PLAIN, *_TEXTS)
_SELECT = (
    f"SELECT l.seq, {', '.join(f'l.{name}' for name in _COLUMNS)}, c.key "
    "FROM layer l LEFT JOIN content c ON c.id = l.replay_content_id"
)


def _layer(row: tuple[Any, ...], own_names: tuple[str, ...], contents: tuple[str, ...], data: tuple[str, ...]) -> Layer:
    plain = dict(zip(_PLAIN, row[1:], strict=False))
    uids, gids, flags, uidmap, gidmap, replay = row[1 + len(_PLAIN) :]
    return Layer(
        **plain, names=own_names, contents=contents, big_data_names=data, replay=replay or "",
        uids=tuple(json.loads(uids)) if uids != "[]" else (), gids=tuple(json.loads(gids)) if gids != "[]" else (),
        flags=json.loads(flags) if flags != "{}" else {}, uidmap=id_maps(uidmap), gidmap=id_maps(gidmap),
    )  # fmt: skip


def get_layer(conn: Connection, layer_id: str) -> Layer | None:
    """Read a layer by its exact id."""
    row = conn.execute(f"{_SELECT} WHERE l.id = ?", (layer_id,)).fetchone()
    if row is None:
        return None
    contents = conn.execute(
        "SELECT c.key FROM layer_content lc JOIN content c ON c.id = lc.content_id WHERE lc.layer_id = ? ORDER BY lc.position",
        (row[0],),
    )
    data = conn.execute("SELECT key FROM layer_data WHERE owner_id = ? ORDER BY position", (row[0],))
    return _layer(
        row, names.names_of(conn, "layer", row[0]), tuple(item[0] for item in contents), tuple(item[0] for item in data)
    )


def write_areas(conn: Connection, ids: Sequence[str]) -> dict[str, int]:
    """Numbers of the current write areas of those of some layers that are there."""
    found: dict[str, int] = {}
    for batch in batches(ids, LOOKUP_ROWS):
        marks = ",".join("?" * len(batch))
        found.update(conn.execute(f"SELECT id, write_area FROM layer WHERE id IN ({marks})", batch).fetchall())
    return found


def list_layers(conn: Connection) -> list[Layer]:
    """Read all layers, oldest first, in a constant number of queries."""
    owned = names.names_by_owner(conn, "layer")
    contents: dict[int, list[str]] = {}
    query = "SELECT lc.layer_id, c.key FROM layer_content lc JOIN content c ON c.id = lc.content_id ORDER BY lc.layer_id, lc.position"
    for owner, key in conn.execute(query):
        contents.setdefault(owner, []).append(key)
    data: dict[int, list[str]] = {}
    for owner, key in conn.execute("SELECT owner_id, key FROM layer_data ORDER BY owner_id, position"):
        data.setdefault(owner, []).append(key)
    return [
        _layer(row, tuple(owned.get(row[0], ())), tuple(contents.get(row[0], ())), tuple(data.get(row[0], ())))
        for row in conn.execute(f"{_SELECT} ORDER BY l.seq")
    ]


def _values(layer: Layer) -> list[Any]:
    plain = [getattr(layer, name) for name in _PLAIN]
    compact = (",", ":")
    return [
        *plain, json.dumps(layer.uids, separators=compact), json.dumps(layer.gids, separators=compact),
        json.dumps(dict(layer.flags), separators=compact), id_maps_text(layer.uidmap), id_maps_text(layer.gidmap),
    ]  # fmt: skip


def check_new(conn: Connection, layer: Layer) -> None:
    """Refuse a layer whose id or name is taken."""
    names.check_new(conn, "layer", layer.id, layer.names)


def create_layer(tx: WriteTransaction, layer: Layer) -> None:
    """Insert a layer with its names and contents.

    Raises:
        DuplicateID, DuplicateName.
    """
    check_new(tx.conn, layer)
    tx.touch("layer", layer.id)
    marks = ", ".join("?" * len(_COLUMNS))
    tx.conn.execute(f"INSERT INTO layer ({', '.join(_COLUMNS)}) VALUES ({marks})", _values(layer))
    seq = names.seq_of(tx.conn, "layer", layer.id)
    assert seq is not None
    names.insert_names(tx.conn, "layer", seq, layer.names)
    _set_contents(tx.conn, seq, layer)


def update_layer(tx: WriteTransaction, layer: Layer) -> None:
    """Write a layer's fields and contents; names and data have their own verbs."""
    tx.touch("layer", layer.id)
    seq = names.seq_of(tx.conn, "layer", layer.id)
    assert seq is not None
    assignments = ", ".join(f"{name} = ?" for name in _COLUMNS)
    tx.conn.execute(f"UPDATE layer SET {assignments} WHERE seq = ?", [*_values(layer), seq])
    _set_contents(tx.conn, seq, layer)


def _set_contents(conn: Connection, seq: int, layer: Layer) -> None:
    conn.execute("DELETE FROM layer_content WHERE layer_id = ?", (seq,))
    rows = [(seq, position, _content_id(conn, key)) for position, key in enumerate(layer.contents)]
    conn.executemany("INSERT INTO layer_content (layer_id, position, content_id) VALUES (?, ?, ?)", rows)
    replay = _content_id(conn, layer.replay) if layer.replay else None
    conn.execute("UPDATE layer SET replay_content_id = ? WHERE seq = ?", (replay, seq))


def _content_id(conn: Connection, key: str) -> int:
    """Number of a content. A condemned one is taken back: while it has its key, all its rows are there.

    Raises:
        Corrupt: it is not stored.
    """
    row = conn.execute("SELECT id, state FROM content WHERE key = ?", (key,)).fetchone()
    if row is None:
        raise Corrupt(f"content {key} is not stored")
    if row[1] != "ready":
        conn.execute("UPDATE content SET state = 'ready' WHERE id = ?", (row[0],))
    return int(row[0])


def delete_layer(tx: WriteTransaction, layer_id: str) -> None:
    """Delete a layer's record; an image that had it as mapped copy loses it."""
    tx.touch("layer", layer_id)
    for image_id, mapped in tx.conn.execute(
        "SELECT id, mapped_layers FROM image WHERE mapped_layers <> '[]'"
    ).fetchall():
        left = [other for other in json.loads(mapped) if other != layer_id]
        if len(left) < len(json.loads(mapped)):
            tx.touch("image", image_id)
            tx.conn.execute("UPDATE image SET mapped_layers = ? WHERE id = ?", (json.dumps(left), image_id))
    seq = names.seq_of(tx.conn, "layer", layer_id)
    if seq is not None:
        bigdata.suspect_replaced(tx.conn, "layer", seq)
    tx.conn.execute("DELETE FROM layer WHERE id = ?", (layer_id,))


def children(conn: Connection, layer_id: str) -> list[str]:
    """Ids of the layers built on this one, oldest first."""
    return [row[0] for row in conn.execute("SELECT id FROM layer WHERE parent = ? ORDER BY seq", (layer_id,))]


def layers_by_digest(conn: Connection, column: DigestColumn, digest: str) -> list[Layer]:
    """Layers whose digest of one sort this is, oldest first; an empty digest finds none."""
    if not digest:
        return []
    rows = conn.execute(f"SELECT id FROM layer WHERE {column} = ? ORDER BY seq", (digest,)).fetchall()
    return [layer for row in rows if (layer := get_layer(conn, row[0])) is not None]


def top_of_images(conn: Connection, layer_id: str) -> list[str]:
    """Ids of the images whose top layer this is."""
    return [row[0] for row in conn.execute("SELECT id FROM image WHERE layer = ? ORDER BY seq", (layer_id,))]


def images_of_layer(conn: Connection, layer_id: str) -> list[str]:
    """Ids of the images whose top layer, or mapped copy of it, this is."""
    query = (
        "SELECT id FROM image WHERE layer = ? UNION SELECT i.id FROM image i, json_each(i.mapped_layers) m "
        "WHERE i.mapped_layers <> '[]' AND m.value = ?"
    )
    return [row[0] for row in conn.execute(query, (layer_id, layer_id))]
