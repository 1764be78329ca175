"""Commands that take a record of any kind: names, metadata, existence, unchecked deletion."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import click

from lading.cli import output
from lading.cli.images import metadata_of, metadata_options
from lading.cli.layers import report_deleted
from lading.cli.parse import FAILURE, json_option, names_option, quiet_option
from lading.cli.session import Session, command, per_argument
from lading.errors import InvalidInput, NotAnID
from lading.values import RecordKind


@command("get-names", count=(1, 1), usage="RECORD", params=(json_option,))
def get_names(session: Session, arguments: Sequence[str], as_json: bool) -> None:
    """List the names of a layer, image or container."""
    names = session.store.names(arguments[0])
    if as_json:
        output.emit_json(list(names))
        return
    for name in names:
        output.line(output.shown(name))


def _changed(
    change: Callable[[str, Sequence[str]], tuple[str, ...]], ref: str, names: Sequence[str], as_json: bool
) -> None:
    result = change(ref, names)
    if as_json:
        output.emit_json(list(result) or None)


@command("add-names", count=(1, None), usage="RECORD", params=(names_option, json_option))
def add_names(session: Session, arguments: Sequence[str], names: Sequence[str], as_json: bool) -> None:
    """Add names in front of a record's names, taking them from whoever has them."""
    _changed(session.store.add_names, arguments[0], names, as_json)


@command("remove-names", count=(1, None), usage="RECORD", params=(names_option, json_option))
def remove_names(session: Session, arguments: Sequence[str], names: Sequence[str], as_json: bool) -> None:
    """Remove names from a record."""
    _changed(session.store.remove_names, arguments[0], names, as_json)


@command("set-names", count=(1, None), usage="RECORD", params=(names_option, json_option))
def set_names(session: Session, arguments: Sequence[str], names: Sequence[str], as_json: bool) -> None:
    """Replace a record's names, taking them from whoever has them."""
    _changed(session.store.set_names, arguments[0], names, as_json)


@command("metadata", count=(1, None), usage="RECORD...", params=(quiet_option, json_option))
def metadata(session: Session, arguments: Sequence[str], quiet: bool, as_json: bool) -> int:
    """Print records' metadata."""
    found: dict[str, str] = {}
    for argument in arguments:
        try:
            found[argument] = session.store.metadata(argument).removesuffix("\n")
        except NotAnID:
            continue
    if as_json:
        output.emit_json(output.sorted_map(found))
    else:
        for argument in arguments:
            text = found.get(argument, "")
            if quiet:
                output.data(text)
            else:
                output.line(f"{output.shown(argument)}: {text}")
    return FAILURE if any(argument not in found for argument in arguments) else 0


@command("set-metadata", count=(1, 1), usage="RECORD", params=metadata_options)
def set_metadata(session: Session, arguments: Sequence[str], metadata: str, metadata_file: str | None) -> None:
    """Replace a record's metadata."""
    text = metadata_of(metadata, metadata_file)
    if not text and metadata_file is None:
        raise InvalidInput("no new metadata provided")
    session.store.set_metadata(arguments[0], text)


@command(
    "exists",
    count=(1, None),
    usage="RECORD...",
    params=(
        click.option("--layer", "-l", is_flag=True, help="It must be a layer."),
        click.option("--image", "-i", is_flag=True, help="It must be an image."),
        click.option("--container", "-c", is_flag=True, help="It must be a container."),
        quiet_option,
        json_option,
    ),
)
def exists(
    session: Session, arguments: Sequence[str], layer: bool, image: bool, container: bool, quiet: bool, as_json: bool
) -> int:
    """Tell whether records exist; exit 0 only if all do, in every kind demanded."""
    wanted: tuple[tuple[RecordKind, bool], ...] = (("layer", layer), ("image", image), ("container", container))
    kinds = [kind for kind, demanded in wanted if demanded]
    store = session.store
    found = {argument: store.exists(argument) for argument in arguments}
    if as_json:
        output.emit_json(output.sorted_map(found))
    elif not quiet:
        for argument, there in found.items():
            output.line(f"{output.shown(argument)}: {'true' if there else 'false'}")
    matched = all(store.exists(argument, kinds) for argument in found) if kinds else all(found.values())
    return 0 if matched else FAILURE


@command("delete", count=(1, None), usage="RECORD...", params=(json_option,))
def delete(session: Session, arguments: tuple[str, ...], as_json: bool) -> int:
    """Delete records without asking who uses them."""
    return report_deleted(per_argument(arguments, session.store.delete), as_json)
