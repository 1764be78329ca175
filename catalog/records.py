"""Records as the journal and the audit log see them: their full state, as plain values."""

from __future__ import annotations

import json
import marshal
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from blake3 import blake3

from lading.catalog.database import WriteTransaction
from lading.catalog.engine import Connection
from lading.values import RECORD_KINDS, BigData, Container, IDMap, Image, Layer, Record, RecordKind

#: Fields that say where a record was found, or follow from others.
_UNRECORDED: Final = frozenset({"read_only", "digests", "origin"})

_FIELDS: Final[Mapping[type[Record], tuple[str, ...]]] = {
    made: tuple(name for name in made.__slots__ if name not in _UNRECORDED) for made in (Layer, Image, Container)
}

#: Members of a state, in order.
MEMBERS: Final[Mapping[str, tuple[str, ...]]] = {
    "layer": (*_FIELDS[Layer], "big_data"),
    "image": _FIELDS[Image],
    "container": _FIELDS[Container],
}


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
    values = _state(record)
    if kind == "layer":
        from lading.catalog import bigdata

        values["big_data"] = _plain(bigdata.list_big_data(conn, "layer", record_id))
    return values


def _state(record: Record) -> dict[str, Any]:
    return {
        name: value if isinstance(value := getattr(record, name), str | int) else _plain(value)
        for name in _FIELDS[type(record)]
    }


def live(conn: Connection) -> Iterator[tuple[RecordKind, str, dict[str, Any]]]:
    """Every record's kind, id and state, in a constant number of queries."""
    from lading.catalog import bigdata, containers, images, layers

    owners = dict(conn.execute("SELECT seq, id FROM layer WHERE seq IN (SELECT owner_id FROM layer_data)").fetchall())
    data = {owners.get(seq): items for seq, items in bigdata.data_by_owner(conn, "layer").items()}
    for layer in layers.list_layers(conn):
        yield "layer", layer.id, _state(layer) | {"big_data": _plain(data.get(layer.id, ()))}
    for image in images.list_images(conn):
        yield "image", image.id, _state(image)
    for container in containers.list_containers(conn):
        yield "container", container.id, _state(container)


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


#: Bytes of a record's mark, and of its state's: so many bits that no two are ever alike.
MARK_SIZE: Final = 16

#: Stands for the state of a record that was deleted.
_DELETED: Final = bytes(MARK_SIZE)

#: The newest form of marshalled values in which equal ones are always equal bytes; ten times as fast as JSON.
_MARSHAL: Final = 2


def mark(kind: str, record_id: str) -> bytes:
    """Stands for a record where very many are compared."""
    return blake3(f"{kind} {record_id}".encode()).digest(MARK_SIZE)


def state_mark(kind: str, values: Mapping[str, Any] | None) -> bytes:
    """Stands for a record's state, as :func:`state` gives it or as another version wrote it."""
    if values is None:
        return _DELETED
    if tuple(values) != MEMBERS[kind]:
        values = current(kind, values)
    return blake3(marshal.dumps(dict(values), _MARSHAL)).digest(MARK_SIZE)


def current(kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """A state that another version wrote, as this one would: without what is not known, with what was left out."""
    known = {name: value for name, value in values.items() if name in MEMBERS[kind]}
    record, data = restored(kind, {"big_data": []} | known)
    return _state(record) | {"big_data": _plain(data)}


def marks(said: Iterable[tuple[str, str, Mapping[str, Any] | None]]) -> bytes:
    """The marks of records and of their new states, one behind the other; kinds that are not known are passed over."""
    found = [mark(kind, name) + state_mark(kind, values) for kind, name, values in said if kind in RECORD_KINDS]
    return b"".join(found)


def replay(states: dict[bytes, bytes], said: bytes) -> None:
    """Let states, by records, become what :func:`marks` were made of."""
    for start in range(0, len(said), 2 * MARK_SIZE):
        record, found = said[start : start + MARK_SIZE], said[start + MARK_SIZE : start + 2 * MARK_SIZE]
        if found == _DELETED:
            states.pop(record, None)
        else:
            states[record] = found


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
