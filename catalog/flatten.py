"""The tree that contents make when laid over each other, picked out by query.

What a content hides is told by few of its entries: removals, opaque directories, and names that were a directory
below and are none any more, or the other way round. From these the query walks down the table of paths; of every
other path the topmost entry is visible. Only visible entries leave the database.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from lading.catalog.content import check_whole, entries_of_rows
from lading.catalog.engine import Connection
from lading.errors import Corrupt
from lading.values import Entry

#: In the query, kind 0 is a present entry, 1 an implied directory, 2 a removal: ``values.PRESENT`` and so on.
_QUERY: Final = """
WITH RECURSIVE
chain(content_id, position) AS (VALUES {chain}),
{only}said AS MATERIALIZED (
  SELECT e.path_id, c.position, e.content_id, e.kind, e.opaque, (e.kind = 1 OR coalesce(i.type = 'd', 0)) AS folder
  FROM chain c JOIN entry e ON e.content_id = c.content_id LEFT JOIN inode i ON i.id = e.inode_id
  {among_entries}),
-- A name that changes between directory and something else: the lowest content that says the new is where it hides.
turned AS (
  SELECT path_id, position FROM (
    SELECT path_id, position, folder, lag(folder) OVER (PARTITION BY path_id ORDER BY position) AS before
    FROM said WHERE kind <> 2 AND path_id IN (
      SELECT path_id FROM said WHERE kind <> 2 GROUP BY path_id HAVING min(folder) <> max(folder)))
  WHERE before IS NOT NULL AND before <> folder),
hider(path_id, position) AS (
  SELECT path_id, position FROM said WHERE kind = 2
  UNION SELECT path_id, position FROM turned
  UNION SELECT p.id, s.position FROM said s JOIN path p ON p.parent_id = s.path_id
    WHERE s.opaque AND s.kind <> 2 {among_paths}),
gone(path_id, position) AS (
  SELECT path_id, position FROM hider
  UNION SELECT p.id, g.position FROM gone g JOIN path p ON p.parent_id = g.path_id {where_paths}),
edge AS MATERIALIZED (SELECT path_id, max(position) AS position FROM gone GROUP BY path_id),
-- Of what is not hidden: the topmost entry; a directory that is only implied says nothing where another one is.
best AS (
  SELECT s.path_id, s.position, s.content_id,
    row_number() OVER (PARTITION BY s.path_id ORDER BY (s.kind = 1), s.position DESC) AS rank
  FROM said s LEFT JOIN edge g ON g.path_id = s.path_id
  WHERE s.kind <> 2 AND (g.position IS NULL OR s.position >= g.position))
SELECT p.path, e.kind, e.opaque, l.path, e.inode_id, i.type, i.mode, i.uid, i.gid, i.mtime_ns, i.size, o.digest,
  i.link_target, i.rdev, i.xattrs, i.sparse, b.position
FROM best b JOIN entry e ON e.content_id = b.content_id AND e.path_id = b.path_id JOIN path p ON p.id = e.path_id
LEFT JOIN path l ON l.id = e.link_path_id LEFT JOIN inode i ON i.id = e.inode_id LEFT JOIN object o ON o.id = i.object_id
WHERE b.rank = 1
"""


#: Paths that a content only implies, and all above them: what hides one of these is said of one of these.
_ONLY: Final = """
only(path_id) AS (
  SELECT path_id FROM entry WHERE content_id = {content} AND kind = 1
  UNION SELECT p.parent_id FROM only o JOIN path p ON p.id = o.path_id WHERE p.parent_id IS NOT NULL),
"""
_AMONG: Final = "IN (SELECT path_id FROM only)"


def visible(conn: Connection, keys: Sequence[str]) -> tuple[list[Entry], dict[bytes, int]]:
    """Read what is visible of contents laid over each other.

    Args:
        conn: the catalog.
        keys: of ready contents, lowest first.

    Returns:
        The entries, in no order, and for each path which of the keys it came from. Directories that are only
        implied are still marked so; hard links still lead to the names they led to in their own content.

    Raises:
        Corrupt: a content is not there.
    """
    return _visible(conn, keys, None)


def below_implied(conn: Connection, keys: Sequence[str], key: str) -> list[Entry]:
    """Read what is visible, of contents laid over each other, at the paths that a content above them only implies.

    Args:
        conn: the catalog.
        keys: of ready contents, lowest first.
        key: of the content above.

    Returns:
        The entries at these paths and the directories above them, as :func:`visible`.
    """
    return _visible(conn, keys, key)[0]


def _visible(conn: Connection, keys: Sequence[str], only: str | None) -> tuple[list[Entry], dict[bytes, int]]:
    if not keys:
        return [], {}
    chain = ",".join(f"({_number(conn, key)},{position})" for position, key in enumerate(keys))
    if only is None:
        query = _QUERY.format(chain=chain, only="", among_entries="", among_paths="", where_paths="")
    else:
        query = _QUERY.format(
            chain=chain, only=_ONLY.format(content=_number(conn, only)), among_entries=f"WHERE e.path_id {_AMONG}",
            among_paths=f"AND p.id {_AMONG}", where_paths=f"WHERE p.id {_AMONG}",
        )  # fmt: skip
    rows = conn.execute(query).fetchall()
    found = entries_of_rows(row[:-1] for row in rows)
    return found, {entry.path: row[-1] for entry, row in zip(found, rows, strict=True)}


def _number(conn: Connection, key: str) -> int:
    row = conn.execute("SELECT id FROM content WHERE key = ?", (key,)).fetchone()
    if row is None:
        raise Corrupt(f"content {key} is not recorded")
    check_whole(conn, key)
    return int(row[0])
