"""What a layer's mount is stacked from: cached images or farms, live uppers, an empty root."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from lading import private, trees
from lading.catalog import content as catalog_content
from lading.catalog import flatten as catalog_flatten
from lading.catalog.engine import Connection
from lading.errors import InUse, Unsupported
from lading.flows import areas, stores, views
from lading.flows.context import Context
from lading.idmaps import NO_MAPS, Maps
from lading.materialize.cachelock import make_private
from lading.materialize.imagecache import Image, find_image, sharing
from lading.materialize.mounts import mountinfo
from lading.materialize.strategy import Composefs, Erofs, Farm, Strategy
from lading.values import ContentSource, Entry, Layer, inode_key

if TYPE_CHECKING:
    from lading.materialize.farm import FarmInfo
    from lading.materialize.inuse import Used

Entries = Callable[[], Sequence[Entry]]

#: Ends the names of images without contents.
COMPOSEFS_SUFFIX: Final = "-c"

#: Begins the names of trees that are shown once, and belong to no content.
SHOWN_PREFIX: Final = "shown-"

#: Begins the names of empty folders that carry a layer's root attributes.
ROOT_PREFIX: Final = "root-"


@dataclass(frozen=True, slots=True)
class _Step:
    """One lowerdir: a sealed content, or the live upper of a mounted ancestor."""

    home: Context  #: the store that has it
    key: str
    live: Path | None = None
    use: areas.Use | None = None  #: keeps a live upper from being removed


@dataclass(frozen=True, slots=True)
class Lower:
    """One layer to stack, ready in the cache."""

    path: Path  #: of a folder, or of an image
    name: str = ""  #: in the cache; empty for what does not lie there
    shifted: bool = False  #: its owners are the container's, to be shifted by the mount
    image: bool = False
    data: Path | None = None  #: folder that the files of an image without contents lead to
    use: areas.Use | None = field(default=None, compare=False)  #: keeps a live upper until its mount is recorded


def strategy_of(context: Context) -> Strategy:
    """Choose how contents are made into something to stack: as configured, else the best that works here.

    Raises:
        Unsupported: what is configured does not work here.
    """
    able = context.abilities
    farm = Farm(as_root=able.root, userxattr=not able.trusted_xattrs)
    match context.settings.strategy:
        case "":
            return Erofs() if able.erofs else farm
        case "erofs" if able.erofs:
            return Erofs()
        case "composefs" if able.erofs and able.data_only:
            return Composefs()
        case "farm":
            return farm
        case other:
            raise Unsupported(f"strategy {other} does not work here: {_lacking(context, other)}")


def _lacking(context: Context, strategy: str) -> str:
    if not context.abilities.erofs:
        return f"EROFS images on {context.layout.cache} cannot be mounted"
    return f"overlay takes no data-only layers, which {strategy} needs"


def lowerdirs(
    context: Context, layer: Layer, *, maximum: int, maps: Maps = NO_MAPS, flatten: bool = False
) -> list[Lower]:
    """Make the lowerdirs of a layer's mount, topmost first.

    Args:
        context: the store; the caller holds an epoch lock and the cache's.
        layer: what is to be mounted.
        maximum: with more of them, all sealed contents are flattened into one.
        maps: how owners are shown.
        flatten: flatten them in any case, unless an ancestor is mounted and may still be written to.

    Raises:
        Moved: a live upper was sealed meanwhile.
    """
    steps = _steps(context, layer)
    live = [step for step in steps if step.live is not None]
    strategy = strategy_of(context)
    if not live and len(steps) > 1 and (flatten or len(steps) > maximum):
        return [_flattened(context, steps, maps, strategy)]
    found = [_lower(context, step, steps[position + 1 :], maps, strategy) for position, step in enumerate(steps)]
    # A diff may come twice in a chain (empty ones often do), and overlay takes no folder twice. The higher one says
    # all that the lower one said, so that nothing of the latter could be seen.
    return list(dict.fromkeys(found))


def _steps(context: Context, layer: Layer) -> list[_Step]:
    """Order what a layer is made of, topmost first, down to what hides everything below."""
    steps: list[_Step] = []
    for step in views.chain_of(context, layer):
        home = stores.home(context, step)
        if step.write_kind == "upper" and step.id != layer.id:
            use = areas.use(home, step)
            upper = areas.current(home, step) / "upper"
            if use is not None and upper.is_dir():
                steps.append(_Step(home, "", upper, use))
        with home.catalog.read() as conn:
            for key in reversed(step.contents):
                steps.append(_Step(home, key))
                if catalog_content.has_opaque_root(conn, key):
                    return steps
    return steps


def _lower(context: Context, step: _Step, below: Sequence[_Step], maps: Maps, strategy: Strategy) -> Lower:
    if step.live is not None:
        found = areas.maps_of(step.live.parent)
        if found != maps and (found or not context.abilities.shifted_lowers):
            raise InUse(f"{step.live} is mounted for writing under other ID maps; unmount it first")
        return Lower(step.live, shifted=found != maps, use=step.use)
    with step.home.catalog.read() as conn:
        implied = catalog_content.has_implied(conn, step.key)
        shifted = bool(maps) and context.abilities.shifted_lowers and _covers(conn, step.key, maps)
    if not implied:
        built = NO_MAPS if shifted else maps
        name = name_of(step.key, *_digest(built))
        return _made(context, strategy, name, lambda: built.shown(_entries(step)), shifted)
    entries, inherited = trees.inherit(_below_implied(step, below), _entries(step))
    if shifted and not _covers_all(entries, maps):
        shifted = False
    built = NO_MAPS if shifted else maps
    name = name_of(step.key, inherited, *_digest(built))
    return _made(context, strategy, name, lambda: built.shown(entries), shifted)


def _below_implied(step: _Step, below: Sequence[_Step]) -> dict[bytes, Entry]:
    """What lies below a content, at the paths that it only implies."""
    if any(other.live is not None or other.home is not step.home for other in below):
        return _tree(below)
    with step.home.catalog.read() as conn:
        found = catalog_flatten.below_implied(conn, [other.key for other in reversed(below)], step.key)
    return {entry.path: entry for entry in trees.settled_tree(found, dict.fromkeys((e.path for e in found), 0))}


def _made(context: Context, strategy: Strategy, name: str, entries: Entries, shifted: bool) -> Lower:
    """Find or build one lowerdir."""
    cache = context.layout.cache
    # What only makes views is loaded when one is made: most mounts find them all.
    match strategy:
        case Erofs():
            image = find_image(cache, name) or _built(context, name, entries)
            return Lower(image.path, name, shifted, image=True)
        case Composefs():
            name += COMPOSEFS_SUFFIX
            image = find_image(cache, name) or _built_without_contents(context, name, entries)
            return Lower(image.path, name, shifted, image=True, data=cache / "pool")
        case _:
            from lading.materialize.farm import build_farm, find_farm

            path = find_farm(cache, name)
            if path is None:
                make_private(context.layout.trees)
                with sharing(context.layout.trees, name):
                    path = find_farm(cache, name)
                    if path is None:
                        built = build_farm(cache, name, entries(), context.objects, context.abilities)
                        path = built.path
                        context.warn_of(built.warnings)
            return Lower(path, name, shifted)


def _covers(conn: Connection, key: str, maps: Maps) -> bool:
    """Tell whether maps have a place for every owner in a content; a mount can show no others."""
    query = (
        "SELECT DISTINCT i.uid, i.gid FROM content c JOIN entry e ON e.content_id = c.id JOIN inode i ON i.id = e.inode_id "
        "WHERE c.key = ?"
    )
    return all(maps.has(uid, gid) for uid, gid in conn.execute(query, (key,)))


def _covers_all(entries: Sequence[Entry], maps: Maps) -> bool:
    return all(maps.has(entry.inode.uid, entry.inode.gid) for entry in entries if entry.inode is not None)


def _digest(maps: Maps) -> list[str]:
    """What tells trees shown under maps from those shown as they are."""
    return [f"maps {maps.uid} {maps.gid}"] if maps else []


def _tree(steps: Sequence[_Step]) -> dict[bytes, Entry]:
    """The full tree of some steps; live uppers are walked for their directories."""
    contents: list[Sequence[Entry]] = []
    for step in reversed(steps):
        if step.live is None:
            contents.append(_entries(step))
        else:
            contents.append(views.walked(step.live))
    return {entry.path: entry for entry in trees.flatten(contents)}


def _entries(step: _Step) -> list[Entry]:
    with step.home.catalog.read() as conn:
        return catalog_content.entries(conn, step.key)


def _built(context: Context, name: str, entries: Entries) -> Image:
    from lading.materialize.imagebuild import build_image

    image = build_image(context.layout.cache, name, entries, context.objects)
    if image.built:
        context.warn_of(image.warnings)
    return image


def _built_without_contents(context: Context, name: str, entries: Entries) -> Image:
    from lading.materialize.imagebuild import build_image
    from lading.materialize.poolfill import fill_pool, pool_path

    def prepare(wanted: Sequence[Entry]) -> bytes:
        return fill_pool(context.layout.cache, wanted, context.objects)

    return build_image(context.layout.cache, name, entries, context.objects, redirect=pool_path, prepare=prepare)


def _flattened(context: Context, steps: Sequence[_Step], maps: Maps, strategy: Strategy) -> Lower:
    """One lowerdir of the full tree of many contents."""
    shifted = bool(maps) and context.abilities.shifted_lowers and _all_covered(steps, maps)
    built = NO_MAPS if shifted else maps
    # Named after the uppermost content: while a layer has that one, it has all below as well.
    name = name_of(steps[0].key, "flat", *(step.key for step in steps), *_digest(built))
    return _made(context, strategy, name, lambda: built.shown(_flat_tree(steps)), shifted)


def _all_covered(steps: Sequence[_Step], maps: Maps) -> bool:
    for step in steps:
        with step.home.catalog.read() as conn:
            if not _covers(conn, step.key, maps):
                return False
    return True


def _flat_tree(steps: Sequence[_Step]) -> list[Entry]:
    """The full tree of sealed contents: picked out by the catalog where one has them all."""
    homes = {id(step.home): step.home for step in steps}
    if len(homes) > 1:
        return list(_tree(steps).values())
    (home,) = homes.values()
    with home.catalog.read() as conn:
        visible, origins = catalog_flatten.visible(conn, [step.key for step in reversed(steps)])
    return trees.settled_tree(visible, origins)


def name_of(key: str, *parts: str) -> str:
    """Name a view after its content, so that a collection can tell whose it is; free of special characters."""
    name = blake3(key.encode()).hexdigest(16)
    return name if not parts else f"{name}-{blake3('/'.join(parts).encode()).hexdigest(8)}"


def live_stems(context: Context, *, without: Collection[str]) -> set[str]:
    """The stems of the views of all ready contents.

    Args:
        context: the store; those beside it count as well.
        without: stems of contents of this store that count as gone.
    """
    live: set[str] = set()
    for part in context.stores:
        with part.catalog.read() as conn:
            rows = conn.execute("SELECT key FROM content WHERE key IS NOT NULL AND state = 'ready'")
            found = {name_of(row[0]) for row in rows}
        live |= found - set(without) if part is context else found
    return live


def mounted_views(context: Context) -> set[str]:
    """Names of what mounts of this boot are stacked from, and of the empty roots."""
    return views_in_use(areas.in_use(context), context.layout.cache)


def views_in_use(used: Used, root: Path) -> set[str]:
    """Names of what mounts are stacked from, and of the empty roots.

    Args:
        used: what they use.
        root: the store's cache.
    """
    from lading.materialize.cache import present

    if used.all:
        return set(present(root))
    found = set(used.views)
    found |= {Path(mount.root).name for mount in mountinfo() if f"/cache/trees/{SHOWN_PREFIX}" in mount.root}
    return found | {name for name in present(root) if name.startswith(ROOT_PREFIX)}


def stem_of(name: str) -> str:
    """The part of a view's name that tells its content."""
    return name.removesuffix(COMPOSEFS_SUFFIX).partition("-")[0]


def farm_of_tree(context: Context, tree: Sequence[Entry], source: ContentSource) -> FarmInfo:
    """A tree of hard links of a full tree, whatever the strategy; its views go with its last use."""
    from lading.materialize.farm import build_farm

    listed = blake3()
    for entry in tree:
        listed.update(repr((entry.path, entry.link)).encode() + (inode_key(entry.inode) if entry.inode else b""))
    name = f"{SHOWN_PREFIX}{listed.hexdigest(16)}"
    return build_farm(context.layout.cache, name, tree, source, context.abilities)


def empty_root(context: Context, layer: Layer, maps: Maps = NO_MAPS) -> Lower:
    """An empty folder that carries a layer's root attributes: the top of a read-only stack."""
    uid, gid = maps.to_host(layer.root_uid, layer.root_gid)
    name = f"{ROOT_PREFIX}{layer.root_mode:04o}-{uid}-{gid}"
    folder = context.layout.trees / name
    if not folder.is_dir():
        private.make_folders(folder)
        os.chown(folder, uid, gid)
        os.chmod(folder, layer.root_mode)
    return Lower(folder, name)
