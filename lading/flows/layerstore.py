"""Additional layer stores: folders, often served on demand, that hold layers by the digest of their contents' table.

A layer is a folder ``[base64 of the image's reference/]DIGEST`` with ``diff`` (its tree), ``info`` (a record as
JSON) and ``blob`` (its tar). That it is used is said by making a file ``use`` beside them, and the end of that
by removing the folder.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lading.catalog import layers as catalog_layers
from lading.errors import Corrupt, LayerUnknown, Unsupported
from lading.flows import layers, sealing
from lading.flows.context import Context
from lading.flows.ingest import check_digest
from lading.materialize.capture import capture_upper
from lading.values import Layer, printable


@dataclass(frozen=True, slots=True)
class AdditionalLayer:
    """A layer of an additional layer store, in use until it is released."""

    folder: Path
    toc_digest: str
    info: dict[str, Any]
    _context: Context

    @property
    def compressed_size(self) -> int:
        """Bytes of the layer as it is fetched."""
        return int(self.info.get("compressed-size", 0))

    def put_as(self, id: str = "", *, parent: str = "", names: Sequence[str] = ()) -> Layer:
        """Store the layer: from its tar, so that its diff comes out as it was, else from its tree.

        Raises:
            DuplicateID, DuplicateName, LayerUnknown.
            InvalidInput: the tar is damaged, or not what the record says.
        """
        wanted = layers.NewLayer(parent, id=id, names=names)
        blob = self.folder / "blob"
        if blob.is_file():
            with blob.open("rb") as stream:
                made = layers.import_layer(
                    self._context, stream, wanted, expected=str(self.info.get("compressed-diff-digest", ""))
                )
            return self._noted(made.id, {})
        made = layers.create(self._context, wanted)
        with self._context.epochs.shared() as epoch:
            with self._context.writer() as writer:
                found = [entry for entry in capture_upper(self.folder / "diff", sealing.into(writer)) if entry.path]
                native = sealing.store_native(self._context, writer, found, epoch)
            return self._noted(made.id, {"native": native})

    def _noted(self, layer_id: str, content: dict[str, Any]) -> Layer:
        with self._context.catalog.write("put-additional-layer") as tx:
            layer = catalog_layers.get_layer(tx.conn, layer_id)
            if layer is None:
                raise LayerUnknown()
            if "native" in content:
                key = content["native"].commit(tx)
                layer = replace(
                    layer, contents=(key,) if key else (), compressed_digest=str(self.info.get("compressed-diff-digest", "")),
                    compressed_size=self.compressed_size, diff_size=int(self.info.get("diff-size", -1)),
                )  # fmt: skip
            updated = replace(layer, toc_digest=self.toc_digest)
            catalog_layers.update_layer(tx, updated)
        return updated

    def release(self) -> None:
        """Tell the store that the layer is no longer used. Never fails: the store may have gone."""
        with contextlib.suppress(OSError):
            self.folder.rmdir()


def lookup(context: Context, toc_digest: str, reference: str) -> AdditionalLayer:
    """Find a layer in the additional layer stores, and tell its store that it is used."""
    if context.driver != "overlay":
        raise Unsupported(f"driver {context.driver} has no additional layer stores")
    check_digest(toc_digest or ":")
    for place in context.settings.layer_stores:
        path, colon, flag = place.rpartition(":")
        base = Path(path if colon and flag == "ref" else place)
        if colon and flag == "ref":
            base = base / base64.b64encode(reference.encode()).decode()
        folder = base / toc_digest
        if (folder / "diff").is_dir() or (folder / "blob").is_file():
            with contextlib.suppress(OSError):
                (folder / "use").touch()
            return AdditionalLayer(folder, toc_digest, _info(folder), context)
    raise LayerUnknown()


def _info(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / "info").read_bytes())
        if not isinstance(values, dict) or not all(
            isinstance(values.get(key, 0), int) for key in ("compressed-size", "diff-size")
        ):
            raise ValueError("wrong shape")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise Corrupt(f"{printable(str(folder / 'info'))} is no layer record") from error
    return values
