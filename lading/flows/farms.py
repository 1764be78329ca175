"""Which folders a layer's mount is stacked from: cached farms, live uppers, an empty root."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from lading import trees
from lading.catalog import content as catalog_content
from lading.catalog.database import Connection
from lading.errors import InUse
from lading.flows import areas, stores, views
from lading.flows.context import Context
from lading.idmaps import NO_MAPS, Maps
from lading.materialize.farm import build_farm, find_farm
from lading.values import Entry, Layer


@dataclass(frozen=True, slots=True)
class _Step:
    """One lowerdir: a sealed content, or the live upper of a mounted ancestor."""

    home: Context  #: the store that has it
    key: str
    live: Path | None = None


@dataclass(frozen=True, slots=True)
class Lower:
    """A folder to stack."""

    path: Path
    shifted: bool = False  #: its owners are the container's, to be shifted by the mount


def lowerdirs(context: Context, layer: Layer, *, maximum: int, maps: Maps = NO_MAPS) -> list[Lower]:
    """Make the lowerdirs of a layer's mount, topmost first.

    Args:
        context: the store; the caller holds an epoch lock.
        layer: what is to be mounted.
        maximum: with more of them, all sealed contents are flattened into one.
        maps: how owners are shown.
    """
    steps = _steps(context, layer)
    if len(steps) > maximum and all(step.live is None for step in steps):
        return [_flattened(context, steps, maps)]
    folders = [_folder(context, step, steps[position + 1 :], maps) for position, step in enumerate(steps)]
    # A diff may come twice in a chain (empty ones often do), and overlay takes no folder twice. The higher one says
    # all that the lower one said, so that nothing of the latter could be seen.
    return list(dict.fromkeys(folders))


def _steps(context: Context, layer: Layer) -> list[_Step]:
    """Order what a layer is made of, topmost first, down to what hides everything below."""
    steps: list[_Step] = []
    for step in views.chain_of(context, layer):
        home = stores.home(context, step)
        if step.write_kind == "upper" and step.id != layer.id:
            upper = areas.current(home, step) / "upper"
            if upper.is_dir():
                steps.append(_Step(home, "", upper))
        with home.catalog.read() as conn:
            for key in reversed(step.contents):
                steps.append(_Step(home, key))
                if catalog_content.has_opaque_root(conn, key):
                    return steps
    return steps


def _folder(context: Context, step: _Step, below: Sequence[_Step], maps: Maps) -> Lower:
    if step.live is not None:
        found = areas.maps_of(step.live.parent)
        if found != maps and (found or not context.abilities.shifted_lowers):
            raise InUse(f"{step.live} is mounted for writing under other ID maps; unmount it first")
        return Lower(step.live, found != maps)
    with step.home.catalog.read() as conn:
        implied = catalog_content.has_implied(conn, step.key)
        shifted = bool(maps) and context.abilities.shifted_lowers and _covers(conn, step.key, maps)
    built = NO_MAPS if shifted else maps
    if not implied:
        name = _name(step.key, *_digest(built))
        path = find_farm(context.layout.cache, name) or _build(context, name, built.shown(_entries(step)))
        return Lower(path, shifted)
    tree = _tree(below)
    entries, inherited = trees.inherit(tree, _entries(step))
    if shifted and not _covers_all(entries, maps):
        shifted, built = False, maps
    name = _name(step.key, inherited, *_digest(built))
    return Lower(find_farm(context.layout.cache, name) or _build(context, name, built.shown(entries)), shifted)


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


def _flattened(context: Context, steps: Sequence[_Step], maps: Maps) -> Lower:
    """One farm of the full tree of many contents."""
    name = _name("flat", *(step.key for step in steps), *_digest(maps))
    found = find_farm(context.layout.cache, name)
    return Lower(found or _build(context, name, maps.shown(_tree(steps).values())))


def _build(context: Context, name: str, entries: Sequence[Entry]) -> Path:
    info = build_farm(context.layout.cache, name, entries, context.objects, context.abilities)
    return info.path


def _name(key: str, *parts: str) -> str:
    """Name a farm after its content, so that a collection can tell whose it is; free of special characters."""
    name = blake3(key.encode()).hexdigest(16)
    return name if not parts else f"{name}-{blake3('/'.join(parts).encode()).hexdigest(8)}"


def present(context: Context) -> list[str]:
    """Names of the farms in the cache."""
    names = (item.name for item in os.scandir(context.layout.trees) if item.is_dir(follow_symlinks=False))
    return sorted(name for name in names if not name.startswith("."))


def needed(context: Context, *, planned: bool) -> set[str]:
    """Names of the farms to keep: of contents that a layer has, and of whatever is mounted.

    Args:
        context: the store.
        planned: contents that are only about to be condemned count as gone.
    """
    query = "SELECT key FROM content WHERE key IS NOT NULL AND state = 'ready'"
    if planned:
        query += (
            " AND (EXISTS (SELECT 1 FROM layer_content lc WHERE lc.content_id = content.id)"
            " OR EXISTS (SELECT 1 FROM layer l WHERE l.replay_content_id = content.id))"
        )
    live: set[str] = set()
    for part in context.stores:
        with part.catalog.read() as conn:
            live.update(_name(row[0]) for row in conn.execute(query))
    mounted = any(record.source for record in context.mount_table.records())
    return {name for name in present(context) if name.partition("-")[0] in live or name.startswith("root-") or mounted}


def empty_root(context: Context, layer: Layer, maps: Maps = NO_MAPS) -> Path:
    """An empty folder that carries a layer's root attributes: the top of a read-only stack."""
    uid, gid = maps.to_host(layer.root_uid, layer.root_gid)
    folder = context.layout.trees / f"root-{layer.root_mode:04o}-{uid}-{gid}"
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chown(folder, uid, gid)
        os.chmod(folder, layer.root_mode)
    return folder
