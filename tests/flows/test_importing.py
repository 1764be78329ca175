"""Images from elsewhere: layouts made by umoci and skopeo, and ones that lie."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from lading import Store
from lading.errors import InvalidInput, NotFound
from tests.flows.test_layers import taken_out
from tests.tarmake import tree

LAYERS = [tree({"etc/os-release": b"NAME=test\n", "bin/x": b"x" * 5000}), tree({"bin/x": b"y" * 100, "new": b"1"})]


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Layout:
    """An OCI layout in the making."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "blobs/sha256").mkdir(parents=True)
        (root / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        self.manifests: list[dict[str, Any]] = []

    def blob(self, data: bytes, media_type: str = "application/octet-stream") -> dict[str, Any]:
        (self.root / "blobs/sha256" / hashlib.sha256(data).hexdigest()).write_bytes(data)
        return {"mediaType": media_type, "digest": digest(data), "size": len(data)}

    def image(self, tag: str, layers: list[bytes], diff_ids: list[str] | None = None) -> bytes:
        config = json.dumps(
            {"rootfs": {"type": "layers", "diff_ids": diff_ids or [digest(data) for data in layers]}}
        ).encode()
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "config": self.blob(config),
                "layers": [self.blob(data, "application/vnd.oci.image.layer.v1.tar") for data in layers],
            }
        ).encode()
        descriptor = self.blob(manifest, "application/vnd.oci.image.manifest.v1+json")
        self.manifests.append({**descriptor, "annotations": {"org.opencontainers.image.ref.name": tag}})
        (self.root / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": self.manifests}))
        return manifest


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A layout with one image."""
    made = Layout(tmp_path / "oci")
    made.image("v1", LAYERS)
    return made


def test_an_oci_layout_is_kept_byte_for_byte(store: Store, layout: Layout) -> None:
    """Layers, config, manifest, tag; importing again changes nothing."""
    (image,) = store.import_image(f"oci:{layout.root}:v1", names=["mine"])

    assert image.names == ("mine", "v1")
    manifest = b"".join(store.images.data(image.id, "manifest"))
    assert layout.manifests[0]["digest"] == digest(manifest) == image.digest
    top = store.layers.get(image.layer)
    assert [taken_out(store, top.parent), taken_out(store, top.id)] == LAYERS
    assert store.import_image(f"oci:{layout.root}")[0].id == image.id
    assert len(store.images.all()) == 1
    assert len(store.layers.all()) == 2


def test_images_share_layers(store: Store, layout: Layout) -> None:
    """Two images of one base have it once."""
    layout.image("v2", [LAYERS[0], tree({"other": b"2"})])

    found = store.import_image(f"oci:{layout.root}")

    assert [image.names for image in found] == [("v1",), ("v2",)]
    assert len(store.layers.all()) == 3


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda layout: (layout.root / "index.json").unlink(), "no OCI layout"),
        (lambda layout: (layout.root / "index.json").write_text("{"), "no JSON document"),
        (lambda layout: (layout.root / "index.json").write_text('{"manifests": 1}'), "no list of manifests"),
        (lambda layout: layout.image("v1", [LAYERS[0]], [digest(b"other")]), "not the one the config lists"),
        (lambda layout: layout.image("v1", LAYERS, [digest(LAYERS[0])]), "lists 1 layers, the manifest 2"),
        (lambda layout: layout.image("v1", [b"junk" * 400]), "invalid tar header"),
    ],
    ids=range(6),
)
def test_a_layout_that_lies_is_refused_and_leaves_nothing(
    store: Store, layout: Layout, spoil: Any, message: str
) -> None:
    """One line that says what is wrong; neither layers nor image stay."""
    layout.manifests.clear()
    spoil(layout)

    with pytest.raises(InvalidInput, match=message):
        store.import_image(f"oci:{layout.root}")

    assert store.layers.all() == []
    assert store.images.all() == []


def test_a_blob_with_other_bytes_is_refused(store: Store, layout: Layout) -> None:
    """Of the same size; and one that is missing or cut."""
    path = layout.root / "blobs/sha256" / digest(LAYERS[1]).removeprefix("sha256:")
    path.write_bytes(LAYERS[1].replace(b"y", b"z"))
    with pytest.raises(InvalidInput, match="has digest"):
        store.import_image(f"oci:{layout.root}:v1")
    path.write_bytes(b"short")
    with pytest.raises(InvalidInput, match="has 5 bytes"):
        store.import_image(f"oci:{layout.root}:v1")
    path.unlink()
    with pytest.raises(InvalidInput, match="No such file"):
        store.import_image(f"oci:{layout.root}:v1")

    assert store.layers.all() == []


def test_what_is_not_there_is_told(store: Store, layout: Layout, tmp_path: Path) -> None:
    """A tag, a folder, a transport, a file."""
    with pytest.raises(NotFound, match='tagged "nope"'):
        store.import_image(f"oci:{layout.root}:nope")
    with pytest.raises(InvalidInput, match="no OCI layout"):
        store.import_image(f"oci:{tmp_path / 'nowhere'}")
    with pytest.raises(InvalidInput, match="unknown transport"):
        store.import_image("docker://example")
    with pytest.raises(InvalidInput, match="is no source"):
        store.import_image("plain")
    with pytest.raises(InvalidInput, match="no such file"):
        store.import_image(f"docker-archive:{tmp_path / 'nowhere.tar'}")


def docker_archive(path: Path, tags: list[str]) -> bytes:
    """An archive as docker save writes it."""
    config = json.dumps({"rootfs": {"type": "layers", "diff_ids": [digest(data) for data in LAYERS]}}).encode()
    manifest = json.dumps(
        [{"Config": "config.json", "RepoTags": tags, "Layers": ["a/layer.tar", "b/layer.tar"]}]
    ).encode()
    files = {"config.json": config, "a/layer.tar": LAYERS[0], "b/layer.tar": LAYERS[1], "manifest.json": manifest}
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return manifest


def test_a_docker_archive_is_kept_byte_for_byte(store: Store, tmp_path: Path) -> None:
    """Its manifest, too; tags become names."""
    manifest = docker_archive(tmp_path / "a.tar", ["app:1", "app:latest"])

    (image,) = store.import_image(f"docker-archive:{tmp_path / 'a.tar'}")

    assert image.names == ("app:1", "app:latest")
    assert b"".join(store.images.data(image.id, "manifest")) == manifest
    assert taken_out(store, image.layer) == LAYERS[1]
    (tmp_path / "b.tar").write_bytes(b"junk" * 1000)
    with pytest.raises(InvalidInput, match="no docker archive"):
        store.import_image(f"docker-archive:{tmp_path / 'b.tar'}")


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="needs skopeo")
@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_what_skopeo_writes_comes_in(store: Store, layout: Layout, tmp_path: Path, compression: str) -> None:
    """A layout with compressed layers, and a docker archive."""
    copy = tmp_path / "copy"
    target = f"oci:{copy}:c"
    subprocess.run(
        [
            "skopeo",
            "copy",
            "-q",
            "--dest-compress-format",
            compression,
            "--insecure-policy",
            f"oci:{layout.root}:v1",
            target,
        ],
        check=True,
    )

    (image,) = store.import_image(target)

    assert image.names == ("c",)
    assert taken_out(store, image.layer) == LAYERS[1]
    assert b"".join(store.images.data(image.id, "manifest"))
