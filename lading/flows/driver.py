"""Layers as the driver keeps them: every layer there is a folder or a record for, recorded or not.

Our contents need no folder. One is made for a layer on request only, by callers who want to see what upkeep
does with a layer that nothing records.
"""

from __future__ import annotations

import os
from typing import Final

from lading.catalog import layers as catalog_layers
from lading.catalog import names as catalog_names
from lading.errors import NotFound
from lading.flows import areas
from lading.flows.context import Context
from lading.flows.records import check_id
from lading.objects.durable import make_dir
from lading.values import printable

#: Folder inside a layer's: it was made on request, without a record. Leftovers of killed commands lack it.
_MARK: Final = "unrecorded"


def ids(context: Context) -> list[str]:
    """Ids of all layers of the main store, recorded or not, sorted."""
    with context.catalog.read() as conn:
        recorded = {layer.id for layer in catalog_layers.list_layers(conn)}
    return sorted(recorded | set(unrecorded(context)))


def unrecorded(context: Context) -> list[str]:
    """Ids of layers that were made without a record and have none still."""
    try:
        names = sorted(os.listdir(context.layout.layers))
    except FileNotFoundError:
        return []
    marked = [name for name in names if (context.layout.layers / name / _MARK).is_dir()]
    with context.catalog.read() as conn:
        return [name for name in marked if catalog_names.seq_of(conn, "layer", name) is None]


def create(context: Context, layer_id: str, parent: str) -> str:
    """Make a layer without a record.

    Args:
        context: the store.
        layer_id: its id; empty to draw one. One that is there stays as it is.
        parent: id of the layer below, taken literally.

    Returns:
        The id.

    Raises:
        NotFound: the parent is not there.
    """
    context.need_writable()
    check_id(layer_id, "layer")
    known = ids(context)
    if parent and parent not in known:
        raise NotFound(f"Stat {context.layout.layers / printable(parent)}: no such file or directory")
    with context.catalog.read() as conn:
        chosen = layer_id or catalog_names.new_id(conn, "layer")
    with areas.locked(context, [chosen], "create"):
        make_dir(context.layout.layers / chosen / _MARK)
    return chosen


def remove(context: Context, layer_id: str) -> None:
    """Remove a layer that nothing records; one that has a record by now stays."""
    with areas.locked(context, [layer_id], "remove"):
        with context.catalog.read() as conn:
            if catalog_names.seq_of(conn, "layer", layer_id) is not None:
                return
        areas.remove_unused(context, layer_id, keep=None)
