"""What is recorded: operations one after another, each acknowledged, and what a store says after each."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lading import Store
from lading.catalog import records
from lading.catalog.chain import read_chain
from tests.flows.test_importing import Layout
from tests.tarmake import tree

#: A store as its user sees it: what each record is, by kind and id.
State = Mapping[tuple[str, str], Any]


@dataclass(frozen=True, slots=True)
class Step:
    """An operation. It may be done again, whether or not it was done before."""

    name: str
    act: Callable[[Store], object]
    durable: bool = False  #: stays done in a relaxed store, too
    composite: bool = False  #: may be done in part: some of its records, each whole
    loose: frozenset[tuple[str, str]] = frozenset()  #: records that may be anything while it is under way


def state_of(store: Store) -> State:
    """Read all that a store holds, every byte of it."""
    found: dict[tuple[str, str], Any] = {}
    for layer in store.layers.all():
        diff = hashlib.sha256()
        with store.layers.diff(layer.id) as chunks:
            for chunk in chunks:
                diff.update(chunk)
        data = {key: b"".join(store.layers.data(layer.id, key)) for key in store.layers.data_names(layer.id)}
        found["layer", layer.id] = (
            layer.names,
            layer.parent,
            layer.metadata,
            layer.diff_digest,
            diff.hexdigest(),
            data,
        )
    for image in store.images.all():
        data = {key: b"".join(store.images.data(image.id, key)) for key in store.images.data_names(image.id)}
        found["image", image.id] = (image.names, image.layer, image.metadata, data)
    for container in store.containers.all():
        data = {
            key: b"".join(store.containers.data(container.id, key)) for key in store.containers.data_names(container.id)
        }
        file = Path(store.root, "containers", container.id, "userdata/folder/file")
        kept = file.read_bytes() if file.exists() else None
        found["container", container.id] = (
            container.names, container.image, container.layer, container.metadata, data, kept,
        )  # fmt: skip
    return found


def journal_agrees(store: Store) -> bool:
    """Tell whether the journal alone would give the same records as the catalog."""
    context = store._context
    states: dict[tuple[str, str], Any] = {}
    for line in read_chain(context.layout.journal):
        if "snapshot" in line.body:
            kept = b"".join(next(context.reader.contents([bytes.fromhex(line.body["snapshot"])])))
            states = {(kind, record_id): state for kind, record_id, state in map(json.loads, kept.splitlines())}
        states.update({(kind, record_id): state for kind, record_id, state in line.body["changes"]})
    with context.catalog.read() as conn:
        live = {(kind, record_id): state for kind, record_id, state in records.live(conn)}
    return json.loads(json.dumps(list(live.values()))) == [states[key] for key in live] and all(
        key in live for key, state in states.items() if state is not None
    )


def _tar(seed: int, files: int = 6, size: int = 3000) -> bytes:
    own, common = random.Random(seed), random.Random(0)
    parts: dict[str, bytes | None] = {f"shared/{number}": common.randbytes(size) for number in range(files)}
    return tree(parts | {f"own/{seed}/{number}": own.randbytes(size) for number in range(files)})


def _import(seed: int, layer_id: str, parent: str = "", **sizes: int) -> Step:
    def act(store: Store) -> None:
        if not store.exists(layer_id):
            store.layers.import_(io.BytesIO(_tar(seed, **sizes)), parent, id=layer_id)

    return Step(f"import {layer_id}", act)


def _once(name: str, present: str, act: Callable[[Store], object], **kinds: Any) -> Step:
    """A step that makes a record, unless it is there."""
    return Step(name, lambda store: None if store.exists(present) else act(store), **kinds)


def _gone(name: str, present: str, act: Callable[[Store], object]) -> Step:
    """A step that deletes a record, if it is there."""
    return Step(name, lambda store: act(store) if store.exists(present) else None, durable=True)


def _apply(layer_id: str, seed: int) -> Step:
    # Applying a diff once more adds nothing to see: the same files lie over themselves.
    return Step(f"apply {seed} to {layer_id}", lambda store: store.layers.apply(layer_id, io.BytesIO(_tar(seed))))


def _data(kind: str, record_id: str, key: str, data: bytes) -> Step:
    return Step(f"{kind} data {key}", lambda store: getattr(store, kind).set_data(record_id, key, io.BytesIO(data)))


def _file(container_id: str, data: bytes) -> Step:
    """A file in a container's directory: beside the catalog, and durable in every store."""
    return Step("file", lambda store: store.containers.write_file(container_id, "folder/file", data), durable=True)


_GC: Final = Step("gc", lambda store: store.gc(), durable=True)


def ingest(folder: Path) -> Iterator[Step]:
    """Layers by all three ways in."""
    layout = Layout(folder / "oci")
    layout.image("both", [_tar(50), _tar(51)])
    yield _import(1, "base")
    yield _once("create top", "top", lambda store: store.layers.create("base", id="top", names=["n"]))
    yield _apply("top", 2)
    yield _import(3, "large", "top", files=3, size=700_000)
    yield Step(
        "import image", lambda store: store.import_image(f"oci:{folder}/oci:both", names=["both"]), composite=True
    )
    yield _once("create other", "other", lambda store: store.layers.create("large", id="other"))
    yield _apply("other", 4)
    yield _import(2, "again", "base")


def changes(folder: Path) -> Iterator[Step]:
    """Records, names, metadata, data items, replaced ones among them."""
    del folder
    yield _once("layer", "l", lambda store: store.layers.create(id="l", names=["one"], metadata="m"))
    for number in range(4):
        name = f"i{number}"
        yield _once(name, name, lambda store, name=name: store.images.create("l", id=name, names=[f"{name}-name"]))  # type: ignore[misc]
    yield _data("images", "i0", "manifest", b"{}")
    yield Step("names", lambda store: store.set_names("i1", ["x", "y"]))
    yield Step("name moves", lambda store: store.add_names("i2", ["x"]))
    yield _once("container", "c", lambda store: store.containers.create("i0", id="c", layer_id="cl", names=["cn"]))
    yield _data("containers", "c", "config", b"first" * 1000)
    yield Step("metadata", lambda store: store.set_metadata("c", "text"))
    yield _file("c", b"before" * 1000)
    yield _data("containers", "c", "config", b"second" * 1000)
    yield _file("c", b"after" * 1000)
    yield _data("layers", "l", "k", b"v")
    yield Step("name goes", lambda store: store.remove_names("i1", ["y"]))
    yield _GC
    yield _once("last", "last", lambda store: store.images.create("l", id="last"))


def deletion(folder: Path) -> Iterator[Step]:
    """Deleting and collecting, and what was deleted stored again."""
    del folder
    for number in range(3):
        yield _import(number, f"l{number}")
        name = f"i{number}"
        yield _once(
            name,
            name,
            lambda store, number=number, name=name: store.images.create(f"l{number}", id=name),  # type: ignore[misc]
        )
    yield _once("container", "c", lambda store: store.containers.create("i2", id="c", layer_id="cl"))
    yield _gone("delete image", "i0", lambda store: store.images.delete("i0"))
    yield _GC
    yield _gone("delete container", "c", lambda store: store.containers.delete("c"))
    yield _gone("delete image alone", "i1", lambda store: store.delete("i1"))
    yield _gone("delete layer", "l1", lambda store: store.layers.delete("l1"))
    yield _import(0, "l0again")
    yield _GC
    yield _import(1, "l1again")
    yield _GC


def repack(folder: Path) -> Iterator[Step]:
    """Worn packs rewritten, small packs merged, long journals replaced by a snapshot."""
    del folder
    yield _import(1, "goes", files=8, size=20_000)
    yield _import(2, "stays", files=8, size=20_000)
    yield _gone("delete", "goes", lambda store: store.layers.delete("goes"))
    yield _GC
    yield _once("image", "i", lambda store: store.images.create("stays", id="i"))
    for number in range(6):
        yield _data("images", "i", f"k{number}", bytes([number]) * 2000)
    yield _GC
    yield _data("images", "i", "k0", b"other")
    yield _import(1, "back", "stays", files=8, size=20_000)
    yield _GC
    yield _once("another", "j", lambda store: store.images.create("back", id="j"))


def sealing(folder: Path) -> Iterator[Step]:
    """Mounts that are written to, unmounted, sealed; children; deletion."""
    del folder
    yield _import(1, "base")
    yield _once("image", "i", lambda store: store.images.create("base", id="i"))
    yield _once("container", "c", lambda store: store.containers.create("i", id="c", layer_id="cl"))

    def written(ref: str, text: str) -> Callable[[Store], None]:
        def act(store: Store) -> None:
            path = Path(store.mount(ref))
            (path / f"file-{text}").write_text(text * 1000)
            (path / "shared/1").unlink(missing_ok=True)
            (path / f"dir-{text}").mkdir(exist_ok=True)
            (path / f"dir-{text}/x").write_text(text)
            for changed in (f"file-{text}", "shared", f"dir-{text}/x", f"dir-{text}", ""):
                os.utime(path / changed, ns=(0, 1_700_000_000 * 10**9))
            store.unmount(ref)

        return act

    yield Step("write to container", written("c", "a"), durable=True, loose=frozenset({("layer", "cl")}))
    yield _once("layer", "l", lambda store: store.layers.create("base", id="l"))
    yield Step("write to layer", written("l", "b"), durable=True, loose=frozenset({("layer", "l")}))
    yield Step("seal", lambda store: store.layers.seal("l"), durable=True)
    yield _once("child", "child", lambda store: store.layers.create("l", id="child"))
    yield Step("write to child", written("child", "c"), durable=True, loose=frozenset({("layer", "child")}))
    yield _once("image of child", "ci", lambda store: store.images.create("child", id="ci"))
    yield _gone("delete container", "c", lambda store: store.containers.delete("c"))
    yield _GC


PATHS: Final[dict[str, Callable[[Path], Iterator[Step]]]] = {
    path.__name__: path for path in (ingest, changes, deletion, repack, sealing)
}
