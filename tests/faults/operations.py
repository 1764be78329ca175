"""The operations that faults are injected into: how the store is prepared, and the command."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from lading import Store
from lading.catalog import migrations
from lading.cli.main import run as run_command
from lading.config import Settings
from tests.damage import object_at, recipe_of, spoil
from tests.tarmake import END, directory, file, link, symlink


@dataclass(frozen=True, slots=True)
class Place:
    """The folders of one attempt."""

    base: Path

    @property
    def root(self) -> Path:
        return self.base / "root"

    @property
    def run(self) -> Path:
        return self.base / "run"

    @property
    def inputs(self) -> Path:
        return self.base / "in"

    @property
    def out(self) -> Path:
        return self.base / "out"

    def open(self, driver: str = "", **settings: Any) -> Store:
        """Open the store by the library."""
        return Store.open(self.root, run=self.run, driver=driver, settings=Settings(wait_s=5, **settings))


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation and what is prepared for it."""

    name: str
    words: Callable[[Place], Sequence[str]]  #: of the command
    prepare: Callable[[Place], None]
    settings: Mapping[str, Any] = field(default_factory=dict)
    before: Callable[[Place], None] | None = None  #: in each attempt's own namespace: what no copy can carry
    disk: bool = False  #: needs a filesystem on a disk: images cannot be mounted from memory
    by_record: bool = False  #: several commits: each record is as before or complete by itself
    partial: tuple[str, ...] = ()  #: what is written to step by step, in sight: a mounted tree
    stays: str = ""  #: the mount that a kill leaves behind, as one of the user's would stay
    mends: bool = False  #: the store is damaged before: whatever failed, the retry is what must work
    segment_size: int = 0  #: of the journal, when it is not the usual one

    def run(self, place: Place) -> int:
        """Run the command; prints as it does."""
        self.tweak()
        return run_command([*self.words(place)], "lading")

    def tweak(self) -> None:
        """Set what is no setting."""
        if self.segment_size:
            from lading.catalog import journal

            journal.SEGMENT_SIZE = self.segment_size  # type: ignore[misc]

    def open(self, place: Place) -> Store:
        """Open the store by the library, as the command does."""
        self.tweak()
        return place.open(**self.settings)

    def configure(self, place: Place) -> None:
        """Write the configuration file that the command reads."""
        lines = [f'root = "{place.root}"', f'run = "{place.run}"', "wait_s = 5.0"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in self.settings.items()]
        (place.base / "config.toml").write_text("\n".join(lines) + "\n")


def noise(size: int, seed: int) -> bytes:
    """Bytes that do not compress, the same ones each time."""
    return random.Random(seed).randbytes(size)


LOWER: Final = (
    directory(b"etc/") + file(b"etc/a", noise(60_000, 1)) + link(b"etc/b", b"etc/a") + symlink(b"l", b"etc/a")
    + directory(b"old/") + file(b"old/x", b"x" * 5000) + file(b"gone", b"g") + END
)  # fmt: skip
UPPER: Final = file(b".wh.gone") + directory(b"old/") + file(b"old/.wh..wh..opq") + file(b"old/y", noise(3000, 2)) + END
NEW: Final = (
    directory(b"new/")
    + b"".join(file(b"new/%d" % number, noise(20_000, 10 + number)) for number in range(5))
    + file(b"new/known", noise(60_000, 1))  # the lower layer has it, too
    + END
)
OTHER: Final = file(b"etc/c", noise(9000, 3)) + file(b"etc/a", b"other") + END


def _inputs(place: Place) -> None:
    place.inputs.mkdir()
    (place.inputs / "new.tar").write_bytes(NEW)
    (place.inputs / "new.tar.gz").write_bytes(gzip.compress(NEW, mtime=0))
    (place.inputs / "other.tar").write_bytes(OTHER)
    (place.inputs / "lower.tar").write_bytes(LOWER)
    (place.inputs / "data").write_bytes(noise(300_000, 4))
    _oci(place.inputs / "oci", [LOWER, NEW, OTHER])


def _oci(folder: Path, layers: Sequence[bytes]) -> None:
    """A small OCI layout; the first layer is in the store already, as another's."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, kind: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}

    described = [put(gzip.compress(data, mtime=0), "application/vnd.oci.image.layer.v1.tar+gzip") for data in layers]
    diff_ids = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in layers]
    config = {"created": "2024-01-01T00:00:00Z", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    manifest = {
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"), "layers": described,
    }  # fmt: skip
    listed = put(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    listed["annotations"] = {"org.opencontainers.image.ref.name": "made"}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [listed]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def _filled(store: Store) -> None:
    """What every prepared store has: two layers, an image, a container, data."""
    lower = store.layers.import_(io.BytesIO(LOWER), id="lower", names=["lower-name"])
    upper = store.layers.import_(io.BytesIO(UPPER), lower.id, id="upper")
    store.images.create(
        upper.id,
        id="image",
        names=["image-name"],
        metadata="text",
        big_data={"manifest": b"{}", "item": noise(5000, 5)},
    )
    store.containers.create("image", id="box", names=["box-name"], layer_id="box-layer", big_data={"item": b"small"})


def plain(place: Place) -> None:
    """The usual store."""
    _inputs(place)
    with place.open() as store:
        assert not store.mounts()  # makes the run root, which then remembers what this machine can do
        _filled(store)


def nothing(place: Place) -> None:
    """No store yet."""
    _inputs(place)


def _more(act: Callable[[Store, Place], None], driver: str = "", **settings: Any) -> Callable[[Place], None]:
    """The usual store, and something done to it."""

    def prepare(place: Place) -> None:
        plain(place)
        with place.open(driver, **settings) as store:
            act(store, place)

    return prepare


@contextlib.contextmanager
def _mounted(store: Store, ref: str) -> Iterator[Path]:
    path = store.mount(ref)
    yield path
    store.unmount(ref)


def _write(path: Path) -> None:
    """Write into a tree, with times that are the same in every run."""
    (path / "written").write_bytes(noise(4000, 6))
    (path / "etc/a").write_bytes(b"changed")
    (path / "l").unlink()
    for item in (path / "written", path / "etc/a", path / "etc", path):
        os.utime(item, ns=(0, 0))


def _write_box(store: Store, place: Place) -> None:
    with _mounted(store, "box") as path:
        _write(path)


def _fresh(store: Store, place: Place) -> None:
    store.layers.create("upper", id="fresh")


def _written(store: Store, place: Place) -> None:
    """A layer with a diff, and something written over it."""
    store.layers.import_(io.BytesIO(OTHER), "upper", id="fresh")
    with _mounted(store, "fresh") as path:
        _write(path)


def _written_alone(store: Store, place: Place) -> None:
    store.layers.create("upper", id="fresh")
    with _mounted(store, "fresh") as path:
        _write(path)


def _child_while_mounted(store: Store, place: Place) -> None:
    store.layers.create("upper", id="fresh")


def _unshared(store: Store, place: Place) -> None:
    """Garbage of every kind."""
    store.layers.import_(io.BytesIO(NEW), id="doomed")
    store.images.create("doomed", id="doomed-image", big_data={"item": noise(9000, 7)})
    store.images.directory("doomed-image")
    store.images.set_data("image", "item", io.BytesIO(noise(6000, 8)))
    store.delete("doomed-image")
    store.layers.delete("doomed")


def _worn(store: Store, place: Place) -> None:
    """A pack of which half is garbage."""
    store.layers.import_(io.BytesIO(NEW), id="doomed")
    kept = file(b"kept", noise(20_000, 11)) + file(b"also", noise(20_000, 12)) + END
    store.layers.import_(io.BytesIO(kept), id="kept")
    store.layers.delete("doomed")


def _layers_of_an_image(store: Store, place: Place) -> None:
    """An image whose layers nothing else uses."""
    low = store.layers.import_(io.BytesIO(NEW), id="one")
    store.layers.import_(io.BytesIO(OTHER), low.id, id="two")
    store.images.create("two", id="doomed", names=["doomed-name"], big_data={"item": noise(9000, 7)})


def _longer(store: Store, place: Place) -> None:
    for number in range(6):
        store.set_metadata("image", f"text {number}")


def _spoil(store: Store, place: Place) -> None:
    """Damage a file's content, and a layer's recipe."""
    spoil(store, object_at(store, "etc/a"))
    spoil(store, recipe_of(store, store.layers.get("lower").diff_digest))


def _spoil_doomed(store: Store, place: Place) -> None:
    """Damage what nothing can bring back; a layer, an image and a container need it."""
    _layers_of_an_image(store, place)
    store.containers.create("doomed", id="doomed-box")
    spoil(store, object_at(store, "etc/c"))


def _lose_catalog(place: Place) -> None:
    plain(place)
    for ending in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{place.root / 'catalog.db'}{ending}")


def _spoil_journal(place: Place) -> None:
    plain(place)
    segment = min((place.root / "journal").glob("*.log"))
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)


def _no_reserve(place: Place) -> None:
    plain(place)
    shutil.rmtree(place.root / "reserve")


def _lose_boot(place: Place) -> None:
    from lading.materialize.beneath import remove_tree

    remove_tree(place.run)


def _mount_box(place: Place, **settings: Any) -> None:
    with place.open(**settings) as store:
        path = store.mount("box")
        _write(path)


def _mount_vfs(place: Place) -> None:
    _mount_box(place, driver="vfs")


def _mount_fresh_with_child(place: Place) -> None:
    with place.open() as store:
        _write(store.mount("fresh"))
        store.layers.create("fresh", id="child")


def _mount_box_twice(place: Place) -> None:
    with place.open() as store:
        store.mount("box")
        store.mount("box")


def _with_schema(version: int) -> Callable[[Place], None]:
    """The usual store, its catalog as an older version left it."""

    def prepare(place: Place) -> None:
        plain(place)
        downgrade(place.root / "catalog.db", version)

    return prepare


def downgrade(path: Path, version: int) -> None:
    """Make a catalog anew by the first steps of the schema, with the rows that they know."""
    old = path.with_name("old.db")
    connection = sqlite3.connect(old, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    for step in migrations.STEPS[:version]:
        for statement in step:
            connection.execute(statement)
    connection.execute("ATTACH ? AS new", (str(path),))
    tables = [row[0] for row in connection.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'")]
    for table in tables:
        if table.startswith("sqlite_"):
            continue
        names = [row[1] for row in connection.execute(f'PRAGMA main.table_info("{table}")')]
        columns = ", ".join(f'"{name}"' for name in names)
        connection.execute(f'DELETE FROM main."{table}"')
        connection.execute(f'INSERT INTO main."{table}" ({columns}) SELECT {columns} FROM new."{table}"')
    connection.execute("DELETE FROM meta WHERE key IN ('recipes', 'views')")  # notes that later steps make
    connection.execute(f"PRAGMA user_version = {version}")
    connection.execute("DETACH new")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    for ending in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{path}{ending}")
    for ending in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{old}{ending}")
    os.rename(old, path)


def _words(*words: str) -> Callable[[Place], Sequence[str]]:
    """A command's words; ``@NAME`` is an input."""
    return lambda place: [
        str(place.inputs / word[1:]) if word.startswith("@") else word.replace("%", str(place.base)) for word in words
    ]


_FARM: Final = {"strategy": "farm"}

OPERATIONS: Final = tuple(
    sorted(
        (
            Operation("first-command", _words("layers"), nothing),
            Operation(
                "import-layer",
                _words("import-layer", "-f", "@new.tar", "-i", "made", "-n", "made-name", "upper"),
                plain,
            ),
            Operation("import-layer-gzip", _words("import-layer", "-f", "@new.tar.gz", "-i", "made", "upper"), plain),
            Operation("applydiff-fresh", _words("applydiff", "-f", "@new.tar", "fresh"), _more(_fresh)),
            Operation("applydiff-over-diff", _words("applydiff", "-f", "@other.tar", "lower"), plain),
            Operation("applydiff-over-writes", _words("applydiff", "-f", "@new.tar", "fresh"), _more(_written)),
            Operation("import-oci", _words("import", "-n", "another-name", "oci:%/in/oci"), plain, by_record=True),
            Operation("seal", _words("seal", "fresh"), _more(_written_alone)),
            Operation("create-layer", _words("create-layer", "-i", "made", "-n", "made-name", "upper"), plain),
            Operation("create-layer-over-writes", _words("create-layer", "-i", "made", "fresh"), _more(_written_alone)),
            Operation("delete-layer", _words("delete-layer", "fresh"), _more(_written)),
            Operation(
                "create-image", _words("create-image", "-i", "made", "-n", "made-name", "-m", "text", "lower"), plain
            ),
            Operation("delete-image", _words("delete-image", "doomed"), _more(_layers_of_an_image)),
            Operation("create-container", _words("create-container", "-i", "made", "-n", "made-name", "image"), plain),
            Operation("delete-container", _words("delete-container", "box"), _more(_write_box)),
            Operation("set-names", _words("set-names", "-n", "one", "-n", "two", "image"), plain),
            Operation("set-metadata", _words("set-metadata", "-m", "another text", "box"), plain),
            Operation("set-image-data", _words("set-image-data", "-f", "@data", "image", "made"), plain),
            Operation("replace-image-data", _words("set-image-data", "-f", "@data", "image", "item"), plain),
            Operation("set-container-data", _words("set-container-data", "-f", "@data", "box", "item"), plain),
            Operation("gc", _words("gc"), _more(_unshared), by_record=True),
            Operation("repack", _words("gc"), _more(_worn), {"repack_share": 0.01}),
            Operation("journal-snapshot", _words("gc"), _more(_longer), segment_size=64),
            Operation("reserve", _words("gc"), _no_reserve),
            Operation("first-mount-of-a-boot", _words("mount", "box"), plain, _FARM, before=_lose_boot),
            Operation("mount-farm", _words("mount", "box"), plain, _FARM),
            Operation("mount-image", _words("mount", "box"), plain, disk=True),
            Operation("mount-again", _words("mount", "box"), plain, before=_mount_box),
            Operation("mount-tree", _words("mount", "box"), plain, {"driver": "vfs"}),
            Operation("unmount", _words("unmount", "box"), plain, before=_mount_box),
            Operation("unmount-one-of-two", _words("unmount", "box"), plain, before=_mount_box_twice),
            Operation(
                "unmount-and-seal",
                _words("unmount", "fresh"),
                _more(_child_while_mounted),
                before=_mount_fresh_with_child,
            ),
            Operation("unmount-tree", _words("unmount", "box"), plain, {"driver": "vfs"}, before=_mount_vfs),
            Operation("delete-mounted", _words("delete-container", "box"), plain, before=_mount_box, by_record=True),
            Operation(
                "applydiff-mounted",
                _words("applydiff", "-f", "@other.tar", "box-layer"),
                plain,
                before=_mount_box,
                by_record=True,
                partial=("mount box-layer", "layer box-layer"),
            ),
            Operation("build-images", _words("cache", "prefetch", "image"), plain, disk=True),
            Operation("build-flat-image", _words("cache", "--flatten", "prefetch", "image"), plain, disk=True),
            Operation(
                "build-composefs", _words("cache", "prefetch", "image"), plain, {"strategy": "composefs"}, disk=True
            ),
            Operation("build-farms", _words("cache", "prefetch", "image"), plain, _FARM),
            Operation("evict", _words("cache", "evict"), _more(lambda store, place: _cached(store), **_FARM), _FARM),
            Operation("checkout", _words("checkout", "image", "%/out"), plain),
            Operation("commit", _words("commit", "-i", "made", "-n", "made-name", "box"), _more(_write_box)),
            Operation("commit-mounted", _words("commit", "-i", "made", "box"), plain, before=_mount_box),
            Operation("clone", _words("clone", "-i", "made", "-n", "made-name", "box"), _more(_write_box)),
            Operation(
                "copy-into",
                _words("copy", "@data", "fresh:/copied"),
                _more(_fresh),
                partial=("layer fresh",),
                stays="mount fresh",
            ),
            Operation("catalog-rebuild", _words("catalog", "rebuild", "--force"), plain),
            Operation("catalog-rebuild-lost", _words("catalog", "rebuild", "--force"), _lose_catalog, mends=True),
            Operation("catalog-rejournal", _words("catalog", "rejournal"), _spoil_journal, mends=True),
            Operation("check-content", _words("check", "--content"), plain),
            Operation(
                "heal", _words("check", "--heal", "--from", "@lower.tar", "--content"), _more(_spoil), mends=True
            ),
            Operation("repair", _words("check", "--repair", "--force", "--content"), _more(_spoil_doomed), mends=True),
            Operation("wipe", _words("wipe"), _more(_write_box), by_record=True),
            *(
                Operation(f"migrate-{version}", _words("layers"), _with_schema(version))
                for version in range(1, migrations.VERSION)
            ),
        ),
        key=lambda operation: operation.name,
    )
)


def _cached(store: Store) -> None:
    store.cache.prefetch("image")
