"""Commands about layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from lading.cli import output
from lading.cli.idmap import idmap_options, map_request
from lading.cli.parse import FAILURE, file_option, json_option, names_option, quiet_option
from lading.cli.session import Session, command, per_argument, status_of
from lading.errors import LayerUnknown
from lading.values import Container, Image, Layer

_CREATE = (
    click.option("--id", "-i", "record_id", default="", metavar="ID", help="The id to use; empty to draw one."),
    names_option,
    click.option("--label", "-l", default="", metavar="TEXT", help="Mount label to record."),
    click.option("--readonly", "-r", is_flag=True, help="Keep it with the images in a split store."),
    json_option,
    *idmap_options,
)


@command("create-layer", count=(0, 1), usage="[PARENT]", params=_CREATE)
def create_layer(
    session: Session,
    arguments: Sequence[str],
    record_id: str,
    names: Sequence[str],
    label: str,
    readonly: bool,
    as_json: bool,
    **maps: Any,
) -> None:
    """Make an empty layer, on a parent or on nothing."""
    parent = arguments[0] if arguments else ""
    idmap = map_request(maps)
    layer = session.store.layers.create(parent, id=record_id, names=names, label=label, read_only=readonly, idmap=idmap)
    output.created_text(layer, output.layer_json(layer) if as_json else None)


@command("import-layer", count=(0, 1), usage="[PARENT]", params=(*_CREATE, file_option))
def import_layer(
    session: Session,
    arguments: Sequence[str],
    record_id: str,
    names: Sequence[str],
    label: str,
    readonly: bool,
    as_json: bool,
    file: str | None,
    **maps: Any,
) -> None:
    """Make a layer from a diff (a tar, plain or compressed) in one step."""
    parent = arguments[0] if arguments else ""
    idmap = map_request(maps)
    with output.opened(file) as stream, session.progress_bar("import-layer") as progress:
        layer = session.store.layers.import_(
            stream, parent, id=record_id, names=names, label=label, read_only=readonly, idmap=idmap, progress=progress
        )
    output.created_text(layer, output.layer_json(layer) if as_json else None)


@command(
    "layers",
    params=(click.option("--tree", "-t", is_flag=True, help="Draw parents and children."), quiet_option, json_option),
)
def layers(session: Session, arguments: Sequence[str], tree: bool, quiet: bool, as_json: bool) -> None:
    """List all layers."""
    store = session.store
    found = store.layers.all()
    if as_json:
        output.emit_json([output.layer_json(layer) for layer in found] or None)
        return
    if quiet and not tree:
        for layer in found:
            output.line(output.shown(layer.id))
        return
    users = _Users(store.images.all(), store.containers.all())
    if tree:
        mounted = {mount.layer: str(mount.path) for mount in store.mounts()}
        for text in draw_tree(found, lambda layer: users.notes(layer, mounted)):
            output.line(text)
        return
    for layer in found:
        for text in users.lines(layer):
            output.line(text)


class _Users:
    """Which images and containers use which layer."""

    def __init__(self, images: Sequence[Image], containers: Sequence[Container]) -> None:
        self.images: dict[str, list[Image]] = {}
        self.containers: dict[str, list[Container]] = {}
        for image in images:
            for layer_id in (image.layer, *image.mapped_layers):
                self.images.setdefault(layer_id, []).append(image)
        for container in containers:
            self.containers.setdefault(container.layer, []).append(container)

    def lines(self, layer: Layer) -> list[str]:
        """The plain listing of a layer."""
        lines = [output.shown(layer.id), *(f"\tname: {output.shown(name)}" for name in layer.names)]
        for kind, records in (("image", self.images), ("container", self.containers)):
            for record in records.get(layer.id, ()):
                lines.append(f"\t{kind}: {output.shown(record.id)}")
                lines += [f"\t\tname: {output.shown(name)}" for name in record.names]
        return lines

    def notes(self, layer: Layer, mounted: Mapping[str, str]) -> list[str]:
        """The notes of a layer in the tree."""
        notes = [f"name: {output.shown(name)}" for name in layer.names]
        if layer.id in mounted:
            notes.append(f"mount: {output.shown(mounted[layer.id])}")
        for kind, records in (("image", self.images), ("container", self.containers)):
            for record in records.get(layer.id, ()):
                notes.append(f"{kind}: {output.shown(record.id)}")
                notes += [f"{kind} name: {output.shown(name)}" for name in record.names]
        return notes


def draw_tree(found: Sequence[Layer], notes_of: Callable[[Layer], list[str]]) -> list[str]:
    """Draw layers below their parents; without recursion, for chains of any depth.

    Args:
        found: the layers in record order.
        notes_of: called with a layer for the lines below it.

    Returns:
        Lines; layers without parent hang below ``(base)``, those of a missing parent below its id.
    """
    by_id = {layer.id: layer for layer in found}
    children: dict[str, list[Layer]] = {}
    for layer in found:
        children.setdefault(layer.parent if layer.parent in by_id or layer.parent else "(base)", []).append(layer)
    roots = sorted((parent for parent in children if parent not in by_id), key=lambda root: (len(children[root]), root))
    lines: list[str] = []
    for root in roots:
        lines.append(output.shown(root))
        pending = [(layer, "", layer is children[root][-1]) for layer in reversed(children[root])]
        while pending:
            layer, indent, last = pending.pop()
            lines.append(f"{indent}{'└' if last else '├'}─{output.shown(layer.id)}")
            inner = indent + ("  " if last else "│ ")
            lines += [f"{inner}{note}" for note in notes_of(layer)]
            below = children.get(layer.id, [])
            pending += [(child, inner, child is below[-1]) for child in reversed(below)]
    return lines


@command("layer", count=(1, None), usage="LAYER...", params=(json_option,))
def layer(session: Session, arguments: Sequence[str], as_json: bool) -> int:
    """Show layers."""
    found: list[Layer] = []
    for argument in arguments:
        try:
            found.append(session.store.layers.get(argument))
        except LayerUnknown:
            continue
    if as_json:
        output.emit_json([output.layer_json(item) for item in found])
    else:
        for item in found:
            for text in _layer_lines(item):
                output.line(text)
    return 0 if len(found) == len(arguments) else FAILURE


def _layer_lines(layer: Layer) -> list[str]:
    lines = [f"ID: {output.shown(layer.id)}"]
    for title, ranges in (("UID", layer.uidmap), ("GID", layer.gidmap)):
        lines += [f"{title} mapping: (container={r.container_id}, host={r.host_id}, size={r.size})" for r in ranges]
    if layer.parent:
        lines.append(f"Parent: {output.shown(layer.parent)}")
    lines += [f"Name: {output.shown(name)}" for name in layer.names]
    if layer.read_only:
        lines.append("Read Only: true")
    return lines


@command("delete-layer", count=(1, None), usage="LAYER...", params=(json_option,))
def delete_layer(session: Session, arguments: tuple[str, ...], as_json: bool) -> int:
    """Delete layers that nothing uses."""
    results = per_argument(arguments, session.store.layers.delete)
    return report_deleted(results, as_json)


def report_deleted(results: Mapping[str, str], as_json: bool) -> int:
    """Tell what became of things to be deleted: nothing for success, a line for a failure."""
    if as_json:
        output.emit_json(output.sorted_map(results))
    else:
        for argument, message in results.items():
            if message:
                output.line(f"{output.shown(argument)}: {message}", err=True)
    return status_of(results)
