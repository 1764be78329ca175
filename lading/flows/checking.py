"""Looking for damage, in three depths: the catalog, the presence of packs, every stored byte.

Damage is told as what it touches: the object, then each layer, image and container that needs it. A layer's
errors are also those of the images above it, and an image's those of its containers.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from lading.catalog import reach
from lading.catalog.database import Connection
from lading.errors import Corrupt
from lading.flows import driver, modified, stores
from lading.flows.context import Context
from lading.objects import verify
from lading.values import Container, Image, Layer, Location, printable

#: Age from which a layer that nothing uses is an error, in nanoseconds: a day.
MAX_AGE_NS: Final = 24 * 3600 * 10**9


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a record, or with the store."""

    kind: str  #: "store", "layer", "image" or "container"; with "read-only " before it for stores that are only read
    id: str
    message: str


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check found, and what it looked at."""

    findings: tuple[Finding, ...]
    depths: tuple[tuple[str, float, str], ...]  #: name, seconds, what was looked at
    incomplete: bool = False  #: something could not be checked

    def ids(self, kind: str) -> list[str]:
        """Ids of a kind with findings, in order."""
        return sorted({finding.id for finding in self.findings if finding.kind == kind})


@dataclass
class _Errors:
    """Messages by record, each once and in order."""

    layers: dict[str, list[str]] = field(default_factory=dict)
    images: dict[str, list[str]] = field(default_factory=dict)
    containers: dict[str, list[str]] = field(default_factory=dict)

    @staticmethod
    def add(found: dict[str, list[str]], record_id: str, message: str) -> None:
        """Note a message."""
        messages = found.setdefault(record_id, [])
        if message not in messages:
            messages.append(message)


def check(
    context: Context, *, content: bool = False, modifications: bool = True, max_age_ns: int = MAX_AGE_NS
) -> CheckReport:
    """Check a store and those beside it.

    Args:
        context: the store.
        content: read and hash every stored byte as well.
        modifications: compare layers that were written to after a diff was applied with that diff.
        max_age_ns: age from which a layer that nothing uses is an error.
    """
    findings: list[Finding] = []
    depths: list[tuple[str, float, str]] = []
    seen: set[tuple[str, str]] = set()
    for origin, part in enumerate(context.stores):
        prefix = "read-only " if origin >= context.writable_stores else ""
        try:
            errors, own = _check_store(context, origin, part, depths, content=content, modifications=modifications)
        except Corrupt as error:
            return CheckReport((*findings, Finding("store", part.store_id, str(error))), tuple(depths), True)
        findings += own
        if not prefix:
            _unused(context, origin, errors, max_age_ns)
        for kind, found in (("layer", errors.layers), ("image", errors.images), ("container", errors.containers)):
            for record_id, messages in found.items():
                if (kind, record_id) not in seen:
                    findings += [Finding(prefix + kind, record_id, prefix + message) for message in messages]
        seen.update((finding.kind.removeprefix("read-only "), finding.id) for finding in findings)
    return CheckReport(tuple(dict.fromkeys(findings)), tuple(depths))


def _check_store(
    context: Context,
    origin: int,
    part: Context,
    depths: list[tuple[str, float, str]],
    *,
    content: bool,
    modifications: bool,
) -> tuple[_Errors, list[Finding]]:
    from lading.catalog import containers as catalog_containers
    from lading.catalog import images as catalog_images
    from lading.catalog import layers as catalog_layers

    errors = _Errors()
    own: list[Finding] = []
    started = time.monotonic()
    with part.catalog.read() as conn:
        own += _catalog(conn)
        _disagreeing(conn, errors)
        packs = reach.recorded_packs(conn)
        layers = {layer.id: layer for layer in catalog_layers.list_layers(conn)}
        images = catalog_images.list_images(conn)
        containers = catalog_containers.list_containers(conn) if origin == 0 else []
    depths.append(("catalog", time.monotonic() - started, "constraints, foreign keys, records"))
    started = time.monotonic()
    with part.epochs.shared():
        damage = list(verify.check_presence(part.backend, packs))
        depths.append(("packs", time.monotonic() - started, f"presence, size and index of {len(packs)}"))
        if content:
            started = time.monotonic()
            missing = {item.pack for item in damage}
            with part.catalog.read() as conn:
                locations = [item for item in _all_objects(conn) if item.pack not in missing]
            damage += verify.verify_objects(part.backend, locations, workers=part.workers)
            size = sum(item.size for item in locations)
            depths.append(
                ("content", time.monotonic() - started, f"every byte of {len(locations)} objects, {size} bytes")
            )
    with part.catalog.read() as conn:
        for item in damage:
            own.append(Finding("store", item.pack, item.message))
            _touched(conn, item, errors)
    _missing_parents(context, origin, layers, errors)
    if modifications and origin < context.writable_stores:
        for layer in layers.values():
            for words in modified.differences(context, stores.marked_layer(context, layer, origin)):
                errors.add(errors.layers, layer.id, f"layer {layer.id}: {words}, layer content modified")
    if origin == 0:
        for layer_id in driver.unrecorded(context):
            words = "layer in lower level storage driver not accounted for"
            errors.add(errors.layers, layer_id, f"layer {layer_id}: {words}")
    _images(context, origin, images, layers, errors)
    _containers(context, containers, images, errors)
    return errors, own


def _catalog(conn: Connection) -> Iterator[Finding]:
    """SQLite's own checks and ours."""
    for (words,) in conn.execute("PRAGMA quick_check"):
        if words != "ok":
            yield Finding("store", "catalog", f"catalog: {words}")
    for table, row, parent, _ in conn.execute("PRAGMA foreign_key_check"):
        yield Finding("store", "catalog", f"catalog: row {row} of {table} refers to a missing row of {parent}")
    for sentence in reach.unreferenced_rows(conn):
        yield Finding("store", "catalog", f"catalog: {sentence}")


#: Data items whose object is missing or has another length.
_DATA: Final = (
    "SELECT r.id, d.key, d.size, o.size FROM {kind}_data d JOIN {kind} r ON r.seq = d.owner_id "
    "LEFT JOIN object o ON o.id = d.object_id WHERE d.size <> coalesce(o.size, 0)"
)


def _disagreeing(conn: Connection, errors: _Errors) -> None:
    """Note records that say something else than what is stored."""
    query = (
        "SELECT l.id, l.diff_digest, l.diff_size, c.key, c.size FROM layer l JOIN content c ON c.id = l.replay_content_id "
        "WHERE l.diff_digest <> '' AND (l.diff_digest <> c.key OR l.diff_size <> c.size)"
    )
    for layer_id, digest, size, found, length in conn.execute(query):
        if digest != found:
            errors.add(errors.layers, layer_id, f"layer {layer_id}: layer content incorrect digest")
        if size != length:
            words = f"read {length} bytes instead of {size} bytes: layer content incorrect size"
            errors.add(errors.layers, layer_id, f"layer {layer_id}: {words}")
    for kind, found_errors in (("layer", errors.layers), ("image", errors.images), ("container", errors.containers)):
        for record_id, key, _, length in conn.execute(_DATA.format(kind=kind)):
            what = "is missing" if length is None else "has incorrect size"
            words = f'{kind} {record_id}: data item "{printable(key)}": {kind} data item {what}'
            errors.add(found_errors, record_id, words)


def _all_objects(conn: Connection) -> Iterator[Location]:
    query = (
        "SELECT o.digest, o.kind, p.name, o.offset, o.stored_size, o.size, o.codec, o.frames FROM object o "
        "JOIN pack p ON p.id = o.pack_id ORDER BY p.name, o.offset"
    )
    for digest, kind, pack, offset, stored_size, size, codec, frames in conn.execute(query):
        yield Location(bytes(digest), kind, pack, offset, stored_size, size, codec, bytes(frames or b""))


def _missing_parents(context: Context, origin: int, layers: dict[str, Layer], errors: _Errors) -> None:
    for layer in layers.values():
        if layer.parent and layer.parent not in layers and stores.layer_by_id(context, layer.parent, origin) is None:
            errors.add(errors.layers, layer.id, f"layer {layer.parent}: layer is missing")


def _images(context: Context, origin: int, images: Iterable[Image], layers: dict[str, Layer], errors: _Errors) -> None:
    """Layers of images that are gone, and the errors of those that are there."""
    for image in images:
        for layer_id in (image.layer, *image.mapped_layers):
            walked: set[str] = set()
            while layer_id and layer_id not in walked:
                walked.add(layer_id)
                layer = layers.get(layer_id) or stores.layer_by_id(context, layer_id, origin)
                if layer is None:
                    if len(walked) == 1:
                        words = f"image {image.id}: layer {printable(layer_id)}: image layer is missing"
                        errors.add(errors.images, image.id, words)
                    break
                for message in errors.layers.get(layer_id, ()):
                    errors.add(errors.images, image.id, message)
                layer_id = layer.parent


def _containers(context: Context, containers: Iterable[Container], images: Iterable[Image], errors: _Errors) -> None:
    known = {image.id for image in images}
    for container in containers:
        for message in errors.layers.get(container.layer, ()):
            errors.add(errors.containers, container.id, message)
        if not container.image:
            continue
        if container.image not in known and stores.image_by_id(context, container.image) is None:
            errors.add(errors.containers, container.id, f"image {container.image}: image missing")
        for message in errors.images.get(container.image, ()):
            errors.add(errors.containers, container.id, message)


def _unused(context: Context, origin: int, errors: _Errors, max_age_ns: int) -> None:
    """Layers of a store that no image reaches, that are no container's own, and that are old enough."""
    from lading.catalog import containers as catalog_containers
    from lading.catalog import layers as catalog_layers
    from lading.flows import images as all_images

    with context.stores[origin].catalog.read() as conn:
        layers = {layer.id: layer for layer in catalog_layers.list_layers(conn)}
    with context.catalog.read() as conn:
        used = {container.layer for container in catalog_containers.list_containers(conn)}
    for image in all_images.list_all(context):
        for layer_id in (image.layer, *image.mapped_layers):
            walked: set[str] = set()
            while layer_id in layers and layer_id not in walked:
                walked.add(layer_id)
                layer_id = layers[layer_id].parent
            used |= walked
    limit = time.time_ns() - max_age_ns
    for layer in layers.values():
        if layer.id not in used and layer.created_ns <= limit:
            errors.add(errors.layers, layer.id, f"layer {layer.id}: layer not referenced by any images or containers")


#: Who needs an object: kind, id, and the name of a file or a data item.
_USERS: Final = (
    "SELECT 'layer' AS kind, l.id, 'file' AS what, p.path AS name FROM inode i JOIN entry e ON e.inode_id = i.id "
    "JOIN path p ON p.id = e.path_id JOIN layer_content lc ON lc.content_id = e.content_id JOIN layer l ON l.seq = lc.layer_id "
    "WHERE i.object_id = ?1 "
    "UNION SELECT 'layer', l.id, 'recipe', '' FROM content c JOIN layer_content lc ON lc.content_id = c.id "
    "JOIN layer l ON l.seq = lc.layer_id WHERE c.recipe_id = ?1 "
    "UNION SELECT 'layer', l.id, 'recipe', '' FROM content_object x JOIN layer_content lc ON lc.content_id = x.content_id "
    "JOIN layer l ON l.seq = lc.layer_id WHERE x.object_id = ?1 "
    "UNION SELECT 'layer', l.id, 'data', d.key FROM layer_data d JOIN layer l ON l.seq = d.owner_id WHERE d.object_id = ?1 "
    "UNION SELECT 'image', m.id, 'data', d.key FROM image_data d JOIN image m ON m.seq = d.owner_id WHERE d.object_id = ?1 "
    "UNION SELECT 'container', c.id, 'data', d.key FROM container_data d JOIN container c ON c.seq = d.owner_id "
    "WHERE d.object_id = ?1"
)


def _touched(conn: Connection, damage: verify.Finding, errors: _Errors) -> None:
    """Note a damaged object, or pack, with every record that is built of it."""
    if damage.digest:
        objects = conn.execute("SELECT id FROM object WHERE digest = ?", (damage.digest,)).fetchall()
    else:
        objects = conn.execute(
            "SELECT o.id FROM object o JOIN pack p ON p.id = o.pack_id WHERE p.name = ?", (damage.pack,)
        ).fetchall()
    for (object_id,) in objects:
        for kind, record_id, what, name in conn.execute(_USERS, (object_id,)):
            found = {"layer": errors.layers, "image": errors.images, "container": errors.containers}[kind]
            errors.add(found, record_id, _words(kind, record_id, what, name, damage))


def _words(kind: str, record_id: str, what: str, name: str, damage: verify.Finding) -> str:
    if what == "data":
        missing = f"{kind} data item is missing"
        return f'{kind} {record_id}: data item "{printable(name)}": {damage.message if damage.digest else missing}'
    if what == "file" and damage.digest:
        return f'layer {record_id}: file integrity checksum failed for "{printable(name)}"'
    if what == "recipe" and damage.digest:
        return f"layer {record_id}: layer content incorrect digest"
    return f"layer {record_id}: {damage.message}"
