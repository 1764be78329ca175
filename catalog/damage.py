"""Objects that were looked at: when each was last found sound, which were found damaged, and who needs those.

Verifying goes in *passes*. A pass has a beginning; what it has still to look at is every object that was neither found
sound nor found damaged since. So a pass that was interrupted goes on where it stopped, and nothing else is remembered.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from lading.catalog.content import batches, payload_of
from lading.catalog.database import Catalog
from lading.catalog.encoding import unpack_regions
from lading.catalog.engine import Connection
from lading.catalog.paths import text_to_path
from lading.values import Location, PackContents

#: Rows of one commit: the writer lock is held for a few milliseconds.
BATCH_ROWS: Final = 2000

#: Key of the last pass in ``meta``.
_META: Final = "scrub"

_COLUMNS: Final = "o.digest, o.kind, p.name, o.offset, o.stored_size, o.size, o.codec, o.frames"

#: Objects that a pass, begun at ?1, has still to look at. Garbage that waits to be deleted is nobody's any more.
_OUTSTANDING: Final = "o.condemned IS NULL AND coalesce(o.verified_at, 0) < ?1 AND coalesce(o.damaged_at, 0) < ?1"


@dataclass(frozen=True, slots=True)
class Pass:
    """One reading of every object. Times are nanoseconds since 1970."""

    began_ns: int
    ended_ns: int = 0  #: 0 while something is left to be looked at
    objects: int = 0  #: looked at so far
    bytes: int = 0  #: their plain bytes
    damaged: int = 0  #: of them
    seconds: float = 0.0  #: spent reading, interruptions left out


@dataclass(frozen=True, slots=True)
class User:
    """Who needs an object."""

    kind: str  #: "layer", "image", "container", or "store" for the journal's snapshot
    id: str
    what: str  #: "file", "recipe", "data" or "snapshot"
    name: str  #: path of the file, key of the data item


def last_pass(conn: Connection) -> Pass | None:
    """The pass that goes on, or the last that ended."""
    row = conn.execute("SELECT value FROM meta WHERE key = ?", (_META,)).fetchone()
    return None if row is None else Pass(**json.loads(row[0]))


def begin_pass(conn: Connection) -> Pass:
    """The pass to go on with: one that was interrupted, else a new one.

    A new one begins after everything that was noted so far, even where the clock was set back meanwhile.
    """
    found = last_pass(conn)
    if found is not None and not found.ended_ns:
        return found
    latest = conn.execute(
        "SELECT max(coalesce(max(verified_at), 0), coalesce(max(damaged_at), 0)) FROM object"
    ).fetchone()[0]
    return Pass(max(time.time_ns(), int(latest) + 1))


def put_pass(catalog: Catalog, state: Pass) -> None:
    """Remember how far a pass has come."""
    with catalog.write_rows("scrub", durable=False) as conn:
        conn.execute(
            "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (_META, json.dumps(asdict(state))),
        )


def outstanding_packs(conn: Connection, began_ns: int) -> list[str]:
    """Packs in which a pass has something to look at, those first whose objects were not looked at for longest."""
    query = (
        "SELECT p.name, min(coalesce(o.verified_at, 0)) FROM object o JOIN pack p ON p.id = o.pack_id "
        f"WHERE {_OUTSTANDING} GROUP BY p.id ORDER BY 2, 1"
    )
    return [row[0] for row in conn.execute(query, (began_ns,))]


def outstanding_objects(conn: Connection, pack: str, began_ns: int) -> list[Location]:
    """What a pass has to look at in a pack, by offset."""
    query = f"SELECT {_COLUMNS} FROM object o JOIN pack p ON p.id = o.pack_id WHERE p.name = ?2 AND {_OUTSTANDING} ORDER BY o.offset"
    return list(_locations(conn.execute(query, (began_ns, pack))))


def outstanding(conn: Connection, began_ns: int) -> tuple[int, int]:
    """Number and plain bytes of the objects that a pass has still to look at."""
    query = f"SELECT count(*), coalesce(sum(o.size), 0) FROM object o WHERE {_OUTSTANDING}"
    count, size = conn.execute(query, (began_ns,)).fetchone()
    return int(count), int(size)


def objects_in(conn: Connection, pack: str) -> list[Location]:
    """Every recorded object of a pack, by offset."""
    query = f"SELECT {_COLUMNS} FROM object o JOIN pack p ON p.id = o.pack_id WHERE p.name = ? ORDER BY o.offset"
    return list(_locations(conn.execute(query, (pack,))))


def damaged(conn: Connection) -> list[Location]:
    """Objects that were found damaged and neither stored again nor found sound since, by pack and offset."""
    query = (
        f"SELECT {_COLUMNS} FROM object o JOIN pack p ON p.id = o.pack_id WHERE o.damaged_at IS NOT NULL "
        "AND o.condemned IS NULL "
        "ORDER BY p.name, o.offset"
    )
    return list(_locations(conn.execute(query)))


def _locations(rows: Iterator[tuple[Any, ...]]) -> Iterator[Location]:
    for digest, kind, pack, offset, stored_size, size, codec, frames in rows:
        yield Location(bytes(digest), kind, pack, offset, stored_size, size, codec, bytes(frames or b""))


def note_sound(catalog: Catalog, locations: Sequence[Location], at_ns: int) -> None:
    """Note objects as verified, each only if it still lies where it was read."""
    _note(catalog, locations, "verified_at = ?1, damaged_at = NULL", at_ns)


def note_damaged(catalog: Catalog, locations: Sequence[Location], at_ns: int) -> None:
    """Note objects as damaged, each only if it still lies where it was read."""
    _note(catalog, locations, "verified_at = NULL, damaged_at = ?1", at_ns)


def _note(catalog: Catalog, locations: Sequence[Location], change: str, at_ns: int) -> None:
    # By digest, pack and place: row numbers are given out again, and a collection may have moved an object meanwhile.
    query = f"UPDATE object SET {change} WHERE digest = ?2 AND offset = ?3 AND pack_id = (SELECT id FROM pack WHERE name = ?4)"
    for batch in batches(locations, BATCH_ROWS):
        with catalog.write_rows("note what was verified", durable=False) as conn:
            conn.executemany(query, [(at_ns, item.digest, item.offset, item.pack) for item in batch])


def replace_recipe(catalog: Catalog, content_id: int, recipe: bytes) -> bool:
    """Point a content to another recipe of the same tar, if its own is gone or damaged.

    Returns:
        Whether that was so.
    """
    with catalog.write_rows("restore recipe") as conn:
        row = conn.execute(
            "SELECT c.recipe_id FROM content c LEFT JOIN object o ON o.id = c.recipe_id "
            "WHERE c.id = ?1 AND (o.id IS NULL OR (o.damaged_at IS NOT NULL AND o.digest <> ?2))",
            (content_id, recipe),
        ).fetchone()
        if row is None:
            return False
        if row[0] is not None:
            conn.execute("INSERT INTO suspect (object_id) VALUES (?) ON CONFLICT (object_id) DO NOTHING", row)
        conn.execute(
            "UPDATE content SET recipe_id = (SELECT id FROM object WHERE digest = ?2) WHERE id = ?1",
            (content_id, recipe),
        )
        conn.execute("UPDATE object SET condemned = NULL WHERE digest = ? AND condemned IS NOT NULL", (recipe,))
        return True


def packs_of(conn: Connection, digests: Collection[bytes]) -> dict[bytes, tuple[str, int]]:
    """Tell of objects that may be counted on which pack they lie in, and its size."""
    found: dict[bytes, tuple[str, int]] = {}
    for batch in batches(digests, 500):
        marks = ",".join("?" * len(batch))
        rows = conn.execute(
            "SELECT o.digest, p.name, p.size FROM object o JOIN pack p ON p.id = o.pack_id "
            f"WHERE o.digest IN ({marks}) AND o.condemned IS NULL AND o.damaged_at IS NULL",
            batch,
        )
        found.update((bytes(digest), (name, size)) for digest, name, size in rows)
    return found


#: Who needs an object, whatever for.
_USERS: Final = (
    "SELECT 'layer' AS kind, l.id, 'file' AS what, p.path AS name FROM inode i JOIN entry e ON e.inode_id = i.id "
    "JOIN path p ON p.id = e.path_id JOIN layer_content lc ON lc.content_id = e.content_id JOIN layer l ON l.seq = lc.layer_id "
    "WHERE i.object_id = ?1 "
    "UNION SELECT 'layer', l.id, 'recipe', '' FROM content c JOIN layer_content lc ON lc.content_id = c.id "
    "JOIN layer l ON l.seq = lc.layer_id WHERE c.recipe_id = ?1 "
    "UNION SELECT 'layer', l.id, 'recipe', '' FROM content_object x JOIN layer_content lc ON lc.content_id = x.content_id "
    "JOIN layer l ON l.seq = lc.layer_id WHERE x.object_id = ?1 "
    # A layer may show a diff that is no longer among its contents.
    "UNION SELECT 'layer', l.id, 'recipe', '' FROM content c JOIN layer l ON l.replay_content_id = c.id WHERE c.recipe_id = ?1 "
    "UNION SELECT 'layer', l.id, 'data', d.key FROM layer_data d JOIN layer l ON l.seq = d.owner_id WHERE d.object_id = ?1 "
    "UNION SELECT 'image', m.id, 'data', d.key FROM image_data d JOIN image m ON m.seq = d.owner_id WHERE d.object_id = ?1 "
    "UNION SELECT 'container', c.id, 'data', d.key FROM container_data d JOIN container c ON c.seq = d.owner_id "
    "WHERE d.object_id = ?1 "
    "UNION SELECT 'store', 'journal', 'snapshot', '' FROM meta m JOIN object o ON lower(hex(o.digest)) = m.value "
    "WHERE m.key = 'snapshot' AND o.id = ?1"
)


def users(conn: Connection, digest: bytes) -> list[User]:
    """List who needs an object."""
    row = conn.execute("SELECT id FROM object WHERE digest = ?", (digest,)).fetchone()
    return [] if row is None else [User(*found) for found in conn.execute(_USERS, row)]


def images_above(conn: Connection, layers: Collection[str]) -> list[str]:
    """Images whose chain of layers has one of these, those that have it as a mapped layer included."""
    query = (
        "WITH RECURSIVE above(id) AS (SELECT value FROM json_each(?) UNION SELECT l.id FROM above a JOIN layer l ON l.parent = a.id) "
        "SELECT m.id FROM image m WHERE m.layer IN (SELECT id FROM above) "
        "UNION SELECT m.id FROM image m, json_each(m.mapped_layers) x WHERE m.mapped_layers <> '[]' "
        "AND x.value IN (SELECT id FROM above) ORDER BY 1"
    )
    return [row[0] for row in conn.execute(query, (json.dumps(sorted(layers)),))]


@dataclass(frozen=True, slots=True)
class Place:
    """A file that has a damaged object for its content."""

    digest: bytes
    key: bytes  #: of the inode; see ``values.inode_key``
    size: int  #: of the file, holes included
    sparse: tuple[tuple[int, int], ...]  #: offset and length of each stored run; empty when all of it is stored


def places(conn: Connection, digests: Collection[bytes]) -> list[Place]:
    """List the distinct files that have one of some objects for their content."""
    found = []
    for batch in batches(digests, 500):
        marks = ",".join("?" * len(batch))
        query = (
            "SELECT o.digest, i.key, i.size, i.sparse FROM object o JOIN inode i ON i.object_id = o.id "
            f"WHERE o.digest IN ({marks}) ORDER BY i.id"
        )
        for digest, key, size, sparse in conn.execute(query, batch):
            runs = tuple(unpack_regions(bytes(sparse))) if sparse else ()
            found.append(Place(bytes(digest), bytes(key), size, runs))
    return found


def paths_of(conn: Connection, digests: Collection[bytes]) -> list[tuple[bytes, bytes]]:
    """List the distinct pairs of an object and a path at which it is the content of a file."""
    found = []
    for batch in batches(digests, 500):
        marks = ",".join("?" * len(batch))
        query = (
            "SELECT DISTINCT o.digest, p.path FROM object o JOIN inode i ON i.object_id = o.id "
            f"JOIN entry e ON e.inode_id = i.id JOIN path p ON p.id = e.path_id WHERE o.digest IN ({marks})"
        )
        found += [(bytes(digest), text_to_path(path)) for digest, path in conn.execute(query, batch)]
    return found


def without_recipe(conn: Connection) -> dict[str, int]:
    """Keys and numbers of contents whose recipe, or listing, is not recorded at all."""
    return dict(conn.execute("SELECT key, id FROM content WHERE state = 'ready' AND recipe_id IS NULL"))


def damaged_recipes(conn: Connection) -> dict[str, bytes]:
    """Keys of contents whose recipe, or listing, is damaged, and its digest."""
    query = (
        "SELECT c.key, o.digest FROM content c JOIN object o ON o.id = c.recipe_id "
        "WHERE c.state = 'ready' AND o.damaged_at IS NOT NULL"
    )
    return {key: bytes(digest) for key, digest in conn.execute(query)}


def move(catalog: Catalog, made: PackContents, old: str, epoch: int) -> None:
    """Record a pack that sound objects of a broken one were copied into, and point them to it, in one commit."""
    with catalog.write_rows("repair: move objects") as conn:
        cursor = conn.execute(
            "INSERT INTO pack (name, size, payload, epoch, settled) VALUES (?, ?, ?, ?, 0)",
            (made.name, made.size, payload_of(made), epoch),
        )
        conn.executemany(
            "UPDATE object SET pack_id = ?, offset = ? WHERE digest = ? AND pack_id = (SELECT id FROM pack WHERE name = ?)",
            [(cursor.lastrowid, item.offset, item.digest, old) for item in made.objects],
        )
