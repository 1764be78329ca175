"""Staged layers: content prepared aside, without any lock, then put in place in one commit."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol

from lading import private, trees
from lading.catalog import layers as catalog_layers
from lading.catalog.database import WriteTransaction
from lading.errors import InvalidInput, LayerUnknown, NotSupported, Unsupported
from lading.flows import areas, bigdata, layers, sealing, stores, views
from lading.flows.context import Context
from lading.flows.ingest import ingesting
from lading.flows.tidying import tidying
from lading.idmaps import NO_REQUEST
from lading.materialize.beneath import remove_tree
from lading.materialize.capture import capture_tree, capture_upper
from lading.objects.durable import Staging, make_dir
from lading.objects.tarwrite import write_diff
from lading.values import BigData, Entry, Layer, component_key, printable

#: Pull option without which a folder is not taken as a layer.
PARTIAL_IMAGES: Final = "enable_partial_images=true"

#: Data items by which a layer made from a folder can be told.
MANIFEST_KEY: Final = "zstd-chunked-manifest"
LAYER_DATA_KEY: Final = "zstd-chunked-layer-data"


@dataclass(frozen=True, slots=True)
class DifferOutput:
    """What a differ says of the folder it filled."""

    diff: Path | None = (
        None  #: the layer's tar, below the folder; it then is the content, and the rest of the folder is not read
    )
    diff_digest: str = ""  #: claimed for ``diff``; refused when it is another's
    size: int = -1  #: uncompressed bytes, when there is no ``diff``; -1 for unknown
    compressed_digest: str = ""
    compressed_size: int = 0
    toc_digest: str = ""
    uids: tuple[int, ...] = ()
    gids: tuple[int, ...] = ()
    metadata: str = ""
    big_data: Mapping[str, bytes] = field(default_factory=dict)
    root_mode: int | None = None  #: None for the parent's


class Differ(Protocol):
    """Fills a folder with a layer's content: files as overlay keeps them in an upper directory, or a tar."""

    def __call__(self, folder: Path, /) -> DifferOutput:
        """Fill the folder, which is empty, and describe it."""
        ...


@dataclass
class StagedLayer:
    """A layer's content in a folder of its own, until it is put in place or discarded."""

    folder: Path
    output: DifferOutput
    _staging: Staging = field(repr=False)
    _open: bool = field(default=True, repr=False)


def prepare(context: Context, differ: Differ) -> StagedLayer:
    """Let a differ fill a folder."""
    _need_overlay(context)
    context.need_writable()
    staging = Staging(context.layout.staging)
    try:
        folder = staging.path / "layer"
        make_dir(folder)
        return StagedLayer(folder, differ(folder), staging)
    except BaseException:
        with tidying(str(staging.path)):
            _remove(staging)
        raise


def _remove(staging: Staging) -> None:
    remove_tree(staging.path / "layer")
    staging.close()


def _need_overlay(context: Context) -> None:
    if context.driver != "overlay":
        raise NotSupported()


def discard(staged: StagedLayer) -> None:
    """Remove what was staged."""
    if staged._open:
        staged._open = False
        _remove(staged._staging)


def apply(context: Context, staged: StagedLayer, ref: str, *, parent: str, id: str, names: Sequence[str]) -> Layer:
    """Put what was staged in place, in a new layer or instead of what one holds."""
    if not staged._open:
        raise InvalidInput("the staged layer was applied or discarded already")
    try:
        if staged.output.diff is not None:
            return _apply_tar(context, staged, staged.output.diff, ref, parent, id, names)
        return _apply_folder(context, staged, ref, parent, id, names)
    finally:
        with tidying(str(staged.folder)):
            discard(staged)


def _apply_tar(
    context: Context, staged: StagedLayer, tar: Path, ref: str, parent: str, id: str, names: Sequence[str]
) -> Layer:
    output = staged.output
    with tar.open("rb") as stream, ingesting(context, stream, expected=output.diff_digest) as diff:
        items = bigdata.store_items(context, output.big_data, diff.epoch)
        with _target(context, ref, parent, id, names) as target, context.catalog.write("apply-staged") as tx:
            layer = target.take(tx)
            key = diff.commit(tx)
            layer = replace(
                layers.described_by(layer, diff), contents=(key,), replay=key, toc_digest=output.toc_digest,
                compressed_digest=output.compressed_digest, compressed_size=output.compressed_size,
            )  # fmt: skip
            return target.finish(tx, layer, output, items)


def _apply_folder(context: Context, staged: StagedLayer, ref: str, parent: str, id: str, names: Sequence[str]) -> Layer:
    output = staged.output
    if output.diff_digest:
        raise InvalidInput(f"digest {printable(output.diff_digest)} cannot be checked: hand in the diff as well")
    with context.epochs.shared() as epoch:
        items = bigdata.store_items(context, output.big_data, epoch)
        with context.writer() as writer:
            found = [entry for entry in capture_upper(staged.folder, sealing.into(writer)) if entry.path]
            sealed = sealing.store_native(context, writer, found, epoch)
        with _target(context, ref, parent, id, names) as target, context.catalog.write("apply-staged") as tx:
            layer = target.take(tx)
            key = sealed.commit(tx)
            layer = replace(
                layer, contents=(key,) if key else (), replay="", diff_digest="", diff_size=output.size,
                toc_digest=output.toc_digest, compressed_digest=output.compressed_digest,
                compressed_size=output.compressed_size, compression=0, uids=output.uids, gids=output.gids,
            )  # fmt: skip
            return target.finish(tx, layer, output, items)


class _target:  # noqa: N801 - used like a function
    """The layer that staged content goes to: an existing one, locked and not mounted, or a new one."""

    def __init__(self, context: Context, ref: str, parent: str, id: str, names: Sequence[str]) -> None:
        self._context = context
        self._ref = ref
        self._parent = layers.get(context, parent) if parent else None
        self._fresh = layers.fresh(layers.NewLayer(id=id, names=names))
        self._found = layers.get_writable(context, ref) if ref else None
        self._lock = areas.locked(context, [self._found.id] if self._found else [], "apply-staged")

    def __enter__(self) -> _target:
        self._lock.__enter__()
        try:
            if self._found is not None and areas.mount_here(self._context, self._found.id) is not None:
                raise sealing.LayerMounted(f"layer {self._found.id}")
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if self._found is not None and error[0] is None:
            with tidying(f"write areas of layer {self._found.id}"):
                areas.remove_unused(self._context, self._found.id, keep=self._found.write_area + 1)
        self._lock.__exit__(None, None, None)

    def take(self, tx: WriteTransaction) -> Layer:
        """The layer's record as it is, or as it is made now."""
        if self._found is None:
            return layers.insert(self._context, tx, self._fresh, self._parent, NO_REQUEST)
        present = catalog_layers.get_layer(tx.conn, self._found.id)
        if present is None:
            raise LayerUnknown()
        return replace(present, write_area=present.write_area + 1, write_kind="")

    def finish(self, tx: WriteTransaction, layer: Layer, output: DifferOutput, items: Sequence[BigData]) -> Layer:
        """Write the record."""
        mode = layer.root_mode if output.root_mode is None else output.root_mode
        catalog_layers.update_layer(tx, replace(layer, root_mode=mode, metadata=output.metadata or layer.metadata))
        bigdata.put_items(tx, "layer", layer.id, items)
        made = catalog_layers.get_layer(tx.conn, layer.id)
        assert made is not None
        return made


def target_of(context: Context, ref: str) -> Path:
    """The folder that a layer's own content is written to."""
    _need_overlay(context)
    layer = layers.get(context, ref)
    return areas.current(stores.home(context, layer), layer) / "upper"


def apply_directory(context: Context, ref: str, directory: Path) -> Layer:
    """Stage a folder's tree as a tar and put it into a layer, made when there is none."""
    if context.driver != "overlay":
        raise Unsupported(f"graph driver {context.driver} does not support partial pull")
    if PARTIAL_IMAGES not in context.settings.pull_options:
        raise InvalidInput("partial images are disabled")
    staged = prepare(context, lambda folder: _packed(directory, folder))
    try:
        known = stores.find_layer(context, ref, writable=True) is not None
    except BaseException:
        discard(staged)
        raise
    return apply(context, staged, ref if known else "", parent="", id="" if known else ref, names=())


def _packed(directory: Path, folder: Path) -> DifferOutput:
    """Write a folder's tree as a tar, with a table of contents."""
    entries: list[Entry] = []
    live = views.LiveFiles(views.NoObjects())
    if directory.is_dir():
        found = capture_tree(directory, {}, {}, live.store(directory), as_root=os.geteuid() == 0)
        entries = sorted((entry for entry in found if entry.path), key=lambda entry: component_key(entry.path))
    tar = folder / "diff.tar"
    with open(private.opened(tar, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
        for chunk in write_diff(entries, live):
            file.write(chunk)
    toc = json.dumps([_listed(entry) for entry in entries], separators=(",", ":")).encode()
    digest = f"sha256:{hashlib.sha256(toc).hexdigest()}"
    data = json.dumps({"created": time.time_ns(), "entries": len(entries), "bytes": trees.diff_size(entries)}).encode()
    return DifferOutput(diff=tar, toc_digest=digest, big_data={MANIFEST_KEY: toc, LAYER_DATA_KEY: data})


def _listed(entry: Entry) -> dict[str, object]:
    """An entry of the table of contents."""
    inode = entry.inode
    assert inode is not None
    found: dict[str, object] = {
        "name": printable(entry.path), "type": inode.type, "mode": inode.mode, "uid": inode.uid, "gid": inode.gid,
        "mtime": inode.mtime_ns, "size": inode.size,
    }  # fmt: skip
    if inode.digest:
        found["blake3"] = inode.digest.hex()
    if inode.target:
        found["target"] = printable(inode.target)
    if entry.link is not None:
        found["link"] = printable(entry.link)
    return found
