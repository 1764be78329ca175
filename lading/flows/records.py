"""What works on records of any kind: look-up, names, metadata, unchecked deletion, SQL."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from lading.catalog import containers as catalog_containers
from lading.catalog import images as catalog_images
from lading.catalog import layers as catalog_layers
from lading.catalog import names as catalog_names
from lading.catalog import sql as catalog_sql
from lading.catalog.database import Connection
from lading.errors import InvalidInput, LayerUnknown, NotAnID
from lading.flows.context import Context
from lading.values import RECORD_KINDS, Record, RecordKind, check_record_id, printable, unique


def find_any(conn: Connection, ref: str, order: Sequence[RecordKind] = RECORD_KINDS) -> tuple[RecordKind, str] | None:
    """Resolve a reference over several kinds, the first kind that knows it wins."""
    for kind in order:
        found = catalog_names.resolve(conn, kind, ref)
        if found is not None:
            return kind, found
    return None


def fetch(conn: Connection, kind: RecordKind, record_id: str) -> Record:
    """Read a record that is known to exist in this snapshot."""
    record: Record | None
    match kind:
        case "layer":
            record = catalog_layers.get_layer(conn, record_id)
        case "image":
            record = catalog_images.get_image(conn, record_id)
        case "container":
            record = catalog_containers.get_container(conn, record_id)
    if record is None:
        raise NotAnID(printable(record_id))
    return record


def lookup(context: Context, ref: str) -> Record:
    """Find a record of any kind."""
    with context.catalog.read() as conn:
        found = find_any(conn, ref)
        if found is None:
            raise LayerUnknown()
        return fetch(conn, *found)


def exists(context: Context, ref: str, kinds: Collection[RecordKind]) -> bool:
    """Tell whether a reference is known, in each of the kinds, or in any when none is given."""
    with context.catalog.read() as conn:
        if not kinds:
            return find_any(conn, ref) is not None
        return all(catalog_names.resolve(conn, kind, ref) is not None for kind in kinds)


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


def _update_names(context: Context, ref: str, verb: str, change: Any) -> tuple[str, ...]:
    context.need_writable()
    with context.catalog.write(verb) as tx:
        found = find_any(tx.conn, ref)
        if found is None:
            raise LayerUnknown()
        kind, record_id = found
        result: tuple[str, ...] = change(fetch(tx.conn, kind, record_id).names)
        catalog_names.set_names(tx, kind, record_id, result)
        return result


def metadata(context: Context, ref: str) -> str:
    """Return a record's metadata text."""
    with context.catalog.read() as conn:
        found = find_any(conn, ref)
        if found is None:
            raise NotAnID()
        return fetch(conn, *found).metadata


def set_metadata(context: Context, ref: str, text: str) -> None:
    """Replace a record's metadata text."""
    context.need_writable()
    check_text(text, "metadata")
    with context.catalog.write("set-metadata") as tx:
        found = find_any(tx.conn, ref)
        if found is None:
            raise NotAnID()
        catalog_names.set_metadata(tx, *found, text)


def delete(context: Context, ref: str) -> None:
    """Delete a record of any kind without asking who uses it."""
    from lading.flows import containers, images, layers

    with context.catalog.read() as conn:
        found = find_any(conn, ref, ("container", "image", "layer"))
    if found is None:
        raise LayerUnknown()
    match found:
        case ("container", record_id):
            containers.delete(context, record_id)
        case ("image", record_id):
            images.delete_record(context, record_id)
        case (_, record_id):
            layers.delete_unchecked(context, record_id)


def query(context: Context, sql: str, parameters: Sequence[Any]) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
    """Run a reading query on the catalog."""
    return catalog_sql.query(context.catalog, sql, parameters)


def sql_shell_command(context: Context) -> list[str] | None:
    """Tell the command line of a safe SQL shell on the catalog."""
    return catalog_sql.shell_command(context.layout.catalog_db)
