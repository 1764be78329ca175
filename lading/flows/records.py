"""What works on records of any kind: look-up, names, metadata, unchecked deletion, SQL."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from lading.catalog import containers as catalog_containers
from lading.catalog import images as catalog_images
from lading.catalog import layers as catalog_layers
from lading.catalog import names as catalog_names
from lading.catalog import sql as catalog_sql
from lading.catalog.engine import Connection
from lading.errors import InvalidInput, LayerUnknown, NotALayer, NotAnID
from lading.flows import stores
from lading.flows.context import Context
from lading.values import RECORD_KINDS, Container, Image, Layer, Record, RecordKind, check_record_id, printable, unique


def fetch(context: Context, kind: RecordKind, origin: int, record_id: str) -> Record:
    """Read a record that was found.

    Raises:
        NotAnID: it is gone meanwhile.
    """
    with context.stores[origin].catalog.read() as conn:
        record = fetch_in(conn, kind, record_id)
    if record is None:
        raise NotAnID(printable(record_id))
    match record:
        case Layer():
            return stores.marked_layer(context, record, origin)
        case Image():
            return stores.marked_image(context, record, origin)
    return record


def fetch_in(conn: Connection, kind: RecordKind, record_id: str) -> Record | None:
    """Read a record of one store."""
    match kind:
        case "layer":
            return catalog_layers.get_layer(conn, record_id)
        case "image":
            return catalog_images.get_image(conn, record_id)
        case "container":
            return catalog_containers.get_container(conn, record_id)


def lookup(context: Context, ref: str) -> Record:
    """Find a record of any kind."""
    with stores.snapshot(context):
        found = stores.find_any(context, ref, RECORD_KINDS)
        if found is None:
            raise LayerUnknown()
        return fetch(context, *found)


def exists(context: Context, ref: str, kinds: Collection[RecordKind]) -> bool:
    """Tell whether a reference is known, in each of the kinds, or in any when none is given."""
    if not kinds:
        return stores.find_any(context, ref, RECORD_KINDS) is not None
    return all(exists_as(context, ref, kind) for kind in kinds)


def exists_as(context: Context, ref: str, kind: RecordKind) -> bool:
    """Tell whether a record of a kind answers to the reference."""
    if kind == "image" and len(context.stores) > 1:
        return stores.find_image(context, ref) is not None  # one store's record may hide another's
    return stores.find_any(context, ref, (kind,)) is not None


def names(context: Context, ref: str) -> tuple[str, ...]:
    """List a record's names."""
    return lookup(context, ref).names


def check_text(text: str, what: str) -> str:
    """Refuse text that the catalog cannot keep.

    Raises:
        InvalidInput: it is not valid UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{what} {printable(text)} is not valid UTF-8") from error
    return text


def check_names(values: Sequence[str]) -> tuple[str, ...]:
    """Drop repetitions and refuse names that the catalog cannot keep."""
    return unique([check_text(name, "name") for name in values])


def check_id(text: str, kind: RecordKind) -> str:
    """Refuse an id that could not be a file name. An empty one means "draw one".

    Raises:
        InvalidInput: with the reason.
    """
    if text:
        reason = check_record_id(text)
        if reason:
            raise InvalidInput(f'{kind} id "{printable(text)}" {reason}')
    return text


def set_names(context: Context, ref: str, values: Sequence[str]) -> tuple[str, ...]:
    """Replace a record's names."""
    return _update_names(context, ref, "set-names", lambda _: check_names(values))


def add_names(context: Context, ref: str, values: Sequence[str]) -> tuple[str, ...]:
    """Put names in front of a record's names."""
    added = check_names(values)
    return _update_names(context, ref, "add-names", lambda old: unique([*added, *old]))


def remove_names(context: Context, ref: str, values: Sequence[str]) -> tuple[str, ...]:
    """Remove names from a record."""
    gone = set(values)
    return _update_names(context, ref, "remove-names", lambda old: tuple(name for name in old if name not in gone))


def _update_names(
    context: Context, ref: str, verb: str, change: Callable[[Sequence[str]], tuple[str, ...]]
) -> tuple[str, ...]:
    context.need_writable()
    return stores.settled(lambda: _change_names(context, ref, verb, change))


def _change_names(
    context: Context, ref: str, verb: str, change: Callable[[Sequence[str]], tuple[str, ...]]
) -> tuple[str, ...]:
    found = stores.find_any(context, ref, RECORD_KINDS)
    if found is None:
        raise LayerUnknown()
    kind, origin, record_id = found
    if origin >= context.writable_stores:
        if kind != "image":
            raise LayerUnknown()
        from lading.flows import images

        origin = images.pulled_up(context, record_id).origin
        found = kind, origin, record_id
    with context.stores[origin].catalog.write(verb) as tx:
        if stores.find_any(context, ref, RECORD_KINDS) != found:
            raise stores.Moved
        record = fetch_in(tx.conn, kind, record_id)
        if record is None:
            raise LayerUnknown()
        result = change(record.names)
        catalog_names.set_names(tx, kind, record_id, result)
        return result


def metadata(context: Context, ref: str) -> str:
    """Return a record's metadata text."""
    with stores.snapshot(context):
        found = stores.find_any(context, ref, RECORD_KINDS)
        if found is None:
            raise NotAnID()
        return fetch(context, *found).metadata


def set_metadata(context: Context, ref: str, text: str) -> None:
    """Replace a record's metadata text."""
    context.need_writable()
    check_text(text, "metadata")
    stores.settled(lambda: _change_metadata(context, ref, text))


def _change_metadata(context: Context, ref: str, text: str) -> None:
    found = _find_writable(context, ref, RECORD_KINDS)
    if found is None:
        raise NotAnID()
    kind, origin, record_id = found
    with context.stores[origin].catalog.write("set-metadata") as tx:
        if _find_writable(context, ref, RECORD_KINDS) != found:
            raise stores.Moved
        catalog_names.set_metadata(tx, kind, record_id, text)


def _find_writable(context: Context, ref: str, order: Sequence[RecordKind]) -> tuple[RecordKind, int, str] | None:
    """Resolve a reference over several kinds, in the stores that may be written to."""
    with stores.snapshot(context):
        for kind in order:
            for origin in stores.origins(context, kind):
                if origin >= context.writable_stores:
                    continue
                with context.stores[origin].catalog.read() as conn:
                    found = catalog_names.resolve(conn, kind, ref)
                if found is not None:
                    return kind, origin, found
    return None


def delete(context: Context, ref: str) -> None:
    """Delete a record of any kind without asking who uses it."""
    stores.settled(lambda: _delete(context, ref))


def _delete(context: Context, ref: str) -> None:
    from lading.flows import containers, images, layers

    order: tuple[RecordKind, ...] = ("container", "image", "layer")
    found = _find_writable(context, ref, order)
    if found is None:
        raise LayerUnknown()

    def unmoved() -> None:
        if _find_writable(context, ref, order) != found:
            raise stores.Moved

    match found:
        case ("container", _, record_id):
            containers.delete_found(context, record_id, unmoved, with_layer=True)
        case ("image", _, record_id):
            if not images.delete_record(context, record_id, unmoved):
                raise stores.Moved
        case (_, _, record_id):
            try:
                layers.delete_unchecked(context, record_id, unmoved)
            except NotALayer:  # another process deleted it between the look-up and here
                raise stores.Moved from None


def multi_list(context: Context, kinds: Collection[RecordKind]) -> tuple[list[Layer], list[Image], list[Container]]:
    """List several kinds, all of one store's from one snapshot."""
    from lading.flows import containers, images, layers

    with ExitStack() as snapshots:
        for part in context.stores:
            snapshots.enter_context(part.catalog.read())
        return (
            layers.list_all(context) if "layer" in kinds else [],
            images.list_all(context) if "image" in kinds else [],
            containers.list_all(context) if "container" in kinds else [],
        )


def query(context: Context, sql: str, parameters: Sequence[Any]) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
    """Run a reading query on the catalog."""
    return catalog_sql.query(context.catalog, sql, parameters)


def sql_shell_command(context: Context) -> list[str] | None:
    """Tell the command line of a safe SQL shell on the catalog."""
    return catalog_sql.shell_command(context.layout.catalog_db)
