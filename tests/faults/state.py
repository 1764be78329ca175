"""What can be seen of a store: its records and diffs, whether it is sound, and what it has on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from lading import Store
from lading.values import Container, Image, Layer

State = dict[str, Any]

#: Fields that tell when, or how something is kept inside, not what was said.
_INNER: Final = frozenset(
    {"created_ns", "contents", "replay", "write_area", "write_kind", "origin", "read_only", "names_history"}
)


def observe(store: Store) -> State:
    """Every record with its data and the bytes of its diff, and what is mounted: a value to compare."""
    found: State = {}
    layers, images, containers = store.multi_list(layers=True, images=True, containers=True)
    for layer in layers:
        data = {key: _digest(store.layers.data(layer.id, key)) for key in layer.big_data_names}
        found[f"layer {layer.id}"] = {**_fields(layer), "data": data, "diff": diff_digest(store, layer.id)}
    for image in images:
        data = {key: _digest(store.images.data(image.id, key)) for key in store.images.data_names(image.id)}
        found[f"image {image.id}"] = {**_fields(image), "data": data}
    for container in containers:
        data = {
            key: _digest(store.containers.data(container.id, key)) for key in store.containers.data_names(container.id)
        }
        found[f"container {container.id}"] = {**_fields(container), "data": data}
    for mount in store.mounts():
        found[f"mount {mount.layer}"] = {"count": mount.count, "files": tree(mount.path)}
    return found


def diff_digest(store: Store, ref: str) -> str:
    """Digest of a layer's diff."""
    with store.layers.diff(ref) as chunks:
        return _digest(chunks)


def _fields(record: Layer | Image | Container) -> State:
    values = {
        field.name: getattr(record, field.name) for field in dataclasses.fields(record) if field.name not in _INNER
    }
    values.pop("big_data", None)
    return {key: _plain(value) for key, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _digest(chunks: Iterable[bytes]) -> str:
    found = hashlib.sha256()
    for chunk in chunks:
        found.update(chunk)
    return found.hexdigest()


def tree(path: Path) -> State:
    """Names below a folder, with the digests of files."""
    found: State = {}
    for above, folders, files in os.walk(path):
        for name in (*folders, *files):
            item = Path(above, name)
            is_file = item.is_file() and not item.is_symlink()
            content = hashlib.sha256(item.read_bytes()).hexdigest() if is_file else ""
            found[str(item.relative_to(path))] = [oct(os.lstat(item).st_mode), content]
    return found


def named(state: State, fixed: frozenset[str]) -> State:
    """Give drawn ids one name, wherever they stand, so that two runs can be compared.

    Args:
        state: as observed.
        fixed: keys that are the same in every run.
    """
    known = {key.split(" ", 1)[1] for key in fixed}
    drawn = {key.split(" ", 1)[1] for key in state} - known

    def renamed(value: Any) -> Any:
        if isinstance(value, str):
            return "drawn" if value in drawn else value
        if isinstance(value, list):
            return [renamed(item) for item in value]
        if isinstance(value, dict):
            return {key: renamed(item) for key, item in value.items()}
        return value

    result: State = {}
    for key, value in sorted(state.items()):
        kind, _, name = key.partition(" ")
        result[f"{kind} {'drawn' if name in drawn else name}"] = renamed(value)
    return result


def differences(found: State, wanted: State) -> list[str]:
    """Tell what two states do not share, a line for each record."""
    lines = []
    for key in sorted(found.keys() | wanted.keys()):
        if found.get(key) != wanted.get(key):
            was, is_ = wanted.get(key), found.get(key)
            if isinstance(was, dict) and isinstance(is_, dict):
                changed = {
                    name: [was.get(name), is_.get(name)]
                    for name in was.keys() | is_.keys()
                    if was.get(name) != is_.get(name)
                }
                lines.append(f"{key}: {str(changed)[:300]}")
            else:
                lines.append(f"{key} is {'missing' if is_ is None else 'there'}")
    return lines


#: What a collection must get back, by folder of the store.
_FOLDERS: Final = (
    "objects/packs",
    "objects/staging",
    "cache/erofs",
    "cache/trees",
    "cache/pool",
    "layers",
    "images",
    "containers",
)

#: Tables that only what is kept should have rows in.
_TABLES: Final = (
    "layer",
    "image",
    "container",
    "content",
    "entry",
    "inode",
    "path",
    "object",
    "pack",
    "content_object",
)


def measure(root: Path) -> State:
    """Files and bytes of a store, and rows of its catalog. The cache's own notes, which begin with a dot, do not count."""
    found: State = {}
    for name in _FOLDERS:
        sizes = [
            os.lstat(os.path.join(above, file)).st_size
            for above, _, files in os.walk(root / name)
            for file in files
            if not (name.startswith("cache/") and file.startswith("."))
        ]
        found[name] = [len(sizes), sum(sizes)]
        found[f"{name} folders"] = (
            0 if name == "objects/packs" else sum(len(folders) for _, folders, _ in os.walk(root / name))
        )
    found["reserve"] = sum(path.stat().st_size for path in (root / "reserve").glob("*"))
    connection = sqlite3.connect(f"file:{root / 'catalog.db'}?mode=ro", uri=True)
    try:
        for table in _TABLES:
            found[table] = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    finally:
        connection.close()
    return found
