"""Containers: a record and a writable layer, made and deleted together."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lading import trees
from lading.catalog import containers as catalog_containers
from lading.catalog import layers as catalog_layers
from lading.catalog import names as catalog_names
from lading.catalog.database import Connection
from lading.errors import ContainerUnknown, LayerUnknown, NotAContainer
from lading.flows import areas, images, layers, reserve, sealing, views
from lading.flows.accounting import files_below
from lading.flows.context import Context
from lading.flows.opening import make_private
from lading.flows.records import check_id, check_names, check_text
from lading.objects.durable import make_dir
from lading.values import Container, IDMap, Layer


def list_all(context: Context) -> list[Container]:
    """List all containers, oldest first."""
    with context.catalog.read() as conn:
        return catalog_containers.list_containers(conn)


def find(context: Context, ref: str) -> Container | None:
    """Look a container up, also by its layer's id; None when nothing answers."""
    with context.catalog.read() as conn:
        return find_in(conn, ref)


def find_in(conn: Connection, ref: str) -> Container | None:
    """Look a container up in a snapshot or transaction."""
    found = catalog_names.resolve(conn, "container", ref)
    return catalog_containers.get_container(conn, found) if found is not None else None


def get(context: Context, ref: str) -> Container:
    """Look a container up.

    Raises:
        ContainerUnknown: nothing answers to the reference.
    """
    found = find(context, ref)
    if found is None:
        raise ContainerUnknown()
    return found


def create(
    context: Context,
    image: str,
    *,
    id: str,
    names: Sequence[str],
    layer_id: str,
    metadata: str,
    volatile: bool,
    uidmap: Sequence[IDMap],
    gidmap: Sequence[IDMap],
    flags: Mapping[str, object],
) -> Container:
    """Make a container and its writable layer in one commit."""
    context.need_writable()
    fresh = Container(
        check_id(id, "container"), names=check_names(names), metadata=check_text(metadata, "metadata"),
        created_ns=time.time_ns(), uidmap=tuple(uidmap), gidmap=tuple(gidmap),
        flags={"MountLabel": "", "ProcessLabel": "", **flags, **({"Volatile": True} if volatile else {})},
    )  # fmt: skip
    check_id(layer_id, "layer")
    if image:
        _seal_top(context, images.get(context, image).layer)
    with context.catalog.write("create-container") as tx:
        base = images.get_in(tx.conn, image) if image else None
        if base is not None and base.layer and catalog_layers.get_layer(tx.conn, base.layer) is None:
            raise LayerUnknown()
        layer = layers.insert(
            tx, Layer(layer_id, created_ns=fresh.created_ns, uidmap=fresh.uidmap, gidmap=fresh.gidmap),
            base.layer if base is not None else "",
        )  # fmt: skip
        container = replace(
            fresh,
            id=fresh.id or catalog_names.new_id(tx.conn, "container"),
            image=base.id if base else "",
            layer=layer.id,
        )
        catalog_containers.create_container(tx, container)
        return container


def _seal_top(context: Context, layer_id: str) -> None:
    if layer_id:
        layer = layers.find(context, layer_id)
        if layer is not None:
            sealing.seal_if_idle(context, layer)


def size(context: Context, ref: str) -> int:
    """Sum a container's own changes, its big data and the files of both its directories.

    Raises:
        LayerUnknown: its layer is gone.
    """
    container = get(context, ref)
    layer = layers.get(context, container.layer)
    own = trees.diff_size(views.stack(context, layer, views.LiveFiles(context.reader)).changes())
    data = sum(item.size for item in container.big_data)
    folders = (_directory(context, container.id), _run_directory(context, container.id))
    return own + data + sum(files_below(folder) for folder in folders)


def delete(context: Context, ref: str) -> None:
    """Delete a container, its layer and its directories."""
    with context.catalog.read() as conn:
        container = find_in(conn, ref)
    if container is None:
        raise NotAContainer()
    context.need_writable()
    found = container
    reserve.with_room(context, lambda: _delete(context, found))


def _delete(context: Context, container: Container) -> None:
    with areas.released(context, [container.layer]), context.catalog.write("delete-container") as tx:
        present = catalog_containers.get_container(tx.conn, container.id)
        if present is None:
            raise NotAContainer()
        catalog_containers.delete_container(tx, present.id)
        if catalog_layers.get_layer(tx.conn, present.layer) is not None:
            catalog_layers.delete_layer(tx, present.layer)
    for folder in (_directory(context, container.id).parent, _run_directory(context, container.id).parent):
        if folder.is_dir():
            areas.discard(context, folder) if folder.is_relative_to(context.root) else shutil.rmtree(folder)


def _directory(context: Context, container_id: str) -> Path:
    return context.layout.userdata("container", container_id)


def _run_directory(context: Context, container_id: str) -> Path:
    return context.run / "containers" / container_id / "userdata"


def directory(context: Context, ref: str) -> Path:
    """Return a container's persistent directory, making it when missing."""
    folder = _directory(context, get(context, ref).id)
    if not folder.is_dir():
        context.need_writable()
        for step in (folder.parent.parent, folder.parent, folder):
            if not step.is_dir():
                make_dir(step)
    return folder


def run_directory(context: Context, ref: str) -> Path:
    """Return a container's directory of this boot, making it when missing."""
    folder = _run_directory(context, get(context, ref).id)
    make_private(folder)
    return folder
