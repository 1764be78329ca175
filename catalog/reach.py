"""What is garbage, and how its rows go: in proportion to the garbage, in bounded batches.

A collection condemns contents that no layer has, deletes their rows once nobody can be reading them, looks
at the objects that lost a reference on the way, condemns those that had no other, and deletes them once
nobody can be relying on them. "Nobody can" means that the epoch in which it was condemned has ended. Every
step commits by itself; a kill between two leaves work for the next collection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from lading.catalog.content import LOOKUP_ROWS, batches
from lading.catalog.database import Catalog
from lading.catalog.engine import Connection

#: Rows looked at, or deleted, in one transaction.
BATCH_ROWS: Final = 5000

#: Tells the current epoch. Asked within the transaction, where no collection can open the next one.
Epoch = Callable[[], int]

#: An object that is no record's data and not the journal's snapshot.
_NO_DATA: Final = (
    "NOT EXISTS (SELECT 1 FROM layer_data d WHERE d.object_id = o.id) "
    "AND NOT EXISTS (SELECT 1 FROM image_data d WHERE d.object_id = o.id) "
    "AND NOT EXISTS (SELECT 1 FROM container_data d WHERE d.object_id = o.id) "
    "AND NOT EXISTS (SELECT 1 FROM meta m WHERE m.key = 'snapshot' AND m.value = lower(hex(o.digest)))"
)

#: An object that something refers to.
_REFERENCED: Final = (
    "(EXISTS (SELECT 1 FROM inode i WHERE i.object_id = o.id) OR EXISTS (SELECT 1 FROM content c WHERE c.recipe_id = o.id) "
    f"OR EXISTS (SELECT 1 FROM content_object x WHERE x.object_id = o.id) OR NOT ({_NO_DATA}))"
)

#: What the index of hidden contents says of them: SQLite uses it only where a query says so, too.
_HIDDEN: Final = "state <> 'ready'"

#: A content whose rows go. Asked anew in each transaction: another collection may have deleted it meanwhile, and row
#: numbers are given out again.
_GOING: Final = "c.state = 'condemned' AND c.key IS NULL"

#: A content that no layer has.
_UNUSED: Final = (
    "NOT EXISTS (SELECT 1 FROM layer_content lc WHERE lc.content_id = c.id) "
    "AND NOT EXISTS (SELECT 1 FROM layer l WHERE l.replay_content_id = c.id)"
)


def condemn_contents(catalog: Catalog, epoch: Epoch, ended: int) -> int:
    """Condemn the suspects that no layer has, and hidden contents whose writer is gone.

    Args:
        catalog: the catalog.
        epoch: the current epoch, which is noted with them: whoever looked one up before the commit holds
            this epoch or an older one.
        ended: hidden contents of this epoch or an older one belong to nobody.

    Returns:
        How many.
    """
    total = 0
    while True:
        with catalog.write_rows("gc: condemn contents", durable=False) as conn:
            last = _last_of_batch(conn, "content_suspect", "content_id")
            if last is None:
                break
            keys = conn.execute(
                "UPDATE content AS c SET state = 'condemned', epoch = ? WHERE c.state = 'ready' "
                f"AND c.id IN (SELECT content_id FROM content_suspect WHERE content_id <= ?) AND {_UNUSED} RETURNING key",
                (epoch(), last),
            ).fetchall()
            conn.executemany("INSERT INTO stale_view (key) VALUES (?) ON CONFLICT DO NOTHING", keys)
            conn.execute("DELETE FROM content_suspect WHERE content_id <= ?", (last,))
            total += len(keys)
    while True:
        with catalog.write_rows("gc: condemn contents", durable=False) as conn:
            cursor = conn.execute(
                "UPDATE content SET state = 'condemned', epoch = ? WHERE id IN "
                f"(SELECT id FROM content WHERE state = 'building' AND {_HIDDEN} AND epoch <= ? LIMIT ?)",
                (epoch(), ended, BATCH_ROWS),
            )
            if cursor.rowcount <= 0:
                return total
            total += int(cursor.rowcount)


def _last_of_batch(conn: Connection, table: str, column: str) -> int | None:
    """The highest number of the lowest batch in a table of notes; None when it is empty."""
    query = f"SELECT max({column}) FROM (SELECT {column} FROM {table} ORDER BY {column} LIMIT {BATCH_ROWS})"
    found = conn.execute(query).fetchone()[0]
    return None if found is None else int(found)


def delete_contents(catalog: Catalog, ended: int) -> int:
    """Delete the rows of contents condemned in ended epochs.

    Returns:
        How many contents went.
    """
    total = 0
    while True:
        with catalog.write_rows("gc: delete contents", durable=False) as conn:
            # Without its key nobody can find it any more, and so take it back, while its rows go by batches.
            doomed = conn.execute(
                "UPDATE content SET key = NULL, diff_id = NULL WHERE id IN "
                f"(SELECT id FROM content WHERE state = 'condemned' AND {_HIDDEN} AND epoch <= ? LIMIT ?) RETURNING id",
                (ended, LOOKUP_ROWS),
            ).fetchall()
        if not doomed:
            return total
        for (content_id,) in doomed:
            while _delete_entries(catalog, content_id):
                pass
        with catalog.write_rows("gc: delete contents", durable=False) as conn:
            emptied = f"id = ? AND {_GOING} AND NOT EXISTS (SELECT 1 FROM entry e WHERE e.content_id = c.id)"
            doomed = [row for row in doomed if conn.execute(f"SELECT 1 FROM content c WHERE {emptied}", row).fetchone()]
            conn.executemany(
                "INSERT INTO suspect (object_id) SELECT recipe_id FROM content WHERE id = ?1 AND recipe_id IS NOT NULL "
                "UNION SELECT object_id FROM content_object WHERE content_id = ?1 ON CONFLICT (object_id) DO NOTHING",
                doomed,
            )
            conn.executemany("DELETE FROM content_object WHERE content_id = ?", doomed)
            conn.executemany("DELETE FROM content WHERE id = ?", doomed)
        total += len(doomed)


def _delete_entries(catalog: Catalog, content_id: int) -> bool:
    """Delete a batch of a content's entries, with the inodes and paths that nothing else has.

    Returns:
        Whether there may be more.
    """
    with catalog.write_rows("gc: delete entries", durable=False) as conn:
        rows = conn.execute(
            "SELECT e.path_id, e.inode_id FROM content c CROSS JOIN entry e ON e.content_id = c.id "
            f"WHERE c.id = ? AND {_GOING} LIMIT ?",
            (content_id, BATCH_ROWS),
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


def condemn_objects(catalog: Catalog, epoch: Epoch, ended: int) -> int:
    """Condemn the suspects that nothing refers to, and those of packs whose writer is gone; settle these packs.

    Args:
        catalog: the catalog.
        epoch: see :func:`condemn_contents`.
        ended: packs of this epoch or an older one have no writer any more.

    Returns:
        How many.
    """
    total = 0
    while True:
        with catalog.write_rows("gc: condemn objects", durable=False) as conn:
            last = _last_of_batch(conn, "suspect", "object_id")
            if last is None:
                break
            total += _condemn(conn, epoch(), "SELECT object_id FROM suspect WHERE object_id <= ?", (last,))
            conn.execute("DELETE FROM suspect WHERE object_id <= ?", (last,))
    with catalog.read() as conn:
        query = "SELECT id FROM pack INDEXED BY pack_unsettled WHERE NOT settled AND epoch <= ?"
        unsettled = [row[0] for row in conn.execute(query, (ended,))]
    return total + _settle(catalog, epoch, unsettled, ended)


def _condemn(conn: Connection, epoch: int, among: str, parameters: tuple[int, ...]) -> int:
    """Condemn those of some objects that nothing refers to."""
    cursor = conn.execute(
        f"UPDATE object AS o SET condemned = ? WHERE o.condemned IS NULL AND o.id IN ({among}) AND NOT {_REFERENCED}",
        (epoch, *parameters),
    )
    return int(cursor.rowcount)


def _settle(catalog: Catalog, epoch: Epoch, pack_ids: Iterable[int], ended: int) -> int:
    """Condemn what was written for nothing into packs whose writer is gone, and open their accounts.

    Returns:
        How many objects were condemned.
    """
    total = 0
    pending = [(pack_id, 0) for pack_id in pack_ids]
    while pending:
        with catalog.write_rows("gc: settle packs", durable=False) as conn:
            room = BATCH_ROWS
            while pending and room > 0:
                pack_id, after = pending.pop()
                # Row numbers are given out again: this one may be a new pack's by now.
                query = "SELECT 1 FROM pack WHERE id = ? AND NOT settled AND epoch <= ?"
                if conn.execute(query, (pack_id, ended)).fetchone() is None:
                    continue
                query = "SELECT id FROM object WHERE pack_id = ? AND id > ? ORDER BY id LIMIT ?"
                ids = [row[0] for row in conn.execute(query, (pack_id, after, room))]
                if ids:
                    among = "SELECT id FROM object WHERE pack_id = ? AND id > ? AND id <= ?"
                    total += _condemn(conn, epoch(), among, (pack_id, after, ids[-1]))
                if len(ids) == room:
                    pending.append((pack_id, ids[-1]))
                else:
                    conn.execute(
                        "UPDATE pack SET settled = 1, (live, objects) = (SELECT coalesce(sum(o.stored_size), 0), count(*) "
                        "FROM object o WHERE o.pack_id = pack.id) WHERE id = ?",
                        (pack_id,),
                    )
                room -= len(ids) + 1
    return total


def delete_objects(catalog: Catalog, ended: int) -> int:
    """Delete the rows of objects condemned in ended epochs; what something refers to again is taken back.

    Returns:
        How many went.
    """
    total = 0
    while True:
        with catalog.write_rows("gc: delete objects", durable=False) as conn:
            query = "SELECT id FROM object WHERE condemned <= ? ORDER BY condemned, id LIMIT ?"
            batch = conn.execute(query, (ended, BATCH_ROWS)).fetchall()
            if not batch:
                return total
            cursor = conn.executemany(f"DELETE FROM object AS o WHERE o.id = ? AND NOT {_REFERENCED}", batch)
            total += int(cursor.rowcount)
            conn.executemany("UPDATE object SET condemned = NULL WHERE id = ?", batch)


@dataclass(frozen=True, slots=True)
class Doomed:
    """What a collection would delete."""

    objects: set[int]  #: row numbers
    contents: int  #: how many
    keys: list[str]  #: of contents, and of those whose views were not dropped yet


def doomed(conn: Connection, ended: int) -> Doomed:
    """Compute, changing nothing, what a collection would delete.

    What is doomed leads to what it has (``CROSS JOIN``): left to itself, SQLite would go through all there is for the
    sake of order.

    Args:
        conn: a snapshot in which temporary tables may be made.
        ended: the last ended epoch.
    """
    for name in ("doomed_content", "doomed_inode", "doomed_object"):
        conn.execute(f"CREATE TEMP TABLE IF NOT EXISTS {name} (id INTEGER PRIMARY KEY)")
        conn.execute(f"DELETE FROM temp.{name}")
    conn.execute(
        "INSERT INTO doomed_content SELECT c.id FROM content_suspect s CROSS JOIN content c ON c.id = s.content_id "
        f"WHERE c.state = 'ready' AND {_UNUSED} "
        f"UNION SELECT id FROM content WHERE state = 'building' AND {_HIDDEN} AND epoch <= ? "
        f"UNION SELECT id FROM content WHERE state = 'condemned' AND {_HIDDEN}",
        (ended,),
    )
    conn.execute(
        "INSERT INTO doomed_inode SELECT DISTINCT e.inode_id FROM doomed_content d CROSS JOIN entry e ON e.content_id = d.id "
        "WHERE e.inode_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM entry o WHERE o.inode_id = e.inode_id "
        "AND o.content_id NOT IN (SELECT id FROM doomed_content))"
    )
    kept = (
        "NOT EXISTS (SELECT 1 FROM inode i WHERE i.object_id = o.id AND i.id NOT IN (SELECT id FROM doomed_inode)) "
        "AND NOT EXISTS (SELECT 1 FROM content c WHERE c.recipe_id = o.id AND c.id NOT IN (SELECT id FROM doomed_content)) "
        "AND NOT EXISTS (SELECT 1 FROM content_object x WHERE x.object_id = o.id AND x.content_id NOT IN (SELECT id FROM doomed_content)) "
        f"AND {_NO_DATA}"
    )
    conn.execute(
        "INSERT INTO doomed_object SELECT o.id FROM object o WHERE o.id IN (SELECT object_id FROM suspect "
        "UNION SELECT x.id FROM pack p INDEXED BY pack_unsettled CROSS JOIN object x ON x.pack_id = p.id WHERE NOT p.settled AND p.epoch <= ? "
        "UNION SELECT i.object_id FROM doomed_inode d CROSS JOIN inode i ON i.id = d.id "
        "UNION SELECT c.recipe_id FROM doomed_content d CROSS JOIN content c ON c.id = d.id "
        "UNION SELECT x.object_id FROM doomed_content d CROSS JOIN content_object x ON x.content_id = d.id "
        f"UNION SELECT id FROM object INDEXED BY object_condemned WHERE condemned IS NOT NULL) AND {kept}",
        (ended,),
    )
    objects = {row[0] for row in conn.execute("SELECT id FROM doomed_object")}
    contents = int(conn.execute("SELECT count(*) FROM doomed_content").fetchone()[0])
    query = "SELECT c.key FROM doomed_content d CROSS JOIN content c ON c.id = d.id WHERE c.key IS NOT NULL"
    keys = [row[0] for row in conn.execute(query)]
    return Doomed(objects, contents, [*keys, *gone_keys(conn)])


def gone_keys(conn: Connection) -> list[str]:
    """Keys of contents that were condemned, and are not ready again, whose views were not dropped yet."""
    query = (
        "SELECT v.key FROM stale_view v WHERE NOT EXISTS "
        "(SELECT 1 FROM content c WHERE c.key = v.key AND c.state = 'ready')"
    )
    return [row[0] for row in conn.execute(query)]


def views_dropped(catalog: Catalog, keys: Iterable[str], *, all_known: bool) -> None:
    """Forget the notes of keys that have no view any more, and of those that are ready again.

    Args:
        catalog: the catalog.
        keys: of contents without views.
        all_known: every view in the cache is that of a ready content, or noted.
    """
    with catalog.write_rows("gc: views", durable=False) as conn:
        conn.executemany("DELETE FROM stale_view WHERE key = ?", [(key,) for key in keys])
        conn.execute(
            "DELETE FROM stale_view WHERE EXISTS (SELECT 1 FROM content c WHERE c.key = stale_view.key AND c.state = 'ready')"
        )
        if all_known:
            conn.execute("DELETE FROM meta WHERE key = 'views'")


def views_unread(conn: Connection) -> bool:
    """Tell whether there may be views in the cache of contents that went without a note."""
    return conn.execute("SELECT 1 FROM meta WHERE key = 'views'").fetchone() is not None


def recorded_packs(conn: Connection) -> dict[str, int]:
    """Names and sizes of all recorded packs."""
    return {row[0]: row[1] for row in conn.execute("SELECT name, size FROM pack")}


def unreferenced_rows(conn: Connection) -> list[str]:
    """Compare everything with everything: what constraints cannot say, and what collections rely on notes for.

    Returns:
        A sentence for each kind of row that should not be there, or is missing.
    """
    found = ((words, conn.execute(query).fetchone()[0]) for words, query in _CHECKS)
    return [f"{count} {words}" for words, count in found if count]


_CHECKS: Final = (
    ("inodes that no entry has", "SELECT count(*) FROM inode i WHERE NOT EXISTS (SELECT 1 FROM entry e WHERE e.inode_id = i.id)"),
    (
        "contents whose number of entries is wrong",
        "SELECT count(*) FROM content c WHERE c.state = 'ready' AND c.entries >= 0 AND c.entries <> (SELECT count(*) FROM entry e WHERE e.content_id = c.id)",
    ),
    ("files whose object is missing", "SELECT count(*) FROM inode WHERE type = 'f' AND size > 0 AND sparse IS NULL AND object_id IS NULL"),
    ("paths without parent", "SELECT count(*) FROM path WHERE parent_id IS NULL AND path <> ''"),
    (
        "contents that no layer has and no collection would look at",
        f"SELECT count(*) FROM content c WHERE c.state = 'ready' AND {_UNUSED} "
        "AND NOT EXISTS (SELECT 1 FROM content_suspect s WHERE s.content_id = c.id)",
    ),
    (
        "objects that nothing refers to and no collection would look at",
        f"SELECT count(*) FROM object o JOIN pack p ON p.id = o.pack_id WHERE p.settled AND o.condemned IS NULL AND NOT {_REFERENCED} "
        "AND NOT EXISTS (SELECT 1 FROM suspect s WHERE s.object_id = o.id)",
    ),
    (
        "packs whose account is wrong",
        "SELECT count(*) FROM pack p LEFT JOIN (SELECT pack_id, sum(stored_size) AS live, count(*) AS objects FROM object GROUP BY pack_id) o "
        "ON o.pack_id = p.id WHERE p.settled AND (p.live <> coalesce(o.live, 0) OR p.objects <> coalesce(o.objects, 0))",
    ),
)  # fmt: skip
