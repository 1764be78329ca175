"""What concerns a door or a whole store more than one file: ids, names, paths, digests, bombs, depth, time."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lading import Settings, Store
from lading.errors import InvalidInput
from lading.materialize.beneath import remove_tree, walk
from lading.objects.streams import InputStream
from lading.objects.tar import ingest_tar
from lading.objects.tarbase import TarLimits
from tests.hostile.cases import Case
from tests.hostile.streams import PACKERS
from tests.hostile.suite import STRATEGIES, Stage, gzipped, ratio, stage
from tests.hostile.table import CASES
from tests.objects.test_tar_hostile import Sink
from tests.tarmake import END, directory, file, header, link, long_name, padded, pax, symlink

pytestmark = pytest.mark.privileged

BAD_IDS = (
    "../../x", "..", ".", "a/b", "/etc/passwd", "", "x" * 256, "new\nline", "tab\t", "\x1b[2J", "\x7f", "\x85", "é" * 128,
    "\udcff",
)  # fmt: skip
GOOD_IDS = ("x" * 255, "é" * 127, "a b", "a:b,c", "back\\slash", "..x", "x..", "$(x)", "*", "-i", "'\"")


@pytest.fixture(scope="module", name="played")
def _played() -> Iterator[Stage]:
    with stage("erofs") as made:
        yield made


# Ids and names.


@pytest.mark.parametrize("text", [text for text in BAD_IDS if text and "\udcff" not in text])
@pytest.mark.parametrize("command", ["create-layer", "import-layer", "create-image", "create-container"])
def test_ids_that_could_be_paths_are_refused(played: Stage, command: str, text: str) -> None:
    """By one line; no folder of that name is made anywhere."""
    words = {"import-layer": ["-f", "/dev/null"], "create-image": [played.below], "create-container": [""]}.get(
        command, []
    )
    before = played.state(CASES[0], "library")

    status, out, err = played.command(command, "-i", text, *words)

    assert (status, out, len(err)) == (1, "", 1)
    assert err[0].isprintable()
    assert played.state(CASES[0], "library") == before
    assert played.outside.touched() == []
    assert sorted(os.listdir(played.base)) == played.around


def test_ids_are_refused_by_the_library_as_well(played: Stage) -> None:
    """Before any path is made of them."""
    for text in BAD_IDS:
        if text:
            for make in (played.store.layers.create, played.store.containers.create):
                with pytest.raises(InvalidInput):
                    make(id=text)
    assert [layer.id for layer in played.store.layers.all()] == [played.below]


@pytest.mark.parametrize("text", GOOD_IDS)
def test_strange_ids_work_all_the_way(played: Stage, text: str) -> None:
    """Make, mount, write, seal, delete."""
    made = played.store.layers.create(played.below, id=text)
    try:
        root = played.store.mount(text)
        (root / "new").write_text("1")
        played.store.unmount(text)
        played.store.layers.seal(text)
        assert played.store.layers.diffsize(made.id) == 1
    finally:
        played.store.layers.delete(text)
    assert [layer.id for layer in played.store.layers.all()] == [played.below]


def test_names_and_metadata_cannot_forge_a_listing(played: Stage) -> None:
    """Newlines, escapes and quotes come out escaped, and as they are in JSON and in the library."""
    hostile = "x\n\tname: forged\x1b[2J'; DROP TABLE layer; --"
    status, out, err = played.command("create-layer", "-n", hostile, "-i", "forger")
    assert (status, err) == (0, [])
    try:
        assert "\x1b" not in out
        assert played.command("set-metadata", "-m", hostile, "forger")[0] == 0
        for words in (
            ["layers"],
            ["layers", "--tree"],
            ["get-names", "forger"],
            ["metadata", "forger"],
            ["sql", "SELECT * FROM layer"],
        ):
            status, out, err = played.command(*words)
            assert (status, err) == (0, [])
            assert "\x1b" not in out or words[0] in ("metadata",)
            assert "\n\tname: forged" not in out or words[0] in ("metadata",)
        assert played.store.metadata("forger") == hostile
        assert json.loads(played.command("layer", "-j", "forger")[1])[0]["names"] == [hostile]
    finally:
        played.store.layers.delete("forger")


# Paths of the store.


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", ["a:b", "a,b", "a\\b", "a b", "lowerdir=x,upperdir=y", "new\nline", "é\u202e", "-o"])
def test_stores_at_strange_paths_work(name: str, strategy: str, tmp_path: Path) -> None:
    """Mounted through descriptors, not through words that something takes apart."""
    base = tmp_path / name
    base.mkdir()
    with Store.open(base / "root", run=base / "run", settings=STRATEGIES[strategy]) as store:
        layer = store.layers.import_(io.BytesIO(file(b"d/f", b"1") + END))
        top = store.layers.import_(io.BytesIO(file(b"d/g", b"2") + END), layer.id)
        root = store.mount(top.id)
        try:
            assert sorted(os.listdir(root / "d")) == ["f", "g"]
            (root / "new").write_text("3")
        finally:
            store.unmount(top.id)
        assert [change.path for change in store.layers.changes(top.id)] == [b"/d", b"/d/g", b"/new"]


# Digests and sizes that the caller named.


def test_a_digest_or_size_that_was_named_must_be_so(played: Stage) -> None:
    """By the library, and by every document of a layout."""
    tar = file(b"n", b"1") + END
    before = played.state(CASES[0], "library")
    with pytest.raises(InvalidInput, match="the diff has digest"):
        played.store.layers.import_(io.BytesIO(tar), expected="sha256:" + "0" * 64)
    for packed, plain in ((tar, tar + b"x"), (gzipped(tar), tar + b"x")):
        played.layout([(packed, plain)])
        status, _, err = played.command("import", f"oci:{played.base}/oci")
        assert status == 1
        assert len(err) == 1
    played.layout([(tar, tar)])
    blob = played.base / "oci/blobs/sha256" / hashlib.sha256(tar).hexdigest()
    for wrong in (tar.replace(b"1", b"2"), tar + b"x", tar[:-1], b""):
        blob.write_bytes(wrong)
        status, _, err = played.command("import", f"oci:{played.base}/oci")
        assert status == 1
        assert len(err) == 1
    assert played.state(CASES[0], "library") == before


def test_a_layout_cannot_make_us_wait_or_read_elsewhere(played: Stage) -> None:
    """Pipes and folders in place of blobs, digests that are paths, indexes that name each other without end."""
    tar = file(b"n", b"1") + END
    blobs = played.base / "oci/blobs/sha256"
    for put in (os.mkfifo, os.mkdir):
        played.layout([(tar, tar)])
        blob = blobs / hashlib.sha256(tar).hexdigest()
        blob.unlink()
        put(blob)
        assert played.command("import", f"oci:{played.base}/oci")[0] == 1
        remove_tree(blob)
    for digest in ("sha256:../../../outside/canary", "sha256:" + "/" * 64, "sha512:" + "0" * 128, "x" * 5000):
        (played.base / "oci/index.json").write_text(json.dumps({"manifests": [{"digest": digest, "size": 1}]}))
        status, _, err = played.command("import", f"oci:{played.base}/oci")
        assert (status, len(err)) == (1, 1)
    kind = "application/vnd.oci.image.index.v1+json"
    inner: dict[str, object] = {"mediaType": kind, "digest": "sha256:" + "0" * 64, "size": 0}
    for _ in range(4):
        document = json.dumps({"manifests": [inner] * 2000}).encode()
        name = hashlib.sha256(document).hexdigest()
        (blobs / name).write_bytes(document)
        inner = {"mediaType": kind, "digest": f"sha256:{name}", "size": len(document)}
    (played.base / "oci/index.json").write_text(json.dumps({"manifests": [inner] * 2000}))
    status, _, err = played.command("import", f"oci:{played.base}/oci")
    assert (status, len(err)) == (1, 1)


# Memory, disk, time.


#: Runs the command and says what memory it took at most, in KiB.
_MEASURED = """
import sys
from lading.cli.main import run
status = run(sys.argv[1:])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("peak", peak.split()[1])
sys.exit(status)
"""


def test_zeros_take_neither_memory_nor_disk(tmp_path: Path) -> None:
    """Half a gigabyte of zeros is a file like any other; past the limit it is refused, and nothing of it stays."""
    size, piece = 512 << 20, bytes(1 << 20)
    with gzip.open(tmp_path / "bomb.gz", "wb", 1) as bomb:
        bomb.write(header(b"zeros", size=size))
        for _ in range(size // len(piece)):
            bomb.write(piece)
        bomb.write(END)
    config = tmp_path / "config.toml"
    for limit, status in ((1 << 40, 0), (256 << 20, 1)):
        config.write_text(f'root = "{tmp_path}/root{status}"\nrun = "{tmp_path}/run"\nsize_max = {limit}\n')
        done = subprocess.run(
            [sys.executable, "-c", _MEASURED, "import-layer", "-f", str(tmp_path / "bomb.gz")], capture_output=True, text=True,
            check=False, env={**os.environ, "LADING_CONFIG": str(config)},
        )  # fmt: skip
        assert (done.returncode, len(done.stderr.splitlines())) == (status, status), done.stderr
        assert int(done.stdout.split()[-1]) < 256 << 10
        stored = sum(path.stat().st_size for path in (tmp_path / f"root{status}/objects").rglob("*") if path.is_file())
        assert stored < 1 << 20


@pytest.mark.parametrize("name", PACKERS)
def test_a_stream_of_nothing_but_members_is_read_in_bounded_memory(name: str) -> None:
    """20,000 empty ones, handed over in one piece."""
    packed = PACKERS[name](b"") * 20_000 + PACKERS[name](END)
    tracemalloc.start()
    stream = InputStream(io.BytesIO(packed))
    try:
        assert ingest_tar(stream.read, Sink()).entries == []
        assert stream.summary().compressed_size == len(packed)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
        stream.close()


@pytest.mark.parametrize(
    "member",
    [
        lambda i: pax({b"SCHILY.xattr.user.%d" % i: bytes(60000)}) + file(b"%d" % i),
        lambda i: long_name(b"%d/" % i + b"/".join([b"d"] * 1500)) + file(b"x"),
        lambda i: long_name(b"t" * 4000, b"K") + symlink(b"%d" % i, b"x"),
        lambda i: pax({b"GNU.sparse.size": b"99999", b"GNU.sparse.map": b",".join(b"%d,1" % (2 * n) for n in range(9000))}) + file(b"%d" % i, bytes(9000)),
    ],
    ids=["attributes", "deep paths", "targets", "sparse maps"],
)  # fmt: skip
def test_the_model_of_a_tree_is_bounded(member: Callable[[int], bytes]) -> None:
    """What compresses to nothing must not fill the memory as a model, either."""
    stream = io.BytesIO(b"".join(member(i) for i in range(64)) + END)
    with pytest.raises(InvalidInput, match="attributes take more than 200000 bytes"):
        ingest_tar(stream.read, Sink(), TarLimits(tree_size_max=200_000))


def _ingest(tar: bytes, step: int = 1 << 20) -> None:
    stream = io.BytesIO(tar)
    ingest_tar(lambda size: stream.read(min(size, step)), Sink())


#: Inputs that could take time in proportion to their square: what is repeated n times.
REPEATED: dict[str, Callable[[int], bytes]] = {
    "one name": lambda n: file(b"n", b"1") * n,
    "file over directory and back": lambda n: (directory(b"n/") + file(b"n/x") + file(b"n", b"1")) * n,
    "deep directory replaced": lambda n: (long_name(b"/".join([b"d"] * 40)) + file(b"x") + file(b"d", b"1") + directory(b"d/")) * n,
    "opaque markers and files": lambda n: b"".join(
        file(b"d%d/.wh..wh..opq" % i) + file(b"d%d/f" % i) for i in range(n)
    ),
    "markers of one directory": lambda n: (file(b"d/.wh..wh..opq") + file(b"d/.wh.x") + file(b"d/f")) * n,
    "hard links of one file": lambda n: file(b"o", b"1") + b"".join(link(b"l%d" % i, b"o") for i in range(n)),
    "hard links of hard links": lambda n: file(b"l0", b"1") + b"".join(link(b"l%d" % (i + 1), b"l%d" % i) for i in range(n)),
    "long shared prefixes": lambda n: b"".join(file(b"a" * 90 + b"%d" % i, prefix=b"/".join([b"p" * 50] * 3)) for i in range(n)),
    "through links": lambda n: directory(b"t/") + b"".join(symlink(b"s%d" % i, b"s%d" % (i - 1) if i else b"t") for i in range(20)) + b"".join(file(b"s19/%d" % i) for i in range(n)),
    "through links that are replaced": lambda n: directory(b"t/") + b"".join(symlink(b"l", b"t") + file(b"l/%d" % i) for i in range(n)),
    "removals": lambda n: b"".join(file(b"d/.wh.%d" % i) for i in range(n)),
    "removals below removals": lambda n: b"".join(file(b"d%d/.wh.x" % i) + file(b".wh.d%d" % i) for i in range(n)),
}  # fmt: skip


@pytest.mark.parametrize("name", REPEATED)
def test_time_is_in_proportion_to_the_input(name: str) -> None:
    """Four times as much takes about four times as long; a square would be sixteen."""
    assert ratio(lambda n: _ingest(REPEATED[name](n)), 600) < 10


@pytest.mark.parametrize("name", PACKERS)
def test_members_and_padding_take_linear_time(name: str) -> None:
    """Many members in one read, and zeros between xz streams."""

    def decode(count: int) -> None:
        between = bytes(64 * count) if name == "xz" else PACKERS[name](b"") * count
        stream = InputStream(io.BytesIO(PACKERS[name](b"x") + between + PACKERS[name](END)))
        while stream.read(1 << 20):
            pass
        stream.close()

    assert ratio(decode, 6000 if name == "xz" else 1500) < 10


def test_a_source_of_single_bytes_takes_linear_time() -> None:
    """A content of 4 MiB put together from pieces."""
    assert ratio(lambda n: _ingest(file(b"n", bytes(n * 512)) + END, 16), 400) < 10


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_1200_levels_all_the_way(strategy: str, tmp_path: Path) -> None:
    """Mount, check out, delete, collect: nothing recurses, nothing is left."""
    deep = b"/".join([b"d"] * 1200)
    with Store.open(tmp_path / "root", run=tmp_path / "run", settings=STRATEGIES[strategy]) as store:
        below = store.layers.import_(io.BytesIO(long_name(deep + b"/f") + file(b"x", b"1") + END))
        layer = store.layers.import_(io.BytesIO(long_name(deep + b"/g") + file(b"x", b"2") + END), below.id)
        for root in (store.mount(layer.id), store.checkout(layer.id, tmp_path / "out").path):
            descriptor = os.open(root, os.O_RDONLY)
            try:
                *_, (path, _, items) = walk(descriptor)
                assert path == deep
                assert sorted(item.name for item in items) == ["f", "g"]
            finally:
                os.close(descriptor)
        store.unmount(layer.id)
        assert store.layers.changes(layer.id)[-1].path == b"/" + deep + b"/g"
        store.layers.delete(layer.id)
        store.layers.delete(below.id)
        store.gc()
        store.gc()
        assert store.layers.all() == []
        assert not list((tmp_path / "root/objects/packs").rglob("*.pack"))


# Real processes.


def _sample() -> list[Case]:
    """A case of every row."""
    return list({case.row: case for case in CASES}.values())


@pytest.mark.parametrize("case", _sample(), ids=[case.row for case in _sample()])
def test_a_process_says_the_same(played: Stage, case: Case) -> None:
    """The command on its own, the layer on its standard input."""
    packed = case.pack(case.make(str(played.outside.folder).encode().lstrip(b"/")))
    words = [
        sys.executable,
        "-m",
        "lading.cli",
        "import-layer",
        "-i",
        "process",
        *([played.below] if case.below else []),
    ]
    env = {**os.environ, "LADING_CONFIG": str(played.base / "config.toml")}
    done = subprocess.run(words, input=packed, capture_output=True, check=False, env=env)

    said = done.stderr.decode().splitlines()
    if case.refused:
        assert (done.returncode, done.stdout, len(said)) == (1, b"", 1)
        assert case.refused in said[0]
    else:
        assert (done.returncode, done.stdout, len(said)) == (0, b"process\n", case.warns)
        played.store.layers.delete("process")
    assert played.outside.touched() == []


def test_a_daring_setting_is_heard(tmp_path: Path) -> None:
    """The limits can be chosen: fewer names, fewer bytes, less of a model."""
    tar = b"".join(file(b"%d" % i, padded(b"x")) for i in range(20)) + END
    for name, value in (("entries_max", 10), ("size_max", 4096), ("tree_size_max", 20)):
        with Store.open(tmp_path / name, run=tmp_path / "run", settings=Settings(**{name: value})) as store:  # type: ignore[arg-type]
            with pytest.raises(InvalidInput, match="more than"):
                store.layers.import_(io.BytesIO(tar))
