"""The journal's snapshots: a long journal is replaced by one object that holds all live records."""

from __future__ import annotations

import json
import time
from typing import Any

from lading.catalog import content as catalog_content
from lading.catalog import records
from lading.catalog.engine import Connection
from lading.catalog.journal import Head, Journal, head
from lading.errors import Busy, Corrupt, InvalidInput
from lading.flows import agreement
from lading.flows.context import Context
from lading.flows.tidying import tidying
from lading.values import KIND_SNAPSHOT


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
    if agreement.compare(context).records:  # the journal alone has what was committed
        context.warn("records differ from the journal, which is not shortened: run `lading check`")
        return False
    with context.epochs.shared() as epoch:
        with context.catalog.read() as conn:
            seen = conn.execute("SELECT value FROM meta WHERE key = 'journal'").fetchone()[0]
        digest = _store_records(context, epoch)
        with context.catalog.write_rows("snapshot") as conn:
            if conn.execute("SELECT value FROM meta WHERE key = 'journal'").fetchone()[0] != seen:
                return False  # a record changed meanwhile: the next collection tries again
            segment = journal.start_segment(conn, digest.hex(), time.time_ns())
            _hold(conn, digest)
    with tidying("segments of the journal"):
        journal.remove_before(segment)
    return True


def _store_records(context: Context, epoch: int) -> bytes:
    """Store all live records as one object.

    Returns:
        Its digest.
    """
    with context.writer(floor=False) as writer:
        target = writer.stream(KIND_SNAPSHOT)
        with context.catalog.read() as conn:
            for record in records.live(conn):
                target.write(_line(*record))
            ending = records.transient(conn)
        if ending is not None:
            target.write(_line("transient", "", ending))
        digest = target.close()
        packs = writer.finish()
    catalog_content.register_packs(context.catalog, packs, epoch)
    return digest


def renew(context: Context, after: Head, *, epoch: int) -> int:
    """Begin a journal segment that needs none of those before it.

    Args:
        context: the store.
        after: the line to go on behind, in whatever state it is.
        epoch: the epoch whose lock the caller holds.

    Returns:
        The segment's number.

    Raises:
        Busy: a record changed meanwhile.
    """
    with context.catalog.read() as conn:
        seen = head(conn)
    digest = _store_records(context, epoch)
    with context.catalog.write_rows("snapshot") as conn:
        if head(conn) != seen:
            raise Busy("records changed while they were stored; try again")
        segment = Journal(context.layout.journal).renew(conn, after, digest.hex(), time.time_ns())
        _hold(conn, digest)
    return segment


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


def _line(kind: str, record_id: str, state: dict[str, Any] | None) -> bytes:
    return json.dumps([kind, record_id, state], separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def rejournal(context: Context) -> list[str]:
    """Begin the journal anew from a sound catalog, putting aside segments that are damaged or say something else.

    Returns:
        Paths of what was put aside.

    Raises:
        InvalidInput: the journal agrees with the catalog.
        Corrupt: it holds more than the catalog.
        Busy: records change all the while.
    """
    from lading.flows.install import set_segments_aside

    context.need_writable()
    found = agreement.compare(context, unsynced=True)
    if not found.lines and not found.records and not found.unread:
        raise InvalidInput(f"{context.layout.journal} is sound and agrees with the catalog: there is nothing to renew")
    if found.lines and found.lines[0].startswith("the catalog is older"):
        raise Corrupt(found.lines[0])
    with context.epochs.shared() as epoch:
        with context.catalog.read() as conn:
            at = head(conn)
        segment = renew(context, at, epoch=epoch)
    return set_segments_aside(context.layout, segment, time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()))
