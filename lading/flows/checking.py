"""Looking for damage, in three depths: the catalog, the presence of packs, every stored byte.

Damage is told as what it touches: the object, then each layer, image and container that needs it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lading.catalog import containers as catalog_containers
from lading.catalog import layers as catalog_layers
from lading.catalog import reach
from lading.catalog.database import Connection
from lading.errors import Corrupt
from lading.flows.context import Context
from lading.objects import verify
from lading.values import Location


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a record, or with the store."""

    kind: str  #: "store", "layer", "image" or "container"
    id: str
    message: str


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check found, and what it looked at."""

    findings: tuple[Finding, ...]
    depths: tuple[tuple[str, float, str], ...]  #: name, seconds, what was looked at
    incomplete: bool = False  #: something could not be checked


def check(context: Context, *, content: bool) -> CheckReport:
    """Check a store.

    Args:
        context: the store.
        content: read and hash every stored byte as well.
    """
    findings: list[Finding] = []
    depths: list[tuple[str, float, str]] = []
    started = time.monotonic()
    try:
        with context.catalog.read() as conn:
            findings += _catalog(conn)
            findings += _dangling(conn)
            packs = reach.recorded_packs(conn)
    except Corrupt as error:
        return CheckReport((Finding("store", context.store_id, str(error)),), (), True)
    depths.append(("catalog", time.monotonic() - started, "constraints, foreign keys, records"))
    started = time.monotonic()
    with context.epochs.shared():
        damage = list(verify.check_presence(context.backend, packs))
        depths.append(("packs", time.monotonic() - started, f"presence, size and index of {len(packs)}"))
        if content:
            started = time.monotonic()
            missing = {item.pack for item in damage}
            with context.catalog.read() as conn:
                locations = [item for item in _all_objects(conn) if item.pack not in missing]
            damage += verify.verify_objects(context.backend, locations, workers=context.workers)
            size = sum(item.size for item in locations)
            depths.append(
                ("content", time.monotonic() - started, f"every byte of {len(locations)} objects, {size} bytes")
            )
    with context.catalog.read() as conn:
        for item in damage:
            findings += _touched(conn, item)
    return CheckReport(tuple(dict.fromkeys(findings)), tuple(depths))


def _catalog(conn: Connection) -> Iterator[Finding]:
    """SQLite's own checks and ours."""
    for (words,) in conn.execute("PRAGMA quick_check"):
        if words != "ok":
            yield Finding("store", "catalog", f"catalog: {words}")
    for table, row, parent, _ in conn.execute("PRAGMA foreign_key_check"):
        yield Finding("store", "catalog", f"catalog: row {row} of {table} refers to a missing row of {parent}")
    for sentence in reach.unreferenced_rows(conn):
        yield Finding("store", "catalog", f"catalog: {sentence}")


def _dangling(conn: Connection) -> Iterator[Finding]:
    """Records that name records which are gone."""
    for layer_id, parent in conn.execute(
        "SELECT id, parent FROM layer WHERE parent <> '' AND parent NOT IN (SELECT id FROM layer)"
    ):
        yield Finding("layer", layer_id, f"layer {parent}: layer is missing")
    for image_id, layer_id in conn.execute(
        "SELECT id, layer FROM image WHERE layer <> '' AND layer NOT IN (SELECT id FROM layer)"
    ):
        yield Finding("image", image_id, f"image {image_id}: layer {layer_id}: image layer is missing")
    for container_id, image_id in conn.execute(
        "SELECT id, image FROM container WHERE image <> '' AND image NOT IN (SELECT id FROM image)"
    ):
        yield Finding("container", container_id, f"image {image_id}: image missing")


def _all_objects(conn: Connection) -> Iterator[Location]:
    query = (
        "SELECT o.digest, o.kind, p.name, o.offset, o.stored_size, o.size, o.codec, o.frames FROM object o "
        "JOIN pack p ON p.id = o.pack_id ORDER BY p.name, o.offset"
    )
    for digest, kind, pack, offset, stored_size, size, codec, frames in conn.execute(query):
        yield Location(bytes(digest), kind, pack, offset, stored_size, size, codec, bytes(frames or b""))


def _touched(conn: Connection, damage: verify.Finding) -> Iterator[Finding]:
    """Every record that a damaged object, or a damaged pack, is part of."""
    if damage.digest:
        objects = conn.execute("SELECT id FROM object WHERE digest = ?", (damage.digest,)).fetchall()
    else:
        objects = conn.execute(
            "SELECT o.id FROM object o JOIN pack p ON p.id = o.pack_id WHERE p.name = ?", (damage.pack,)
        ).fetchall()
    layer_ids, image_ids, container_ids = _users(conn, [row[0] for row in objects])
    yield Finding("store", damage.pack, damage.message)
    for layer_id in sorted(_with_descendants(conn, layer_ids)):
        yield Finding("layer", layer_id, f"layer {layer_id}: {damage.message}")
        image_ids.update(catalog_layers.images_of_layer(conn, layer_id))
        container = catalog_containers.container_of_layer(conn, layer_id)
        if container is not None:
            container_ids.add(container)
    for image_id in sorted(image_ids):
        yield Finding("image", image_id, f"image {image_id}: {damage.message}")
        container_ids.update(catalog_containers.containers_of_image(conn, image_id))
    for container_id in sorted(container_ids):
        yield Finding("container", container_id, f"container {container_id}: {damage.message}")


def _users(conn: Connection, objects: Iterable[int]) -> tuple[set[str], set[str], set[str]]:
    """Layers, images and containers that name objects themselves."""
    layers: set[str] = set()
    images: set[str] = set()
    containers: set[str] = set()
    for object_id in objects:
        layers.update(
            row[0]
            for row in conn.execute(
                "SELECT l.id FROM inode i JOIN entry e ON e.inode_id = i.id JOIN layer_content lc ON lc.content_id = e.content_id "
                "JOIN layer l ON l.seq = lc.layer_id WHERE i.object_id = ?1 UNION SELECT l.id FROM content c "
                "JOIN layer_content lc ON lc.content_id = c.id JOIN layer l ON l.seq = lc.layer_id WHERE c.recipe_id = ?1 "
                "UNION SELECT l.id FROM content_object x JOIN layer_content lc ON lc.content_id = x.content_id "
                "JOIN layer l ON l.seq = lc.layer_id WHERE x.object_id = ?1 "
                "UNION SELECT l.id FROM layer_data d JOIN layer l ON l.seq = d.owner_id WHERE d.object_id = ?1",
                (object_id,),
            )
        )
        for kind, found in (("image", images), ("container", containers)):
            query = f"SELECT r.id FROM {kind}_data d JOIN {kind} r ON r.seq = d.owner_id WHERE d.object_id = ?"
            found.update(row[0] for row in conn.execute(query, (object_id,)))
    return layers, images, containers


def _with_descendants(conn: Connection, layer_ids: set[str]) -> set[str]:
    found: set[str] = set()
    pending = list(layer_ids)
    while pending:
        layer_id = pending.pop()
        if layer_id not in found:
            found.add(layer_id)
            pending += catalog_layers.children(conn, layer_id)
    return found
