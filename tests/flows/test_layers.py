"""Layers go in and come out."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import pyzstd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lading import Store
from lading.errors import (
    Corrupt,
    DuplicateID,
    DuplicateName,
    InvalidInput,
    LayerHasChildren,
    LayerUnknown,
    LayerUsedByContainer,
    LayerUsedByImage,
    NotALayer,
    ParentIsContainer,
)
from tests.tarmake import END, directory, file, link, pax, symlink, tree

LAYER = tree({"etc": None, "etc/hosts": b"127.0.0.1 localhost\n", "usr/bin/tool": b"#!/bin/sh\n" * 400, "empty": b""})

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes, "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "zstd": pyzstd.compress,
    "two gzip members": lambda data: gzip.compress(data[:5000]) + gzip.compress(data[5000:]),
    "two zstd frames": lambda data: pyzstd.compress(data[:5000]) + pyzstd.compress(data[5000:]),
    "zstd behind a skippable frame": lambda data: b"\x50\x2a\x4d\x18\x04\0\0\0skip" + pyzstd.compress(data),
}  # fmt: skip


def taken_out(store: Store, ref: str, against: str | None = None) -> bytes:
    """A layer's uncompressed diff."""
    with store.layers.diff(ref, against, compression=0) as chunks:
        return b"".join(chunks)


@pytest.mark.parametrize("how", COMPRESS)
def test_a_layer_comes_out_as_it_went_in(store: Store, how: str) -> None:
    """Whatever it was compressed with; both sides' digests are recorded."""
    import hashlib

    presented = COMPRESS[how](LAYER)

    layer = store.layers.import_(io.BytesIO(presented))

    assert taken_out(store, layer.id) == LAYER
    assert layer.diff_digest == "sha256:" + hashlib.sha256(LAYER).hexdigest()
    assert layer.compressed_digest == "sha256:" + hashlib.sha256(presented).hexdigest()
    assert (layer.diff_size, layer.compressed_size) == (len(LAYER), len(presented))


@pytest.mark.parametrize("how", COMPRESS)
def test_a_cut_stream_is_refused_and_leaves_nothing(store: Store, how: str) -> None:
    """Although the tar in it may have been complete."""
    presented = COMPRESS[how](file(b"f", os.urandom(20000)))

    with pytest.raises(InvalidInput, match=r"unexpected EOF|invalid tar header"):
        store.layers.import_(io.BytesIO(presented[:-9] if how != "plain" else presented[:-600]), id="x")

    assert store.layers.all() == []
    assert store.gc().warnings == ()
    assert store.balance().classes["packs: live"] == 0


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(st.one_of(st.binary(max_size=700), st.just(b"\0" * 512)), max_size=4), data=st.binary(max_size=5000)
)
def test_whatever_follows_the_archive_is_kept(store: Store, parts: list[bytes], data: bytes) -> None:
    """Trailing bytes of any kind."""
    tar = pax({b"comment": b"odd"}) + file(b"f", data) + END + b"".join(parts)

    layer = store.layers.import_(io.BytesIO(tar))

    assert taken_out(store, layer.id) == tar


def test_the_same_diff_again_stores_nothing(store: Store) -> None:
    """Under another parent, and applied to another layer."""
    first = store.layers.import_(io.BytesIO(LAYER))
    packs = store.balance().classes["packs: live"]

    second = store.layers.import_(io.BytesIO(gzip.compress(LAYER)), first.id)

    assert second.contents == first.contents
    assert store.balance().classes["packs: live"] == packs


def test_a_claim_about_the_digest_is_checked(store: Store) -> None:
    """Contents are shared by it: a false one would poison other layers."""
    with pytest.raises(InvalidInput, match="has digest"):
        store.layers.import_(io.BytesIO(LAYER), expected="sha256:" + "0" * 64)
    with pytest.raises(InvalidInput, match="invalid checksum digest format"):
        store.layers.import_(io.BytesIO(LAYER), expected="nonsense")
    digest = store.layers.import_(io.BytesIO(LAYER)).diff_digest

    assert store.layers.import_(io.BytesIO(LAYER), expected=digest).diff_digest == digest


def test_a_failed_diff_leaves_the_layer_as_it_was(store: Store) -> None:
    """Record, content and all."""
    before = store.layers.import_(io.BytesIO(LAYER), id="x")

    with pytest.raises(InvalidInput):
        store.layers.apply("x", io.BytesIO(b"junk" * 1000))

    assert store.layers.get("x") == before
    assert taken_out(store, "x") == LAYER


def test_several_diffs_lie_on_top_of_each_other(store: Store, tmp_path: Path) -> None:
    """The last one is given back; all of them show."""
    second = file(b"added", b"2") + file(b"etc/.wh.hosts") + END
    store.layers.create(id="x")
    store.layers.apply("x", io.BytesIO(LAYER))
    store.layers.apply("x", io.BytesIO(second))

    report = store.checkout("x", tmp_path / "out")

    assert taken_out(store, "x") == second
    assert (report.path / "added").read_bytes() == b"2"
    assert (report.path / "usr/bin/tool").stat().st_size == 4000
    assert not (report.path / "etc/hosts").exists()


def test_changes_say_what_a_layer_does_to_its_parent(tmp_path: Path) -> None:
    """Added, modified and removed names, in the overlay driver's way."""
    with Store.open(tmp_path / "root", run=tmp_path / "run", driver="overlay") as store:
        _compare_with_parent(store)


def _compare_with_parent(store: Store) -> None:
    base = store.layers.import_(io.BytesIO(LAYER))
    child = store.layers.import_(
        io.BytesIO(
            file(b"etc/hosts", b"new") + file(b"usr/bin/.wh.tool") + directory(b"srv/") + file(b"srv/x", b"1") + END
        ),
        base.id,
    )

    found = {change.path: change.kind for change in store.layers.changes(child.id)}

    assert found == {b"/etc/hosts": 0, b"/srv": 1, b"/srv/x": 1, b"/usr/bin": 0, b"/usr/bin/tool": 2}
    assert {change.kind for change in store.layers.changes(base.id)} == {1}


def test_a_diff_against_another_layer_is_generated(store: Store, tmp_path: Path) -> None:
    """Applied to that layer, it gives the same tree."""
    base = store.layers.import_(io.BytesIO(LAYER))
    other = store.layers.import_(
        io.BytesIO(file(b"etc/.wh.hosts") + symlink(b"etc/l", b"hosts") + file(b"h", b"x") + link(b"i", b"h") + END),
        base.id,
    )
    sibling = store.layers.import_(io.BytesIO(tree({"only": b"here"})), base.id)

    generated = taken_out(store, other.id, sibling.id)
    store.layers.import_(io.BytesIO(generated), sibling.id, id="rebuilt")

    assert store.layers.changes("rebuilt", other.id) == []
    assert not store.checkout("rebuilt", tmp_path / "out").path.joinpath("only").exists()
    assert (tmp_path / "out/h").stat().st_ino == (tmp_path / "out/i").stat().st_ino


@pytest.mark.parametrize("bad", ["../x", "a/b", ".", "..", "x" * 256, "a\0b", "a\nb", "\x1b[31m"])
def test_an_id_that_is_no_file_name_is_refused(store: Store, bad: str) -> None:
    """Before any path is made of it."""
    for create in (store.layers.create, store.images.create, store.containers.create):
        with pytest.raises(InvalidInput, match="id"):
            create(id=bad)

    assert [*store.layers, *store.images, *store.containers] == []


def test_records_in_use_are_not_deleted(store: Store) -> None:
    """By name and prefix neither."""
    base = store.layers.create(names=["base"], id="base-id")
    store.layers.create("base", id="child")
    store.images.create("child", id="image", names=["i"])
    container = store.containers.create("i", id="c")

    for ref in ("base", "base-id", "base-i"):
        with pytest.raises(LayerHasChildren, match="used by layer child: layer has children"):
            store.layers.delete(ref)
    with pytest.raises(LayerHasChildren):
        store.layers.delete("child")
    with pytest.raises(LayerUsedByContainer):
        store.layers.delete(container.layer)
    with pytest.raises(ParentIsContainer):
        store.layers.create(container.layer)
    store.containers.delete("c")
    with pytest.raises(LayerUsedByImage):
        store.layers.delete("child")
    with pytest.raises(NotALayer):
        store.layers.delete("nothing")
    assert store.layers.get("base") == base


def test_taken_ids_and_names_are_refused(store: Store) -> None:
    """At creation; and an unknown parent is told."""
    store.layers.create(id="x", names=["n"])

    with pytest.raises(DuplicateID, match="that ID is already in use"):
        store.layers.create(id="x")
    with pytest.raises(DuplicateName, match="that name is already in use"):
        store.layers.create(names=["n"])
    with pytest.raises(DuplicateName):
        store.layers.import_(io.BytesIO(b"not even read"), names=["n"])
    with pytest.raises(LayerUnknown, match="layer not known"):
        store.layers.create("nothing")


@pytest.mark.damages
def test_damage_is_never_silent(store: Store, tmp_path: Path) -> None:
    """A flipped bit in a pack: the diff fails, check names the layer and the image, others go on."""
    bad = store.layers.import_(io.BytesIO(file(b"f", os.urandom(5000)) + END))
    good = store.layers.import_(io.BytesIO(LAYER))
    image = store.images.create(bad.id)
    (row,) = store.query("SELECT p.name, o.offset FROM object o JOIN pack p ON p.id = o.pack_id WHERE o.size = 5000")[1]
    path = store.root / "objects/packs" / row[0][:2] / f"{row[0]}.pack"
    raw = bytearray(path.read_bytes())
    raw[row[1] + 100] ^= 1
    path.write_bytes(raw)

    with pytest.raises(Corrupt, match="object"):
        taken_out(store, bad.id)
    found = {(finding.kind, finding.id) for finding in store.check(content=True).findings}

    assert ("layer", bad.id) in found
    assert ("image", image.id) in found
    assert ("layer", good.id) not in found
    assert taken_out(store, good.id) == LAYER


@pytest.mark.damages
def test_a_lost_pack_is_told_without_reading_contents(store: Store) -> None:
    """Presence is a depth of its own."""
    layer = store.layers.import_(io.BytesIO(LAYER))
    for pack in (store.root / "objects/packs").rglob("*.pack"):
        pack.unlink()

    found = store.check().findings

    assert any(finding.kind == "layer" and finding.id == layer.id and "missing" in finding.message for finding in found)


def test_non_utf8_names_and_times_come_out_of_a_checkout(store: Store, tmp_path: Path) -> None:
    """Bytes stay bytes, fractions of seconds stay."""
    tar = pax({b"mtime": b"1700000000.123456789"}) + file(b"\xff\\x", b"1") + END
    layer = store.layers.import_(io.BytesIO(tar))

    out = store.checkout(layer.id, tmp_path / "out").path

    assert os.listdir(os.fsencode(out)) == [b"\xff\\x"]
    assert os.stat(os.fsencode(out) + b"/\xff\\x").st_mtime_ns == 1_700_000_000_123_456_789


def test_a_long_chain_needs_no_recursion(store: Store, tmp_path: Path) -> None:
    """301 layers with a container on top, all files visible."""
    parent = ""
    for number in range(301):
        parent = store.layers.import_(io.BytesIO(file(b"f%d" % number, b"%d" % number) + END), parent).id
    image = store.images.create(parent)
    container = store.containers.create(image.id)

    out = store.checkout(container.id, tmp_path / "out").path

    assert len(os.listdir(out)) == 301
