"""`check` as scripts see it when something is damaged: groups on stdout, what was healed on stderr, the exit status."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lading import Store
from tests import damage
from tests.cli.test_command import LAYER, Run, lading, layer_file, ok

__all__ = ["lading", "layer_file"]


@pytest.fixture
def damaged(lading: Run, layer_file: str, tmp_path: Path) -> str:
    """An image of a layer with a damaged file, and a container of it."""
    layer = ok(lading("import-layer", "-f", layer_file)).strip()
    image = ok(lading("create-image", "-n", "img", layer)).splitlines()[0]
    ok(lading("create-container", "-n", "ctr", image))
    with Store.open(tmp_path / "root", run=tmp_path / "run") as store:
        damage.spoil(store, damage.object_at(store, "bin/x"))
    return layer


WORDS = 'file integrity checksum failed for "bin/x"'


def test_damage_is_told_by_diff_and_by_check_alike(lading: Run, damaged: str) -> None:
    """Exit 1 of both; the diff says whose it is."""
    shown = lading("diff", "-u", damaged)
    assert shown.returncode == 1
    assert f"needed by layer {damaged}, image " in shown.stderr
    assert shown.stderr.count("\n") == 1

    told = lading("check")  # reads no contents, but knows by now

    assert told.returncode == 1
    assert f"layer {damaged}:\n layer {damaged}: {WORDS}\n" in told.stdout
    assert told.stderr == (
        "1 layer errors, 0 read-only layer errors, 1 image errors, 0 read-only image errors, 1 container errors\n"
    )


def test_heal_from_a_tar_and_nothing_is_deleted(lading: Run, damaged: str, layer_file: str) -> None:
    """The problems are listed all the same; afterwards there are none."""
    done = lading("check", "--content", "--heal", "--from", layer_file)

    assert (done.returncode, done.stderr) == (0, f"healed 1 objects from {layer_file}\n")
    assert WORDS in done.stdout
    assert ok(lading("check", "--content")) == ""
    assert ok(lading("diff", "-u", damaged)).encode() == LAYER


def test_heal_without_a_copy_deletes_nothing(lading: Run, damaged: str) -> None:
    """And says what is left."""
    done = lading("check", "--content", "--heal")

    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "1 objects are still damaged",
        "1 layer errors, 0 read-only layer errors, 1 image errors, 0 read-only image errors, 1 container errors",
    ]
    assert ok(lading("exists", "-q", damaged, "img", "ctr")) == ""


def test_repair_deletes_what_cannot_be_healed(lading: Run, damaged: str) -> None:
    """Containers need -f; what nobody needs any more is no damage."""
    spared = lading("check", "--content", "-r")
    assert spared.returncode == 1
    assert ok(lading("exists", "-q", damaged, "img", "ctr")) == ""

    done = lading("check", "--content", "-r", "-f")

    assert (done.returncode, done.stderr) == (0, "1 objects are still damaged\n")
    assert lading("exists", "-q", damaged).returncode == 1
    assert ok(lading("check")) == ""
    assert ok(lading("gc")) == ""
    assert ok(lading("check", "--content")) == ""


def test_repair_that_heals_deletes_nothing(lading: Run, damaged: str, layer_file: str) -> None:
    """Not even containers with -f."""
    done = lading("check", "--content", "-rf", "--from", layer_file)

    assert (done.returncode, done.stderr) == (0, f"healed 1 objects from {layer_file}\n")
    assert ok(lading("exists", "-q", damaged, "img", "ctr")) == ""


def test_json_stays_as_it_was(lading: Run, damaged: str, layer_file: str) -> None:
    """One document, of the problems found."""
    done = lading("check", "--content", "--heal", "--from", layer_file, "-j")

    found = json.loads(done.stdout)
    assert found["Layers"] == {damaged: [{}]}
    assert list(found) == ["Layers", "ROLayers", "Images", "ROImages", "Containers"]
    assert done.returncode == 0


def test_sizes_and_durations_are_checked(lading: Run) -> None:
    """In the words of all sizes and durations."""
    assert lading("check", "--rate", "fast").stderr == "invalid size: 'fast'\n"
    assert lading("check", "--for", "bogus").stderr == 'time: invalid duration "bogus"\n'
    assert ok(lading("check", "--rate", "50M", "--for", "1h")) == ""
    assert "must not be negative" in lading("check", "--for", "-1s").stderr


def test_nothing_is_deleted_while_a_named_copy_was_not_used(
    lading: Run, damaged: str, layer_file: str, tmp_path: Path
) -> None:
    """A slip of the pen, or a copy that is cut, must not cost what another run would heal."""
    missing = lading("check", "--content", "-rf", "--from", str(tmp_path / "typo.tar"))
    assert (missing.returncode, missing.stderr) == (1, f"open {tmp_path}/typo.tar: no such file\n")
    folder = lading("check", "-rf", "--from", str(tmp_path))
    assert "is no regular file" in folder.stderr

    (tmp_path / "cut.tar").write_bytes(Path(layer_file).read_bytes()[:300])
    cut = lading("check", "--content", "-rf", "--from", str(tmp_path / "cut.tar"))
    assert cut.returncode == 1
    assert "nothing is deleted" in cut.stderr
    assert ok(lading("exists", "-q", damaged, "img", "ctr")) == ""

    assert lading("check", "--content", "-rf", "--from", layer_file).returncode == 0
    assert ok(lading("exists", "-q", damaged, "img", "ctr")) == ""


def test_an_interrupted_reading_goes_on(lading: Run, tmp_path: Path) -> None:
    """By a signal, in the middle of a slow one; the next reads the rest."""
    with Store.open(tmp_path / "root", run=tmp_path / "run") as store:
        for number in range(4):
            store.images.create(big_data={f"k{number}": os.urandom(70 << 20) if number < 2 else b"x"})
    words = [sys.executable, "-m", "lading.cli", "-g", str(tmp_path / "root"), "-R", str(tmp_path / "run")]
    with subprocess.Popen([*words, "check", "--content", "--rate", "40m"], stderr=subprocess.PIPE) as running:
        deadline = time.monotonic() + 60
        while (
            time.monotonic() < deadline
            and ok(lading("sql", "--csv", "SELECT objects > 0 FROM v_scrub")).split()[-1] != "1"
        ):
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        assert running.stderr is not None
        assert running.stderr.read() == b"interrupted\n"
    assert running.returncode == 130
    ended, left = ok(lading("sql", "--csv", "SELECT ended IS NULL, objects_left FROM v_scrub")).split()[-1].split(",")
    assert (ended, int(left) > 0) == ("1", True)

    assert ok(lading("check", "--content")) == ""

    assert ok(lading("sql", "--csv", "SELECT ended IS NULL, objects_left FROM v_scrub")).split()[-1] == "0,0"


def test_damage_of_the_store_alone_is_told_everywhere(lading: Run, layer_file: str, tmp_path: Path) -> None:
    """No record has an error, and yet the status is 1: the reason is not left out."""
    ok(lading("import-layer", "-f", layer_file))
    (segment,) = (tmp_path / "root/journal").glob("*.log")
    content = segment.read_bytes()
    segment.write_bytes(content.replace(b"import-layer", b"import-later").replace(b'"id"', b'"ID"'))
    assert segment.read_bytes() != content

    told = lading("check")
    assert told.returncode == 1
    assert "store journal:\n journal: " in told.stdout
    assert told.stderr.startswith("0 layer errors, ")
    assert told.stderr.endswith(" 0 container errors, 1 store errors\n")

    document = lading("check", "-j")
    assert document.returncode == 1
    assert set(json.loads(document.stdout)) == {"Layers", "ROLayers", "Images", "ROImages", "Containers"}
    assert document.stderr.startswith("store journal: journal: ")


@pytest.mark.parametrize("depth", [[], ["--content"]])
def test_a_terminal_is_told_what_was_looked_at_and_what_was_not(lading: Run, damaged: str, depth: list[str]) -> None:
    """A line for each depth, with its time; scripts are not."""
    main, side = pty.openpty()
    process = subprocess.Popen([*lading("version").args[:7], "check", *depth], stdout=subprocess.DEVNULL, stderr=side)
    os.close(side)
    seen = b""
    with contextlib.suppress(OSError):  # how a terminal says that the other side has gone
        while more := os.read(main, 65536):
            seen += more
    os.close(main)
    process.wait()

    lines = seen.decode().splitlines()
    assert re.fullmatch(r"catalog: constraints, foreign keys, records, journal, \d+\.\d\d s", lines[0])
    packs = "" if depth else "; contents of other objects were not read"
    assert re.fullmatch(rf"packs: presence, size and index of \d+{packs}, \d+\.\d\d s", lines[1])
    content = [
        line for line in lines if re.fullmatch(r"content: every byte of \d+ objects, \d+ bytes.*, \d+\.\d\d s", line)
    ]
    assert len(content) == len(depth)
