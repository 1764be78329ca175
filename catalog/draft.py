"""A catalog that is being made again: rows put together from packs and journal lines, in a file of its own.

What is only needed meanwhile lies in a second database file, so that memory stays bounded by one pack's index and
one content, however much the store holds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from lading.catalog import bigdata, containers, images, journal, layers, records
from lading.catalog.content import BATCH_ROWS, LOOKUP_ROWS, batches, locate, payload_of
from lading.catalog.database import Catalog, WriteTransaction
from lading.catalog.engine import Connection
from lading.catalog.journal import Head
from lading.values import (
    CODEC_RAW,
    KIND_BIG_DATA,
    KIND_RECIPE,
    LOST_PACK,
    RECORD_KINDS,
    Image,
    Layer,
    Location,
    PackContents,
    printable,
)

#: Records made in one transaction.
_RECORDS: Final = 500

_SCRATCH: Final = (
    "CREATE TABLE scratch.state (place INTEGER PRIMARY KEY, kind TEXT NOT NULL, id TEXT NOT NULL, seq INTEGER NOT NULL, "
    "text TEXT NOT NULL, UNIQUE (kind, id))",
    "CREATE TABLE scratch.duplicate (digest BLOB NOT NULL, kind INTEGER, pack TEXT, offset INTEGER, stored_size INTEGER, "
    "size INTEGER, codec INTEGER, frames BLOB)",
    "CREATE INDEX scratch.duplicate_digest ON duplicate (digest)",
    "CREATE TABLE scratch.ending (kind TEXT NOT NULL, id TEXT NOT NULL, PRIMARY KEY (kind, id)) WITHOUT ROWID",
    "CREATE TABLE scratch.need (key TEXT PRIMARY KEY, size INTEGER NOT NULL, done INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID",
)


class Draft:
    """The rows of a catalog on their way. One thread works with it; nobody else knows of its file."""

    def __init__(self, catalog: Catalog, scratch: Path) -> None:
        """Start with an empty catalog.

        Args:
            catalog: just made; its journal and its lock are its own.
            scratch: file for what is needed meanwhile.
        """
        self.catalog = catalog
        self._now = time.time_ns()
        self._ending = ""  # note on transient records
        conn = catalog.connection()
        conn.execute("ATTACH DATABASE ? AS scratch", (str(scratch),))
        conn.execute("PRAGMA scratch.journal_mode = OFF").fetchall()
        conn.execute("PRAGMA scratch.synchronous = OFF")
        for statement in _SCRATCH:
            conn.execute(statement)

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with self.catalog.write_rows("rebuild", durable=False) as conn:
            yield conn

    def add_pack(self, pack: PackContents) -> None:
        """Record a pack and those of its objects that no earlier pack has; the others are noted as duplicates.

        It counts as written in an epoch that has ended, and not looked at since: the next collection finds out
        which of its objects nothing refers to.
        """
        with self._write() as conn:
            cursor = conn.execute(
                "INSERT INTO pack (name, size, payload, epoch, settled) VALUES (?, ?, ?, 0, 0)",
                (pack.name, pack.size, payload_of(pack)),
            )
            pack_id = cursor.lastrowid
            for batch in batches(pack.objects, LOOKUP_ROWS):
                marks = ",".join("?" * len(batch))
                query = f"SELECT digest FROM object WHERE digest IN ({marks})"
                known = {bytes(row[0]) for row in conn.execute(query, [item.digest for item in batch])}
                fresh = {item.digest: item for item in reversed(batch) if item.digest not in known}
                conn.executemany(
                    "INSERT INTO object (digest, kind, pack_id, offset, stored_size, size, codec, frames) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    [
                        (o.digest, o.kind, pack_id, o.offset, o.stored_size, o.size, o.codec, o.frames or None)
                        for o in fresh.values()
                    ],
                )
                conn.executemany(
                    "INSERT INTO scratch.duplicate VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    [
                        (o.digest, o.kind, o.pack, o.offset, o.stored_size, o.size, o.codec, o.frames)
                        for o in batch
                        if fresh.get(o.digest) is not o
                    ],
                )

    def duplicates(self) -> Iterator[list[Location]]:
        """Objects that are stored more than once: for each, the place it is read from, then the others."""
        conn = self.catalog.connection()
        digest = b""
        while True:
            row = conn.execute("SELECT min(digest) FROM scratch.duplicate WHERE digest > ?", (digest,)).fetchone()
            if row[0] is None:
                return
            digest = bytes(row[0])
            chosen = locate(conn, [digest])[digest]
            query = "SELECT kind, pack, offset, stored_size, size, codec, frames FROM scratch.duplicate WHERE digest = ? ORDER BY rowid"
            others = [
                Location(digest, place[0], place[1], place[2], place[3], place[4], place[5], bytes(place[6]))
                for place in conn.execute(query, (digest,))
            ]
            yield [chosen, *others]

    def move(self, place: Location) -> None:
        """Let an object be read from another place."""
        with self._write() as conn:
            conn.execute(
                "UPDATE object SET kind = ?, pack_id = (SELECT id FROM pack WHERE name = ?), offset = ?, stored_size = ?, "
                "size = ?, codec = ?, frames = ? WHERE digest = ?",
                (
                    place.kind, place.pack, place.offset, place.stored_size, place.size, place.codec,
                    place.frames or None, place.digest,
                ),
            )  # fmt: skip

    def objects(self, *, recipes: bool) -> Iterator[Location]:
        """Objects that are recipes, or all others, pack by pack, as they lie there."""
        conn = self.catalog.connection()
        query = (
            "SELECT digest, kind, offset, stored_size, size, codec, frames FROM object "
            f"WHERE pack_id = ? AND damaged_at IS NULL AND kind {'=' if recipes else '<>'} ? ORDER BY offset"
        )
        for pack_id, name in conn.execute("SELECT id, name FROM pack ORDER BY name").fetchall():
            for digest, kind, *place, frames in conn.execute(query, (pack_id, KIND_RECIPE)).fetchall():
                yield Location(bytes(digest), kind, name, place[0], place[1], place[2], place[3], bytes(frames or b""))

    def add_states(self, found: Iterator[tuple[str, str, Mapping[str, Any]]], seq: int) -> None:
        """Take over the records of a snapshot that was made with a line of the journal."""
        for batch in batches(found, BATCH_ROWS):
            with self._write() as conn:
                for kind, record_id, state in batch:
                    if kind in RECORD_KINDS:
                        _put(conn, kind, record_id, seq, _text(state))
                    elif kind == "transient":
                        self._note_transient(conn, state)

    def add_lines(self, lines: Iterator[journal.Line]) -> None:
        """Apply changes, oldest first, and write down each as an event."""
        for batch in batches(lines, BATCH_ROWS):
            with self._write() as conn:
                for line in batch:
                    self._add_line(conn, line)

    def _note_transient(self, conn: Connection, said: Mapping[str, Any]) -> None:
        """Remember which records end with a run root, and what is known of that."""
        self._ending = str(said["note"])
        conn.executemany("INSERT OR IGNORE INTO scratch.ending VALUES (?, ?)", said["records"])

    def _add_line(self, conn: Connection, line: journal.Line) -> None:
        if "transient" in line.body:
            self._note_transient(conn, line.body["transient"])
        for kind, record_id, state in line.body.get("changes", ()):
            if kind not in RECORD_KINDS:
                continue
            query = "SELECT text FROM scratch.state WHERE kind = ? AND id = ?"
            known = conn.execute(query, (kind, record_id)).fetchone()
            after = None if state is None else _text(state)
            conn.execute(
                "INSERT INTO event (at_ns, verb, kind, record_id, before, after) VALUES (?, ?, ?, ?, ?, ?)",
                (int(line.body["at"]), str(line.body["verb"]), kind, record_id, known[0] if known else None, after),
            )
            if after is None:
                for table in ("state", "ending"):
                    conn.execute(f"DELETE FROM scratch.{table} WHERE kind = ? AND id = ?", (kind, record_id))
            else:
                _put(conn, kind, record_id, line.seq, after)

    def note_needs(self) -> None:
        """Find out which contents the layers have."""
        for batch in batches(self._states("layer"), BATCH_ROWS):
            with self._write() as conn:
                for _, _, _, _, state in batch:
                    replay = state.get("replay", "")
                    size = state.get("diff_size", 0) if replay and state.get("diff_digest") == replay else 0
                    for key in {*state.get("contents", ()), *([replay] if replay else [])}:
                        conn.execute(
                            "INSERT INTO scratch.need (key, size) VALUES (?, ?) "
                            "ON CONFLICT (key) DO UPDATE SET size = max(size, excluded.size)",
                            (key, size if key == replay else 0),
                        )

    def _states(self, kind: str = "%") -> Iterator[tuple[int, str, str, int, dict[str, Any]]]:
        """Records of a kind, or all, in order of creation: place, kind, id, number of the line, state."""
        query = "SELECT place, kind, id, seq, text FROM scratch.state WHERE place > ? AND kind LIKE ? ORDER BY place LIMIT ?"
        place = 0
        while rows := self.catalog.connection().execute(query, (place, kind, _RECORDS)).fetchall():
            for place, found, record_id, seq, text in rows:
                yield place, found, record_id, seq, json.loads(text)

    def needed(self) -> list[str]:
        """Keys of contents that layers have and that are not there yet."""
        rows = self.catalog.connection().execute("SELECT key FROM scratch.need WHERE NOT done ORDER BY key")
        return [row[0] for row in rows]

    def done(self, key: str) -> None:
        """Note that a content is there."""
        with self._write() as conn:
            conn.execute("UPDATE scratch.need SET done = 1 WHERE key = ?", (key,))

    def missing(self, sizes: Mapping[bytes, int], kind: int) -> int:
        """Record objects that are needed and in no pack, as damaged, so that whatever brings them back is welcome.

        Args:
            sizes: digests and plain bytes of objects that something names.
            kind: what they are.

        Returns:
            How many of them are missing.
        """
        absent: list[bytes] = []
        with self._write() as conn:
            for batch in batches(sizes, LOOKUP_ROWS):
                marks = ",".join("?" * len(batch))
                query = f"SELECT digest FROM object WHERE digest IN ({marks})"
                known = {bytes(row[0]) for row in conn.execute(query, batch)}
                absent += [digest for digest in batch if digest not in known]
            if absent:
                conn.execute(
                    "INSERT INTO pack (name, size, payload, epoch, settled) VALUES (?, 0, 0, 0, 1) ON CONFLICT DO NOTHING",
                    (LOST_PACK,),
                )
                conn.executemany(
                    "INSERT INTO object (digest, kind, pack_id, offset, stored_size, size, codec, damaged_at) "
                    "VALUES (?, ?, (SELECT id FROM pack WHERE name = ?), 0, 0, ?, ?, ?)",
                    [(digest, kind, LOST_PACK, sizes[digest], CODEC_RAW, self._now) for digest in absent],
                )
        return len(absent)

    def add_hollow(self, key: str, recipe: bytes | None, kind: int) -> None:
        """Record a content whose entries cannot be read: its layers keep their place, and storing it again heals them.

        Args:
            key: the content's.
            recipe: digest of what should give the entries, when it is known; it is noted as damaged.
            kind: of that object.
        """
        if recipe is not None:
            self.missing({recipe: 0}, kind)
        with self._write() as conn:
            conn.execute("UPDATE object SET damaged_at = ? WHERE digest = ?", (self._now, recipe))
            conn.execute(
                "INSERT INTO content (key, diff_id, size, recipe_id, state, entries, epoch, diff_bytes, uids, gids) "
                "SELECT n.key, ?, n.size, (SELECT id FROM object WHERE digest = ?), 'ready', -1, 0, 0, '[]', '[]' FROM scratch.need n WHERE n.key = ?",
                (key if key.startswith("sha256:") else None, recipe, key),
            )
        self.done(key)

    def make_records(self) -> list[str]:
        """Make layers, images and containers, in the order in which they were created.

        Returns:
            A sentence for each name that two records claim; the one that was changed last has it.
        """
        lost: list[str] = []
        for batch in batches(self._states(), _RECORDS):
            self._note_missing_data([row[4] for row in batch])
            with self._write() as conn:
                tx = WriteTransaction(conn, "rebuild")
                for _, kind, record_id, seq, state in batch:
                    lost += _make(tx, kind, record_id, seq, state)
        if self._ending:
            with self._write() as conn:
                conn.execute("INSERT INTO transient SELECT kind, id FROM scratch.ending")
                conn.execute("INSERT INTO meta (key, value) VALUES ('transient', ?)", (self._ending,))
        return lost

    def _note_missing_data(self, states: list[Any]) -> None:
        sizes = {bytes.fromhex(item[3]): item[1] for state in states for item in state.get("big_data", ()) if item[3]}
        self.missing(sizes, KIND_BIG_DATA)

    def set_head(self, head: Head, snapshot: str) -> None:
        """Let the catalog go on behind a line of the journal, whose segment rests on a snapshot."""
        with self._write() as conn:
            journal.set_head(conn, head)
            if snapshot:
                conn.execute("INSERT INTO meta (key, value) VALUES ('snapshot', ?)", (snapshot,))

    def finish(self) -> None:
        """Let go of what was needed meanwhile, and leave no log beside the file."""
        conn = self.catalog.connection()
        conn.execute("DETACH DATABASE scratch")
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def counts(self) -> dict[str, int]:
        """How much there is of each."""
        conn = self.catalog.connection()
        tables = ("pack", "object", "content", "layer", "image", "container", "event")
        return {name: conn.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables}


def _text(state: Mapping[str, Any]) -> str:
    return json.dumps(state, separators=(",", ":"), ensure_ascii=False)


def _put(conn: Connection, kind: str, record_id: str, seq: int, text: str) -> None:
    """Keep a record's newest state; its place in the order is that of its first."""
    conn.execute(
        "INSERT INTO scratch.state (kind, id, seq, text) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (kind, id) DO UPDATE SET seq = excluded.seq, text = excluded.text",
        (kind, record_id, seq, text),
    )


def _make(tx: WriteTransaction, kind: Any, record_id: str, seq: int, state: dict[str, Any]) -> list[str]:
    """Make one record with its names and data."""
    record, data = records.restored(kind, state)
    names, lost = _settled_names(tx.conn, kind, record_id, record.names, seq)
    record = replace(record, names=names)
    match record:
        case Layer():
            layers.create_layer(tx, record)
        case Image():
            images.create_image(tx, record)
        case _:
            containers.create_container(tx, record)
    for item in data:
        bigdata.put_big_data(tx, kind, record.id, item)
    return lost


def _settled_names(
    conn: Connection, kind: str, record_id: str, names: tuple[str, ...], seq: int
) -> tuple[tuple[str, ...], list[str]]:
    """Decide who has a name that another record has as well: after a hole in the journal only."""
    kept: list[str] = []
    lost: list[str] = []
    for name in names:
        row = conn.execute(
            f"SELECT r.id, s.seq FROM {kind}_name n JOIN {kind} r ON r.seq = n.owner_id "
            "JOIN scratch.state s ON s.kind = ? AND s.id = r.id WHERE n.name = ?",
            (kind, name),
        ).fetchone()
        if row is not None:
            loser = record_id if row[1] > seq else row[0]
            lost.append(f'{kind} {loser} loses the name "{printable(name)}", which another {kind} has since')
            if loser == record_id:
                continue
            conn.execute(f"DELETE FROM {kind}_name WHERE name = ?", (name,))
        kept.append(name)
    return tuple(kept), lost
