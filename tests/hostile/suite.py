"""Plays cases through every door of a store that shows trees in one way, and looks at everything afterwards."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lading import Settings, Store
from lading.cli.main import run
from lading.errors import LadingError
from lading.materialize.beneath import remove_tree
from tests.hostile.cases import BELOW, Case
from tests.hostile.expected import differences, read_tree, with_parents

#: How each strategy is chosen.
STRATEGIES: Mapping[str, Settings] = {
    "erofs": Settings(driver="overlay", strategy="erofs"), "farm": Settings(driver="overlay", strategy="farm"),
    "copy": Settings(driver="vfs"),
}  # fmt: skip
DOORS = ("library", "applydiff", "import-layer", "import")


#: pytest's ``record_property``.
Record = Callable[[str, object], None]


@dataclass
class Said:
    """What a door answered."""

    status: int
    err: list[str]
    layer: str = ""  #: id of what was made
    image: str = ""


@dataclass
class Canaries:
    """Files and folders around the store, and all that is known of them."""

    folder: Path
    before: dict[str, tuple[object, ...]] = field(default_factory=dict)

    def plant(self) -> None:
        """Make some of each kind."""
        (self.folder / "deep/er").mkdir(parents=True)
        for name in ("canary", "passwd", "deep/canary", "deep/er/x"):
            (self.folder / name).write_text(f"marked {name}\n")
        (self.folder / "link").symlink_to("canary")
        os.link(self.folder / "canary", self.folder / "linked")
        os.mkfifo(self.folder / "fifo")
        self.before = self.look()

    def look(self) -> dict[str, tuple[object, ...]]:
        """Everything there: kind, mode, owner, links, inode, size, times, content; and the host's own passwd."""
        found: dict[str, tuple[object, ...]] = {}
        for path in (self.folder, *sorted(self.folder.rglob("*")), Path("/etc/passwd"), Path("/etc")):
            status = os.lstat(path)
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            found[str(path)] = (
                status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_ino, status.st_size, status.st_mtime_ns,
                status.st_ctime_ns, content,
            )  # fmt: skip
        return found

    def touched(self) -> list[str]:
        """What is no longer as it was."""
        now = self.look()
        return [path for path in now.keys() | self.before.keys() if now.get(path) != self.before.get(path)]


class Stage:
    """A store, the canaries around it, and what is needed to go through its doors."""

    def __init__(self, base: Path, strategy: str) -> None:
        self.base = base
        self.strategy = strategy
        self.outside = Canaries(base / "outside")
        self.outside.folder.mkdir()
        self.outside.plant()
        self.warned: list[str] = []
        self.settings = STRATEGIES[strategy]
        self.store = Store.open(base / "root", run=base / "run", settings=self.settings, warn=self.warned.append)
        config = base / "config.toml"
        config.write_text(
            f'root = "{base}/root"\nrun = "{base}/run"\ndriver = "{self.settings.driver}"\nstrategy = "{self.settings.strategy}"\n'
        )
        self.below = self.store.layers.import_(io.BytesIO(BELOW), names=["below"]).id
        (base / "oci/blobs/sha256").mkdir(parents=True)
        (base / "oci/oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        for name in ("tree", "run"):
            (base / name).mkdir(mode=0o700, exist_ok=True)
        self.around = sorted(os.listdir(base))

    def close(self) -> None:
        for mount in self.store.mounts():
            self.store.unmount(mount.layer, force=True)
        self.store.close()

    def command(self, *words: str) -> tuple[int, str, list[str]]:
        """Run the command in this process."""
        saved = sys.stdout, sys.stderr
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", newline="") for _ in range(2))
        os.environ["LADING_CONFIG"] = str(self.base / "config.toml")
        sys.stdout, sys.stderr = out, err
        try:
            status = run(["--progress=none", *words])
        finally:
            sys.stdout, sys.stderr = saved
            del os.environ["LADING_CONFIG"]
        texts = []
        for stream in (out, err):
            stream.flush()
            texts.append(stream.buffer.getvalue().decode())
        return status, texts[0], texts[1].splitlines()

    def state(self, case: Case, door: str) -> tuple[dict[str, int], dict[str, int], object]:
        """Rows by table, bytes by file, and every record: what a refusal leaves as it was.

        An image whose upper layer is refused had its lower one made and deleted again: the history and the journal,
        which tell what was done, know that.
        """
        undone = door == "import" and case.below
        rows = {}
        _, tables = self.store.query("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        for (table,) in list(tables):
            if undone and table == "event":
                continue
            rows[table] = next(self.store.query(f'SELECT count(*) FROM "{table}"')[1])[0]
        files = {}
        for top in (self.base / "root").iterdir():
            # The cache is derived, and may hold paths longer than the kernel takes at once.
            if top.name == "cache" or top.name.startswith("catalog.db") or (undone and top.name == "journal"):
                continue
            for path in (top, *top.rglob("*")):
                files[str(path)] = path.lstat().st_size if path.is_file() else -1
        return rows, files, self.store.multi_list(layers=True, images=True, containers=True)

    # The doors.

    def through(self, door: str, case: Case, packed: bytes, plain: bytes) -> Said:
        """Bring a layer in by one door."""
        return {"library": self._library, "applydiff": self._applydiff, "import-layer": self._import_layer, "import": self._import}[door](case, packed, plain)  # fmt: skip

    def _library(self, case: Case, packed: bytes, plain: bytes) -> Said:
        self.warned.clear()
        try:
            layer = self.store.layers.import_(io.BytesIO(packed), self.below if case.below else "")
        except LadingError as error:
            return Said(1, str(error).splitlines())
        return Said(0, list(self.warned), layer.id)

    def _applydiff(self, case: Case, packed: bytes, plain: bytes) -> Said:
        (self.base / "oci/layer").write_bytes(packed)
        status, out, err = self.command("applydiff", "-f", str(self.base / "oci/layer"), "target")
        assert out == ""
        return Said(status, err, self.store.layers.get("target").id)

    def _import_layer(self, case: Case, packed: bytes, plain: bytes) -> Said:
        (self.base / "oci/layer").write_bytes(packed)
        status, out, err = self.command(
            "import-layer", "-f", str(self.base / "oci/layer"), *([self.below] if case.below else [])
        )
        assert bool(out) == (status == 0)
        return Said(status, err, out.strip())

    def _import(self, case: Case, packed: bytes, plain: bytes) -> Said:
        layers = [(BELOW, BELOW), (packed, plain)] if case.below else [(packed, plain)]
        self.layout(layers)
        status, out, err = self.command("import", f"oci:{self.base}/oci")
        assert bool(out) == (status == 0)
        image = out.splitlines()[0] if out else ""
        return Said(status, err, self.store.images.get(image).layer if image else "", image)

    def layout(self, layers: list[tuple[bytes, bytes]]) -> None:
        """Write an OCI layout with one image of some layers, as presented and plain."""

        def blob(data: bytes) -> dict[str, object]:
            digest = hashlib.sha256(data).hexdigest()
            (self.base / "oci/blobs/sha256" / digest).write_bytes(data)
            return {"digest": f"sha256:{digest}", "size": len(data)}

        for path in (self.base / "oci/blobs/sha256").iterdir():
            path.unlink()
        diff_ids = [f"sha256:{hashlib.sha256(plain).hexdigest()}" for _, plain in layers]
        config = blob(json.dumps({"rootfs": {"type": "layers", "diff_ids": diff_ids}}).encode())
        manifest = {"schemaVersion": 2, "config": config, "layers": [blob(data) for data, _ in layers]}
        kind = "application/vnd.oci.image.manifest.v1+json"
        index = {"manifests": [{"mediaType": kind, **blob(json.dumps(manifest).encode())}]}
        (self.base / "oci/index.json").write_text(json.dumps(index))

    # What must be so.

    def play(self, door: str, case: Case) -> None:
        """One case by one door: the exact result, and nothing else anywhere."""
        plain = case.make(str(self.outside.folder).encode().lstrip(b"/"))
        packed = case.pack(plain)
        if door == "applydiff":
            self.store.layers.create(self.below if case.below else "", names=["target"])
        before = self.state(case, door) if case.refused else None
        try:
            said = self.through(door, case, packed, plain)
            if case.refused:
                assert said.status == 1, "accepted"
                assert len(said.err) == 1, said.err
                assert said.err[0].isprintable()
                assert case.refused in said.err[0]
                assert self.state(case, door) == before, "a refusal left something"
            else:
                assert said.status == 0, said.err
                assert len(said.err) == case.warns, said.err
                self._check_stored(said.layer, plain, packed)
                self._check_shown(case, door, said.layer)
            assert self.outside.touched() == []
            assert sorted(os.listdir(self.base)) == self.around
        finally:
            self._clear()

    def _check_stored(self, layer_id: str, plain: bytes, packed: bytes) -> None:
        """The tar comes out as it went in; the record says what it was."""
        layer = self.store.layers.get(layer_id)
        assert layer.diff_digest == f"sha256:{hashlib.sha256(plain).hexdigest()}"
        assert layer.compressed_digest == f"sha256:{hashlib.sha256(packed).hexdigest()}"
        assert (layer.diff_size, layer.compressed_size) == (len(plain), len(packed))
        with self.store.layers.diff(layer_id, compression=0) as chunks:
            assert b"".join(chunks) == plain

    def _check_shown(self, case: Case, door: str, layer_id: str) -> None:
        wanted = with_parents(case.only.get(self.strategy) or case.tree(str(self.outside.folder).encode().lstrip(b"/")))
        self.warned.clear()
        if self.strategy == "copy" and door in ("library", "import"):
            root = self.base / "tree/out"
            warnings = self.store.checkout(layer_id, root).warnings
            try:
                found = read_tree(root)
            finally:
                remove_tree(root)
            said = len(warnings)
        else:
            root = self.store.mount(layer_id)
            try:
                _check_out_of_reach(root, self.base)
                found = read_tree(root)
            finally:
                self.store.unmount(layer_id)
            said = len(self.warned)
        wrong = differences(found, wanted, links=self.strategy != "farm")
        assert not wrong, "\n".join(wrong)
        if door == DOORS[0] or self.strategy == "copy":  # views are made once, and kept
            assert said == case.shown_warns.get(self.strategy, 0), self.warned

    def _clear(self) -> None:
        """Back to the one layer below."""
        for image in self.store.images.all():
            self.store.images.delete(image.id)
        for layer in reversed(self.store.layers.all()):
            if layer.id != self.below:
                self.store.layers.delete(layer.id)


def _check_out_of_reach(root: Path, base: Path) -> None:
    """Some folder between a tree and the world lets nobody but its owner through."""
    above = [path for path in root.parents if path.is_relative_to(base) and path != base]
    assert any(path.stat().st_mode & 0o077 == 0 for path in above)


@contextmanager
def stage(strategy: str, prefix: str = "lading-hostile-") -> Iterator[Stage]:
    """A stage in a folder of its own."""
    base = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        made = Stage(base, strategy)
        try:
            yield made
        finally:
            made.close()
    finally:
        remove_tree(base)


def chosen(cases: Sequence[Case], strategy: str) -> list[tuple[Case, str]]:
    """Which case goes through which door where: with ``LADING_HOSTILE=all`` each through each.

    Else every case goes through every door once and is shown in every way, the doors taking turns.
    """
    everything = os.environ.get("LADING_HOSTILE") == "all"
    turn = list(STRATEGIES).index(strategy)
    found = []
    for number, case in enumerate(cases):
        for place, door in enumerate(DOORS):
            if (
                everything
                or (place + number) % len(DOORS) == turn
                or (turn == 0 and (place + number) % len(DOORS) == 3)
            ):
                found.append((case, door))
    return found


def gzipped(data: bytes) -> bytes:
    """Compressed, the same bytes each time."""
    return gzip.compress(data, mtime=0)


def ratio(act: Callable[[int], object], small: int) -> float:
    """How much longer four times as much takes, by processor time; the best of three each."""

    def measured(size: int) -> float:
        times = []
        for _ in range(3):
            before = time.process_time()
            act(size)
            times.append(time.process_time() - before)
        return min(times)

    return measured(4 * small) / max(measured(small), 0.001)


def fixture_of(strategy: str) -> Callable[[], Iterator[Stage]]:
    """The fixture of a module that plays all cases in one way."""

    @pytest.fixture(scope="module", name="played")
    def played() -> Iterator[Stage]:
        with stage(strategy) as made:
            yield made

    return played
