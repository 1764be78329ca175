"""Write docs/api.md: each operation of a container store's interface, and its call here. ``--check`` only compares."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any, Final

from lading.containers import Containers
from lading.flows.layerstore import AdditionalLayer
from lading.images import Images
from lading.layers import Layers
from lading.store import GraphDriver, Store

TARGET: Final = Path(__file__).parents[1] / "docs/api.md"

#: Groups of operations: the name in the Go library containers/storage, and the call here.
OPERATIONS: Final[dict[str, dict[str, str]]] = {
    "The store": {
        "RunRoot": "Store.run_root", "GraphRoot": "Store.root", "ImageStore": "Store.image_store",
        "TransientStore": "Store.transient", "GraphDriverName": "Store.driver", "GraphOptions": "Store.driver_options",
        "PullOptions": "Store.pull_options", "UIDMap": "Store.default_maps", "GIDMap": "Store.default_maps",
        "GraphDriver": "Store.graph_driver", "Free": "Store.free", "Version": "Store.version", "Status": "Store.status",
    },
    "Creating": {
        "CreateLayer": "Store.layers.create", "PutLayer": "Store.layers.import_", "CreateImage": "Store.images.create",
        "CreateContainer": "Store.containers.create",
    },
    "Reading": {
        "Layers": "Store.layers.all", "Images": "Store.images.all", "Containers": "Store.containers.all",
        "Layer": "Store.layers.get", "Image": "Store.images.get", "Container": "Store.containers.get",
        "Lookup": "Store.lookup", "Exists": "Store.exists", "MultiList": "Store.multi_list",
        "ImagesByTopLayer": "Store.images.by_top_layer", "ImagesByDigest": "Store.images.by_digest",
        "ContainerByLayer": "Store.containers.by_layer", "LayersByCompressedDigest": "Store.layers.by_compressed_digest",
        "LayersByUncompressedDigest": "Store.layers.by_diff_digest", "LayersByTOCDigest": "Store.layers.by_toc_digest",
    },
    "Names and metadata": {
        "Names": "Store.names", "SetNames": "Store.set_names", "AddNames": "Store.add_names",
        "RemoveNames": "Store.remove_names", "Metadata": "Store.metadata", "SetMetadata": "Store.set_metadata",
    },
    "Big data": {
        "ListImageBigData": "Store.images.data_names", "ImageBigData": "Store.images.data",
        "ImageBigDataSize": "Store.images.data_size", "ImageBigDataDigest": "Store.images.data_digest",
        "SetImageBigData": "Store.images.set_data", "ListLayerBigData": "Store.layers.data_names",
        "LayerBigData": "Store.layers.data", "SetLayerBigData": "Store.layers.set_data",
        "ListContainerBigData": "Store.containers.data_names", "ContainerBigData": "Store.containers.data",
        "ContainerBigDataSize": "Store.containers.data_size", "ContainerBigDataDigest": "Store.containers.data_digest",
        "SetContainerBigData": "Store.containers.set_data",
    },
    "Directories": {
        "ContainerDirectory": "Store.containers.directory", "ContainerRunDirectory": "Store.containers.run_directory",
        "SetContainerDirectoryFile": "Store.containers.write_file",
        "SetContainerRunDirectoryFile": "Store.containers.write_file",
        "FromContainerDirectory": "Store.containers.read_file", "FromContainerRunDirectory": "Store.containers.read_file",
        "ImageDirectory": "Store.images.directory", "ImageRunDirectory": "Store.images.run_directory",
    },
    "Sizes and diffs": {
        "LayerSize": "Store.layers.size", "ImageSize": "Store.images.size", "ContainerSize": "Store.containers.size",
        "Changes": "Store.layers.changes", "Diff": "Store.layers.diff", "DiffSize": "Store.layers.diffsize",
        "ApplyDiff": "Store.layers.apply",
    },
    "Mounts": {
        "Mount": "Store.mount", "Unmount": "Store.unmount", "Mounted": "Store.mounted", "MountImage": "Store.images.mount",
        "UnmountImage": "Store.images.unmount", "LayerParentOwners": "Store.layers.parent_owners",
        "ContainerParentOwners": "Store.containers.parent_owners",
    },
    "Deleting": {
        "Delete": "Store.delete", "DeleteLayer": "Store.layers.delete", "DeleteImage": "Store.images.delete",
        "DeleteContainer": "Store.containers.delete", "Wipe": "Store.wipe",
    },
    "Upkeep": {
        "GarbageCollect": "Store.gc", "Check": "Store.check", "Repair": "Store.repair", "Shutdown": "Store.shutdown",
        "Dedup": "Store.dedup", "GetDigestLock": "Store.digest_lock",
    },
    "Staged and additional layers": {
        "PrepareStagedLayer": "Store.layers.stage", "ApplyStagedLayer": "Store.layers.apply_staged",
        "CleanupStagedLayer": "Store.layers.discard_staged", "DifferTarget": "Store.layers.differ_target",
        "LookupAdditionalLayer": "Store.layers.additional",
    },
}  # fmt: skip

#: Other calls of objects that the above hand out.
OBJECTS: Final[dict[str, type]] = {"GraphDriver": GraphDriver, "AdditionalLayer": AdditionalLayer}

_PARTS: Final[dict[str, type]] = {"layers": Layers, "images": Images, "containers": Containers}

HEAD: Final = """# The library, operation by operation

Made by `tools/api.py` from the code; a test keeps it true and complete. On the left is the name of an operation in the
Go library containers/storage, on the right what to call here. `store` is an open `lading.Store`; a reference (`ref`)
is an id, a name or a unique prefix of an id. Errors are classes of `lading.errors`; `str(error)` ends in the words that
the Go library has for it.

```python
from lading import Store

with Store.open("/var/lib/lading") as store:
    layer = store.layers.import_(open("layer.tar", "rb"))
    image = store.images.create(layer.id, names=["first"])
    with store.layers.diff(layer.id) as diff:
        for chunk in diff:
            ...
```

An operation on many layers, such as listing, sees one consistent snapshot. A diff that is being read holds nothing
that other operations wait for.
"""


def own() -> list[str]:
    """Calls of the library that have no counterpart, a store's first."""
    known = {path for operations in OPERATIONS.values() for path in operations.values()}
    found = [f"Store.{name}" for name in vars(Store)]
    found += [f"Store.{part}.{name}" for part, kind in _PARTS.items() for name in vars(kind)]
    return [path for path in found if "._" not in path and path not in known and not _is_value(resolve(path))]


def _is_value(found: object) -> bool:
    return not (callable(found) or isinstance(found, property | classmethod | staticmethod))


def resolve(path: str) -> Any:
    """The function or property that a path names."""
    _, *steps = path.split(".")
    owner: type = _PARTS[steps[0]] if len(steps) == 2 else Store
    return inspect.getattr_static(owner, steps[-1])


def signature(path: str) -> str:
    """How it is called."""
    found = resolve(path)
    is_bound = not isinstance(found, classmethod | staticmethod)
    shown = path.replace("Store", "store", 1) if is_bound else path
    if isinstance(found, property):
        return shown
    function = found if is_bound else found.__func__
    parameters = [item for name, item in inspect.signature(function).parameters.items() if name not in ("self", "cls")]
    words = []
    keywords = False
    for item in parameters:
        if item.kind is inspect.Parameter.KEYWORD_ONLY and not keywords:
            words.append("*")
            keywords = True
        words.append(item.name if item.default is inspect.Parameter.empty else f"{item.name}={item.default!r}")
    text = ", ".join(words)
    return f"{shown}({_shortened(text)})"


def _shortened(text: str) -> str:
    """Defaults that are objects are told by a word."""
    return (
        text
        if "MapRequest(" not in text
        else text.split("idmap=", maxsplit=1)[0] + "idmap=NO_REQUEST" + text.split("auto=None)", 1)[1]
    )


def summary(path: str) -> str:
    """The first line of its docstring."""
    found = resolve(path)
    text = inspect.getdoc(found.fget if isinstance(found, property) else found) or ""
    return re.sub(r":meth:`(\w+)`", r"`\1`", text.partition("\n")[0])


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, operations in OPERATIONS.items():
        parts += [f"## {title}\n", "| operation | call | what it does |", "| --- | --- | --- |"]
        parts += [f"| {name} | `{signature(path)}` | {summary(path)} |" for name, path in operations.items()]
        parts.append("")
    parts += ["## Calls of our own\n", "| call | what it does |", "| --- | --- |"]
    parts += [f"| `{signature(path)}` | {summary(path)} |" for path in own()]
    parts.append("")
    for name, kind in OBJECTS.items():
        parts += [
            f"## {name}\n",
            (inspect.getdoc(kind) or "").partition("\n")[0] + "\n",
            "| call | what it does |",
            "| --- | --- |",
        ]
        for attribute, member in vars(kind).items():
            if attribute.startswith("_") or not (callable(member) or isinstance(member, property)):
                continue
            doc = inspect.getdoc(member.fget if isinstance(member, property) else member) or ""
            first = doc.partition("\n")[0]
            parts.append(f"| `{attribute}{'' if isinstance(member, property) else '()'}` | {first} |")
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def main() -> int:
    """Write the page, or compare it."""
    wanted = page()
    if "--check" in sys.argv[1:]:
        return 0 if TARGET.exists() and TARGET.read_text() == wanted else 1
    TARGET.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
