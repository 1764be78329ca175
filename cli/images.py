"""Commands about images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from lading.cli import output
from lading.cli.parse import FAILURE, json_option, names_option, quiet_option
from lading.cli.session import Session, command
from lading.errors import ImageUnknown, LadingError
from lading.values import Image

metadata_options = (
    click.option("--metadata", "-m", "metadata", default="", metavar="TEXT", help="Metadata to record."),
    click.option(
        "--metadata-file", "-f", "metadata_file", default=None, metavar="PATH", help="Read the metadata here."
    ),
)


def metadata_of(text: str, path: str | None) -> str:
    """The metadata a user gave: a file beats text.

    Raises:
        InvalidInput: the file cannot be read or holds no UTF-8.
    """
    if path is None:
        return text
    try:
        return Path(path).read_bytes().decode("utf-8", "surrogateescape")
    except OSError as error:
        raise output.file_error(path, error) from error


@command(
    "create-image",
    count=(0, 1),
    usage="[LAYER]",
    params=(
        click.option("--id", "-i", "record_id", default="", metavar="ID", help="The id to use; empty to draw one."),
        names_option,
        click.option("--digest", "-d", default="", metavar="DIGEST", help="Digest by which the image is found."),
        *metadata_options,
        json_option,
    ),
)
def create_image(
    session: Session,
    arguments: Sequence[str],
    record_id: str,
    names: Sequence[str],
    digest: str,
    metadata: str,
    metadata_file: str | None,
    as_json: bool,
) -> None:
    """Make an image of a top layer, or without layers."""
    text = metadata_of(metadata, metadata_file)
    layer = arguments[0] if arguments else ""
    image = session.store.images.create(layer, id=record_id, names=names, digest=digest, metadata=text)
    output.created_text(image, output.image_json(image) if as_json else None)


def _listed(found: Sequence[Image], quiet: bool, as_json: bool, empty: Any) -> None:
    if as_json:
        output.emit_json([output.image_json(image) for image in found] or empty)
        return
    for image in found:
        output.line(output.shown(image.id))
        if quiet:
            continue
        for name in image.names:
            output.line(f"\tname: {output.shown(name)}")
        for digest in image.digests:
            output.line(f"\tdigest: {output.shown(digest)}")
        for item in image.big_data:
            output.line(f"\tdata: {output.shown(item.key)}")


@command("images", params=(quiet_option, json_option))
def images(session: Session, arguments: Sequence[str], quiet: bool, as_json: bool) -> None:
    """List all images."""
    _listed(session.store.images.all(), quiet, as_json, None)


@command("images-by-digest", count=(1, 1), usage="DIGEST", params=(quiet_option, json_option))
def images_by_digest(session: Session, arguments: Sequence[str], quiet: bool, as_json: bool) -> None:
    """List the images that a digest finds."""
    _listed(session.store.images.by_digest(arguments[0], strict=True), quiet, as_json, [])


@command("image", count=(1, None), usage="IMAGE...", params=(json_option,))
def image(session: Session, arguments: Sequence[str], as_json: bool) -> int:
    """Show images."""
    found: list[Image] = []
    for argument in arguments:
        try:
            found.append(session.store.images.get(argument))
        except ImageUnknown:
            continue
    if as_json:
        output.emit_json([output.image_json(item) for item in found])
    else:
        for item in found:
            for text in _image_lines(session, item):
                output.line(text)
    return 0 if len(found) == len(arguments) else FAILURE


def _image_lines(session: Session, image: Image) -> list[str]:
    lines = [f"ID: {output.shown(image.id)}", *(f"Name: {output.shown(name)}" for name in image.names)]
    lines += [f"Top Layer: {output.shown(layer_id)}" for layer_id in (image.layer, *image.mapped_layers)]
    lines += [f"Digest: {output.shown(digest)}" for digest in image.digests]
    lines += [f"Data: {output.shown(item.key)}" for item in image.big_data]
    lines.append(size_line(lambda: session.store.images.size(image.id)))
    if image.read_only:
        lines.append("Read Only: true")
    return lines


def size_line(measure: Any) -> str:
    """``Size: N``, or why it is not known."""
    try:
        return f"Size: {measure()}"
    except LadingError as error:
        return f"Size unknown: {error}"


@command("get-image-dir", count=(1, 1), usage="IMAGE")
def get_image_dir(session: Session, arguments: Sequence[str]) -> None:
    """Print an image's persistent directory, making it when missing."""
    output.line(str(session.store.images.directory(arguments[0])))


@command("get-image-run-dir", count=(1, 1), usage="IMAGE")
def get_image_run_dir(session: Session, arguments: Sequence[str]) -> None:
    """Print an image's directory of this boot, making it when missing."""
    output.line(str(session.store.images.run_directory(arguments[0])))


@command(
    "delete-image",
    count=(1, None),
    usage="IMAGE...",
    params=(click.option("--test", "-t", is_flag=True, help="Only tell what would be removed."), json_option),
)
def delete_image(session: Session, arguments: Sequence[str], test: bool, as_json: bool) -> int:
    """Delete images with the layers that only they need."""
    report: dict[str, dict[str, Any]] = {}
    for argument in arguments:
        try:
            removed = session.store.images.delete(argument, dry_run=test)
        except LadingError as error:
            report[argument] = {"error": str(error)}
            continue
        report[argument] = {"deleted-layers": removed} if removed else {}
    status = FAILURE if any("error" in result for result in report.values()) else 0
    if as_json:
        output.emit_json(output.sorted_map(report))
        return status
    for argument, result in report.items():  # of an argument that was given twice the last result counts
        for words in [result["error"]] if "error" in result else result.get("deleted-layers", []):
            output.line(
                f"{output.shown(argument)}: {output.shown(words) if 'error' not in result else words}", err=True
            )
    return status
