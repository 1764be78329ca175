"""Sixty-four open files are enough for everything."""

from __future__ import annotations

import io
import os
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from lading import Settings, Store
from tests import damage
from tests.flows.test_importing import Layout
from tests.flows.test_layers import taken_out
from tests.tarmake import END, file, tree

#: What a process may have open; the first three are its streams.
LIMIT = 64


def limited(roots: list[str], *words: str, config: Path, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run a command that may open few files."""
    return subprocess.run(
        [sys.executable, "-m", "lading.cli", *roots, *words], input=given, capture_output=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT)), env={**os.environ, "LADING_CONFIG": str(config)},
    )  # fmt: skip


@pytest.mark.privileged
@pytest.mark.parametrize("strategy", ["erofs", "farm", "composefs"])
def test_every_long_command_works_with_few_descriptors(tmp_path: Path, strategy: str) -> None:
    """Many packs, many files, deep folders, a hundred layers, flattened or not."""
    draw = random.Random(1)
    config = tmp_path / "config.toml"
    config.write_text(
        f'strategy = "{strategy}"\npack_size = 200000\nworkers = 4\nrepack_share = 0.01\nflatten_depth = 200\n'
    )
    roots = ["-g", str(tmp_path / "root"), "-R", str(tmp_path / "run")]
    large = tree({
        **{f"d{number % 150}/e/f/f{number}": draw.randbytes(2000) for number in range(3000)},
        **{f"large{number}": draw.randbytes(9 << 20) for number in range(3)},
        "/".join(["deep"] * 300): b"1",
    })  # fmt: skip
    settings = Settings(pack_size=200_000, flatten_depth=200, strategy=strategy)
    with Store.open(tmp_path / "root", run=tmp_path / "run", settings=settings) as store:
        parent = ""
        for number in range(100):
            parent = store.layers.import_(
                io.BytesIO(file(b"f%d" % number, b"%d" % number) + END), parent, id=f"l{number}"
            ).id
        store.images.create(parent, id="i")

    def run(*words: str, given: bytes = b"") -> bytes:
        done = limited(roots, *words, config=config, given=given)
        assert (done.returncode, done.stderr) == (0, b""), (words, done.stderr)
        return done.stdout

    run("import-layer", "-i", "large", given=large)
    run("create-layer", "-i", "applied", "large")
    run("applydiff", "applied", given=large)
    assert run("diff", "-u", "large") == large
    run("create-container", "-i", "c", "i")
    for words in (["c"], ["--flatten", "l98"], ["large"]):
        path = Path(run("mount", *words).decode().strip())
        assert path.is_dir()
        (path / "written").write_bytes(b"1")
        run("unmount", words[-1])
    run("commit", "-i", "j", "c")
    run("clone", "-i", "d", "c")
    run("copy", "large:/large0", str(tmp_path / "copied"))
    run("checkout", "large", str(tmp_path / "out"))
    run("checkout", "i", str(tmp_path / "out2"))
    run("changes", "large")
    run("diffsize", "large")
    run("check", "--quick", "--content")
    run("delete-layer", "applied")
    run("gc")
    run("delete-layer", "large")
    run("gc")
    run("cache", "evict")
    run("balance")
    if strategy == "erofs":  # what is shown makes no difference to these
        _import_heal_rebuild(tmp_path, config, roots)
    for name in ("layers", "images", "containers", "storage-layers", "status"):
        done = limited(roots, name, config=config)
        assert done.returncode == 0
    with Store.open(tmp_path / "root", run=tmp_path / "run") as store:
        assert store.check(content=True).ids("store") == []
        assert taken_out(store, "l99") == file(b"f99", b"99") + END


def _import_heal_rebuild(tmp_path: Path, config: Path, roots: list[str]) -> None:
    layout = Layout(tmp_path / "oci")
    layout.image("v1", [file(b"f%d" % number, b"%d" % number) + END for number in range(70)])
    assert limited(roots, "import", f"oci:{layout.root}", config=config).returncode == 0
    with Store.open(tmp_path / "root", run=tmp_path / "run") as store:
        damage.spoil(store, damage.object_at(store, "f7"))
    assert limited(roots, "check", "--content", config=config).returncode == 1
    healed = limited(roots, "check", "--heal", "--from", f"oci:{layout.root}", config=config)
    assert b"healed 1 objects" in healed.stdout + healed.stderr
    for words in (["check", "--content", "--quick"], ["catalog", "rebuild", "--force"]):
        done = limited(roots, *words, config=config)
        assert (done.returncode, done.stderr) == (0, b"")


def test_the_debris_of_many_killed_writers_goes_with_few_descriptors(tmp_path: Path) -> None:
    """All of it, by the next writer as well as by a collection."""
    roots = ["-g", str(tmp_path / "root"), "-R", str(tmp_path / "run")]
    config = tmp_path / "config.toml"
    config.touch()
    staging = tmp_path / "root/objects/staging"
    for words, given in ((["import-layer", "-i", "layer"], tree({"f": b"1"})), (["gc"], b"")):
        Store.open(tmp_path / "root", run=tmp_path / "run").close()
        for number in range(300):
            dead = staging / f"{number:032x}"
            dead.mkdir()
            (dead / "lock").touch()
            (dead / "half.pack").write_bytes(b"half")

        done = limited(roots, *words, config=config, given=given)

        assert (done.returncode, done.stderr) == (0, b"")
        assert os.listdir(staging) == []
