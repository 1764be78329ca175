"""Refilling what is damaged: from every copy, bit for bit, and nothing else is touched."""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import json
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lading import Settings, Store
from lading.errors import Corrupt, InvalidInput
from lading.flows import refill
from lading.materialize import erofsread
from lading.objects.durable import Staging
from lading.objects.repack import repack
from lading.values import FRAME_SIZE
from tests import damage
from tests.flows.test_importing import LAYERS, Layout
from tests.flows.test_importing import digest as sha256_of
from tests.flows.test_layers import taken_out
from tests.tarmake import END, file, tree

pytestmark = pytest.mark.damages

RANDOM = random.Random(8)
FILES = {
    "d/small": RANDOM.randbytes(3000),
    "d/text": b"a line of text\n" * 3000,
    "d/large": RANDOM.randbytes(2 * FRAME_SIZE + 777),
}
TAR = tree(FILES)
OTHER = tree({"d/small": FILES["d/small"], "d/large": FILES["d/large"], "else": b"not the same layer"})

PATHS = ["d/small", "d/text", "d/large"]


class Watched:
    """A store whose damage is healed; tells whether anything else changed."""

    def __init__(self, store: Store, lost: list[bytes]) -> None:
        self.store = store
        self.lost = set(lost)
        self.records = damage.records(store)
        self.places = damage.places(store)

    def healed_from(self, name: str, *given: str) -> None:
        """Heal and compare."""
        report = self.store.heal(given)

        assert dict(report.healed) == {name: len(self.lost)}
        assert (report.left, report.warnings) == (0, ())
        self.is_whole()

    def is_whole(self) -> None:
        """Everything is sound, and only the damaged objects moved."""
        now = damage.places(self.store)
        assert damage.records(self.store) == self.records
        assert {digest for digest, place in now.items() if place != self.places[digest]} == self.lost
        assert [now[digest].kind for digest in self.lost] == [self.places[digest].kind for digest in self.lost]
        assert damage.broken(self.store) == []
        assert sum(self.store.balance().classes.values()) == self.store.balance().total
        self.store.gc()
        assert damage.broken(self.store) == []


def watched(store: Store, digests: list[bytes], how: Callable[[Store, bytes], None] = damage.spoil) -> Watched:
    """Damage objects, let a check find them, and watch."""
    state = Watched(store, digests)
    for digest in digests:
        how(store, digest)
    assert store.check(content=True).damaged == len(digests) + (how is not damage.spoil)
    return state


@pytest.fixture
def layer(store: Store) -> str:
    """A layer with all that can be damaged, in an image with data."""
    made = store.layers.import_(io.BytesIO(TAR), id="layer").id
    store.images.create(made, id="image", big_data={"k": b"some data " * 20})
    return made


def _copied(store: Store, digests: list[bytes], *, recorded: bool) -> None:
    """Put further copies into a pack, as a writer does that was killed before, or after, it was recorded."""
    staging = Staging(store._context.layout.staging)
    made = repack(store._context.backend, staging, [damage.location(store, digest) for digest in digests])
    staging.close()
    if recorded:
        from lading.catalog import content

        with store._context.epochs.shared() as epoch:
            content.register_packs(store._context.catalog, [made], epoch)


@pytest.mark.parametrize("recorded", [False, True], ids=["unrecorded", "recorded"])
def test_from_another_pack(store: Store, layer: str, recorded: bool) -> None:
    """A copy that a killed ingest left, or that two ingests made at once."""
    lost = [damage.object_at(store, path) for path in PATHS]
    lost += [damage.recipe_of(store, store.layers.get(layer).diff_digest), store.images.get("image").big_data[0].object]
    _copied(store, lost, recorded=recorded)

    watched(store, lost).healed_from("another pack")


@pytest.mark.privileged
@pytest.mark.parametrize("path", PATHS)
def test_from_a_cached_image(store: Store, layer: str, path: str) -> None:
    """Without a mount; whatever contents the image shows."""
    store.mount(layer)
    store.unmount(layer)
    assert list((store.root / "cache/erofs").glob("*.img"))

    watched(store, [damage.object_at(store, path)]).healed_from("the cache")


@pytest.mark.privileged
def test_from_an_image_of_several_layers_and_of_inherited_directories(store: Store) -> None:
    """Names of such views say nothing of what is in them."""
    base = store.layers.import_(io.BytesIO(tree({"d/a": RANDOM.randbytes(5000)})))
    implied = file(b"d/b", RANDOM.randbytes(70000)) + END
    top = store.layers.import_(io.BytesIO(implied), base.id)
    store.mount(top.id, flatten=True)
    store.unmount(top.id)

    watched(store, [damage.object_at(store, "d/a"), damage.object_at(store, "d/b")]).healed_from("the cache")


@pytest.mark.privileged
@pytest.mark.parametrize("strategy", ["farm", "composefs"])
def test_from_the_pool(tmp_path: Path, strategy: str) -> None:
    """Files of farms, and of images without contents."""
    with Store.open(tmp_path / "root", run=tmp_path / "run", settings=Settings(strategy=strategy)) as store:
        layer = store.layers.import_(io.BytesIO(TAR))
        store.mount(layer.id)
        store.unmount(layer.id)

        watched(store, [damage.object_at(store, path) for path in PATHS]).healed_from("the cache")


@pytest.mark.privileged
@pytest.mark.parametrize("strategy", ["erofs", "farm"])
def test_a_sparse_file_from_the_cache(tmp_path: Path, strategy: str) -> None:
    """What is stored of it is its data, not its holes."""
    path = tmp_path / "sparse"
    with path.open("wb") as target:
        target.write(RANDOM.randbytes(8192))
        target.seek(3 << 20)
        target.write(RANDOM.randbytes(5000))
    done = subprocess.run(["tar", "-S", "-cf", "-", "-C", tmp_path, "sparse"], capture_output=True, check=True)
    with Store.open(tmp_path / "root", run=tmp_path / "run", settings=Settings(strategy=strategy)) as store:
        layer = store.layers.import_(io.BytesIO(done.stdout))
        store.mount(layer.id)
        store.unmount(layer.id)

        watched(store, [damage.object_at(store, "sparse")]).healed_from("the cache")


def test_from_a_writable_tree(vfs_store: Store) -> None:
    """A file that was not written to; one that was is no copy."""
    layer = vfs_store.layers.import_(io.BytesIO(TAR))
    container = vfs_store.containers.create(vfs_store.images.create(layer.id).id)
    point = vfs_store.mount(container.id)
    (point / "d/text").write_bytes(b"something else")
    lost = [
        damage.object_at(vfs_store, "d/small"),
        damage.object_at(vfs_store, "d/large"),
        damage.object_at(vfs_store, "d/text"),
    ]
    for digest in lost:
        damage.spoil(vfs_store, digest)
    vfs_store.check(content=True)

    report = vfs_store.heal()

    assert (report.healed, report.left) == ((("a write area", 2),), 1)
    assert vfs_store.heal([]).left == 1


@pytest.mark.parametrize("data", [TAR, gzip.compress(TAR)], ids=["plain", "gzip"])
@pytest.mark.parametrize("how", [damage.spoil, damage.cut], ids=["spoiled", "cut"])
def test_from_the_layers_tar(
    store: Store, layer: str, tmp_path: Path, data: bytes, how: Callable[[Store, bytes], None]
) -> None:
    """Files and recipe."""
    (tmp_path / "layer.tar").write_bytes(data)
    if how is damage.spoil:
        lost = [
            *(damage.object_at(store, path) for path in PATHS),
            damage.recipe_of(store, store.layers.get(layer).diff_digest),
        ]
        watched(store, lost).healed_from(str(tmp_path / "layer.tar"), str(tmp_path / "layer.tar"))
    else:
        how(store, damage.object_at(store, "d/large"))
        assert store.heal([str(tmp_path / "layer.tar")]).left == 0
        assert damage.broken(store) == []
    assert taken_out(store, layer) == TAR


def test_from_a_tar_that_has_only_some_of_it(store: Store, layer: str, tmp_path: Path) -> None:
    """Each object that has the digest is taken; the recipe needs the very tar, and what is left is told."""
    lost = [damage.object_at(store, path) for path in PATHS]
    recipe = damage.recipe_of(store, store.layers.get(layer).diff_digest)
    for digest in (*lost, recipe):
        damage.spoil(store, digest)
    store.check(content=True)
    (tmp_path / "other.tar").write_bytes(OTHER)

    report = store.heal([str(tmp_path / "other.tar")])

    assert (report.healed, report.left) == (((str(tmp_path / "other.tar"), 2),), 2)
    left = {row[0] for row in store.query("SELECT object FROM v_damaged")[1]}
    assert left == {recipe.hex(), damage.object_at(store, "d/text").hex()}


def test_a_bad_source_is_told_and_the_others_go_on(store: Store, layer: str, tmp_path: Path) -> None:
    """What a cut tar gave before it ended counts."""
    lost = [damage.object_at(store, "d/small"), damage.object_at(store, "d/text")]
    for digest in lost:
        damage.spoil(store, digest)
    store.check(content=True)
    cut, whole = tmp_path / "cut.tar", tmp_path / "whole.tar"
    cut.write_bytes(TAR[: TAR.index(FILES["d/small"]) + 3584])
    whole.write_bytes(TAR)

    with pytest.raises(InvalidInput, match="no such file"):
        store.heal([str(tmp_path / "none.tar"), str(cut), str(whole)])
    report = store.heal([str(cut), str(whole)])

    assert (report.left, report.unused) == (0, True)
    assert [words.partition(": ")[0] for words in report.warnings] == [str(cut)]
    assert damage.broken(store) == []


def _archive(path: Path) -> Path:
    """A docker archive of the same layers."""
    config = json.dumps({"rootfs": {"type": "layers", "diff_ids": [sha256_of(data) for data in LAYERS]}}).encode()
    manifest = json.dumps([{"Config": "c.json", "RepoTags": ["x:v1"], "Layers": ["0.tar", "1.tar"]}]).encode()
    members = {"c.json": config, "0.tar": LAYERS[0], "1.tar": LAYERS[1], "manifest.json": manifest}
    path.write_bytes(tree(members))
    return path


@pytest.mark.parametrize("transport", ["oci", "docker-archive"])
def test_from_an_image_elsewhere(store: Store, tmp_path: Path, transport: str) -> None:
    """Its layers, and the documents that are kept as data."""
    layout = Layout(tmp_path / "oci")
    layout.image("v1", LAYERS)
    source = f"oci:{layout.root}"
    if transport == "docker-archive":
        source = f"docker-archive:{_archive(tmp_path / 'a.tar')}"
    (image,) = store.import_image(source)
    lost = {item.object for item in image.big_data} | {damage.object_at(store, "etc/os-release")}
    lost.add(damage.recipe_of(store, store.layers.get(image.layer).diff_digest))

    watched(store, sorted(lost)).healed_from(source, source)


def test_from_another_store(tmp_path: Path) -> None:
    """One that is only read beside this one."""
    with Store.open(tmp_path / "below", run=tmp_path / "run-below") as below:
        below.layers.import_(io.BytesIO(OTHER))
    settings = Settings(additional_stores=(str(tmp_path / "below"),))
    with Store.open(tmp_path / "root", run=tmp_path / "run", settings=settings) as store:
        store.layers.import_(io.BytesIO(TAR))
        lost = [damage.object_at(store, path) for path in ("d/small", "d/large")]

        watched(store, lost).healed_from(f"store {tmp_path / 'below'}")


def test_a_listing_is_made_of_its_entries(vfs_store: Store) -> None:
    """The one thing that the catalog alone gives back; a content that lost it altogether gets it, too."""
    store = vfs_store
    layer = store.layers.create()
    (store.mount(layer.id) / "written").write_bytes(b"x" * 5000)
    store.unmount(layer.id)
    sealed = store.layers.seal(layer.id)
    (key,) = sealed.contents
    digest = damage.recipe_of(store, key)

    watched(store, [digest]).healed_from("the catalog")
    with store._context.catalog.write_rows() as conn:
        conn.execute("UPDATE content SET recipe_id = NULL")
        conn.execute("INSERT INTO suspect (object_id) SELECT id FROM object WHERE digest = ?", (digest,))
    assert damage.broken(store) == [f"layer layer {layer.id}: content {key} has no recipe"]
    assert store.heal().healed == (("the catalog", 1),)
    assert damage.recipe_of(store, key) == digest
    assert damage.broken(store) == []


def test_the_journals_snapshot_is_made_anew(store: Store, layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All it says is in the catalog."""
    from lading.catalog.journal import Journal
    from lading.flows import journaling

    monkeypatch.setattr(Journal, "needs_snapshot", lambda self, conn: True)
    assert journaling.snapshot_if_needed(store._context)
    ((held,),) = damage.rows(store, "SELECT value FROM meta WHERE key = 'snapshot'")
    damage.spoil(store, bytes.fromhex(held))
    found = store.check(content=True)
    assert {finding.kind for finding in found.findings} == {"store"}
    assert found.incomplete  # records could not be compared with it

    report = store.heal()

    assert (report.healed, report.left) == ((("the catalog", 1),), 0)
    assert damage.broken(store) == []


def test_a_missing_pack_object_by_object(store: Store, layer: str, tmp_path: Path) -> None:
    """From as many sources as it takes."""
    digest = damage.object_at(store, "d/small")
    before = damage.records(store)
    inside = damage.rows(
        store, "SELECT count(*) FROM object WHERE pack_id = (SELECT pack_id FROM object WHERE digest = ?)", digest
    )[0][0]
    damage.lose(store, digest)
    (tmp_path / "1.tar").write_bytes(OTHER)
    (tmp_path / "2.tar").write_bytes(TAR)

    report = store.heal([str(tmp_path / "1.tar"), str(tmp_path / "2.tar")])

    assert sum(count for _, count in report.healed) == inside
    assert report.left == 0
    assert damage.records(store) == before
    assert taken_out(store, layer) == TAR
    assert damage.broken(store) == []
    assert sum(store.balance().classes.values()) == store.balance().total


@pytest.mark.parametrize("how", [damage.spoil_index, damage.cut], ids=["index", "cut"])
def test_what_is_sound_in_a_broken_pack_is_copied_out(
    store: Store, layer: str, how: Callable[[Store, bytes], None]
) -> None:
    """Without any other source; the broken pack goes once nothing is in it."""
    names = ["small", "text"]
    before = damage.records(store)
    last = max(
        (damage.object_at(store, f"d/{name}") for name in names),
        key=lambda digest: damage.location(store, digest).offset,
    )
    pack = damage.pack_of(store, last)
    how(store, last)
    assert store.check().damaged > 0

    report = store.heal()

    if how is damage.spoil_index:
        assert report.left == 0
        assert not pack.exists()
        assert taken_out(store, layer) == TAR
        assert damage.broken(store) == []
    else:
        assert report.left > 0
        assert pack.exists()
        remaining = damage.rows(
            store, "SELECT count(*) FROM object o JOIN pack p ON p.id = o.pack_id WHERE p.name = ?", pack.stem
        )
        assert remaining == [(report.left,)]
    assert damage.records(store) == before


class Killed(BaseException):
    """As by SIGKILL, at a commit."""


def test_a_repair_that_is_killed_at_any_commit_goes_on(store: Store, layer: str, tmp_path: Path) -> None:
    """Each time further, and whole in the end."""
    data = tmp_path / "layer.tar"
    data.write_bytes(TAR)
    lost = [damage.object_at(store, path) for path in PATHS]
    lost.append(damage.recipe_of(store, store.layers.get(layer).diff_digest))
    catalog = store._context.catalog
    real = catalog.write_rows
    for number in range(40):
        for digest in lost:
            damage.spoil(store, digest)
        damage.spoil_index(store, store.images.get("image").big_data[0].object)
        assert store.check(content=True).damaged >= len(lost)
        before = damage.records(store)
        commits = 0

        @contextlib.contextmanager
        def stopping(verb: str = "", *, durable: bool = True, at: int = number) -> Iterator[object]:
            nonlocal commits
            commits += 1
            with real(verb, durable=durable) as conn:
                yield conn
                if commits == at + 1:
                    raise Killed(verb)
            if commits == at + 1:
                raise Killed(verb)

        catalog.write_rows = stopping  # type: ignore[method-assign, assignment]
        killed = False
        try:
            store.heal([str(data)])
        except Killed:
            killed = True
        finally:
            catalog.write_rows = real  # type: ignore[method-assign]
        store.check()
        report = store.heal([str(data)])

        assert report.left == 0
        assert damage.records(store) == before
        assert damage.broken(store) == []
        assert taken_out(store, layer) == TAR
        store.gc()
        if not killed:
            break
    assert 3 < number < 39


def test_healing_says_nothing_on_a_sound_store(store: Store, layer: str) -> None:
    """And changes nothing."""
    state = Watched(store, [])

    assert store.heal() == refill.HealReport((), 0)
    state.is_whole()
    assert taken_out(store, layer) == TAR


def test_hostile_bytes_in_the_cache_are_no_copy(store: Store, layer: str) -> None:
    """Metadata that leads anywhere, contents of another digest."""
    rng = random.Random(3)
    for _ in range(200):
        meta = bytearray(rng.randbytes(8192))
        meta[1024:1028] = b"\xe2\xe1\xf5\xe0"
        meta[1036] = 12
        meta[1064:1068] = bytes(4)
        path = store.root / "x"
        path.write_bytes(meta)
        descriptor = os.open(path, os.O_RDONLY)
        with contextlib.suppress(Corrupt):
            for extents in erofsread.candidates(descriptor, len(meta), {0: {()}, 10: {()}, 1 << 40: {((0, 1 << 40),)}}):
                assert sum(len(chunk) for chunk in erofsread.read(descriptor, extents)) <= 8192 * len(extents)
        os.close(descriptor)
    path.unlink()
    assert replace(store.check(), depths=()).findings == ()


def unreadable(monkeypatch: pytest.MonkeyPatch, store: Store, forbidden: str, name: str) -> None:
    """Let a call of the store's backend fail for one pack, as for want of a permission."""
    backend = store._context.backend
    real = getattr(backend, name)

    def refused(pack: str, *args: int) -> object:
        if pack == forbidden:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(backend.path(pack)))
        return real(pack, *args)

    monkeypatch.setattr(backend, name, refused)


@pytest.mark.parametrize("call", ["size", "_descriptor"])
@pytest.mark.parametrize("how", ["sound", "recipe", "cut"])
def test_a_pack_that_may_not_be_read_keeps_no_other_from_being_healed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, how: str
) -> None:
    """It is told, nothing is done to it, and it is not counted as healed; also when it is damaged itself."""
    first = store.layers.import_(io.BytesIO(tree({"other": b"in a pack of its own"})))
    inside = damage.recipe_of(store, first.diff_digest) if how == "recipe" else damage.object_at(store, "other")
    pack = damage.pack_of(store, inside)
    store.layers.import_(io.BytesIO(TAR))
    damage.spoil_index(store, damage.object_at(store, "d/text"))
    damage.spoil(store, damage.object_at(store, "d/text"))
    if how == "recipe":
        damage.spoil(store, inside)
    elif how == "cut":
        damage.cut(store, inside)
    assert store.check(content=True).damaged
    store._context.backend.close()
    unreadable(monkeypatch, store, pack.stem, call)
    tar = tmp_path / "layer.tar"
    tar.write_bytes(TAR)
    before = pack.read_bytes()

    report = store.heal([str(tar)])

    assert report.left == {"sound": 0, "recipe": 1, "cut": 2}[how]
    assert sum(dict(report.healed).values()) >= 1
    assert report.warnings == (f"pack {pack.stem} could not be checked: permission denied",)
    assert pack.read_bytes() == before
    again = store.check()
    assert again.incomplete
    assert f"pack {pack.stem} could not be checked: permission denied" in [found.message for found in again.findings]
    monkeypatch.undo()
    if how == "sound":
        assert store.check(content=True).findings == ()
