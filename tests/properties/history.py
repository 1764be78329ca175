"""Random histories of a store, and what a catalog says apart from row numbers."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from lading import LadingError, Store
from lading.catalog.models import TABLES
from tests.tarmake import END, directory, file, link, pax, symlink, tree

#: Columns that a rebuilt catalog may have otherwise, with the reason.
EXCLUDED: Final[dict[str, str]] = {
    **{f"{table}.id": "row numbers are given out anew" for table in ("pack", "object", "path", "inode", "content")},
    **{f"{table}.seq": "order is compared, the numbers may have gaps" for table in ("layer", "image", "container", "event")},
    **{f"{kind}_{what}.position": "order is compared" for kind in ("layer", "image", "container") for what in ("name", "data")},
    **{f"object.{name}": "another copy of the same bytes may be chosen; check reads them all" for name in ("pack_id", "offset", "stored_size", "codec", "frames")},
    **{f"object.{name}": "lost with the catalog: what was verified, or found damaged, when" for name in ("verified_at", "damaged_at")},
    "object.kind": "bytes that came in as two kinds may be told as either",
    "object.condemned": "garbage is found again by the next collection",
    **{f"pack.{name}": "files are compared by check; which are settled is found out again" for name in ("name", "size", "payload", "epoch", "settled", "live", "objects")},
    **{f"content.{name}": "only ready contents of layers are compared" for name in ("state", "epoch")},
    "content_suspect.content_id": "noted by the database, looked at by the next collection",
    "stale_view.key": "the next collection compares the whole cache",
    "suspect.object_id": "every object is looked at again by the next collection",
    **{f"cache_entry.{name}": "follows the disk" for name in ("kind", "key", "size")},
}  # fmt: skip

_CONTENTS: Final = (
    "SELECT content_id FROM layer_content UNION SELECT replay_content_id FROM layer WHERE replay_content_id IS NOT NULL"
)
_INODES: Final = f"SELECT inode_id FROM entry WHERE content_id IN ({_CONTENTS})"

#: Every other column of every table, with natural keys in place of row numbers. Names are those of the columns.
QUERIES: Final[dict[str, str]] = {
    "meta": "SELECT key, value FROM meta WHERE key NOT IN ('views', 'scrub') ORDER BY key",
    "layer": (
        "SELECT l.id, l.parent, l.metadata, l.mount_label, l.created_ns, l.compressed_digest, l.compressed_size, l.diff_digest, "
        "l.diff_size, l.toc_digest, l.compression, l.uids, l.gids, l.flags, l.uidmap, l.gidmap, c.key AS replay_content_id, "
        "l.write_area, l.write_kind, l.root_mode, l.root_uid, l.root_gid FROM layer l "
        "LEFT JOIN content c ON c.id = l.replay_content_id ORDER BY l.seq"
    ),
    "layer_content": (
        "SELECT l.id AS layer_id, x.position, c.key AS content_id FROM layer_content x JOIN layer l ON l.seq = x.layer_id "
        "JOIN content c ON c.id = x.content_id ORDER BY 1, 2"
    ),
    "image": "SELECT id, digest, layer, mapped_layers, names_history, metadata, created_ns, flags FROM image ORDER BY seq",
    "container": "SELECT id, image, layer, metadata, created_ns, uidmap, gidmap, flags FROM container ORDER BY seq",
    **{
        f"{kind}_name": f"SELECT n.name, r.id AS owner_id FROM {kind}_name n JOIN {kind} r ON r.seq = n.owner_id ORDER BY 2, n.position"
        for kind in ("layer", "image", "container")
    },
    **{
        f"{kind}_data": (
            f"SELECT r.id AS owner_id, d.key, hex(o.digest) AS object_id, d.size, d.digest FROM {kind}_data d "
            f"JOIN {kind} r ON r.seq = d.owner_id LEFT JOIN object o ON o.id = d.object_id ORDER BY 1, d.position"
        )
        for kind in ("layer", "image", "container")
    },
    "content": (
        "SELECT c.key, c.diff_id, c.size, hex(o.digest) AS recipe_id, c.entries, c.diff_bytes, c.uids, c.gids FROM content c "
        f"LEFT JOIN object o ON o.id = c.recipe_id WHERE c.id IN ({_CONTENTS}) ORDER BY 1"
    ),
    "content_object": (
        "SELECT c.key AS content_id, hex(o.digest) AS object_id FROM content_object x JOIN content c ON c.id = x.content_id "
        f"JOIN object o ON o.id = x.object_id WHERE c.id IN ({_CONTENTS}) ORDER BY 1, 2"
    ),
    "entry": (
        "SELECT c.key AS content_id, p.path AS path_id, e.seq, e.kind, e.opaque, hex(i.key) AS inode_id, l.path AS link_path_id "
        "FROM entry e JOIN content c ON c.id = e.content_id JOIN path p ON p.id = e.path_id LEFT JOIN inode i ON i.id = e.inode_id "
        f"LEFT JOIN path l ON l.id = e.link_path_id WHERE c.id IN ({_CONTENTS}) ORDER BY 1, 3"
    ),
    "inode": (
        "SELECT hex(i.key) AS key, i.type, i.mode, i.uid, i.gid, i.mtime_ns, i.size, hex(o.digest) AS object_id, i.link_target, "
        f"i.rdev, i.xattrs, i.sparse FROM inode i LEFT JOIN object o ON o.id = i.object_id WHERE i.id IN ({_INODES}) ORDER BY 1"
    ),
    "path": (
        "SELECT p.path, q.path AS parent_id FROM path p LEFT JOIN path q ON q.id = p.parent_id WHERE p.id IN "
        f"(SELECT path_id FROM entry WHERE content_id IN ({_CONTENTS})) ORDER BY 1"
    ),
    "object": (
        f"SELECT hex(o.digest) AS digest, o.size FROM object o WHERE o.id IN (SELECT object_id FROM inode WHERE id IN ({_INODES})) "
        f"OR o.id IN (SELECT recipe_id FROM content WHERE id IN ({_CONTENTS})) ORDER BY 1"
    ),
    "transient": (
        "SELECT t.kind, t.record_id FROM transient t WHERE (t.kind = 'container' AND t.record_id IN (SELECT id FROM container)) "
        "OR (t.kind = 'layer' AND t.record_id IN (SELECT id FROM layer)) ORDER BY 1, 2"
    ),
    "event": "SELECT at_ns, verb, kind, record_id, before, after FROM event ORDER BY seq",
}  # fmt: skip

#: Columns that hold JSON, whose spaces do not matter.
_JSON: Final = frozenset({"mapped_layers", "names_history", "flags", "uids", "gids", "uidmap", "gidmap"})


def compared_columns() -> set[str]:
    """Every column of every table."""
    return {f"{table._meta.table_name}.{field.column_name}" for table in TABLES for field in table._meta.sorted_fields}


def facts(conn: Any) -> dict[str, list[tuple[Any, ...]]]:
    """Everything that a catalog says, by table."""
    found = {}
    for table, query in QUERIES.items():
        cursor = conn.execute(query)
        names = [item[0] for item in cursor.description]
        rows = [
            tuple(json.loads(value) if name in _JSON else value for name, value in zip(names, row, strict=True))
            for row in cursor
        ]
        found[table] = rows
    found["meta"] = [(key, json.loads(value) if key != "snapshot" else value) for key, value in found["meta"]]
    return found


def diffs(store: Store) -> dict[str, bytes]:
    """Every layer's diff."""
    found = {}
    for layer in store.layers.all():
        with store.layers.diff(layer.id, compression=0) as chunks:
            found[layer.id] = b"".join(chunks)
    return found


def _content(seed: int) -> bytes:
    return random.Random(seed).randbytes(50 + seed * 700)


#: Layers to draw from: what a recipe and a tree can differ in.
TARS: Final[tuple[bytes, ...]] = (
    tree({"etc": None, "etc/a": _content(1), "b": _content(2)}),
    tree({"etc/a": _content(3), "b": _content(2), "c/d/e": _content(4)}),
    file(b"twice", _content(5)) + file(b"twice", _content(6)) + link(b"hard", b"twice") + symlink(b"soft", b"/x") + END,
    directory(b"etc") + file(b"etc/.wh.a") + file(b".wh..wh..opq") + file(b".wh..wh.left", _content(7)) + END + b"tail",
    pax({b"SCHILY.xattr.user.k": b"v", b"mtime": b"12.5", b"path": b"n\xc3\xa4me\n"}) + file(b"x", b"1", uid=b"0000007") + END,
    b"",
    file(b"large", random.Random(9).randbytes(100) * 90_000) + END,
)  # fmt: skip

_NAMES: Final = ("n1", "n2", "n3", 'ö\n"', "n5")
_KEYS: Final = ("manifest", "manifest-1", "k", "ü")


class History:
    """Does one thing after another to a store; what is refused is no matter."""

    def __init__(self, store: Store, drawn: random.Random, prefix: str = "r") -> None:
        self.store = store
        self._random = drawn
        self._prefix = prefix
        self._made = 0

    def step(self, number: int) -> None:
        """Do the thing of a number."""
        try:
            STEPS[number % len(STEPS)](self)
        except LadingError:
            return

    def _id(self) -> str:
        self._made += 1
        return f"{self._prefix}{self._made}"

    def _any(self, records: list[Any]) -> str:
        return self._random.choice(records).id if records else "none"

    def _record(self) -> str:
        store = self.store
        return self._any([*store.layers.all(), *store.images.all(), *store.containers.all()])

    def _some_names(self) -> list[str]:
        return self._random.sample(_NAMES, self._random.randrange(3))

    def import_layer(self) -> None:
        parent = self._any(self.store.layers.all()) if self._random.random() < 0.5 and self.store.layers.all() else ""
        data = self._random.choice(TARS)
        self.store.layers.import_(io.BytesIO(data), id=self._id(), parent=parent, names=self._some_names())

    def create_layer(self) -> None:
        parent = self._any(self.store.layers.all()) if self.store.layers.all() else ""
        self.store.layers.create(id=self._id(), parent=parent, names=self._some_names())

    def apply(self) -> None:
        self.store.layers.apply(self._any(self.store.layers.all()), io.BytesIO(self._random.choice(TARS)))

    def write(self) -> None:
        layer = self._any(self.store.layers.all())
        folder = self.store.mount(layer)
        try:
            path = folder / f"written{self._random.randrange(3)}"
            path.write_bytes(self._random.randbytes(self._random.randrange(5000)))
            path.chmod(0o600 + self._random.randrange(8))
        finally:
            self.store.unmount(layer)

    def seal(self) -> None:
        self.store.layers.seal(self._any(self.store.layers.all()))

    def create_image(self) -> None:
        data = {key: self._random.randbytes(self._random.randrange(3) * 40) for key in self._random.sample(_KEYS, 2)}
        self.store.images.create(
            self._any(self.store.layers.all()),
            id=self._id(),
            names=self._some_names(),
            metadata="m\u2028",
            big_data=data,
        )

    def create_container(self) -> None:
        self.store.containers.create(
            self._any(self.store.images.all()), id=self._id(), names=self._some_names(), flags={"f": [1]},
            mount_options=["ro"] if self._random.random() < 0.2 else [], big_data={"k": b"1"},
        )  # fmt: skip

    def set_data(self) -> None:
        store = self.store
        for part in self._random.sample([store.layers, store.images, store.containers], 1):
            stream = io.BytesIO(self._random.randbytes(self._random.randrange(3) * 50))
            part.set_data(self._any(list(part.all())), self._random.choice(_KEYS), stream)  # type: ignore[attr-defined]

    def set_names(self) -> None:
        verb = self._random.choice([self.store.set_names, self.store.add_names, self.store.remove_names])
        verb(self._record(), self._some_names())

    def set_metadata(self) -> None:
        self.store.set_metadata(self._record(), f"text {self._random.randrange(100)}")

    def delete_layer(self) -> None:
        self.store.layers.delete(self._any(self.store.layers.all()))

    def delete_image(self) -> None:
        self.store.images.delete(self._any(self.store.images.all()))

    def delete_container(self) -> None:
        self.store.containers.delete(self._any(self.store.containers.all()))

    def commit(self) -> None:
        self.store.commit(self._any(self.store.containers.all()), id=self._id())

    def collect(self) -> None:
        self.store.gc()

    def stray(self) -> None:
        """Bytes that a killed writer stored for nothing."""
        context = self.store._context
        with context.epochs.shared(), context.writer() as writer:
            writer.put(self._random.randbytes(300))
            writer.finish()


STEPS: Final[tuple[Callable[[History], None], ...]] = (
    History.import_layer, History.create_layer, History.apply, History.write, History.seal, History.create_image,
    History.create_container, History.set_data, History.set_names, History.set_metadata, History.delete_layer,
    History.delete_image, History.delete_container, History.commit, History.collect, History.import_layer,
    History.create_image, History.stray,
)  # fmt: skip


def lose(root: Path) -> None:
    """Lose the catalog, with its log."""
    for suffix in ("", "-wal", "-shm"):
        (root / f"catalog.db{suffix}").unlink(missing_ok=True)
