"""Looking for damage, in three depths: the catalog, the presence of packs, every stored byte.

Damage is told as what it touches: the object, then each layer, image and container that needs it. A layer's
errors are also those of the images above it, and an image's those of its containers.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from lading.catalog import damage as catalog_damage
from lading.catalog import reach
from lading.catalog.engine import Connection
from lading.driveroptions import parse_size
from lading.errors import Corrupt
from lading.flows import agreement, damage, driver, modified, scrub, stores
from lading.flows.context import Context
from lading.objects import verify
from lading.values import Container, Image, Layer, printable

#: Age from which a layer that nothing uses is an error, in nanoseconds: a day.
MAX_AGE_NS: Final = 24 * 3600 * 10**9

#: Where findings are put that tell of records whose rows somebody has changed by other means. They are the store's: no
#: repair may take such a record for damaged and delete it.
RECORDS: Final = "records"


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
    damaged: int = 0  #: packs and objects that some record needs and that are not as they should be
    forged: bool = False  #: records of a store that may be written to are not what was committed

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
    context: Context,
    *,
    content: bool = False,
    modifications: bool = True,
    max_age_ns: int = MAX_AGE_NS,
    rate: int | str = 0,
    seconds: float = 0.0,
) -> CheckReport:
    """Check a store and those beside it. What is found damaged is noted; see ``flows/damage.py``.

    Args:
        context: the store.
        content: read and hash every stored byte as well, or what is left of an interrupted reading; see ``flows/scrub.py``.
        modifications: compare layers that were written to after a diff was applied with that diff.
        max_age_ns: age from which a layer that nothing uses is an error.
        rate: with ``content``: stored bytes read in a second; text has a unit, see ``driveroptions.parse_size``; 0 for
            no bound.
        seconds: with ``content``: begin to read nothing more after so long; 0 for no bound.
    """
    budget = scrub.Budget(parse_size(rate) if isinstance(rate, str) else rate, seconds) if content else None
    incomplete = False
    forged = False
    damaged = 0
    findings: list[Finding] = []
    depths: list[tuple[str, float, str]] = []
    seen: set[tuple[str, str]] = set()
    for origin, part in enumerate(context.stores):
        prefix = "read-only " if origin >= context.writable_stores else ""
        try:
            errors, own, unread, lost = _check_store(
                context, origin, part, depths, budget=budget, modifications=modifications
            )
        except Corrupt as error:
            return CheckReport((*findings, Finding("store", part.store_id, str(error))), tuple(depths), True)
        findings += own
        incomplete |= unread
        damaged += lost
        if not prefix:
            forged |= any(finding.id == RECORDS for finding in own)
            _unused(context, origin, errors, max_age_ns)
        for kind, found in (("layer", errors.layers), ("image", errors.images), ("container", errors.containers)):
            for record_id, messages in found.items():
                if (kind, record_id) not in seen:
                    findings += [Finding(prefix + kind, record_id, prefix + message) for message in messages]
        seen.update((finding.kind.removeprefix("read-only "), finding.id) for finding in findings)
    return CheckReport(tuple(dict.fromkeys(findings)), tuple(depths), incomplete, damaged, forged)


def _check_store(
    context: Context,
    origin: int,
    part: Context,
    depths: list[tuple[str, float, str]],
    *,
    budget: scrub.Budget | None,
    modifications: bool,
) -> tuple[_Errors, list[Finding], bool, int]:
    """Check one store.

    Returns:
        Errors of records, findings about the store, whether something could not be checked, and how much is damaged.
    """
    from lading.catalog import containers as catalog_containers
    from lading.catalog import images as catalog_images
    from lading.catalog import layers as catalog_layers

    errors = _Errors()
    own: list[Finding] = []
    started = time.monotonic()
    agreed = agreement.compare(part)
    with part.catalog.read() as conn:
        own += _catalog(conn)
        _disagreeing(conn, errors)
        packs = reach.recorded_packs(conn)
        layers = {layer.id: layer for layer in catalog_layers.list_layers(conn)}
        images = catalog_images.list_images(conn)
        containers = catalog_containers.list_containers(conn) if origin == 0 else []
    own += [Finding("store", "journal", f"journal: {words}") for words in agreed.lines]
    own += [Finding("store", RECORDS, words) for words in agreed.records]
    words = "constraints, foreign keys, records, journal" + (
        "" if agreed.compared else "; records were not compared with it"
    )
    depths.append(("catalog", time.monotonic() - started, words))
    found, unread = _bytes(part, packs, depths, budget)
    unread += agreed.unread
    own += [Finding("store", part.store_id, words) for words in unread]
    with part.catalog.read() as conn:
        lost = _without_recipe(conn, errors)
        touched = _touched(conn, found, errors)
    own += touched
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
    return errors, own, bool(unread), lost + len(touched)


def _bytes(
    part: Context, packs: Mapping[str, int], depths: list[tuple[str, float, str]], budget: scrub.Budget | None
) -> tuple[list[verify.Finding], list[str]]:
    """Look at packs, and read what is in broken ones, what was found damaged before, and, if told to, all the rest.

    Returns:
        What is damaged: packs, then objects, each once; and a sentence for whatever could not be looked at.
    """
    started = time.monotonic()
    found: list[verify.Finding] = []
    try:
        found, unread = damage.presence(part, packs)
        found = _recorded_still(part, found)
    except OSError as error:
        unread = [f"packs could not be checked: {(error.strerror or str(error)).lower()}"]
    words = f"presence, size and index of {len(packs)}"
    with part.catalog.read() as conn:
        broken = {item.pack for item in found}
        again = [item for item in catalog_damage.damaged(conn) if item.pack not in broken]
        again += [item for name in sorted(broken) for item in catalog_damage.objects_in(conn, name)]
    if again:
        objects, more = damage.looked_at_again(part, again)
        found += objects
        unread += more
        words += f"; every byte of {len(again)} objects in broken packs, or found damaged before"
    if budget is None:
        words += "; contents of other objects were not read"
    depths.append(("packs", time.monotonic() - started, words))
    if budget is not None:
        started = time.monotonic()
        read = scrub.scrub(part, budget)
        depths.append(("content", time.monotonic() - started, read.words()))
        found += read.findings
        unread += read.unread
    return list({(item.digest or item.pack): item for item in found}.values()), unread


def _recorded_still(part: Context, found: list[verify.Finding]) -> list[verify.Finding]:
    """Drop packs that a collection has removed since they were listed."""
    if not found:
        return []
    with part.catalog.read() as conn:
        recorded = reach.recorded_packs(conn)
    return [item for item in found if item.pack in recorded]


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
    query = (
        "SELECT l.id, c.key FROM content c JOIN layer_content lc ON lc.content_id = c.id JOIN layer l ON l.seq = lc.layer_id "
        "WHERE c.entries < 0"
    )
    for layer_id, key in conn.execute(query):
        errors.add(
            errors.layers, layer_id, f"layer {layer_id}: content {key} is lost: what it is made of is in no pack"
        )
    for kind, found_errors in (("layer", errors.layers), ("image", errors.images), ("container", errors.containers)):
        for record_id, key, _, length in conn.execute(_DATA.format(kind=kind)):
            what = "is missing" if length is None else "has incorrect size"
            words = f'{kind} {record_id}: data item "{printable(key)}": {kind} data item {what}'
            errors.add(found_errors, record_id, words)


def _without_recipe(conn: Connection, errors: _Errors) -> int:
    """Note layers whose diff, or listing, nothing tells any more.

    Returns:
        How many contents are so.
    """
    query = (
        "SELECT c.key, l.id FROM content c JOIN layer l ON l.replay_content_id = c.id "
        "OR l.seq IN (SELECT layer_id FROM layer_content lc WHERE lc.content_id = c.id) "
        "WHERE c.state = 'ready' AND c.recipe_id IS NULL"
    )
    found = conn.execute(query).fetchall()
    for key, layer_id in found:
        errors.add(errors.layers, layer_id, f"layer {layer_id}: content {key} has no recipe")
    return len({key for key, _ in found})


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


def _touched(conn: Connection, found: Sequence[verify.Finding], errors: _Errors) -> list[Finding]:
    """Note damage with every record that is built of it.

    Args:
        conn: of the store's catalog.
        found: packs that are not as recorded, and objects that are damaged.
        errors: gets the records' messages.

    Returns:
        The findings about the store itself: whatever some record needs. What nobody needs goes with the next collection.
    """
    own = []
    broken = {item.pack: item.message for item in found if item.location is None}
    missing = {name for name, words in broken.items() if words.endswith("is missing")}
    needed = set()
    for item in found:
        if item.location is None:
            continue
        users = catalog_damage.users(conn, item.digest)
        if not users:
            continue
        needed.add(item.pack)
        if item.pack not in missing:
            own.append(Finding("store", item.pack, item.message))
        for user in users:
            if user.kind != "store":
                records = {"layer": errors.layers, "image": errors.images, "container": errors.containers}[user.kind]
                words = broken[item.pack] if item.pack in missing else item.message
                errors.add(records, user.id, _words(user, words, whole=item.pack in missing))
    for name, words in broken.items():
        if name in needed or _is_needed(conn, name):
            own.append(Finding("store", name, words))
    return own


def _is_needed(conn: Connection, pack: str) -> bool:
    """Tell whether a record needs anything of a pack."""
    return any(catalog_damage.users(conn, item.digest) for item in catalog_damage.objects_in(conn, pack))


def _words(user: catalog_damage.User, message: str, *, whole: bool) -> str:
    """What is said of a record that needs something damaged.

    Args:
        user: the record, and what for.
        message: what is wrong.
        whole: the pack is missing.
    """
    kind, name = user.kind, printable(user.name)
    if user.what == "data":
        return f'{kind} {user.id}: data item "{name}": {f"{kind} data item is missing" if whole else message}'
    if whole:
        return f"layer {user.id}: {message}"
    if user.what == "file":
        return f'layer {user.id}: file integrity checksum failed for "{name}"'
    return f"layer {user.id}: layer content incorrect digest"
