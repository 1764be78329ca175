"""Contents, their entries, and the objects they name: set-based, in hidden batches.

A content's rows go in while its state is ``building``, which no query and no view shows; ``ready`` makes it
visible as part of the caller's last, small transaction.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from lading.catalog.database import Catalog, WriteTransaction
from lading.catalog.encoding import pack_pairs, pack_regions, unpack_pairs, unpack_regions
from lading.catalog.engine import Connection
from lading.catalog.paths import path_to_text, text_to_path
from lading.errors import Corrupt
from lading.values import IMPLIED, Entry, Inode, Location, PackContents, inode_key

#: Rows of one hidden batch: the writer lock is held for its time only.
BATCH_ROWS: Final = 5000

#: Digests asked for in one statement; below SQLite's limit on parameters.
LOOKUP_ROWS: Final = 500


@dataclass(frozen=True, slots=True)
class ContentInfo:
    """A ready content without its entries."""

    id: int
    key: str
    size: int
    recipe: bytes
    entries: int
    diff_bytes: int


def batches(values: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Cut a series into lists of at most ``size``."""
    source = iter(values)
    while batch := list(islice(source, size)):
        yield batch


def register_packs(catalog: Catalog, packs: Sequence[PackContents], epoch: int) -> None:
    """Record published packs and their objects. A condemned or damaged row of the same digest is taken over.

    Args:
        catalog: the catalog; no transaction is open.
        packs: published, so their bytes are durable.
        epoch: the epoch whose lock the caller holds.
    """
    for pack in packs:
        with catalog.write_rows("register pack", durable=False) as conn:
            conn.execute(
                "INSERT INTO pack (name, size, payload, epoch, settled) VALUES (?, ?, ?, ?, 0) ON CONFLICT (name) DO NOTHING",
                (pack.name, pack.size, payload_of(pack), epoch),
            )
        for batch in batches(pack.objects, BATCH_ROWS):
            with catalog.write_rows("register objects", durable=False) as conn:
                row = conn.execute("SELECT id FROM pack WHERE name = ?", (pack.name,)).fetchone()
                if row is None:  # row numbers are given out again: a remembered one could be another pack's by now
                    raise Corrupt(f"pack {pack.name} was forgotten while it was recorded")
                pack_id = row[0]
                conn.executemany(
                    "INSERT INTO object (digest, kind, pack_id, offset, stored_size, size, codec, frames) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (digest) DO UPDATE SET kind = excluded.kind, "
                    "pack_id = excluded.pack_id, offset = excluded.offset, stored_size = excluded.stored_size, "
                    "size = excluded.size, codec = excluded.codec, frames = excluded.frames, condemned = NULL, verified_at = NULL, "
                    "damaged_at = NULL WHERE object.condemned IS NOT NULL OR object.damaged_at IS NOT NULL",
                    [
                        (o.digest, o.kind, pack_id, o.offset, o.stored_size, o.size, o.codec, o.frames or None)
                        for o in batch
                    ],
                )


def payload_of(pack: PackContents) -> int:
    """Stored bytes of all objects of a pack."""
    return sum(item.stored_size for item in pack.objects)


def locate(conn: Connection, digests: Sequence[bytes]) -> Mapping[bytes, Location]:
    """Tell where objects lie; those that are not recorded are missing from the answer."""
    found: dict[bytes, Location] = {}
    for batch in batches(digests, LOOKUP_ROWS):
        marks = ",".join("?" * len(batch))
        rows = conn.execute(
            "SELECT o.digest, o.kind, p.name, o.offset, o.stored_size, o.size, o.codec, o.frames "
            f"FROM object o JOIN pack p ON p.id = o.pack_id WHERE o.digest IN ({marks})",
            batch,
        )
        for digest, kind, pack, offset, stored_size, size, codec, frames in rows:
            found[bytes(digest)] = Location(
                bytes(digest), kind, pack, offset, stored_size, size, codec, bytes(frames) if frames else b""
            )
    return found


def sizes(conn: Connection, digests: Sequence[bytes]) -> dict[bytes, int]:
    """Plain bytes of objects; those that are not recorded are missing from the answer."""
    return dict(_numbers(conn, "SELECT digest, size FROM object WHERE digest IN (%s)", digests))


def find_content(conn: Connection, key: str) -> ContentInfo | None:
    """Find a ready content by its key; a hollow one, whose entries are lost, is to be stored again."""
    row = conn.execute(
        "SELECT c.id, c.key, c.size, o.digest, c.entries, c.diff_bytes FROM content c "
        "LEFT JOIN object o ON o.id = c.recipe_id WHERE c.key = ? AND c.state = 'ready' AND c.entries >= 0",
        (key,),
    ).fetchone()
    return None if row is None else ContentInfo(row[0], row[1], row[2], bytes(row[3] or b""), row[4], row[5])


def recipe_of(conn: Connection, key: str) -> bytes | None:
    """Digest of the recipe, or listing, of a content, condemned or not."""
    query = "SELECT o.digest FROM content c JOIN object o ON o.id = c.recipe_id WHERE c.key = ?"
    row = conn.execute(query, (key,)).fetchone()
    return None if row is None else bytes(row[0])


def store_content(
    catalog: Catalog,
    *,
    diff_id: str | None,
    size: int,
    recipe: bytes,
    entries: Sequence[Entry],
    uids: Sequence[int],
    gids: Sequence[int],
    diff_bytes: int,
    epoch: int,
    shadowed: Collection[bytes] = (),
) -> int:
    """Insert a content's rows, hidden, in batches.

    Args:
        catalog: the catalog; no transaction is open.
        diff_id: ``sha256:…`` of the tar it came as; None for a native content.
        size: bytes of that tar.
        recipe: digest of its recipe or listing, already registered.
        entries: sorted, parents before children.
        uids: distinct owners in the tar's headers, sorted.
        gids: the same for groups.
        diff_bytes: bytes of the files, as ``diffsize`` tells.
        epoch: the epoch whose lock the caller holds until the content is ready.
        shadowed: digests of objects that the recipe names and no entry has, registered too.

    Returns:
        The content's row number, for :func:`ready`.
    """
    del diff_id  # known again, as the key, when the content becomes ready
    with catalog.write_rows("begin content", durable=False) as conn:
        recipe_id = _object_id(conn, recipe)
        cursor = conn.execute(
            "INSERT INTO content (size, recipe_id, state, epoch, entries, diff_bytes, uids, gids) "
            "VALUES (?, ?, 'building', ?, ?, ?, ?, ?)",
            (size, recipe_id, epoch, len(entries), diff_bytes, json.dumps(list(uids)), json.dumps(list(gids))),
        )
        content_id = int(cursor.lastrowid)
    start = 0
    for batch in batches(entries, BATCH_ROWS):
        with catalog.write_rows("store entries", durable=False) as conn:
            _store_batch(conn, content_id, batch, start)
        start += len(batch)
    note_shadowed(catalog, content_id, shadowed)
    return content_id


def note_shadowed(catalog: Catalog, content_id: int, digests: Collection[bytes]) -> None:
    """Record objects that only a content's recipe names, so that no collection takes them."""
    for batch in batches(sorted(digests), BATCH_ROWS):
        with catalog.write_rows("store recipe objects", durable=False) as conn:
            rows = [(content_id, number) for number in _object_ids(conn, batch).values()]
            conn.executemany(
                "INSERT INTO content_object (content_id, object_id) VALUES (?, ?) ON CONFLICT DO NOTHING", rows
            )


def unread_recipes(conn: Connection) -> list[tuple[int, str]]:
    """Contents of an older catalog whose recipes were never compared with their entries: numbers and keys."""
    if conn.execute("SELECT 1 FROM meta WHERE key = 'recipes' AND value = 'unread'").fetchone() is None:
        return []
    query = "SELECT id, key FROM content WHERE state = 'ready' AND diff_id IS NOT NULL ORDER BY id"
    return [(row[0], row[1]) for row in conn.execute(query)]


def recipes_read(catalog: Catalog) -> None:
    """Note that every recipe was compared."""
    with catalog.write_rows("recipes read") as conn:
        conn.execute("DELETE FROM meta WHERE key = 'recipes'")


def _object_id(conn: Connection, digest: bytes) -> int:
    row = conn.execute("SELECT id FROM object WHERE digest = ?", (digest,)).fetchone()
    if row is None:
        raise Corrupt(f"object {digest.hex()} is not recorded")
    conn.execute("UPDATE object SET condemned = NULL WHERE id = ? AND condemned IS NOT NULL", (row[0],))
    return int(row[0])


def _store_batch(conn: Connection, content_id: int, batch: Sequence[Entry], start: int) -> None:
    """Insert up to ``BATCH_ROWS`` entries.

    Row numbers are looked up, or given out, for all of them first: plain rows of numbers cost half of what
    look-ups within each INSERT do. The writer lock makes the numbers ours.
    """
    paths: set[bytes] = {b""}
    for entry in batch:
        _add_with_parents(paths, entry.path)
        if entry.link is not None:
            _add_with_parents(paths, entry.link)
    path_ids = _path_ids(conn, paths)
    keys = [inode_key(entry.inode) if entry.inode is not None else None for entry in batch]
    inodes = {key: entry.inode for key, entry in zip(keys, batch, strict=True) if key and entry.inode}
    inode_ids = _inode_ids(conn, inodes)
    conn.executemany(
        "INSERT INTO entry (content_id, path_id, seq, kind, opaque, inode_id, link_path_id) VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            (
                content_id, path_ids[e.path], start + i, e.kind, int(e.opaque), inode_ids.get(key) if key else None,
                None if e.link is None else path_ids[e.link],
            )
            for i, (e, key) in enumerate(zip(batch, keys, strict=True))
        ],
    )  # fmt: skip


def _add_with_parents(paths: set[bytes], path: bytes) -> None:
    """Add a path and the directories above it that are not there yet."""
    while path not in paths:
        paths.add(path)
        path = path.rpartition(b"/")[0]


def _numbers(conn: Connection, query: str, keys: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """Run a query with ``IN (%s)`` for many keys."""
    for batch in batches(keys, LOOKUP_ROWS):
        yield from conn.execute(query % ",".join("?" * len(batch)), batch)


def _next_id(conn: Connection, table: str) -> int:
    return int(conn.execute(f"SELECT coalesce(max(id), 0) + 1 FROM {table}").fetchone()[0])


def _path_ids(conn: Connection, paths: Collection[bytes]) -> dict[bytes, int]:
    """Numbers of paths, inserting those that are new; a directory sorts before what is in it."""
    texts = {path: path_to_text(path) for path in paths}
    by_text = dict(_numbers(conn, "SELECT path, id FROM path WHERE path IN (%s)", list(texts.values())))
    found: dict[bytes, int] = {}
    new: list[tuple[int, int | None, str]] = []
    following = _next_id(conn, "path")
    for path in sorted(paths):
        text = texts[path]
        number = by_text.get(text)
        if number is None:
            number = following
            following += 1
            new.append((number, found[path.rpartition(b"/")[0]] if path else None, text))
        found[path] = number
    conn.executemany("INSERT INTO path (id, parent_id, path) VALUES (?, ?, ?)", new)
    return found


def _inode_ids(conn: Connection, inodes: Mapping[bytes, Inode]) -> dict[bytes, int]:
    """Numbers of inodes, inserting those that are new; every object they name must be recorded."""
    objects = _object_ids(conn, {inode.digest for inode in inodes.values() if inode.digest})
    found = {
        bytes(key): number
        for key, number in _numbers(conn, "SELECT key, id FROM inode WHERE key IN (%s)", list(inodes))
    }
    new = []
    following = _next_id(conn, "inode")
    for key, i in inodes.items():
        if key not in found:
            found[key] = following
            new.append(
                (
                    following, key, i.type, i.mode, i.uid, i.gid, i.mtime_ns, i.size, i.target or None, i.rdev or None,
                    pack_pairs(i.xattrs) if i.xattrs else None, pack_regions(i.sparse) if i.sparse else None,
                    objects[i.digest] if i.digest else None,
                )
            )  # fmt: skip
            following += 1
    conn.executemany(
        "INSERT INTO inode (id, key, type, mode, uid, gid, mtime_ns, size, link_target, rdev, xattrs, sparse, object_id) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        new,
    )
    return found


def _object_ids(conn: Connection, digests: Collection[bytes]) -> dict[bytes, int]:
    """Numbers of objects; condemned ones are taken back, which the caller's epoch lock allows.

    Raises:
        Corrupt: one is not recorded.
    """
    rows = list(_numbers(conn, "SELECT digest, id, condemned FROM object WHERE digest IN (%s)", list(digests)))
    taken_back = [(number,) for _, number, condemned in rows if condemned is not None]
    conn.executemany("UPDATE object SET condemned = NULL WHERE id = ?", taken_back)
    if len(rows) != len(digests):
        raise Corrupt(f"{len(digests) - len(rows)} objects of a content are not recorded")
    return {bytes(digest): number for digest, number, _ in rows}


def ready(tx: WriteTransaction, content_id: int, key: str) -> str:
    """Make a content visible as part of a transaction; one that is ready under this key already wins.

    Returns:
        The key.
    """
    present = tx.conn.execute("SELECT id, state, entries FROM content WHERE key = ?", (key,)).fetchone()
    if present is not None and present[1] == "ready" and present[2] >= 0:
        return key  # ours stays hidden, and is garbage from now on
    if present is not None:
        tx.conn.execute("UPDATE content SET key = NULL, diff_id = NULL WHERE id = ?", (present[0],))
    diff_id = key if key.startswith("sha256:") else None
    tx.conn.execute(
        "UPDATE content SET state = 'ready', key = ?, diff_id = ? WHERE id = ? AND state = 'building'",
        (key, diff_id, content_id),
    )
    if present is not None and present[1] == "ready":
        _fill(tx.conn, present[0], content_id)
    return key


def _fill(conn: Connection, hollow: int, content_id: int) -> None:
    """Give the layers of a hollow content the one that was stored now; the hollow one is garbage."""
    conn.execute("UPDATE layer_content SET content_id = ? WHERE content_id = ?", (content_id, hollow))
    conn.execute("UPDATE layer SET replay_content_id = ? WHERE replay_content_id = ?", (content_id, hollow))
    conn.execute(
        "UPDATE content SET state = 'condemned', epoch = (SELECT epoch FROM content WHERE id = ?) WHERE id = ?",
        (content_id, hollow),
    )


def hollow(conn: Connection) -> list[str]:
    """Keys of hollow contents."""
    return [row[0] for row in conn.execute("SELECT key FROM content WHERE state = 'ready' AND entries < 0")]


def check_whole(conn: Connection, key: str) -> None:
    """Refuse a hollow content: one whose entries were lost with its recipe when the catalog was made again.

    Raises:
        Corrupt: it is one.
    """
    if conn.execute("SELECT 1 FROM content WHERE key = ? AND entries < 0", (key,)).fetchone() is not None:
        raise Corrupt(f"content {key} is lost: what it is made of is in no pack; store it again to heal it")


def entries(conn: Connection, key: str) -> list[Entry]:
    """Read a content's entries, in order.

    A condemned one still answers: whoever found it before it was condemned holds its rows by an epoch lock.
    """
    found = entries_of_rows(conn.execute(_ENTRIES % "c.key = ?", (key,)))
    if not found:
        check_whole(conn, key)
    return found


def waiting_entries(conn: Connection, content_id: int) -> list[Entry]:
    """Read the entries of a content that is not visible yet, in order."""
    return entries_of_rows(conn.execute(_ENTRIES % "c.id = ?", (content_id,)))


_ENTRIES: Final = (
    "SELECT p.path, e.kind, e.opaque, l.path, e.inode_id, i.type, i.mode, i.uid, i.gid, i.mtime_ns, i.size, o.digest, "
    "i.link_target, i.rdev, i.xattrs, i.sparse FROM content c JOIN entry e ON e.content_id = c.id "
    "JOIN path p ON p.id = e.path_id LEFT JOIN path l ON l.id = e.link_path_id LEFT JOIN inode i ON i.id = e.inode_id "
    "LEFT JOIN object o ON o.id = i.object_id WHERE %s ORDER BY e.seq"
)


def entries_of_rows(rows: Iterable[tuple[Any, ...]]) -> list[Entry]:
    """Make entries of rows with the columns that :func:`entries` asks for."""
    inodes: dict[int, Inode] = {}
    found = []
    for path, kind, opaque, link, inode_id, *fields in rows:
        inode = None
        if inode_id is not None:
            inode = inodes.get(inode_id)
            if inode is None:
                inode = inodes[inode_id] = _inode(*fields)
        found.append(Entry(text_to_path(path), kind, inode, bool(opaque), None if link is None else text_to_path(link)))
    return found


def _inode(
    type_: str, mode: int, uid: int, gid: int, mtime_ns: int, size: int, digest: bytes | None, target: bytes | None,
    rdev: int | None, xattrs: bytes | None, sparse: bytes | None,
) -> Inode:  # fmt: skip
    return Inode(
        type_, mode, uid, gid, mtime_ns, size, bytes(digest) if digest is not None else b"", bytes(target or b""), rdev or 0,
        tuple(unpack_pairs(bytes(xattrs))) if xattrs else (), tuple(unpack_regions(bytes(sparse))) if sparse else (),
    )  # fmt: skip


def has_implied(conn: Connection, key: str) -> bool:
    """Tell whether a content has directories that are only implied."""
    return _has(conn, key, "e.kind = ?", IMPLIED)


def has_opaque_root(conn: Connection, key: str) -> bool:
    """Tell whether a content hides everything below it."""
    query = (
        "SELECT 1 FROM content c JOIN entry e ON e.content_id = c.id JOIN path p ON p.id = e.path_id "
        "WHERE c.key = ? AND p.path = '' AND e.opaque LIMIT 1"
    )
    return conn.execute(query, (key,)).fetchone() is not None


def _has(conn: Connection, key: str, condition: str, value: int) -> bool:
    query = f"SELECT 1 FROM content c JOIN entry e ON e.content_id = c.id WHERE c.key = ? AND {condition} LIMIT 1"
    return conn.execute(query, (key, value)).fetchone() is not None
