"""Records as the journal and the audit log see them: their full state, as plain values."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from lading.catalog.database import WriteTransaction
from lading.catalog.engine import Connection
from lading.values import BigData, Container, IDMap, Image, Layer, Record, RecordKind


def load(conn: Connection, kind: RecordKind, record_id: str) -> Record | None:
    """Read a record of any kind."""
    from lading.catalog import containers, images, layers

    match kind:
        case "layer":
            return layers.get_layer(conn, record_id)
        case "image":
            return images.get_image(conn, record_id)
        case "container":
            return containers.get_container(conn, record_id)


def state(conn: Connection, kind: RecordKind, record_id: str) -> dict[str, Any] | None:
    """A record's full state: enough to make it again; None when it is not there."""
    record = load(conn, kind, record_id)
    if record is None:
        return None
    values = {
        name: _plain(getattr(record, name))
        for name in record.__slots__
        if name not in ("read_only", "digests", "origin")
    }
    if kind == "layer":
        from lading.catalog import bigdata

        values["big_data"] = _plain(bigdata.list_big_data(conn, "layer", record_id))
    return values


def live(conn: Connection) -> Iterator[tuple[RecordKind, str, dict[str, Any] | None]]:
    """Every record's kind, id and state."""
    from lading.catalog import containers, images, layers

    for layer in layers.list_layers(conn):
        yield "layer", layer.id, state(conn, "layer", layer.id)
    for image in images.list_images(conn):
        yield "image", image.id, state(conn, "image", image.id)
    for container in containers.list_containers(conn):
        yield "container", container.id, state(conn, "container", container.id)


def state_text(conn: Connection, kind: RecordKind, record_id: str) -> str | None:
    """The same as JSON text."""
    found = state(conn, kind, record_id)
    return None if found is None else json.dumps(found, separators=(",", ":"), ensure_ascii=False)


def _plain(value: Any) -> Any:
    match value:
        case BigData():
            return [value.key, value.size, value.digest, value.object.hex()]
        case IDMap():
            return [value.container_id, value.host_id, value.size]
        case tuple() | list():
            return [_plain(item) for item in value]
        case _:
            return value


def restored(kind: RecordKind, values: dict[str, Any]) -> tuple[Record, tuple[BigData, ...]]:
    """Turn a state back into a record and its big data."""
    data = tuple(BigData(key, size, digest, bytes.fromhex(found)) for key, size, digest, found in values["big_data"])
    fields: dict[str, Any] = {
        name: tuple(IDMap(*item) for item in value) if name in ("uidmap", "gidmap") else tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
        if name != "big_data"
    }  # fmt: skip
    match kind:
        case "layer":
            return Layer(**fields), data
        case "image":
            return Image(**fields, big_data=data), data
        case "container":
            return Container(**fields, big_data=data), data


def changes(tx: WriteTransaction) -> dict[str, Any] | None:
    """Write the audit log's rows of a transaction.

    Returns:
        The journal's line: time, verb, and kind, id and new state of each record that is not as before;
        None when all are.
    """
    now = time.time_ns()
    changed = []
    for (kind, record_id), before in tx.touched.items():
        after = state_text(tx.conn, kind, record_id)
        if after == before:
            continue
        tx.conn.execute(
            "INSERT INTO event (at_ns, verb, kind, record_id, before, after) VALUES (?, ?, ?, ?, ?, ?)",
            (now, tx.verb, kind, record_id, before, after),
        )
        changed.append([kind, record_id, None if after is None else json.loads(after)])
    if not changed:
        return None
    line = {"at": now, "verb": tx.verb, "changes": changed}
    ending = transient(tx.conn, [(str(kind), str(record_id)) for kind, record_id, _ in changed])
    return line if ending is None else {**line, "transient": ending}


def transient(conn: Connection, among: Collection[tuple[str, str]] | None = None) -> dict[str, Any] | None:
    """Records that end with the run root they were made under, and the note that says which one that is.

    Args:
        conn: the catalog.
        among: kinds and ids of the records asked for; None for all.

    Returns:
        None when there are none.
    """
    if among is None:
        found = conn.execute("SELECT kind, record_id FROM transient ORDER BY kind, record_id").fetchall()
    else:
        query = "SELECT kind, record_id FROM transient WHERE kind = ? AND record_id = ?"
        found = [row for key in among for row in conn.execute(query, key)]
    listed = [list(row) for row in found]
    row = conn.execute("SELECT value FROM meta WHERE key = 'transient'").fetchone() if listed else None
    return None if row is None else {"note": row[0], "records": listed}


def id_maps(text: str) -> tuple[IDMap, ...]:
    """Read an ID map as kept in a row."""
    return tuple(IDMap(*item) for item in json.loads(text)) if text != "[]" else ()


def id_maps_text(maps: Sequence[IDMap]) -> str:
    """An ID map as kept in a row."""
    return json.dumps([[item.container_id, item.host_id, item.size] for item in maps], separators=(",", ":"))
