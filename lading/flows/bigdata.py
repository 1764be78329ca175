"""Big data: named bytes attached to a record, kept as objects and streamed both ways."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Final

from lading.catalog import bigdata as catalog_bigdata
from lading.catalog import content as catalog_content
from lading.catalog import names as catalog_names
from lading.catalog.database import WriteTransaction
from lading.errors import (
    ContainerUnknown,
    DataUnknown,
    DigestUnknown,
    ImageUnknown,
    InvalidBigDataName,
    InvalidInput,
    LayerUnknown,
    NotFound,
    SizeUnknown,
)
from lading.flows import stores
from lading.flows.context import Context
from lading.flows.records import check_text
from lading.flows.reserve import input_size
from lading.objects.digest import blake3_digest
from lading.values import KIND_BIG_DATA, BigData, Image, Layer, Readable, RecordKind, printable

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


def _resolve(context: Context, kind: RecordKind, ref: str, *, writable: bool = False) -> tuple[Context, str]:
    """Find a record.

    Returns:
        The store that has it, and its id.
    """
    record: Layer | Image | None
    match kind:
        case "layer":
            record = stores.find_layer(context, ref, writable=writable)
        case "image":
            record = stores.find_image(context, ref, writable=writable)
        case "container":
            with context.catalog.read() as conn:
                found = catalog_names.resolve(conn, kind, ref)
            if found is None:
                raise _unknown(kind, ref)
            return context, found
    if record is None:
        raise _unknown(kind, ref)
    return stores.home(context, record), record.id


def names(context: Context, kind: RecordKind, ref: str) -> tuple[str, ...]:
    """List a record's keys in the order they were first set."""
    with stores.snapshot(context):
        if kind == "layer" and stores.find_layer(context, ref) is None:
            raise LayerUnknown(f'locating layer with ID "{printable(ref)}"')
        part, record_id = _resolve(context, kind, ref)
        with part.catalog.read() as conn:
            return tuple(item.key for item in catalog_bigdata.list_big_data(conn, kind, record_id))


def _find(context: Context, kind: RecordKind, ref: str, key: str) -> tuple[Context, str, BigData | None]:
    with stores.snapshot(context):
        part, record_id = _resolve(context, kind, ref)
        with part.catalog.read() as conn:
            return part, record_id, catalog_bigdata.get_big_data(conn, kind, record_id, key) if key else None


def read(context: Context, kind: RecordKind, ref: str, key: str) -> Iterator[bytes]:
    """Read an item as chunks; the look-up happens before the first.

    Raises:
        DataUnknown: no such item.
        InvalidBigDataName: an empty key, for containers.
    """
    with ExitStack() as held:
        held.enter_context(stores.epochs(context))  # before the look-up: a collection takes nothing that was found
        part, record_id, item = _find(context, kind, ref, key)
        if kind == "container" and not key:
            raise InvalidBigDataName("can't retrieve container big data value for empty name")
        if item is None:
            raise _missing(context, kind, record_id, key)
        return _chunks_under(held.pop_all(), part, item)


def _chunks_under(held: ExitStack, context: Context, item: BigData) -> Iterator[bytes]:
    with held:
        yield from chunks(context, item)


def chunks(context: Context, item: BigData) -> Iterator[bytes]:
    """An item's bytes, from the store that has it."""
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
    _, _, item = _find(context, kind, ref, key)
    if kind == "container" and not key:
        raise InvalidBigDataName("can't retrieve size of container big data with empty name")
    if item is None:
        raise SizeUnknown()
    return item.size


def digest(context: Context, kind: RecordKind, ref: str, key: str) -> str:
    """Tell the digest of an item.

    Raises:
        DigestUnknown: no such item.
    """
    _, _, item = _find(context, kind, ref, key)
    if kind == "container" and not key:
        raise InvalidBigDataName("can't retrieve digest of container big data value with empty name")
    if item is None:
        raise DigestUnknown()
    return item.digest


def store(
    whole: Context,
    kind: RecordKind,
    ref: str,
    key: str,
    stream: Readable,
    *,
    digest_of: Callable[[bytes], str] | None = None,
) -> None:
    """Store or replace an item: its bytes first, then row and journal in one commit.

    Args:
        whole: the store.
        kind: of the record.
        ref: the record.
        key: the item's name.
        stream: its bytes.
        digest_of: computes the digest to record for a manifest, which is then read into memory; None for the
            sha256 of the bytes.
    """
    whole.need_writable()
    check_text(key, "data key")
    try:
        context, record_id = _resolve(whole, kind, ref, writable=True)
    except LayerUnknown as error:
        raise LayerUnknown(f'locating layer with ID "{printable(ref)}" to write bigdata') from error
    if not key:
        raise InvalidBigDataName(f"can't set empty name for {kind} big data item")
    said = ""
    if digest_of is not None and kind == "image" and key.startswith("manifest"):
        data = _whole(stream)
        said = digest_of(data)
        stream = io.BytesIO(data)
    sha256 = hashlib.sha256()
    total = 0
    wanted = input_size(stream)
    with context.epochs.shared() as epoch:
        with context.writer(wanted=wanted) as writer:
            target = writer.stream(KIND_BIG_DATA)
            while chunk := stream.read(READ_SIZE):
                sha256.update(chunk)
                total += len(chunk)
                target.write(chunk)
            found = target.close()
            packs = writer.finish()
        catalog_content.register_packs(context.catalog, packs, epoch)
        with context.catalog.write(f"set-{kind}-data") as tx:
            part, record_id = _resolve(whole, kind, ref, writable=True)  # a name may have moved since
            if part is not context:
                raise _unknown(kind, ref)
            item = BigData(key, total, said or f"sha256:{sha256.hexdigest()}", found if total else b"")
            catalog_bigdata.put_big_data(tx, kind, record_id, item)


#: Bytes of a manifest that are read into memory for its digest; real ones are a few KiB.
MANIFEST_SIZE_MAX: Final = 16 << 20


def _whole(stream: Readable) -> bytes:
    """Read a manifest into memory.

    Raises:
        InvalidInput: it is larger than any manifest is.
    """
    data = bytearray()
    while chunk := stream.read(READ_SIZE):
        data += chunk
        if len(data) > MANIFEST_SIZE_MAX:
            raise InvalidInput(f"a manifest of more than {MANIFEST_SIZE_MAX} bytes")
    return bytes(data)


def store_items(context: Context, items: Mapping[str, bytes], epoch: int) -> list[BigData]:
    """Store the bytes of several items.

    Args:
        context: the store they go to.
        items: key and bytes.
        epoch: the epoch whose lock the caller holds.

    Returns:
        What :func:`put_items` records.
    """
    if not items:
        return []
    with context.writer() as writer:
        for data in items.values():
            if data:
                writer.put(data, KIND_BIG_DATA)
        packs = writer.finish()
    catalog_content.register_packs(context.catalog, packs, epoch)
    return [
        BigData(key, len(data), f"sha256:{hashlib.sha256(data).hexdigest()}", blake3_digest(data) if data else b"")
        for key, data in items.items()
    ]


def put_items(tx: WriteTransaction, kind: RecordKind, record_id: str, items: Sequence[BigData]) -> None:
    """Record items as part of a transaction."""
    for item in items:
        catalog_bigdata.put_big_data(tx, kind, record_id, item)


def copy_items(source: Context, target: Context, items: Sequence[BigData], epoch: int) -> list[BigData]:
    """Copy items' bytes from one store to another, one at a time.

    Args:
        source: where they are.
        target: where they go.
        items: what to copy.
        epoch: the target's epoch, whose lock the caller holds.
    """
    with target.writer() as writer:
        for item in items:
            if not item.object:
                continue
            stream = writer.stream(KIND_BIG_DATA)
            for chunk in chunks(source, item):
                stream.write(chunk)
            stream.close()
        packs = writer.finish()
    catalog_content.register_packs(target.catalog, packs, epoch)
    return list(items)
