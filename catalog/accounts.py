"""Sums over the catalog: what packs are made of, what the cache takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lading.catalog.engine import Connection


@dataclass(frozen=True, slots=True)
class PackClasses:
    """The bytes of all recorded packs. They sum to the sizes of their files."""

    live: int  #: stored bytes of objects that are not condemned
    dead: int  #: stored bytes of all others the packs were written with
    overhead: int  #: heads, indexes, footers


def pack_classes(conn: Connection) -> PackClasses:
    """Split the recorded packs' bytes."""
    size, payload = conn.execute("SELECT coalesce(sum(size), 0), coalesce(sum(payload), 0) FROM pack").fetchone()
    live = conn.execute("SELECT coalesce(sum(stored_size), 0) FROM object WHERE condemned IS NULL").fetchone()[0]
    return PackClasses(live, payload - live, size - payload)


def cache_rows(conn: Connection) -> list[tuple[str, str, int]]:
    """What the catalog knows of the cache: kind, key, bytes."""
    return [tuple(row) for row in conn.execute("SELECT kind, key, size FROM cache_entry ORDER BY kind, key")]


def replace_cache_rows(conn: Connection, rows: Iterable[tuple[str, str, int]]) -> None:
    """Let the catalog know what was measured; the caller's transaction commits it."""
    conn.execute("DELETE FROM cache_entry")
    conn.executemany("INSERT INTO cache_entry (kind, key, size) VALUES (?, ?, ?)", rows)
