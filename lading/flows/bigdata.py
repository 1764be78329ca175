"""Big data: named bytes attached to a record, kept as objects and streamed both ways."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final

from lading.catalog import bigdata as catalog_bigdata
from lading.catalog import content as catalog_content
from lading.catalog import names as catalog_names
from lading.errors import (
    ContainerUnknown,
    DataUnknown,
    DigestUnknown,
    ImageUnknown,
    InvalidBigDataName,
    LayerUnknown,
    NotFound,
    SizeUnknown,
)
from lading.flows.context import Context
from lading.flows.records import check_text
from lading.values import KIND_BIG_DATA, BigData, Readable, RecordKind, printable

#: Bytes of an item in memory at a time while it is stored.
READ_SIZE: Final = 1 << 20


def _unknown(kind: RecordKind, ref: str) -> NotFound:
    match kind:
        case "layer":
            return LayerUnknown()
        case "image":
            return ImageUnknown(f'locating image with ID "{printable(ref)}"')
        case "container":
            return ContainerUnknown()


def _resolve(context: Context, kind: RecordKind, ref: str) -> str:
    with context.catalog.read() as conn:
        found = catalog_names.resolve(conn, kind, ref)
    if found is None:
        raise _unknown(kind, ref)
    return found


def names(context: Context, kind: RecordKind, ref: str) -> tuple[str, ...]:
    """List a record's keys in the order they were first set."""
    record_id = _resolve(context, kind, ref)
    with context.catalog.read() as conn:
        return tuple(item.key for item in catalog_bigdata.list_big_data(conn, kind, record_id))


def _find(context: Context, kind: RecordKind, ref: str, key: str) -> tuple[str, BigData | None]:
    record_id = _resolve(context, kind, ref)
    with context.catalog.read() as conn:
        return record_id, catalog_bigdata.get_big_data(conn, kind, record_id, key) if key else None


def read(context: Context, kind: RecordKind, ref: str, key: str) -> Iterator[bytes]:
    """Read an item as chunks; the look-up happens before the first.

    Raises:
        DataUnknown: no such item.
        InvalidBigDataName: an empty key, for containers.
    """
    if kind == "container" and not key:
        raise InvalidBigDataName("can't retrieve container big data value for empty name")
    record_id, item = _find(context, kind, ref, key)
    if item is None:
        raise _missing(context, kind, record_id, key)
    return _chunks(context, item)


def _chunks(context: Context, item: BigData) -> Iterator[bytes]:
    if item.object:
        with context.epochs.shared():
            yield from next(context.reader.contents([item.object]))


class ContainerDataUnknown(DataUnknown):
    """A container has no such item; the contract words it as a missing file."""

    text = "no such file or directory"


def _missing(context: Context, kind: RecordKind, record_id: str, key: str) -> DataUnknown:
    if kind == "container":
        folder = context.layout.containers / record_id
        return ContainerDataUnknown(f"open {folder}/{printable(key)}")
    hint = " (consider removing the image to resolve the issue)" if kind == "image" else ""
    return DataUnknown(f'locating item named "{printable(key)}" for {kind} with ID "{record_id}"{hint}')


def size(context: Context, kind: RecordKind, ref: str, key: str) -> int:
    """Tell the bytes of an item.

    Raises:
        SizeUnknown: no such item.
    """
    if kind == "container" and not key:
        raise InvalidBigDataName("can't retrieve size of container big data with empty name")
    _, item = _find(context, kind, ref, key)
    if item is None:
        raise SizeUnknown()
    return item.size


def digest(context: Context, kind: RecordKind, ref: str, key: str) -> str:
    """Tell the digest of an item.

    Raises:
        DigestUnknown: no such item.
    """
    if kind == "container" and not key:
        raise InvalidBigDataName("can't retrieve digest of container big data value with empty name")
    _, item = _find(context, kind, ref, key)
    if item is None:
        raise DigestUnknown()
    return item.digest


def store(context: Context, kind: RecordKind, ref: str, key: str, stream: Readable) -> None:
    """Store or replace an item: its bytes first, then row and journal in one commit."""
    context.need_writable()
    if not key:
        raise InvalidBigDataName(f"can't set empty name for {kind} big data item")
    check_text(key, "data key")
    record_id = _resolve(context, kind, ref)
    sha256 = hashlib.sha256()
    total = 0
    with context.epochs.shared() as epoch:
        with context.writer() as writer:
            target = writer.stream(KIND_BIG_DATA)
            while chunk := stream.read(READ_SIZE):
                sha256.update(chunk)
                total += len(chunk)
                target.write(chunk)
            found = target.close()
            packs = writer.finish()
        catalog_content.register_packs(context.catalog, packs, epoch)
        with context.catalog.write(f"set-{kind}-data") as tx:
            if catalog_names.resolve(tx.conn, kind, record_id) != record_id:
                raise _unknown(kind, ref)
            item = BigData(key, total, f"sha256:{sha256.hexdigest()}", found if total else b"")
            catalog_bigdata.put_big_data(tx, kind, record_id, item)
