"""What is garbage, and how its rows go: in proportion to the garbage, in bounded batches.

A collection condemns contents that no layer has, deletes their rows once nobody can be reading them, looks
at the objects that lost a reference on the way, condemns those that had no other, and deletes them once
nobody can be relying on them. "Nobody can" means that the epoch in which it was condemned has ended. Every
step commits by itself; a kill between two leaves work for the next collection.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from lading.catalog.content import LOOKUP_ROWS, batches, payload_of
from lading.catalog.database import Catalog, Connection
from lading.values import Location, PackContents

#: Entry rows deleted in one transaction.
BATCH_ROWS: Final = 5000

#: An object that something refers to.
_REFERENCED: Final = (
    "(EXISTS (SELECT 1 FROM inode i WHERE i.object_id = o.id) OR EXISTS (SELECT 1 FROM content c WHERE c.recipe_id = o.id) "
    "OR EXISTS (SELECT 1 FROM content_object x WHERE x.object_id = o.id) OR EXISTS (SELECT 1 FROM layer_data d WHERE d.object_id = o.id) OR EXISTS (SELECT 1 FROM image_data d WHERE d.object_id = o.id) "
    "OR EXISTS (SELECT 1 FROM container_data d WHERE d.object_id = o.id) "
    "OR EXISTS (SELECT 1 FROM meta m WHERE m.key = 'snapshot' AND m.value = lower(hex(o.digest))))"
)

#: A ready content that no layer has, and a hidden one whose writer is gone (?1: the last ended epoch).
_UNUSED_CONTENTS: Final = (
    "SELECT c.id FROM content c WHERE c.state = 'ready' "
    "AND NOT EXISTS (SELECT 1 FROM layer_content lc WHERE lc.content_id = c.id) "
    "AND NOT EXISTS (SELECT 1 FROM layer l WHERE l.replay_content_id = c.id) "
    "UNION ALL SELECT c.id FROM content c WHERE c.state = 'building' AND c.epoch <= ?1"
)


@dataclass(frozen=True, slots=True)
class PackUse:
    """How much of a recorded pack is needed. Sizes are stored bytes."""

    id: int
    name: str
    size: int  #: of the file
    payload: int  #: of all objects it was written with
    live: int  #: of those that stay
    objects: int  #: how many stay


def condemn_contents(catalog: Catalog, epoch: int, ended: int) -> int:
    """Condemn contents that no layer has.

    Args:
        catalog: the catalog.
        epoch: the current epoch, which is noted with them.
        ended: hidden contents of this epoch or an older one belong to nobody.

    Returns:
        How many.
    """
    with catalog.write_rows("gc: condemn contents") as conn:
        cursor = conn.execute(
            f"UPDATE content SET state = 'condemned', epoch = ?2 WHERE id IN ({_UNUSED_CONTENTS})", (ended, epoch)
        )
        return int(cursor.rowcount)


def delete_contents(catalog: Catalog, ended: int) -> int:
    """Delete the rows of contents condemned in ended epochs.

    Returns:
        How many contents went.
    """
    with catalog.read() as conn:
        query = "SELECT id FROM content WHERE state = 'condemned' AND epoch <= ?"
        doomed = [row[0] for row in conn.execute(query, (ended,))]
    for content_id in doomed:
        while _delete_entries(catalog, content_id):
            pass
        with catalog.write_rows("gc: delete content") as conn:
            conn.execute(
                "INSERT INTO suspect (object_id) SELECT recipe_id FROM content WHERE id = ?1 AND recipe_id IS NOT NULL "
                "UNION SELECT object_id FROM content_object WHERE content_id = ?1 ON CONFLICT (object_id) DO NOTHING",
                (content_id,),
            )
            conn.execute("DELETE FROM content_object WHERE content_id = ?", (content_id,))
            conn.execute("DELETE FROM content WHERE id = ?", (content_id,))
    return len(doomed)


def _delete_entries(catalog: Catalog, content_id: int) -> bool:
    """Delete a batch of a content's entries, with the inodes and paths that nothing else has.

    Returns:
        Whether there may be more.
    """
    with catalog.write_rows("gc: delete entries") as conn:
        rows = conn.execute(
            "SELECT path_id, inode_id FROM entry WHERE content_id = ? LIMIT ?", (content_id, BATCH_ROWS)
        ).fetchall()
        if not rows:
            return False
        conn.executemany(
            "DELETE FROM entry WHERE content_id = ? AND path_id = ?", [(content_id, row[0]) for row in rows]
        )
        inodes = [(inode,) for inode in {row[1] for row in rows if row[1] is not None}]
        unused = "id = ? AND NOT EXISTS (SELECT 1 FROM entry e WHERE e.inode_id = inode.id)"
        conn.executemany(
            f"INSERT INTO suspect (object_id) SELECT object_id FROM inode WHERE {unused} AND object_id IS NOT NULL "
            "ON CONFLICT (object_id) DO NOTHING",
            inodes,
        )
        conn.executemany(f"DELETE FROM inode WHERE {unused}", inodes)
        _delete_paths(conn, [row[0] for row in rows])
        return len(rows) == BATCH_ROWS


def _delete_paths(conn: Connection, path_ids: Iterable[int]) -> None:
    """Delete paths that nothing has, then their parents, upwards."""
    pending = set(path_ids)
    while pending:
        parents: set[int] = set()
        for batch in batches(sorted(pending), LOOKUP_ROWS):
            marks = ",".join("?" * len(batch))
            rows = conn.execute(
                f"DELETE FROM path WHERE id IN ({marks}) AND parent_id IS NOT NULL "
                "AND NOT EXISTS (SELECT 1 FROM entry e WHERE e.path_id = path.id) "
                "AND NOT EXISTS (SELECT 1 FROM path c WHERE c.parent_id = path.id) RETURNING parent_id",
                batch,
            ).fetchall()
            parents.update(row[0] for row in rows)
        pending = parents


def condemn_objects(catalog: Catalog, epoch: int, ended: int) -> int:
    """Condemn the suspects that nothing refers to, and those of packs whose writer is gone.

    Returns:
        How many.
    """
    with catalog.write_rows("gc: condemn objects") as conn:
        cursor = conn.execute(
            f"UPDATE object AS o SET condemned = ?1 WHERE o.condemned IS NULL AND o.id IN ({_SUSPECTS}) AND NOT {_REFERENCED}",
            (epoch, ended),
        )
        conn.execute("DELETE FROM suspect")
        conn.execute("UPDATE pack SET settled = 1 WHERE NOT settled AND epoch <= ?", (ended,))
        return int(cursor.rowcount)


_SUSPECTS: Final = (
    "SELECT object_id FROM suspect UNION SELECT x.id FROM object x JOIN pack p ON p.id = x.pack_id "
    "WHERE NOT p.settled AND p.epoch <= ?2"
)


def delete_objects(catalog: Catalog, ended: int) -> int:
    """Delete the rows of objects condemned in ended epochs that still nothing refers to.

    Returns:
        How many.
    """
    total = 0
    while True:
        with catalog.write_rows("gc: delete objects") as conn:
            cursor = conn.execute(
                "DELETE FROM object AS o WHERE o.id IN (SELECT id FROM object WHERE condemned <= ? LIMIT ?) "
                f"AND NOT {_REFERENCED}",
                (ended, BATCH_ROWS),
            )
            if cursor.rowcount <= 0:
                return total
            total += int(cursor.rowcount)


def pack_uses(conn: Connection, ended: int, dead: Iterable[int] = ()) -> list[PackUse]:
    """How much of each pack is still needed, of those whose writer is gone.

    A pack is recorded before its objects are: one that looks empty may only be new.

    Args:
        conn: a snapshot.
        ended: the last ended epoch.
        dead: row numbers of objects to be taken for deleted.
    """
    conn.execute("CREATE TEMP TABLE IF NOT EXISTS taken (id INTEGER PRIMARY KEY)")
    conn.execute("DELETE FROM temp.taken")
    conn.executemany("INSERT INTO taken VALUES (?)", [(object_id,) for object_id in dead])
    lost = dict(
        conn.execute("SELECT o.pack_id, sum(o.stored_size) FROM taken t JOIN object o ON o.id = t.id GROUP BY 1")
    )
    fewer = dict(conn.execute("SELECT o.pack_id, count(*) FROM taken t JOIN object o ON o.id = t.id GROUP BY 1"))
    query = (
        "SELECT p.id, p.name, p.size, p.payload, coalesce(sum(o.stored_size), 0), count(o.id) "
        "FROM pack p LEFT JOIN object o ON o.pack_id = p.id WHERE p.settled OR p.epoch <= ? GROUP BY p.id ORDER BY p.name"
    )
    return [
        PackUse(pack_id, name, size, payload, live - lost.get(pack_id, 0), objects - fewer.get(pack_id, 0))
        for pack_id, name, size, payload, live, objects in conn.execute(query, (ended,))
    ]


def live_objects(conn: Connection, pack_id: int, name: str, dead: Collection[int] = ()) -> list[Location]:
    """The objects of a pack that are still needed, by offset."""
    query = "SELECT id, digest, kind, offset, stored_size, size, codec, frames FROM object WHERE pack_id = ? ORDER BY offset"
    return [
        Location(bytes(digest), kind, name, offset, stored_size, size, codec, bytes(frames) if frames else b"")
        for object_id, digest, kind, offset, stored_size, size, codec, frames in conn.execute(query, (pack_id,))
        if object_id not in dead
    ]


def doomed_objects(conn: Connection, ended: int) -> tuple[set[int], int]:
    """Compute, changing nothing, which objects a collection would delete.

    Args:
        conn: a snapshot in which temporary tables may be made.
        ended: the last ended epoch.

    Returns:
        Row numbers of the objects, and the number of contents that would go.
    """
    for name, column in (("doomed_content", "id"), ("doomed_inode", "id"), ("doomed_object", "id")):
        conn.execute(f"CREATE TEMP TABLE IF NOT EXISTS {name} ({column} INTEGER PRIMARY KEY)")
        conn.execute(f"DELETE FROM temp.{name}")
    conn.execute(f"INSERT INTO doomed_content {_UNUSED_CONTENTS}", (ended,))
    conn.execute("INSERT OR IGNORE INTO doomed_content SELECT id FROM content WHERE state = 'condemned'")
    conn.execute(
        "INSERT INTO doomed_inode SELECT DISTINCT e.inode_id FROM doomed_content d JOIN entry e ON e.content_id = d.id "
        "WHERE e.inode_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM entry o WHERE o.inode_id = e.inode_id "
        "AND o.content_id NOT IN (SELECT id FROM doomed_content))"
    )
    suspects = _SUSPECTS.replace("?2", "?1")
    kept = (
        "NOT EXISTS (SELECT 1 FROM inode i WHERE i.object_id = o.id AND i.id NOT IN (SELECT id FROM doomed_inode)) "
        "AND NOT EXISTS (SELECT 1 FROM content c WHERE c.recipe_id = o.id AND c.id NOT IN (SELECT id FROM doomed_content)) "
        "AND NOT EXISTS (SELECT 1 FROM content_object x WHERE x.object_id = o.id AND x.content_id NOT IN (SELECT id FROM doomed_content)) "
        "AND NOT EXISTS (SELECT 1 FROM layer_data d WHERE d.object_id = o.id) "
        "AND NOT EXISTS (SELECT 1 FROM image_data d WHERE d.object_id = o.id) "
        "AND NOT EXISTS (SELECT 1 FROM container_data d WHERE d.object_id = o.id) "
        "AND NOT EXISTS (SELECT 1 FROM meta m WHERE m.key = 'snapshot' AND m.value = lower(hex(o.digest)))"
    )
    conn.execute(
        f"INSERT INTO doomed_object SELECT o.id FROM object o WHERE o.id IN ({suspects} "
        "UNION SELECT i.object_id FROM doomed_inode d JOIN inode i ON i.id = d.id "
        "UNION SELECT c.recipe_id FROM doomed_content d JOIN content c ON c.id = d.id "
        "UNION SELECT x.object_id FROM doomed_content d JOIN content_object x ON x.content_id = d.id "
        f"UNION SELECT id FROM object WHERE condemned IS NOT NULL) AND {kept}",
        (ended,),
    )
    contents = conn.execute("SELECT count(*) FROM doomed_content").fetchone()[0]
    return {row[0] for row in conn.execute("SELECT id FROM doomed_object")}, int(contents)


def relocate(catalog: Catalog, packs: Sequence[PackContents], replaced: Sequence[str], epoch: int) -> None:
    """Point objects to the packs that a rewrite made, and forget the packs it replaces, in one commit."""
    with catalog.write_rows("gc: repack") as conn:
        marks = ",".join("?" * len(replaced))
        old = [row[0] for row in conn.execute(f"SELECT id FROM pack WHERE name IN ({marks})", list(replaced))]
        for pack in packs:
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


def forget_packs(catalog: Catalog, names: Sequence[str]) -> list[str]:
    """Delete the rows of packs that no object is in any more.

    Returns:
        Those that went; their files may be deleted.
    """
    gone = []
    with catalog.write_rows("gc: forget packs") as conn:
        for name in names:
            cursor = conn.execute(
                "DELETE FROM pack WHERE name = ? AND NOT EXISTS (SELECT 1 FROM object o WHERE o.pack_id = pack.id)",
                (name,),
            )
            if cursor.rowcount:
                gone.append(name)
    return gone


def recorded_packs(conn: Connection) -> dict[str, int]:
    """Names and sizes of all recorded packs."""
    return {row[0]: row[1] for row in conn.execute("SELECT name, size FROM pack")}


def unreferenced_rows(conn: Connection) -> list[str]:
    """Compare everything with everything: what constraints cannot say.

    Returns:
        A sentence for each kind of row that should not be there, or is missing.
    """
    checks = (
        ("inode", "inodes that no entry has", "SELECT count(*) FROM inode i WHERE NOT EXISTS (SELECT 1 FROM entry e WHERE e.inode_id = i.id)"),
        (
            "content", "contents whose number of entries is wrong",
            "SELECT count(*) FROM content c WHERE c.state = 'ready' AND c.entries <> (SELECT count(*) FROM entry e WHERE e.content_id = c.id)",
        ),
        ("inode", "files whose object is missing", "SELECT count(*) FROM inode WHERE type = 'f' AND size > 0 AND sparse IS NULL AND object_id IS NULL"),
        ("content", "contents without recipe", "SELECT count(*) FROM content WHERE state = 'ready' AND recipe_id IS NULL"),
        ("path", "paths without parent", "SELECT count(*) FROM path WHERE parent_id IS NULL AND path <> ''"),
    )  # fmt: skip
    found = ((words, conn.execute(query).fetchone()[0]) for _, words, query in checks)
    return [f"{count} {words}" for words, count in found if count]
