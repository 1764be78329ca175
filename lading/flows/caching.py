"""The cache of views: what lies in it, what may go, and getting an image's views ready beforehand."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from lading.catalog import content as catalog_content
from lading.driveroptions import parse_size
from lading.errors import Busy
from lading.flows import lowers, mounting, stores
from lading.flows.context import Context
from lading.materialize import cache, imagebuild, imagecache
from lading.materialize.cachelock import cache_lock


@dataclass(frozen=True, slots=True)
class View:
    """One image or farm in the cache."""

    name: str
    kind: str  #: "image" or "tree"
    size: int  #: bytes of files that only it has
    used_ns: int  #: when it was last asked for, since 1970
    mounted: bool
    layers: tuple[str, ...]  #: ids of layers that have its content; none for a view of several


@dataclass(frozen=True, slots=True)
class Prefetched:
    """What was made ready for one image."""

    layer: str  #: its top layer
    views: tuple[str, ...]
    bytes: int  #: of the cache that was written for it


def views(context: Context) -> list[View]:
    """List the views in the cache, the most recently used first."""
    root = context.layout.cache
    owners = _owners(context)
    mounted = lowers.mounted_views(context)
    found = [
        View(name, kind, size, cache.last_used(root, name), name in mounted, owners.get(lowers.stem_of(name), ()))
        for kind, name, size in cache.measure(root)
        if kind in (cache.IMAGE, cache.TREE)
    ]
    return sorted(found, key=lambda view: (-view.used_ns, view.name))


def _owners(context: Context) -> dict[str, tuple[str, ...]]:
    """Layers by the part of a view's name that tells their content."""
    query = (
        "SELECT c.key, l.id FROM layer_content lc JOIN content c ON c.id = lc.content_id "
        "JOIN layer l ON l.seq = lc.layer_id ORDER BY l.seq"
    )
    found: dict[str, list[str]] = {}
    for part in context.stores:
        with part.catalog.read() as conn:
            for key, layer_id in conn.execute(query):
                found.setdefault(lowers.name_of(key), []).append(layer_id)
    return {name: tuple(layers) for name, layers in found.items()}


def sizes(context: Context) -> dict[str, int]:
    """Bytes of the cache by class; they sum to all its regular files."""
    found = dict.fromkeys((cache.IMAGE, cache.TREE, cache.POOL, cache.OTHER), 0)
    for kind, _, size in cache.measure(context.layout.cache):
        found[kind] += size
    return found


def evict(context: Context, *, budget: int | str, dry_run: bool = False) -> cache.Eviction:
    """Remove the least recently used views until the cache is within a budget; what is mounted stays."""
    context.need_writable()
    allowed = parse_size(budget) if isinstance(budget, str) else budget
    keep = partial(lowers.mounted_views, context)
    return cache.evict(context.layout.cache, keep=keep, budget=allowed, dry_run=dry_run, wait_s=context.settings.wait_s)


def settle(context: Context) -> None:
    """After something was built: keep the configured budget, unless others build or mount just now."""
    budget = context.settings.cache_budget
    if not budget or not context.writable:
        return
    with suppress(Busy):
        cache.evict(context.layout.cache, keep=partial(lowers.mounted_views, context), budget=budget, wait_s=0)


def prefetch(context: Context, ref: str, *, flatten: bool = False) -> Prefetched:
    """Make an image's views ready and durable, so that its first mount, in any boot, only mounts.

    Args:
        context: the store.
        ref: an image, a layer or a container.
        flatten: make the view of all its layers as one.
    """
    context.need_writable()
    layer = mounting.layer_of_any(context, ref)
    before = sum(sizes(context).values())
    with stores.epochs(context), cache_lock(context.layout.cache, wait_s=context.settings.wait_s):
        made = mounting.views_of(context, layer, flatten=flatten)
    for lower in made:
        if lower.image:
            imagebuild.make_durable(context.layout.cache, lower.name)
    written = sum(sizes(context).values()) - before
    return Prefetched(layer.id, tuple(lower.name for lower in made if lower.name), written)


def check(context: Context) -> tuple[int, list[str]]:
    """Compare images in the cache with what they should be; damaged ones go, and the next mount writes them again.

    An image that shows one content as it is is compared byte for byte. Of the others (several contents, inherited
    attributes, translated owners, redirects) size and metadata are.

    Returns:
        How many were looked at, and the names of those that were damaged.
    """
    context.need_writable()
    root = context.layout.cache
    contents = _contents(context)
    looked = 0
    damaged = []
    for view in views(context):
        if view.kind != cache.IMAGE:
            continue
        looked += 1
        if view.name in contents:
            part, key = contents[view.name]
            with part.catalog.read() as conn:
                entries = catalog_content.entries(conn, key)
            sound = imagebuild.check_image(root, view.name, entries)
        else:
            sound = imagebuild.has_sound_metadata(root, view.name)
            if not sound:
                imagecache.drop_image(root / "erofs", view.name)
        if not sound:
            damaged.append(view.name)
    return looked, damaged


def _contents(context: Context) -> dict[str, tuple[Context, str]]:
    """Ready contents, and the stores that have them, by the names of their views."""
    query = "SELECT key FROM content WHERE key IS NOT NULL AND state = 'ready'"
    found: dict[str, tuple[Context, str]] = {}
    for part in context.stores:
        with part.catalog.read() as conn:
            found.update({lowers.name_of(key): (part, key) for (key,) in conn.execute(query)})
    return found
