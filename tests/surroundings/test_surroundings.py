"""What may happen around a store: processes that die, restarts, clocks, rights, other versions."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lading import Settings, Store
from lading.errors import InUse, LadingError
from lading.materialize import mounts
from tests.contract.command import ours
from tests.flows.test_gc import layer_of
from tests.flows.test_layers import taken_out
from tests.tarmake import END, directory, file, header, pax, symlink

ROOT = Path(__file__).resolve().parents[2]


def command(roots: list[str], *words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run a command as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "lading.cli", *roots, *words], capture_output=True, check=False, env=env
    )


def test_thousands_of_dead_staging_folders_go_and_the_living_stay(store: Store) -> None:
    """With the next writer, or collection; whatever lies in them, locks or none."""
    from lading.objects.durable import Staging

    living = Staging(store.root / "objects/staging")
    for number in range(600):
        folder = store.root / "objects/staging" / f"dead{number}"
        (folder / "tree/deep").mkdir(parents=True)
        (folder / "half.pack").write_bytes(bytes(10))
        if number % 2:
            (folder / "lock").touch()
    (store.root / "objects/staging/stray").write_bytes(b"no folder")

    for _ in range(3):
        store.gc()

    assert {item.name for item in (store.root / "objects/staging").iterdir()} <= {living.path.name, "stray"}
    assert living.path.exists()
    living.close()


@pytest.mark.privileged
def test_a_layer_whose_mount_is_in_use_is_not_deleted(store: Store) -> None:
    """Neither it nor anything of it; once nobody is in it, it goes, unmounted."""
    store.layers.import_(io.BytesIO(layer_of(1)), id="l")
    path = store.mount("l")
    inside = subprocess.Popen(["sleep", "60"], cwd=path)
    try:
        with pytest.raises(InUse, match=str(inside.pid)):
            store.layers.delete("l")
        assert (path / "shared/0").exists()
        assert taken_out(store, "l") == layer_of(1)
    finally:
        inside.kill()
        inside.wait()
    store.layers.delete("l")
    assert store.layers.all() == []
    assert not mounts.is_mounted(path)


MOUNTER = """
import os, sys
from lading import Store
store = Store.open(sys.argv[1], run=sys.argv[2])
for _ in range(3):
    path = store.mount("l")
(path / "written").write_bytes(b"1")
os.kill(os.getpid(), 9)
"""


@pytest.mark.privileged
def test_what_a_process_mounted_that_died_can_be_unmounted(store: Store) -> None:
    """Its count is too high now: force clears it, and what was written is there."""
    store.layers.import_(io.BytesIO(layer_of(1)), id="l")
    done = subprocess.run([sys.executable, "-c", MOUNTER, str(store.root), str(store.run.parent)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert store.mounted("l") == 3

    assert store.unmount("l") is False
    assert store.mounted("l") == 2
    assert store.unmount("l", force=True) is True
    assert store.mounted("l") == 0
    assert (store.mount("l") / "written").read_bytes() == b"1"
    assert store.unmount("l") is True


@pytest.mark.privileged
def test_after_a_restart_counts_begin_at_zero_and_mounts_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run root is gone, or is there with another boot's records; mounts are gone; nobody need be told."""
    roots = tmp_path / "root", tmp_path / "run"
    for lost in (True, False):
        with Store.open(roots[0], run=roots[1]) as store:
            if not store.layers.exists("l"):
                store.layers.import_(io.BytesIO(layer_of(1)), id="l")
            path = store.mount("l")
            store.mount("l")
            (path / "written").write_bytes(b"1")
            with store.digest_lock("sha256:1"):
                pass
            mounts.unmount(path)
        boot = "01234567-89ab-cdef-0123-456789abcdef" if lost else "fedcba98-89ab-cdef-0123-456789abcdef"

        def of_this_boot(
            self: Path, *args: object, boot: str = boot, read: Callable[[Path], str] = Path.read_text
        ) -> str:
            return boot if str(self).endswith("boot_id") else read(self)

        monkeypatch.setattr(Path, "read_text", of_this_boot)
        if lost:
            shutil.rmtree(roots[1])
        with Store.open(roots[0], run=roots[1]) as store:
            assert store.mounted("l") == 0
            assert store.mounts() == []
            again = store.mount("l")
            assert (again / "written").read_bytes() == b"1"
            assert store.mounted("l") == 1
            store.unmount("l")
            assert store.check(content=True).ids("store") == []
        monkeypatch.undo()


@pytest.mark.parametrize("jump", [-20 * 365 * 86400, 100 * 365 * 86400])
def test_a_clock_that_jumps_collects_nothing_early_and_breaks_no_lock(
    store: Store, monkeypatch: pytest.MonkeyPatch, jump: int
) -> None:
    """In the middle of an ingest, of a diff, and with records from the future."""
    data, now_ns, now = layer_of(1, files=400), time.time_ns, time.time
    kept = store.layers.import_(io.BytesIO(data), id="kept")

    class Jumping(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 100_000 and time.time_ns is now_ns:
                monkeypatch.setattr(time, "time_ns", lambda: now_ns() + jump * 10**9)
                monkeypatch.setattr(time, "time", lambda: now() + jump)
                store.gc()
            return super().read(size)

    fresh = layer_of(2, files=400)
    made = store.layers.import_(Jumping(fresh), id="made")
    with store.layers.diff("kept", compression=0) as chunks:
        store.layers.delete("kept")
        store.gc()
        assert b"".join(chunks) == data
    assert time.time_ns is not now_ns
    store.gc()

    assert taken_out(store, made.id) == fresh
    monkeypatch.undo()
    store.gc()
    assert store.check(content=True).ids("store") == []
    assert taken_out(store, made.id) == fresh
    assert [layer.id for layer in store.layers.all()] == [made.id]
    assert kept.id == "kept"


@pytest.mark.privileged
def test_on_a_read_only_filesystem_reading_commands_work_and_writing_ones_say_so(tmp_path: Path) -> None:
    """In a line, with status 1; nothing is made, not even in the staging folder."""
    with Store.open(tmp_path / "root", run=tmp_path / "run") as store:
        store.layers.import_(io.BytesIO(layer_of(1)), id="l", names=["n"])
        store.images.create("l", id="i", big_data={"k": b"v"})
        store.containers.create("i", id="c")
        store.images.create(store.layers.create().id, id="unused")
        store.layers.create(id="bare")
    view = tmp_path / "view"
    view.mkdir()
    subprocess.run(["mount", "--bind", tmp_path / "root", view], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", view], check=True)
    roots = ["-g", str(view), "-R", str(tmp_path / "run2")]
    tar = tmp_path / "in.tar"
    tar.write_bytes(layer_of(2))
    try:
        before = sorted(str(path) for path in (tmp_path / "root").rglob("*"))
        for words in (
            ["layers"], ["images"], ["containers"], ["layer", "l"], ["image", "i"], ["container", "c"], ["changes", "l"], ["diffsize", "l"],
            ["diff", "-f", str(tmp_path / "out"), "l"], ["get-image-data", "i", "k"], ["get-names", "l"], ["metadata", "l"], ["exists", "l"],
            ["sql", "SELECT * FROM v_layer"], ["status"], ["mounted", "l"], ["balance"], ["gc", "--dry-run"], ["check", "--content"],
            ["checkout", "l", str(tmp_path / "tree")], ["storage-layers"], ["cache", "list"],
        ):  # fmt: skip
            status, _, stderr = ours([*roots, *words])
            assert status == 0, (words, stderr)
        for words in (
            ["create-layer"], ["import-layer", "-f", str(tar)], ["applydiff", "-f", str(tar), "l"], ["create-image"], ["create-container", "i"],
            ["set-names", "-n", "x", "l"], ["add-names", "-n", "x", "l"], ["remove-names", "-n", "n", "l"], ["set-metadata", "-m", "x", "l"],
            ["set-image-data", "-f", str(tar), "i", "k"], ["delete", "c"], ["delete-container", "c"], ["delete-image", "unused"], ["delete-layer", "bare"],
            ["mount", "c"], ["gc"], ["wipe"], ["commit", "c"], ["clone", "c"], ["seal", "l"], ["cache", "evict"],
        ):  # fmt: skip
            status, stdout, stderr = ours([*roots, *words])
            assert status == 1, (words, stdout, stderr)
            assert stderr.count(b"\n") == 1, (words, stderr)
            assert b"read-only" in stderr or b"may not be written" in stderr, (words, stderr)
        assert sorted(str(path) for path in (tmp_path / "root").rglob("*")) == before
    finally:
        subprocess.run(["umount", view], check=True)


@pytest.mark.privileged
def test_a_store_of_another_user_is_refused_by_its_path(tmp_path: Path) -> None:
    """For every command, in a line; nothing is made."""
    os.chmod(tmp_path, 0o755)
    Store.open(tmp_path / "root", run=tmp_path / "run").close()
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    for root in ("root", "no/such"):
        for words in (["layers"], ["create-layer"], ["gc"], ["check"], ["delete-layer", "l"]):
            done = _as_nobody(["-g", str(tmp_path / root), "-R", str(tmp_path / "run-of-mine")], words)
            assert done.returncode == 1
            told = (done.stdout + done.stderr).decode()
            assert str(tmp_path / root) in told
            assert "ermission denied" in told
            assert told.count("\n") == 1
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


@pytest.mark.privileged
def test_files_that_may_not_be_read_or_written_are_named_and_change_nothing(tmp_path: Path) -> None:
    """As after a restore by the wrong user."""
    home = tmp_path / "home"
    home.mkdir()
    os.chmod(tmp_path, 0o755)
    os.chown(home, 65534, 65534)
    roots = ["-g", str(home / "root"), "-R", str(home / "run"), "-s", "vfs"]
    tar = home / "in.tar"
    tar.write_bytes(layer_of(1))
    os.chmod(tar, 0o644)
    assert _as_nobody(roots, ["import-layer", "-i", "l", "-f", str(tar)]).returncode == 0
    for name, words in (
        ("objects/packs", ["diff", "-u", "l"]), ("objects/staging", ["import-layer"]), ("journal/00000001.log", ["create-layer", "-i", "no"]),
        ("catalog.lock", ["create-layer", "-i", "no"]), ("catalog.db", ["layers"]), ("format.json", ["layers"]),
    ):  # fmt: skip
        path = home / "root" / name
        mode = stat.S_IMODE(path.stat().st_mode)
        os.chown(path, 0, 0)
        os.chmod(path, 0o600)
        done = _as_nobody(roots, words, given=layer_of(2))
        told = (done.stdout + done.stderr).decode(errors="replace")
        assert done.returncode == 1, (name, told)
        assert "Traceback" not in told, (name, told)
        assert name.partition("/")[0] in told or (name == "format.json" and str(home / "root") in told), (name, told)
        assert told.count("\n") == 1, (name, told)
        os.chown(path, 65534, 65534)
        os.chmod(path, mode)
    assert _as_nobody(roots, ["layers", "-q"]).stdout == b"l\n"
    assert _as_nobody(roots, ["check", "--content"]).returncode == 0
    assert _as_nobody(roots, ["diff", "-u", "l"]).stdout == layer_of(1)


def _as_nobody(roots: list[str], words: list[str], given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    return subprocess.run(
        [*user, sys.executable, "-m", "lading.cli", *roots, *words], input=given, capture_output=True, check=False,
        env={**os.environ, "HOME": "/nowhere", "PYTHONDONTWRITEBYTECODE": "1"}, cwd=ROOT,
    )  # fmt: skip


@pytest.mark.privileged
def test_an_ordinary_user_gets_the_exact_bytes_of_what_cannot_be_shown(tmp_path: Path) -> None:
    """Devices, owners, attributes, setuid: in the recipe and the catalog; the tree has stand-ins."""
    home = tmp_path / "home"
    home.mkdir()
    os.chmod(tmp_path, 0o755)
    os.chown(home, 65534, 65534)
    data = b"".join(
        (
            directory(b"d/"), file(b"d/f", b"1", uid=b"0000005", mode=b"0004755"), header(b"dev", b"3", device=(1, 3)), header(b"pipe", b"6"),
            pax({b"SCHILY.xattr.security.capability": b"\1\0\0\2\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0", b"SCHILY.xattr.trusted.x": b"1"}), file(b"caps", b"2"),
            symlink(b"link", b"/etc/passwd"), header(b"gone/.wh.x", b"0"), END,
        )
    )  # fmt: skip
    roots = ["-g", str(home / "root"), "-R", str(home / "run")]
    assert _as_nobody(roots, ["import-layer", "-i", "l"], given=data).returncode == 0
    shown = _as_nobody(roots, ["mount", "l"])
    assert shown.returncode == 0, shown.stderr
    path = Path(shown.stdout.decode().strip())
    assert (path / "d/f").read_bytes() == b"1"
    assert os.readlink(path / "link") == "/etc/passwd"
    assert _as_nobody(roots, ["unmount", "l"]).returncode == 0
    assert _as_nobody(roots, ["diff", "-u", "l"]).stdout == data
    assert _as_nobody(roots, ["checkout", "l", str(home / "out")]).returncode == 0
    assert (home / "out/d/f").read_bytes() == b"1"
    assert _as_nobody(roots, ["check", "--content"]).returncode == 0


def test_whoever_holds_the_catalog_for_too_long_is_named_by_every_command(store: Store, tmp_path: Path) -> None:
    """Nothing half done: neither a record nor a byte in staging."""
    store.layers.import_(io.BytesIO(layer_of(1)), id="l")
    store.images.create("l", id="i")
    config, tar = tmp_path / "config.toml", tmp_path / "in.tar"
    config.write_text("wait_s = 0.2\n")
    tar.write_bytes(layer_of(2))
    roots = ["-g", str(store.root), "-R", str(store.run.parent)]
    with store._context.catalog.write_rows("hold"):
        for words in (
            ["create-layer"], ["import-layer", "-f", str(tar)], ["delete-image", "i"], ["set-metadata", "-m", "x", "l"],
            ["set-image-data", "-f", str(tar), "i", "k"], ["gc"],
        ):  # fmt: skip
            done = command(roots, *words, env={**os.environ, "LADING_CONFIG": str(config)})
            told = (done.stdout + done.stderr).decode()
            assert done.returncode == 1, (words, told)
            assert re.search(rf"busy: held by process {os.getpid()} \(hold\)", told), (words, told)
            assert told.count("\n") == 1, (words, told)
        assert command(roots, "layers", "-q").stdout == b"l\n"
    assert os.listdir(store.root / "objects/staging") == []
    assert {layer.id for layer in store.layers.all()} == {"l"}
    assert store.check(content=True).findings == ()


@pytest.mark.damages
@pytest.mark.parametrize(
    ("marker", "words"),
    [
        ({"version": 2}, "format 2"),
        ({"incompatible": ["sealed-packs"]}, "sealed-packs"),
        ({"incompatible": ["a\nb"]}, "a\\nb"),
    ],
)
def test_a_store_of_a_newer_version_is_refused_and_not_touched(
    store: Store, tmp_path: Path, marker: dict[str, object], words: str
) -> None:
    """By every command, with what it would need; not a byte, a time or a name changes."""
    store.layers.import_(io.BytesIO(layer_of(1)), id="l")
    store.close()
    path = tmp_path / "root/format.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **marker}))
    before = {item: (item.lstat().st_mtime_ns, item.lstat().st_size) for item in (tmp_path / "root").rglob("*")}
    for name in (["layers"], ["create-layer"], ["gc"], ["check", "--repair"], ["wipe"], ["delete-layer", "l"]):
        status, stdout, stderr = ours(["-g", str(tmp_path / "root"), "-R", str(tmp_path / "run"), *name])
        assert status == 1
        assert words in (stdout + stderr).decode()
        assert "upgrade" in (stdout + stderr).decode()
    assert {item: (item.lstat().st_mtime_ns, item.lstat().st_size) for item in (tmp_path / "root").rglob("*")} == before


def test_a_feature_that_only_writers_must_know_makes_a_store_read_only(store: Store, tmp_path: Path) -> None:
    """What it holds can be read; what would write says so."""
    store.layers.import_(io.BytesIO(layer_of(1)), id="l")
    store.close()
    path = tmp_path / "root/format.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "read_only_compatible": ["counted-packs"]}))
    with Store.open(tmp_path / "root", run=tmp_path / "run") as again:
        assert taken_out(again, "l") == layer_of(1)
        with pytest.raises(LadingError, match="may not be written"):
            again.layers.create()
        with pytest.raises(LadingError, match="may not be written"):
            again.gc()


#: Where numbers are the running kernel's own, not ours to choose.
KERNELS = {"locks.py", "loop.py", "syscalls.py", "reflink.py"}


def test_every_number_that_is_kept_has_a_byte_order_of_its_own() -> None:
    """A store made on one machine opens on another of any architecture."""
    found = []
    for folder in ("objects", "catalog", "materialize", "lading"):
        for path in (ROOT / folder).glob("**/*.py"):
            if path.name in KERNELS:
                continue
            text = path.read_text()
            found += [
                (path.name, form)
                for form in re.findall(
                    r'[sS]truct(?:\.Struct|\.pack|\.unpack|\.unpack_from|\.pack_into|\.iter_unpack)?\(\s*f?"([^"]*)"',
                    text,
                )
            ]
            assert "sys.byteorder" not in text, path
            assert not re.search(r"(?:to|from)_bytes\([^)]*(?:)\)", text) or "little" in text or "big" in text, path
    assert found
    assert [(name, form) for name, form in found if not form.startswith(("<", ">"))] == []
    assert struct.calcsize("<I") == 4
    assert Settings().min_free > 0
