"""Packs as a collection sees them: how much of each is still needed, and what becomes of its row.

A pack's account is kept by triggers once it is settled, so that worn, empty and small packs are found by
index: what is whole is not looked at. A pack with a damaged object stays as it is until that object is
stored again or deleted: a rewrite could neither carry the damage on nor leave it out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from lading.catalog.content import LOOKUP_ROWS, batches, payload_of
from lading.catalog.database import Catalog
from lading.catalog.engine import Connection
from lading.values import Location, PackContents

#: Packs smaller than this may be merged. The index ``pack_small`` says the same.
SMALL_PACK: Final = 1 << 20

_COLUMNS: Final = "id, name, size, payload, live, objects"


@dataclass(frozen=True, slots=True)
class PackUse:
    """How much of a recorded pack is needed. Sizes are stored bytes."""

    id: int
    name: str
    size: int  #: of the file
    payload: int  #: of all objects it was written with
    live: int  #: of those that stay
    objects: int  #: how many stay


def candidates(conn: Connection, ended: int = 0, dead: Collection[int] = ()) -> list[PackUse]:
    """Find the packs that are not whole, or are small, and that nobody writes to.

    A pack is recorded before its objects are: one that looks empty may only be new. So only settled ones
    count, and those that the collection would settle.

    Args:
        conn: a snapshot; with ``dead``, one in which temporary tables may be made.
        ended: packs of this epoch or an older one are taken for settled.
        dead: row numbers of objects to be taken for deleted.

    Returns:
        By name. Packs with damaged objects are left out.
    """
    queries = [
        f"SELECT {_COLUMNS} FROM pack WHERE settled AND (live < payload OR objects = 0)",
        f"SELECT {_COLUMNS} FROM pack WHERE settled AND size < {SMALL_PACK}",
        "SELECT p.id, p.name, p.size, p.payload, (SELECT coalesce(sum(o.stored_size), 0) FROM object o WHERE o.pack_id = p.id), "
        "(SELECT count(*) FROM object o WHERE o.pack_id = p.id) "
        f"FROM pack p INDEXED BY pack_unsettled WHERE NOT p.settled AND p.epoch <= {int(ended)}",
    ]
    losses: dict[int, tuple[int, int]] = {}
    if dead:
        conn.execute("CREATE TEMP TABLE IF NOT EXISTS taken (id INTEGER PRIMARY KEY)")
        conn.execute("DELETE FROM temp.taken")
        conn.executemany("INSERT INTO taken VALUES (?)", [(object_id,) for object_id in dead])
        # CROSS JOIN: the few that go are looked up, and no index of all objects is gone through for the sake of order.
        query = (
            "SELECT o.pack_id, sum(o.stored_size), count(*) FROM taken t CROSS JOIN object o ON o.id = t.id GROUP BY 1"
        )
        losses = {pack_id: (size, count) for pack_id, size, count in conn.execute(query)}
        for batch in batches(losses, LOOKUP_ROWS):
            numbers = ",".join(str(int(pack_id)) for pack_id in batch)
            queries.append(f"SELECT {_COLUMNS} FROM pack WHERE settled AND id IN ({numbers})")
    damaged = {
        pack_id
        for object_id, pack_id in conn.execute("SELECT id, pack_id FROM object WHERE damaged_at IS NOT NULL")
        if object_id not in dead
    }
    found: dict[str, PackUse] = {}
    for query in queries:
        for pack_id, name, size, payload, live, objects in conn.execute(query):
            if pack_id not in damaged:
                lost, fewer = losses.get(pack_id, (0, 0))
                found[name] = PackUse(pack_id, name, size, payload, live - lost, objects - fewer)
    return [found[name] for name in sorted(found)]


def live_objects(conn: Connection, pack_id: int, name: str, dead: Collection[int] = ()) -> list[Location]:
    """The objects of a pack that are still needed, by offset."""
    query = "SELECT id, digest, kind, offset, stored_size, size, codec, frames FROM object WHERE pack_id = ? ORDER BY offset"
    return [
        Location(bytes(digest), kind, name, offset, stored_size, size, codec, bytes(frames) if frames else b"")
        for object_id, digest, kind, offset, stored_size, size, codec, frames in conn.execute(query, (pack_id,))
        if object_id not in dead
    ]


def relocate(catalog: Catalog, pack: PackContents, replaced: Sequence[str], epoch: int) -> bool:
    """Point objects to the pack that a rewrite made, and forget the packs it replaces, in one commit.

    Returns:
        Whether that was done. Not when one of them has gone meanwhile: another collection rewrote it.
    """
    with catalog.write_rows("gc: repack") as conn:
        marks = ",".join("?" * len(replaced))
        old = [row[0] for row in conn.execute(f"SELECT id FROM pack WHERE name IN ({marks})", list(replaced))]
        if len(old) < len(replaced):
            return False
        cursor = conn.execute(
            "INSERT INTO pack (name, size, payload, epoch, settled) VALUES (?, ?, ?, ?, 1)",
            (pack.name, pack.size, payload_of(pack), epoch),
        )
        old_marks = ",".join("?" * len(old))
        conn.executemany(
            f"UPDATE object SET pack_id = ?, offset = ? WHERE digest = ? AND pack_id IN ({old_marks})",
            [(cursor.lastrowid, item.offset, item.digest, *old) for item in pack.objects],
        )
        conn.executemany("DELETE FROM pack WHERE id = ?", [(pack_id,) for pack_id in old])
        return True


def forget(catalog: Catalog, names: Iterable[str]) -> list[str]:
    """Delete the rows of packs that no object is in any more, in one synced commit per batch.

    Returns:
        Those that went; their files may be deleted.
    """
    gone = []
    for batch in batches(names, LOOKUP_ROWS):
        with catalog.write_rows("gc: forget packs") as conn:
            for name in batch:
                cursor = conn.execute(
                    "DELETE FROM pack WHERE name = ? AND NOT EXISTS (SELECT 1 FROM object o WHERE o.pack_id = pack.id)",
                    (name,),
                )
                if cursor.rowcount:
                    gone.append(name)
    return gone


def note_damage(catalog: Catalog, location: Location, at_ns: int) -> bool:
    """Note that an object's bytes are wrong, if it still lies where they were read.

    Returns:
        Whether it does; not when another collection has moved it meanwhile.
    """
    with catalog.write_rows("gc: note damage") as conn:
        cursor = conn.execute(
            "UPDATE object SET damaged_at = coalesce(damaged_at, ?) WHERE digest = ? "
            "AND pack_id = (SELECT id FROM pack WHERE name = ?)",
            (at_ns, location.digest, location.pack),
        )
        return bool(cursor.rowcount)
