"""References and names: how an id, a name or a prefix finds a record, and how names move."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Final

from lading.catalog.content import LOOKUP_ROWS, batches
from lading.catalog.database import WriteTransaction
from lading.catalog.engine import Connection
from lading.errors import DuplicateID, DuplicateName
from lading.values import RECORD_KINDS, RecordKind, printable, unique

#: One above every character a name can have: ends the range of a prefix.
_LAST: Final = "\U0010ffff"


def resolve(conn: Connection, kind: RecordKind, ref: str) -> str | None:
    """Find a record of a kind: exact id, exact name, for containers the layer's id, unique id prefix.

    Returns:
        The id; None when nothing answers, or a prefix is empty or ambiguous.
    """
    try:
        ref.encode()
    except UnicodeEncodeError:
        return None  # no record has such an id or name
    row = conn.execute(f"SELECT id FROM {kind} WHERE id = ?", (ref,)).fetchone()
    if row is None:
        row = conn.execute(
            f"SELECT r.id FROM {kind}_name n JOIN {kind} r ON r.seq = n.owner_id WHERE n.name = ?", (ref,)
        ).fetchone()
    if row is None and kind == "container" and ref:
        row = conn.execute("SELECT id FROM container WHERE layer = ? ORDER BY seq LIMIT 1", (ref,)).fetchone()
    if row is not None:
        return str(row[0])
    if not ref or " " in ref:
        return None  # ids with spaces have no prefixes, neither as an answer nor as a rival
    query = f"SELECT id FROM {kind} WHERE id >= ? AND id < ? AND instr(id, ' ') = 0 LIMIT 2"
    found = conn.execute(query, (ref, ref + _LAST)).fetchall()
    return str(found[0][0]) if len(found) == 1 and str(found[0][0]).startswith(ref) else None


def new_id(conn: Connection, kind: RecordKind) -> str:
    """Draw an id: 16 random bytes in hex, drawn again when its first 12 digits are all decimal or it is taken."""
    while True:
        drawn = os.urandom(16).hex()
        if not drawn[:12].isdigit() and conn.execute(f"SELECT 1 FROM {kind} WHERE id = ?", (drawn,)).fetchone() is None:
            return drawn


def seq_of(conn: Connection, kind: RecordKind, record_id: str) -> int | None:
    """A record's row number."""
    row = conn.execute(f"SELECT seq FROM {kind} WHERE id = ?", (record_id,)).fetchone()
    return None if row is None else int(row[0])


def known_ids(conn: Connection, kind: RecordKind, ids: Sequence[str]) -> set[str]:
    """Those of some ids that records of a kind have."""
    found: set[str] = set()
    for batch in batches(ids, LOOKUP_ROWS):
        marks = ",".join("?" * len(batch))
        found.update(row[0] for row in conn.execute(f"SELECT id FROM {kind} WHERE id IN ({marks})", batch))
    return found


def check_new(conn: Connection, kind: RecordKind, record_id: str, names: Sequence[str]) -> None:
    """Refuse an id or a name that another record of the kind has.

    Raises:
        DuplicateID, DuplicateName: in the contract's words.
    """
    if record_id and seq_of(conn, kind, record_id) is not None:
        raise DuplicateID(f'an image with ID "{record_id}" already exists' if kind == "image" else "")
    for name in names:
        row = conn.execute(
            f"SELECT r.id FROM {kind}_name n JOIN {kind} r ON r.seq = n.owner_id WHERE n.name = ?", (name,)
        ).fetchone()
        if row is None:
            continue
        match kind:
            case "layer":
                raise DuplicateName()
            case "image":
                raise DuplicateName(f'image name "{printable(name)}" is already associated with image "{row[0]}"')
            case "container":
                raise DuplicateName(
                    f'the container name "{printable(name)}" is already in use by {row[0]}. '
                    "You have to remove that container to be able to reuse that name"
                )


def insert_names(conn: Connection, kind: RecordKind, seq: int, names: Sequence[str]) -> None:
    """Give a record names that nobody has."""
    rows = [(name, seq, position) for position, name in enumerate(names)]
    conn.executemany(f"INSERT INTO {kind}_name (name, owner_id, position) VALUES (?, ?, ?)", rows)


def set_names(tx: WriteTransaction, kind: RecordKind, record_id: str, names: Sequence[str]) -> None:
    """Replace a record's names; those that others have move. An image remembers every name in the list."""
    tx.touch(kind, record_id)
    seq = seq_of(tx.conn, kind, record_id)
    assert seq is not None
    wanted = unique(names)
    for name in wanted:
        row = tx.conn.execute(
            f"SELECT r.id FROM {kind}_name n JOIN {kind} r ON r.seq = n.owner_id WHERE n.name = ?", (name,)
        ).fetchone()
        if row is not None and row[0] != record_id:
            tx.touch(kind, row[0])
            tx.conn.execute(f"DELETE FROM {kind}_name WHERE name = ?", (name,))
    tx.conn.execute(f"DELETE FROM {kind}_name WHERE owner_id = ?", (seq,))
    insert_names(tx.conn, kind, seq, wanted)
    if kind == "image":
        _remember(tx.conn, seq, wanted)


def _remember(conn: Connection, seq: int, names: Sequence[str]) -> None:
    """Push names to the front of an image's history, in order, so that the last ends up first."""
    history = json.loads(conn.execute("SELECT names_history FROM image WHERE seq = ?", (seq,)).fetchone()[0])
    for name in names:
        history = [name, *(old for old in history if old != name)]
    text = json.dumps(history, ensure_ascii=False, separators=(",", ":"))
    conn.execute("UPDATE image SET names_history = ? WHERE seq = ?", (text, seq))


def names_by_owner(conn: Connection, kind: RecordKind) -> dict[int, list[str]]:
    """All names of a kind, by row number, each list in order."""
    found: dict[int, list[str]] = {}
    for owner, name in conn.execute(f"SELECT owner_id, name FROM {kind}_name ORDER BY owner_id, position"):
        found.setdefault(owner, []).append(name)
    return found


def names_of(conn: Connection, kind: RecordKind, seq: int) -> tuple[str, ...]:
    """A record's names, in order."""
    query = f"SELECT name FROM {kind}_name WHERE owner_id = ? ORDER BY position"
    return tuple(row[0] for row in conn.execute(query, (seq,)))


def set_metadata(tx: WriteTransaction, kind: RecordKind, record_id: str, text: str) -> None:
    """Replace a record's metadata."""
    assert kind in RECORD_KINDS
    tx.touch(kind, record_id)
    tx.conn.execute(f"UPDATE {kind} SET metadata = ? WHERE id = ?", (text, record_id))
