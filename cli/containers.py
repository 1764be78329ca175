"""Commands about containers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from lading.cli import output
from lading.cli.idmap import idmap_options, map_request
from lading.cli.images import metadata_of, metadata_options, size_line
from lading.cli.layers import report_deleted
from lading.cli.parse import FAILURE, json_option, names_option
from lading.cli.session import Session, command, per_argument
from lading.errors import ContainerUnknown, ImageUnknown
from lading.values import Container


@command(
    "create-container",
    count=(1, 1),
    usage="IMAGE",
    params=(
        click.option("--id", "-i", "record_id", default="", metavar="ID", help="The id to use; empty to draw one."),
        names_option,
        click.option("--volatile", is_flag=True, help="Mount without syncing what is written."),
        *metadata_options,
        json_option,
        *idmap_options,
    ),
)
def create_container(
    session: Session,
    arguments: Sequence[str],
    record_id: str,
    names: Sequence[str],
    volatile: bool,
    metadata: str,
    metadata_file: str | None,
    as_json: bool,
    **maps: Any,
) -> None:
    """Make a container: a writable layer on an image's top layer."""
    text = metadata_of(metadata, metadata_file)
    made = session.store.containers.create(
        arguments[0], id=record_id, names=names, metadata=text, volatile=volatile, idmap=map_request(maps)
    )
    output.created_text(made, output.container_json(made) if as_json else None)


@command(
    "commit",
    count=(1, 1),
    usage="CONTAINER",
    params=(
        click.option("--id", "-i", "record_id", default="", metavar="ID", help="The image's id; empty to draw one."),
        names_option,
        *metadata_options,
        json_option,
    ),
)
def commit(
    session: Session,
    arguments: Sequence[str],
    record_id: str,
    names: Sequence[str],
    metadata: str,
    metadata_file: str | None,
    as_json: bool,
) -> None:
    """Make an image of a container as it is now."""
    text = metadata_of(metadata, metadata_file)
    made = session.store.commit(arguments[0], id=record_id, names=names, metadata=text)
    output.created_text(made, output.image_json(made) if as_json else None)


@command(
    "clone",
    count=(1, 1),
    usage="CONTAINER",
    params=(
        click.option("--id", "-i", "record_id", default="", metavar="ID", help="The new container's id."),
        names_option,
        json_option,
    ),
)
def clone(session: Session, arguments: Sequence[str], record_id: str, names: Sequence[str], as_json: bool) -> None:
    """Make another container like this one, its writes included."""
    made = session.store.clone(arguments[0], id=record_id, names=names)
    output.created_text(made, output.container_json(made) if as_json else None)


@command("containers", params=(json_option,))
def containers(session: Session, arguments: Sequence[str], as_json: bool) -> None:
    """List all containers."""
    found = session.store.containers.all()
    if as_json:
        output.emit_json([output.container_json(item) for item in found])
        return
    for item in found:
        output.line(output.shown(item.id))
        for name in item.names:
            output.line(f"\tname: {output.shown(name)}")
        for data in item.big_data:
            output.line(f"\tdata: {output.shown(data.key)}")


@command("container", count=(1, None), usage="CONTAINER...", params=(json_option,))
def container(session: Session, arguments: Sequence[str], as_json: bool) -> int:
    """Show containers."""
    found: list[Container] = []
    for argument in arguments:
        try:
            found.append(session.store.containers.get(argument))
        except ContainerUnknown:
            continue
    if as_json:
        output.emit_json([output.container_json(item) for item in found])
    else:
        for item in found:
            for text in _container_lines(session, item):
                output.line(text)
    return 0 if len(found) == len(arguments) else FAILURE


def _container_lines(session: Session, container: Container) -> list[str]:
    lines = [f"ID: {output.shown(container.id)}", *(f"Name: {output.shown(name)}" for name in container.names)]
    lines.append(f"Image: {output.shown(container.image)}")
    if container.image:
        try:
            names = session.store.images.get(container.image).names
        except ImageUnknown:
            names = ()
        lines += [f"Image name: {output.shown(name)}" for name in names]
    lines.append(size_line(lambda: session.store.containers.size(container.id)))
    lines.append(f"Layer: {output.shown(container.layer)}")
    lines += [f"Data: {output.shown(item.key)}" for item in container.big_data]
    return lines


@command("get-container-dir", count=(1, 1), usage="CONTAINER")
def get_container_dir(session: Session, arguments: Sequence[str]) -> None:
    """Print a container's persistent directory, making it when missing."""
    output.line(str(session.store.containers.directory(arguments[0])))


@command("get-container-run-dir", count=(1, 1), usage="CONTAINER")
def get_container_run_dir(session: Session, arguments: Sequence[str]) -> None:
    """Print a container's directory of this boot, making it when missing."""
    output.line(str(session.store.containers.run_directory(arguments[0])))


@command("delete-container", count=(1, None), usage="CONTAINER...", params=(json_option,))
def delete_container(session: Session, arguments: tuple[str, ...], as_json: bool) -> int:
    """Delete containers with their layers."""
    return report_deleted(per_argument(arguments, session.store.containers.delete), as_json)
