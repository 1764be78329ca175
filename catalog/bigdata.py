"""Rows of big data items: key, size, digest, and the object that holds the bytes."""

from __future__ import annotations

from lading.catalog import names
from lading.catalog.database import WriteTransaction
from lading.catalog.engine import Connection
from lading.errors import Corrupt
from lading.values import BigData, RecordKind

_COLUMNS = "d.key, d.size, d.digest, o.digest"


def _item(row: tuple[str, int, str, bytes | None]) -> BigData:
    return BigData(row[0], row[1], row[2], bytes(row[3]) if row[3] is not None else b"")


def list_big_data(conn: Connection, kind: RecordKind, record_id: str) -> tuple[BigData, ...]:
    """A record's items in the order they were first set."""
    seq = names.seq_of(conn, kind, record_id)
    return data_of(conn, kind, seq) if seq is not None else ()


def data_of(conn: Connection, kind: RecordKind, seq: int) -> tuple[BigData, ...]:
    """The items of a row number."""
    query = f"SELECT {_COLUMNS} FROM {kind}_data d LEFT JOIN object o ON o.id = d.object_id WHERE d.owner_id = ? ORDER BY d.position"
    return tuple(_item(row) for row in conn.execute(query, (seq,)))


def data_by_owner(conn: Connection, kind: RecordKind) -> dict[int, list[BigData]]:
    """All items of a kind, by row number."""
    found: dict[int, list[BigData]] = {}
    query = f"SELECT d.owner_id, {_COLUMNS} FROM {kind}_data d LEFT JOIN object o ON o.id = d.object_id ORDER BY d.owner_id, d.position"
    for owner, *row in conn.execute(query):
        found.setdefault(owner, []).append(_item((row[0], row[1], row[2], row[3])))
    return found


def get_big_data(conn: Connection, kind: RecordKind, record_id: str, key: str) -> BigData | None:
    """One item; None when the record has none of this key."""
    query = (
        f"SELECT {_COLUMNS} FROM {kind}_data d JOIN {kind} r ON r.seq = d.owner_id "
        "LEFT JOIN object o ON o.id = d.object_id WHERE r.id = ? AND d.key = ?"
    )
    row = conn.execute(query, (record_id, key)).fetchone()
    return None if row is None else _item(row)


def put_big_data(tx: WriteTransaction, kind: RecordKind, record_id: str, item: BigData) -> None:
    """Set an item; one that is replaced keeps its place. A first manifest gives an image its digest.

    Raises:
        Corrupt: the item's object is not recorded.
    """
    tx.touch(kind, record_id)
    seq = names.seq_of(tx.conn, kind, record_id)
    assert seq is not None
    object_id = None
    if item.object:
        row = tx.conn.execute("SELECT id FROM object WHERE digest = ?", (item.object,)).fetchone()
        if row is None:
            raise Corrupt(f"object {item.object.hex()} of data item is not recorded")
        object_id = row[0]
        tx.conn.execute("UPDATE object SET condemned = NULL WHERE id = ? AND condemned IS NOT NULL", (object_id,))
    suspect_replaced(tx.conn, kind, seq, item.key)
    tx.conn.execute(
        f"INSERT INTO {kind}_data (owner_id, key, position, object_id, size, digest) "
        f"VALUES (?, ?, (SELECT coalesce(max(position), -1) + 1 FROM {kind}_data WHERE owner_id = ?), ?, ?, ?) "
        "ON CONFLICT (owner_id, key) DO UPDATE SET object_id = excluded.object_id, size = excluded.size, digest = excluded.digest",
        (seq, item.key, seq, object_id, item.size, item.digest),
    )
    if kind == "image" and item.key.startswith("manifest"):
        tx.conn.execute("UPDATE image SET digest = ? WHERE seq = ? AND digest = ''", (item.digest, seq))


def suspect_replaced(conn: Connection, kind: RecordKind, seq: int, key: str | None = None) -> None:
    """Note the objects of data that is about to go, so that a collection looks at them."""
    conn.execute(
        f"INSERT INTO suspect (object_id) SELECT object_id FROM {kind}_data WHERE owner_id = ?1 AND (?2 IS NULL OR key = ?2) "
        "AND object_id IS NOT NULL ON CONFLICT (object_id) DO NOTHING",
        (seq, key),
    )
