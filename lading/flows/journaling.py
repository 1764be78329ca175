"""The journal's snapshots: a long journal is replaced by one object that holds all live records."""

from __future__ import annotations

import json
import time
from typing import Any

from lading.catalog import content as catalog_content
from lading.catalog import records
from lading.catalog.database import Connection
from lading.catalog.journal import Journal
from lading.flows.context import Context
from lading.values import KIND_SNAPSHOT, RecordKind


def snapshot_if_needed(context: Context, *, damaged: bool = False) -> bool:
    """Close a segment that has grown long: all live records into an object, then a new segment.

    Args:
        context: the store.
        damaged: do so in any case: the present snapshot's object is lost.

    Returns:
        Whether that was done.
    """
    journal = Journal(context.layout.journal)
    with context.catalog.read() as conn:
        if not damaged and not journal.needs_snapshot(conn):
            return False
    with context.epochs.shared() as epoch:
        with context.catalog.read() as conn:
            seen = conn.execute("SELECT value FROM meta WHERE key = 'journal'").fetchone()[0]
            lines = [_line(*record) for record in records.live(conn)]
        with context.writer(floor=False) as writer:
            target = writer.stream(KIND_SNAPSHOT)
            for line in lines:
                target.write(line)
            digest = target.close()
            packs = writer.finish()
        catalog_content.register_packs(context.catalog, packs, epoch)
        with context.catalog.write_rows("snapshot") as conn:
            if conn.execute("SELECT value FROM meta WHERE key = 'journal'").fetchone()[0] != seen:
                return False  # a record changed meanwhile: the next collection tries again
            segment = journal.start_segment(conn, digest.hex(), time.time_ns())
            _hold(conn, digest)
    journal.remove_before(segment)
    return True


def _hold(conn: Connection, digest: bytes) -> None:
    """Keep the snapshot's object, and let go of the one before."""
    before = conn.execute("SELECT value FROM meta WHERE key = 'snapshot'").fetchone()
    if before is not None:
        conn.execute(
            "INSERT INTO suspect (object_id) SELECT id FROM object WHERE digest = ? ON CONFLICT (object_id) DO NOTHING",
            (bytes.fromhex(before[0]),),
        )
    conn.execute("UPDATE object SET condemned = NULL WHERE digest = ? AND condemned IS NOT NULL", (digest,))
    conn.execute(
        "INSERT INTO meta (key, value) VALUES ('snapshot', ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        (digest.hex(),),
    )


def _line(kind: RecordKind, record_id: str, state: dict[str, Any] | None) -> bytes:
    return json.dumps([kind, record_id, state], separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
