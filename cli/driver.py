"""Commands about layers as the driver keeps them, and about owners above mount points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from lading.cli import output
from lading.cli.idmap import idmap_options, map_request
from lading.cli.parse import FAILURE, json_option
from lading.cli.session import Session, command
from lading.errors import ContainerUnknown, LadingError, LayerUnknown


@command("storage-layers", params=(json_option,))
def storage_layers(session: Session, arguments: Sequence[str], as_json: bool) -> None:
    """List the layers that the driver keeps, recorded or not."""
    found = session.store.graph_driver.layers()
    if as_json:
        output.emit_json(found)
        return
    for layer_id in found:
        output.line(output.shown(layer_id))


@command(
    "create-storage-layer",
    count=(0, 1),
    usage="[PARENT]",
    params=(
        click.option("--id", "-i", "record_id", default="", metavar="ID", help="The id to use; empty to draw one."),
        click.option("--label", "-l", default="", metavar="TEXT", help="Accepted for scripts."),
        click.option("--readonly", "-r", is_flag=True, help="Accepted for scripts."),
        json_option,
        *idmap_options,
    ),
)
def create_storage_layer(
    session: Session,
    arguments: Sequence[str],
    record_id: str,
    label: str,
    readonly: bool,
    as_json: bool,
    **maps: Any,
) -> None:
    """Make a layer in the driver alone, without a record: to see what check and gc do with it."""
    map_request(maps)
    made = session.store.graph_driver.create(record_id, parent=arguments[0] if arguments else "")
    if as_json:
        output.emit_json(made)
    else:
        output.line(output.shown(made))


def _owners(
    session: Session, arguments: Sequence[str], as_json: bool, ask: Callable[[str], Any], prefix: str, *, always: bool
) -> int:
    status = 0
    for argument in arguments:
        try:
            found = ask(argument)
        except (LayerUnknown, ContainerUnknown):
            status = FAILURE
            continue
        except LadingError as error:
            output.line(f"{prefix}: {error}", err=True)
            return FAILURE
        if as_json:
            lists = {"UIDs": found.uids, "GIDs": found.gids}
            output.emit_json({"ID": found.id, **{key: list(ids) if ids else None for key, ids in lists.items()}})
            continue
        output.line(f"ID: {output.shown(found.id)}")
        for title, ids in (("UIDs", found.uids), ("GIDs", found.gids)):
            if ids or always:
                output.line(f"{title}: [{' '.join(map(str, ids or ()))}]")
    return status


@command("layer-parent-owners", count=(1, None), usage="LAYER...", params=(json_option,))
def layer_parent_owners(session: Session, arguments: Sequence[str], as_json: bool) -> int:
    """List owners of the folders above layers' mount points that their ID maps do not cover."""
    return _owners(session, arguments, as_json, session.store.layers.parent_owners, "LayerParentOwner", always=False)


@command("container-parent-owners", count=(1, None), usage="CONTAINER...", params=(json_option,))
def container_parent_owners(session: Session, arguments: Sequence[str], as_json: bool) -> int:
    """List owners of the folders above containers' mount points that their ID maps do not cover."""
    ask = session.store.containers.parent_owners
    return _owners(session, arguments, as_json, ask, "ContainerParentOwner", always=True)
