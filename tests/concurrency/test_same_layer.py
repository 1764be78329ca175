"""Several processes store the same at once: all succeed, or one is told "in use"; nothing is there twice."""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lading import Store
from lading.values import KIND_DATA
from tests.concurrency.processes import Crew, Line, stopping_at
from tests.tarmake import END, file

#: Where the work is done and nothing is visible yet.
BEFORE_COMMIT = "lading.catalog.database:Catalog.write"


def tar(seed: int, *, files: int = 20, shared: int = 0) -> bytes:
    """A layer of its own files, and of some that all seeds share."""
    own = [file(b"own/%d" % n, random.Random(seed * 1000 + n).randbytes(3000)) for n in range(files)]
    both = [file(b"shared/%d" % n, random.Random(900_000 + n).randbytes(3000)) for n in range(shared)]
    return b"".join(own + both) + END


def oci(folder: Path, layers: list[bytes]) -> Path:
    """A folder with an image as builders leave it."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}

    described = [blob(data, "application/vnd.oci.image.layer.v1.tar") for data in layers]
    config = blob(
        json.dumps({"rootfs": {"type": "layers", "diff_ids": [item["digest"] for item in described]}}).encode(),
        "application/vnd.oci.image.config.v1+json",
    )
    manifest = {"schemaVersion": 2, "config": config, "layers": described}
    entry = blob(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return folder


def import_layer(store: Store, line: Line, data: bytes, id: str, names: list[str]) -> str:
    with stopping_at(line, BEFORE_COMMIT):
        return store.layers.import_(io.BytesIO(data), id=id, names=names).id


def import_many(store: Store, line: Line, layers: list[tuple[str, bytes]]) -> list[str]:
    del line
    return [store.layers.import_(io.BytesIO(data), id=id).id for id, data in layers]


def apply(store: Store, line: Line, data: bytes, ref: str) -> str:
    with stopping_at(line, "lading.flows.mounting:held"):
        return store.layers.apply(ref, io.BytesIO(data)).id


def import_image(store: Store, line: Line, folder: Path, name: str) -> list[str]:
    with stopping_at(line, "lading.flows.layers:import_layer", words="found none"):
        return [image.id for image in store.import_image(f"oci:{folder}", names=[name])]


def delete_image(store: Store, line: Line, ref: str) -> None:
    del line
    store.images.delete(ref)


def gone_under_hands(store: Store, line: Line, folder: Path) -> list[str]:
    with stopping_at(line, "lading.flows.importing:_store_record", words="found all"):
        return [image.id for image in store.import_image(f"oci:{folder}")]


def contents(store: Store) -> int:
    return int(next(iter(store.query("SELECT count(*) FROM content WHERE state = 'ready'")[1]))[0])


def diff(store: Store, ref: str) -> bytes:
    with store.layers.diff(ref, compression=0) as chunks:
        return b"".join(chunks)


def both(crew: Crew, function: Callable[..., Any], first: Sequence[Any], second: Sequence[Any]) -> list[str]:
    """Have two processes do all the work, then commit; return what became of each."""
    one, other = crew.hire().start(function, *first), crew.hire().start(function, *second)
    assert (one.heard(), other.heard()) == ("there", "there")
    one.go_on()
    other.go_on()
    return [one.outcome(), other.outcome()]


def test_both_store_the_same_tar_as_different_layers(crew: Crew) -> None:
    """Both do the work and both succeed; there is one content."""
    assert both(crew, import_layer, (tar(1), "a", []), (tar(1), "b", [])) == ["done", "done"]
    with Store.open(crew.root, run=crew.run) as store:
        assert contents(store) == 1
        assert diff(store, "a") == diff(store, "b") == tar(1)


def test_both_store_the_same_tar_under_one_id(crew: Crew) -> None:
    """One has it, the other is told that it is in use; what the other wrote goes with a collection."""
    assert sorted(both(crew, import_layer, (tar(1), "a", []), (tar(1), "a", []))) == ["DuplicateID", "done"]
    with Store.open(crew.root, run=crew.run) as store:
        assert contents(store) == 1
        assert diff(store, "a") == tar(1)


def test_both_store_different_tars_under_one_id(crew: Crew) -> None:
    """The layer is one of the two, whole."""
    found = both(crew, import_layer, (tar(1), "a", []), (tar(2), "a", []))
    with Store.open(crew.root, run=crew.run) as store:
        assert sorted(found) == ["DuplicateID", "done"]
        assert diff(store, "a") == tar(1 + found.index("done"))
        store.gc()
        assert contents(store) == 1


def test_both_store_under_one_name(crew: Crew) -> None:
    """The name is one's, and the other's layer is not there at all."""
    found = both(crew, import_layer, (tar(1), "a", ["n"]), (tar(2), "b", ["n"]))
    assert sorted(found) == ["DuplicateName", "done"]
    with Store.open(crew.root, run=crew.run) as store:
        assert (
            [layer.id for layer in store.layers.all()]
            == [store.layers.get("n").id]
            == [["a", "b"][found.index("done")]]
        )


def test_both_apply_the_same_diff_to_one_layer(crew: Crew) -> None:
    """As one after the other: the layer holds it twice over, which is the same tree."""
    with Store.open(crew.root, run=crew.run) as store:
        store.layers.create(id="a")
    assert both(crew, apply, (tar(1), "a"), (tar(1), "a")) == ["done", "done"]
    with Store.open(crew.root, run=crew.run) as store:
        assert contents(store) == 1
        assert diff(store, "a") == tar(1)


def test_both_import_one_image(crew: Crew, tmp_path: Path) -> None:
    """Nobody chose the ids, so nobody is told that they are in use: there is one image with both names."""
    folder = oci(tmp_path / "image", [tar(1), tar(2)])
    one, other = crew.hire().start(import_image, folder, "x"), crew.hire().start(import_image, folder, "y")
    assert (one.heard(), other.heard()) == ("found none", "found none")
    one.go_on()
    other.go_on()
    assert one.result() == other.result()
    with Store.open(crew.root, run=crew.run) as store:
        (image,) = store.images.all()
        assert sorted(image.names) == ["x", "y"]
        assert (len(store.layers.all()), contents(store)) == (2, 2)


def test_layers_that_an_import_found_are_deleted_under_its_hands(crew: Crew, tmp_path: Path) -> None:
    """They were another image's, which somebody deletes: the import stores them after all."""
    with Store.open(crew.root, run=crew.run) as store:
        (first,) = store.import_image(f"oci:{oci(tmp_path / 'first', [tar(1), tar(2)])}")
        folder = oci(tmp_path / "second", [tar(1), tar(2)])
        store.images.create(store.images.get(first.id).layer, id="other")
        store.images.delete(first.id)
    importing = crew.hire().start(gone_under_hands, folder)
    assert importing.heard() == "found all"
    crew.hire().run(delete_image, "other")
    importing.go_on()
    (made,) = importing.result()
    with Store.open(crew.root, run=crew.run) as store:
        assert [diff(store, layer.id) for layer in store.layers.all()] == [tar(1), tar(2)]
        assert store.images.get(made).layer == store.layers.all()[-1].id


def test_eight_processes_store_overlapping_layers(crew: Crew) -> None:
    """Some the same, some sharing files; all there byte for byte, every content once."""
    seeds = [[(number + turn) % 6 for turn in range(4)] for number in range(8)]
    workers = [crew.hire(pack_size=1 << 16) for _ in seeds]
    for number, (worker, own) in enumerate(zip(workers, seeds, strict=True)):
        worker.start(import_many, [(f"p{number}-{turn}", tar(seed, shared=30)) for turn, seed in enumerate(own)])
    for number, worker in enumerate(workers):
        assert worker.result() == [f"p{number}-{turn}" for turn in range(4)]
    with Store.open(crew.root, run=crew.run) as store:
        assert contents(store) == 6
        for number, own in enumerate(seeds):
            assert [diff(store, f"p{number}-{turn}") for turn in range(4)] == [tar(seed, shared=30) for seed in own]
        store.gc()
        objects = int(next(iter(store.query("SELECT count(*) FROM object WHERE kind = ?", (KIND_DATA,))[1]))[0])
        assert objects == 6 * 20 + 30
