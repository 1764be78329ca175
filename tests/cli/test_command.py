"""The command as a script sees it: real processes, both streams, exit statuses."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tarmake import END, file, tree

LAYER = tree({"etc": None, "etc/hosts": b"127.0.0.1\n", "bin/x": b"x" * 3000})

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def lading(tmp_path: Path) -> Run:
    """Runs the command on a store of its own."""

    def run(*words: str, input: bytes | None = None, roots: bool = True) -> subprocess.CompletedProcess[str]:
        where = ["-g", str(tmp_path / "root"), "-R", str(tmp_path / "run")] if roots else []
        done = subprocess.run(
            [sys.executable, "-m", "lading.cli", *where, *words], input=input, capture_output=True, check=False
        )
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@pytest.fixture
def layer_file(tmp_path: Path) -> str:
    """A layer tar."""
    path = tmp_path / "layer.tar"
    path.write_bytes(LAYER)
    return str(path)


def ok(done: subprocess.CompletedProcess[str]) -> str:
    """Standard output of a command that succeeded silently."""
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_main_job(lading: Run, layer_file: str, tmp_path: Path) -> None:
    """Layer, image, container; out again; deleted; collected."""
    layer_id, *names = ok(lading("create-layer", "--name", "base", "-n=second")).splitlines()
    assert names == ["\tbase", "\tsecond"]
    assert ok(lading("applydiff", "-f", layer_file, "base")) == ""
    assert ok(lading("diff", "-u", "-f", str(tmp_path / "out.tar"), "base")) == ""
    assert (tmp_path / "out.tar").read_bytes() == LAYER
    image_id = ok(lading("create-image", "-n", "img", "base")).splitlines()[0]
    container_id = ok(lading("create-container", "-n", "ctr", "img")).splitlines()[0]
    assert ok(lading("layers")).startswith(
        f"{layer_id}\n\tname: base\n\tname: second\n\timage: {image_id}\n\t\tname: img\n"
    )
    assert ok(lading("images")) == f"{image_id}\n\tname: img\n"
    assert ok(lading("containers")) == f"{container_id}\n\tname: ctr\n"
    assert "layer has children" in lading("delete-layer", "base").stderr
    assert ok(lading("exists", "-q", "base", "img", "ctr")) == ""
    assert ok(lading("changes", "base")) == 'Add "/bin"\nAdd "/bin/x"\nAdd "/etc"\nAdd "/etc/hosts"\n'
    assert ok(lading("diffsize", "base")) == "3010\n"
    assert ok(lading("checkout", "ctr", str(tmp_path / "tree"))) == f"{tmp_path / 'tree'}\n"
    assert (tmp_path / "tree/etc/hosts").read_text() == "127.0.0.1\n"
    ok(lading("delete-container", "ctr"))
    assert lading("delete-image", "img").stderr == f"img: {layer_id}\n"
    assert "freed: " in ok(lading("gc", "--dry-run"))
    assert ok(lading("gc")) == ""
    assert ok(lading("check", "--content")) == ""
    assert ok(lading("layers")) == ""


def test_records_as_json(lading: Run, layer_file: str) -> None:
    """Fields in their order, empty ones left out, one line."""
    layer = json.loads(ok(lading("import-layer", "-j", "-f", layer_file, "-n", "<&>")))
    assert list(layer) == ["id", "names", "created", "compressed-diff-digest", "compressed-size", "diff-digest", "diff-size", "uidset", "gidset"]  # fmt: skip
    assert "\\u003c\\u0026\\u003e" in ok(lading("layer", "-j", layer["id"]))
    assert ok(lading("images", "-j")) == "null\n"
    assert ok(lading("containers", "-j")) == "[]\n"
    container = json.loads(ok(lading("create-container", "-j", "--volatile", "")))
    assert container["flags"] == {"MountLabel": "", "ProcessLabel": "", "Volatile": True}
    assert container["image"] == ""


def test_streams_go_through_pipes(lading: Run) -> None:
    """Standard input in, standard output out."""
    ok(lading("create-layer", "-i", "x"))
    ok(lading("applydiff", "x", input=LAYER))
    done = subprocess.run(
        [*lading("version").args[:3], *lading("version").args[3:7], "diff", "-u", "x"], capture_output=True, check=True
    )
    assert done.stdout == LAYER


@pytest.mark.parametrize(
    ("words", "status", "stdout", "stderr"),
    [
        (["create-layer", "a", "b"], 1, "create-layer: too many arguments ([a b]).", ""),
        (["applydiff"], 1, "applydiff: more arguments required.", ""),
        (["nonsense"], 1, "nonsense: unrecognized command.\n", ""),
        (["layers", "--bogus"], 125, "", "flag provided but not defined: --bogus\nSee 'lading layers --help'.\n"),
        (["layers", "--json=maybe"], 125, "", 'invalid boolean value "maybe" for  --json'),
        (["create-layer", "-i"], 125, "", "flag needs an argument: -i"),
        (["--bogus", "layers"], 1, "flag provided but not defined: --bogus while parsing arguments (1)\n", "flag provided but not defined: --bogus"),
        (["create-layer", "nothing"], 1, "", "layer not known\n"),
        (["applydiff", "nothing"], 1, "", "layer not known\n"),
        (["create-container", "nothing"], 1, "", 'locating image with ID "nothing": image not known\n'),
        (["layer", "nothing"], 1, "", ""),
        (["metadata", "nothing"], 1, "nothing: \n", ""),
        (["exists", "nothing"], 1, "nothing: false\n", ""),
        (["delete-layer", "a", "b"], 1, "", "a: identifier is not a layer\nb: identifier is not a layer\n"),
        (["delete-image", "a"], 1, "", "a: identifier is not an image\n"),
        (["delete-container", "a"], 1, "", "a: identifier is not a container\n"),
        (["set-metadata", "-m", "x", "a"], 1, "", "identifier is not a layer, image, or container\n"),
        (["mount", "a"], 1, "\n", "layer not known while mounting a\n"),
        (["unmount", "a"], 1, "", "layer not known while unmounting a\n"),
        (["mounted", "a"], 1, "", "layer not known checking if a is mounted\n"),
        (["create-layer", "-i", "../x"], 1, "", 'layer id "../x" contains a slash\n'),
        (["sql", "DELETE FROM layer"], 1, "", "the query does more than read: only SELECT is allowed\n"),
        (["import", "oci:/nowhere"], 1, "", "/nowhere is no OCI layout"),
        (["layers", "-s", "bogus"], 1, "error initializing: failed to GetDriver graph bogus ", ""),
        (["layers", "--storage-opt", "foo"], 1, "error initializing: unable to parse key/value option: foo\n", ""),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_said_in_one_line(
    lading: Run, words: list[str], status: int, stdout: str, stderr: str
) -> None:
    """On the stream and with the status that scripts expect."""
    done = lading(*words)

    assert done.returncode == status
    assert done.stdout.startswith(stdout)
    assert bool(done.stdout) == bool(stdout)
    assert done.stderr.startswith(stderr)
    assert bool(done.stderr) == bool(stderr)
    assert "Traceback" not in done.stderr


def test_bad_diffs_leave_the_store_as_it_was(lading: Run, layer_file: str) -> None:
    """Cut, junk, a missing file: status 1, a line, no layer."""
    for data in (LAYER[:3000], b"junk" * 500, b"\x1f\x8b\x08junk"):
        done = lading("import-layer", input=data)
        assert done.returncode == 1
        assert "unexpected EOF" in done.stderr or "invalid tar header" in done.stderr
        assert done.stderr.count("\n") == 1
    done = lading("import-layer", "-f", "/nowhere.tar")
    assert (done.returncode, done.stderr) == (1, "open /nowhere.tar: no such file or directory\n")
    assert ok(lading("layers", "-q")) == ""


def test_unsupported_compressions_are_named(lading: Run, layer_file: str) -> None:
    """As they always were."""
    ok(lading("import-layer", "-i", "x", "-f", layer_file))

    assert lading("diff", "-x", "x").stderr == "unsupported compression format tar.xz\n"
    assert lading("diff", "-b", "x").stderr == "unsupported compression format tar.bz2\n"


def test_names_cannot_forge_lines_or_reach_the_terminal(lading: Run) -> None:
    """Newlines and escapes are shown, not obeyed."""
    ok(lading("create-layer", "-i", "x", "-n", "a\nimage: forged", "-n", "\x1b[31mred"))

    listed = ok(lading("layers"))

    assert listed.splitlines() == ["x", "\tname: a\\nimage: forged", "\tname: \\x1b[31mred"]


def test_the_tree_of_layers(lading: Run) -> None:
    """Siblings, last children, notes."""
    ok(lading("create-layer", "-i", "base", "-n", "b1"))
    for child in ("child", "other"):
        ok(lading("create-layer", "-i", child, "base"))
    ok(lading("create-image", "-i", "img", "-n", "i", "child"))

    ok(lading("create-layer", "-i", "second"))

    assert ok(lading("layers", "--tree")) == (
        "(base)\n├─base\n│ name: b1\n│ ├─child\n│ │ image: img\n│ │ image name: i\n│ └─other\n└─second\n"
    )


def test_global_options_work_among_a_commands_own(lading: Run, tmp_path: Path) -> None:
    """Relative paths, too."""
    done = lading(
        "create-layer", "-i", "x", "-g", str(tmp_path / "elsewhere"), "--run", str(tmp_path / "run2"), roots=False
    )

    assert done.stdout == "x\n"
    assert (tmp_path / "elsewhere/format.json").exists()


def test_help_lists_every_command(lading: Run) -> None:
    """Exit 0; without a command exit 1; the page in docs is up to date."""
    shown = ok(lading("--help", roots=False))

    for name in ("import", "applydiff", "delete-image", "sql", "get-image-data-size"):
        assert name in shown
    assert lading(roots=False).returncode == 1
    assert (
        subprocess.run(
            [sys.executable, "tools/commands.py", "--check"], cwd=Path(__file__).parents[2], check=False
        ).returncode
        == 0
    )


def test_sql_prints_tables_json_and_csv(lading: Run) -> None:
    """The same rows three ways, and through the shell's prompt."""
    ok(lading("create-layer", "-i", "x", "-n", "a,b"))
    query = "SELECT id, names, entries FROM v_layer"

    assert ok(lading("sql", query)) == 'id  names    entries\n--  -------  -------\nx   ["a,b"]        0\n'
    assert json.loads(ok(lading("sql", "--json", query))) == [{"id": "x", "names": '["a,b"]', "entries": 0}]
    assert ok(lading("sql", "--csv", query)) == 'id,names,entries\nx,"[""a,b""]",0\n'
    done = lading("sql", "--shell", input=b"SELECT id FROM v_layer;\nDROP TABLE layer\n")
    assert "x" in done.stdout
    assert "only SELECT" in done.stderr


def test_data_of_each_kind_goes_in_and_out(lading: Run, tmp_path: Path) -> None:
    """Bytes, sizes, digests, keys in order."""
    ok(lading("create-layer", "-i", "l"))
    ok(lading("create-image", "-i", "i", "l"))
    ok(lading("create-container", "-i", "c", "i"))
    for kind, ref in (("layer", "l"), ("image", "i"), ("container", "c")):
        ok(lading(f"set-{kind}-data", ref, "b", input=b"\x00\xff"))
        ok(lading(f"set{kind}data", ref, "a", input=b""))
        ok(lading(f"get-{kind}-data", "-f", str(tmp_path / kind), ref, "b"))
        assert (tmp_path / kind).read_bytes() == b"\x00\xff"
        assert ok(lading(f"list-{kind}-data", ref)) == "b\na\n"
    assert ok(lading("get-image-data-size", "i", "b")) == "2\n"
    assert ok(lading("get-container-data-digest", "c", "a")).startswith("sha256:e3b0c442")


def test_an_interrupt_is_one_line_and_status_130(lading: Run, tmp_path: Path) -> None:
    """No traceback, no layer; the same for a request to end, with 143."""
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        words = [*lading("version").args[:7], "import-layer"]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(file(b"f", bytes(100_000)))
        process.stdin.flush()
        time.sleep(1)
        process.send_signal(number)
        _, error = process.communicate()
        assert process.returncode == status
        assert error.count(b"\n") == 1
        assert b"Traceback" not in error
    assert ok(lading("layers")) == ""


def test_a_closed_pipe_is_no_traceback(lading: Run) -> None:
    """As with head."""
    ok(lading("create-layer", "-i", "x"))
    ok(lading("applydiff", "x", input=file(b"f", os.urandom(3_000_000)) + END))
    words = [*lading("version").args[:7], "diff", "-u", "x"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait() == 1


def test_progress_goes_to_terminals_only(lading: Run, tmp_path: Path) -> None:
    """Shown after a second, on a terminal, unless switched off."""
    for extra, expected in (([], True), (["--progress=none"], False)):
        words = [*lading("version").args[:7], *extra, "import-layer"]
        main, side = pty.openpty()
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=side)
        os.close(side)
        assert process.stdin is not None
        for _ in range(4):
            process.stdin.write(file(b"f", os.urandom(100_000)))
            process.stdin.flush()
            time.sleep(0.5)
        process.stdin.close()
        seen = b""
        try:
            while more := os.read(main, 65536):
                seen += more
        except OSError:
            pass  # how a terminal says that the other side has gone
        os.close(main)
        assert process.wait() == 0
        assert (b"import-layer" in seen) is expected


@pytest.mark.privileged
def test_a_command_in_a_user_namespace(lading: Run, tmp_path: Path) -> None:
    """Its exit status is the command's; overlay works there, too."""
    ok(lading("create-layer", "-i", "x"))
    assert ok(lading("layers", "-q", "-U")) == "x\n"
    done = lading("copy", "-U", "-s", "overlay", "/etc/hostname", "x:/h")
    assert (done.returncode, done.stderr) == (0, "")
    assert ok(lading("changes", "-s", "overlay", "x")) == 'Add "/h"\n'
    assert lading("layer", "-U", "nosuch").returncode == 1


def test_a_lost_catalog_is_made_again(lading: Run, layer_file: str, tmp_path: Path) -> None:
    """Every command says the way out; what was lost is told by the exit status."""
    layer_id = ok(lading("import-layer", "-f", layer_file)).split()[0]
    done = lading("catalog", "rebuild")
    assert (done.returncode, done.stdout) == (1, "")
    assert "nothing to rebuild" in done.stderr
    assert lading("catalog", "fix").returncode == lading("catalog", "rejournal").returncode == 1
    for path in (tmp_path / "root").glob("catalog.db*"):
        path.unlink()

    done = lading("layers")
    assert done.returncode == 1
    assert done.stdout.endswith("run `lading catalog rebuild`\n")
    assert json.loads(ok(lading("catalog", "rebuild", "--json")))["layers"] == 1
    assert ok(lading("diff", "-u", layer_id)).encode() == LAYER
    assert ok(lading("catalog", "rebuild", "--force")).startswith("rebuilt: 1 layers, 0 images")

    for pack in (tmp_path / "root/objects/packs").rglob("*.pack"):
        pack.unlink()
    done = lading("catalog", "rebuild", "-f")
    assert done.returncode == 1
    assert f"damaged: layer {layer_id}: content sha256:" in done.stdout
