"""Owners of the folders above a mount point: those a user namespace must know to get there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lading.errors import LayerNotMounted, LayerUnknown
from lading.flows import containers, layers, stores
from lading.flows.context import Context
from lading.values import IDMap, Layer


@dataclass(frozen=True, slots=True)
class ParentOwners:
    """Owners that a layer's maps do not cover, sorted. None where the layer has no maps."""

    id: str
    uids: tuple[int, ...] | None = None
    gids: tuple[int, ...] | None = None


def of_layer(context: Context, ref: str) -> ParentOwners:
    """The owners above a layer's mount point."""
    return _owners(context, layers.get(context, ref))


def of_container(context: Context, ref: str) -> ParentOwners:
    """The owners above a container's mount point."""
    container = containers.get(context, ref)
    layer = stores.layer_by_id(context, container.layer)
    if layer is None:
        raise LayerUnknown()
    found = _owners(context, layer)
    return ParentOwners(container.id, found.uids, found.gids)


def _owners(context: Context, layer: Layer) -> ParentOwners:
    if not layer.uidmap and not layer.gidmap:
        return ParentOwners(layer.id)
    record = context.mount_table.get(layer.id)
    if record is None:
        raise LayerNotMounted()
    uids: set[int] = set()
    gids: set[int] = set()
    for path in (record.path, Path(os.path.realpath(record.path))):
        for folder in path.parents:
            if folder == Path("/"):
                continue
            for status in (os.lstat(folder), os.stat(folder)):
                if not _covers(layer.uidmap, status.st_uid):
                    uids.add(status.st_uid)
                if not _covers(layer.gidmap, status.st_gid):
                    gids.add(status.st_gid)
    return ParentOwners(layer.id, tuple(sorted(uids)), tuple(sorted(gids)))


def _covers(ranges: tuple[IDMap, ...], number: int) -> bool:
    return not ranges or any(0 <= number - item.host_id < item.size for item in ranges)
