"""Whatever a record, a tar or an argument is called: a terminal shows it, and never obeys it."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

from lading import Store
from lading.cli import main
from tests.contract.command import ours
from tests.tarmake import END, directory, file, pax, symlink

#: Colours, a title, a line of its own, going back to the line's beginning, C1, a bell, turning the direction of writing.
EVIL = "a\x1b[31m\x1b]0;title\x07\nimage: forged\r\x9b2J\x7f\u202e\u2066\u2028\U000e0041z"

#: What an id may be: no control characters, but marks that hide or turn text.
EVIL_ID = "id\u202e\u2066\u200b\U000e0041"

EVIL_NAME = EVIL.encode() + b"\xff\x9b"


def is_tame(text: str) -> bool:
    """No control character but line ends and tabs, nothing that is invisible or turns text around."""
    return all(
        char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp", "Cn") for char in text
    )


def is_forged(text: str) -> bool:
    """Whether a line says what only a newline in a name could make it say."""
    return "image: forged" in [line.strip() for line in text.splitlines()]


def evil_tar() -> bytes:
    """Names, link targets and attributes as nobody would like them."""
    return b"".join(
        (
            pax({b"path": EVIL_NAME}), file(b"x", b"1"),
            pax({b"path": b"dir" + EVIL_NAME}), directory(b"x"),
            pax({b"linkpath": EVIL_NAME, b"path": b"link" + EVIL_NAME}), symlink(b"x", b"y"),
            pax({b"SCHILY.xattr.user." + EVIL.encode(): EVIL_NAME}), file(b"f", b"2"),
            END,
        )
    )  # fmt: skip


@pytest.fixture
def roots(tmp_path: Path) -> Iterator[list[str]]:
    """A store of evil records, by its options; its root has a bad name, too."""
    root, run = tmp_path / "root\x1b[31m\u202e", tmp_path / "run\x1b[31m\u202e"
    with Store.open(root, run=run) as store:
        layer = store.layers.import_(io.BytesIO(evil_tar()), id=EVIL_ID, names=[EVIL, "l"], label=EVIL)
        store.layers.set_data(layer.id, EVIL, io.BytesIO(b"1"))
        store.set_metadata(layer.id, EVIL)
        child = store.layers.create(layer.id, id=EVIL_ID + "c", names=["c" + EVIL])
        image = store.images.create(
            child.id, id=EVIL_ID + "i", names=["i" + EVIL], metadata=EVIL, big_data={EVIL: b"1"}
        )
        container = store.containers.create(image.id, id=EVIL_ID + "k", names=["k" + EVIL], metadata=EVIL)
        store.containers.set_data(container.id, EVIL, io.BytesIO(b"1"))
        store.layers.create(id="plain")
    yield ["-g", str(root), "-R", str(run)]
    with Store.open(root, run=run) as store:
        for mount in store.mounts():
            store.unmount(mount.layer, force=True)


LAYER, CHILD, IMAGE, BOX = EVIL_ID, EVIL_ID + "c", EVIL_ID + "i", EVIL_ID + "k"

#: Words for every command: with what is there, and with what is not.
WORDS: dict[str, list[list[str]]] = {
    "add-names": [["-n", EVIL + "2", IMAGE], ["-jn", EVIL, IMAGE], ["-n", EVIL, EVIL]],
    "applydiff": [["-f", "IN", CHILD], ["-f", EVIL, LAYER], ["-f", "IN", EVIL + "no"], ["-f", "JUNK", CHILD]],
    "applydiff-using-staging-dir": [[EVIL + "no", "/nowhere" + EVIL], [EVIL + "no", "DIR"]],
    "changes": [[LAYER], ["-j", LAYER], [EVIL + "no"], [LAYER, EVIL + "no"]],
    "check": [[], ["-j"], ["-m", EVIL], ["--content"]],
    "cache": [["list"], ["size"], ["evict", "-b", EVIL], [EVIL], ["prefetch", EVIL + "no"], ["prefetch", IMAGE], ["-j", "list"], ["list"]],
    "checkout": [[LAYER, "OUT"], [LAYER, "/nowhere" + EVIL + "/x"], [EVIL + "no", "OUT"]],
    "clone": [["-n", EVIL + "3", BOX], ["-i", EVIL, BOX], ["-n", EVIL, EVIL + "no"]],
    "commit": [["-n", EVIL + "4", BOX], ["-f", EVIL, BOX], [EVIL + "no"], ["-m", EVIL, "-j", BOX]],
    "config": [[], [EVIL], ["BADCONF"]],
    "container": [[BOX], ["-j", BOX], [EVIL + "no"]],
    "container-parent-owners": [[BOX], ["-j", BOX], [EVIL + "no"]],
    "containers": [[], ["-j"]],
    "copy": [[EVIL, f"{CHILD}:/x"], [f"{CHILD}:{EVIL}", "/nowhere" + EVIL], ["-o", EVIL, "JUNK", f"{CHILD}:/y"], [EVIL + "no:/a", "x"]],
    "create-container": [["-n", EVIL + "5", IMAGE], ["-n", EVIL, IMAGE], ["-i", EVIL, IMAGE], [EVIL + "no"], ["--uidmap", EVIL, IMAGE]],
    "create-image": [["-n", EVIL + "6", LAYER], ["-i", EVIL], ["-i", IMAGE], [EVIL + "no"], ["-d", EVIL, LAYER], ["-f", EVIL, LAYER]],
    "create-layer": [["-n", EVIL + "7"], ["-i", EVIL], ["-i", LAYER], [EVIL + "no"], ["-l", EVIL, "-j"], ["--" + EVIL], ["-i", "a", EVIL, EVIL]],
    "create-storage-layer": [["-i", EVIL], [EVIL + "no"], ["-i", LAYER]],
    "dedup": [[], ["--hash-method", EVIL]],
    "delete": [[EVIL + "no"], ["-j", EVIL + "no"]],
    "delete-container": [[EVIL + "no"], ["-j", EVIL + "no"]],
    "delete-image": [["-t", IMAGE], [IMAGE], [EVIL + "no"], ["-j", EVIL + "no"]],
    "delete-layer": [[LAYER], [EVIL + "no"], ["-j", LAYER]],
    "diff": [["-f", "OUTFILE", LAYER], ["-f", "/nowhere" + EVIL, LAYER], [EVIL + "no"], ["-f", "OUTFILE", LAYER, EVIL + "no"]],
    "diffsize": [[LAYER], [EVIL + "no"]],
    "exists": [[EVIL], [EVIL + "no"], ["-j", EVIL]],
    "gc": [["-n"], ["-jn"], []],
    "get-container-data": [["-f", "OUTFILE", BOX, EVIL], ["-f", "/nowhere" + EVIL, BOX, EVIL], [BOX, EVIL + "no"], [EVIL + "no", "x"]],
    "get-container-data-digest": [[BOX, EVIL], [BOX, EVIL + "no"], [EVIL + "no", "x"]],
    "get-container-data-size": [[BOX, EVIL], [BOX, EVIL + "no"], [EVIL + "no", "x"]],
    "get-container-dir": [[BOX], [EVIL + "no"]],
    "get-container-run-dir": [[BOX], [EVIL + "no"]],
    "get-image-data": [["-f", "OUTFILE", IMAGE, EVIL], [IMAGE, EVIL + "no"], [EVIL + "no", "x"]],
    "get-image-data-digest": [[IMAGE, EVIL], [IMAGE, EVIL + "no"], [EVIL + "no", "x"]],
    "get-image-data-size": [[IMAGE, EVIL], [IMAGE, EVIL + "no"], [EVIL + "no", "x"]],
    "get-image-dir": [[IMAGE], [EVIL + "no"]],
    "get-image-run-dir": [[IMAGE], [EVIL + "no"]],
    "get-layer-data": [["-f", "OUTFILE", LAYER, EVIL], [LAYER, EVIL + "no"], [EVIL + "no", "x"]],
    "get-names": [[LAYER], ["-j", LAYER], [EVIL + "no"]],
    "image": [[IMAGE], ["-j", IMAGE], [EVIL + "no"]],
    "images": [[], ["-j"], ["-q"], ["i" + EVIL]],
    "images-by-digest": [[EVIL], ["sha256:" + EVIL]],
    "import": [["oci:/nowhere" + EVIL], ["docker-archive:" + EVIL], [EVIL], ["oci:DIR:" + EVIL], ["-n", EVIL, "docker-archive:JUNK"]],
    "import-layer": [["-f", "IN", "-n", EVIL + "8"], ["-f", EVIL], ["-f", "JUNK"], ["-f", "IN", EVIL + "no"]],
    "layer": [[LAYER], [EVIL + "no"], ["-j", LAYER], ["-q", LAYER]],
    "layer-parent-owners": [[LAYER], [EVIL + "no"]],
    "layers": [[], ["-j"], ["-q"], ["-t"]],
    "list-container-data": [[BOX], ["-j", BOX], [EVIL + "no"]],
    "list-image-data": [[IMAGE], ["-j", IMAGE], [EVIL + "no"]],
    "list-layer-data": [[LAYER], ["-j", LAYER], [EVIL + "no"]],
    "metadata": [[LAYER, EVIL + "no"], ["-j", LAYER]],
    "mount": [[BOX], [EVIL + "no"], ["-j", EVIL + "no"], ["-l", EVIL, CHILD], ["--ro", IMAGE]],
    "mounted": [[BOX], [EVIL + "no"], ["-j", LAYER]],
    "unmount": [[BOX], [EVIL + "no"], ["-j", EVIL + "no"], ["-f", CHILD], ["-f", IMAGE]],
    "remove-names": [["-n", EVIL, LAYER], ["-jn", EVIL, LAYER], ["-n", EVIL, EVIL + "no"]],
    "seal": [[CHILD], [EVIL + "no"]],
    "set-container-data": [["-f", EVIL, BOX, "x"], ["-f", "JUNK", BOX, EVIL], ["-f", "JUNK", EVIL + "no", "x"]],
    "set-image-data": [["-f", EVIL, IMAGE, "x"], ["-f", "JUNK", IMAGE, EVIL], ["-f", "JUNK", EVIL + "no", "x"]],
    "set-layer-data": [["-f", EVIL, LAYER, "x"], ["-f", "JUNK", LAYER, EVIL], ["-f", "JUNK", EVIL + "no", "x"]],
    "set-metadata": [["-m", EVIL, LAYER], ["-f", EVIL, LAYER], ["-m", EVIL, EVIL + "no"]],
    "set-names": [["-n", EVIL + "9", LAYER], ["-jn", EVIL + "9", LAYER], ["-n", EVIL, EVIL + "no"]],
    "sql": [["SELECT * FROM v_layer"], ["SELECT * FROM v_file"], ["-j", "SELECT * FROM v_image"], [EVIL], [f"SELECT '{EVIL}' AS \"{EVIL}\""], ["SELECT * FROM event"]],
    "status": [[], ["-j"]],
    "storage-layers": [[], ["-j"]],
    "balance": [[], ["-j"]],
    "version": [[], ["-j"]],
    "unshare": [[EVIL], ["/nowhere" + EVIL]],
    "catalog": [["rebuild", EVIL], [EVIL]],
    "shutdown": [[], ["-j"]],
    "wipe": [[]],
}  # fmt: skip


def filled(words: list[str], folder: Path) -> list[str]:
    """Words with files for their placeholders."""
    (folder / "in").write_bytes(evil_tar())
    (folder / "junk").write_bytes(b"junk" * 300)
    (folder / "dir").mkdir(exist_ok=True)
    (folder / "conf").write_text(f'"{EVIL_ID}" = 1\n')
    out = folder / f"out{len(os.listdir(folder))}"
    places = {"IN": folder / "in", "JUNK": folder / "junk", "DIR": folder / "dir", "BADCONF": folder / "conf", "OUT": out, "OUTFILE": folder / "file"}  # fmt: skip
    return [str(places.get(word, word)) for word in words]


def test_no_output_of_any_command_reaches_a_terminal_untamed(tmp_path: Path, roots: list[str]) -> None:
    """Every command, with what there is and with what there is not, to both streams; JSON stays JSON."""
    assert set(main.COMMANDS) <= set(WORDS), set(main.COMMANDS) - set(WORDS)
    loud = []
    for name in [*main.COMMANDS, EVIL]:
        for words in WORDS.get(name, [[]]):
            given = filled(words, tmp_path)
            status, stdout, stderr = ours([*roots, name, *given])
            texts = (stdout.decode(), stderr.decode())
            loud += [
                (name, words, text) for text in texts if not is_tame(text) or "Traceback" in text or is_forged(text)
            ]
            if "-j" in words and not status:
                for line in stdout.decode().splitlines():
                    if line[:1] in '[{"n':
                        json.loads(line)
    assert loud == []


def test_options_before_the_command_are_no_way_in(tmp_path: Path) -> None:
    """Unknown ones, wrong values, roots that cannot be."""
    for words in (
        ["--" + EVIL, "layers"], ["-g", "/proc/nowhere" + EVIL, "-R", str(tmp_path / "r"), "layers"], ["-s", EVIL, "layers"],
        ["--storage-opt", EVIL, "layers"], ["--progress", EVIL, "layers"], ["--storage-opt", "mountopt=" + EVIL, "layers"],
        ["-g", str(tmp_path / "x"), "-R", str(tmp_path / "r"), "--debug", "layer", EVIL], ["layers", "--json=" + EVIL],
    ):  # fmt: skip
        _, stdout, stderr = ours(words)
        assert is_tame((stdout + stderr).decode()), words


def test_bytes_that_are_no_text_are_told_not_thrown(tmp_path: Path) -> None:
    """Arguments are bytes for the system, and names are text for us."""
    wrong = b"w\xff\x9b"
    roots = [b"-g", bytes(tmp_path / "root"), b"-R", bytes(tmp_path / "run")]
    program = [sys.executable, "-m", "lading.cli"]
    for name in main.COMMANDS:
        if name in ("version", "unshare"):
            continue
        for words in ([], [wrong], [wrong, wrong], [b"-n", wrong, wrong], [b"-f", wrong, wrong, wrong]):
            done = subprocess.run(
                [*program, *roots, name.encode(), *words], capture_output=True, stdin=subprocess.DEVNULL, check=False
            )
            told = (done.stdout + done.stderr).decode()
            assert "Traceback" not in told, (name, words, told)
            assert is_tame(told), (name, words, told)
            if name not in ("applydiff", "create-layer", "set-names"):
                break  # the grammar is one: three commands show it


def test_metadata_and_rows_are_data_for_scripts_and_tame_for_terminals(roots: list[str]) -> None:
    """What a script asked for alone is exact; the same on a terminal is escaped."""
    words = [sys.executable, "-m", "lading.cli", *roots]
    exact = subprocess.run([*words, "metadata", "-q", LAYER], capture_output=True, check=True).stdout.decode()
    assert exact == EVIL + "\n"
    for asked in (["metadata", "-q", LAYER], ["sql", "--csv", "SELECT metadata FROM v_layer"], ["layers"]):
        ours_side, theirs = pty.openpty()
        process = subprocess.Popen([*words, *asked], stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL)
        os.close(theirs)
        seen = b""
        try:
            while more := os.read(ours_side, 65536):
                seen += more
        except OSError:
            pass
        os.close(ours_side)
        assert process.wait() in (0, 1)
        assert is_tame(seen.decode().replace("\r\n", "\n")), asked


#: What a query may try beyond reading.
ATTEMPTS = (
    "DELETE FROM layer", "INSERT INTO layer (id) VALUES ('x')", "UPDATE layer SET id = 'x'", "REPLACE INTO meta VALUES ('a', 'b')",
    "DROP TABLE layer", "CREATE TABLE t (a)", "CREATE TEMP TABLE t (a)", "CREATE VIEW v AS SELECT 1", "CREATE TEMP VIEW v AS SELECT 1",
    "CREATE INDEX i ON layer (id)", "CREATE TRIGGER t AFTER DELETE ON layer BEGIN SELECT 1; END", "CREATE TEMP TRIGGER t AFTER DELETE ON layer BEGIN SELECT 1; END",
    "CREATE VIRTUAL TABLE f USING fts5(a)", "CREATE VIRTUAL TABLE temp.f USING rtree(a, b, c)", "ALTER TABLE layer RENAME TO l",
    "ATTACH DATABASE 'OUT' AS o", "ATTACH ':memory:' AS m", "ATTACH 'file:OUT?mode=rwc' AS o", "DETACH main", "VACUUM", "VACUUM INTO 'OUT'", "REINDEX", "ANALYZE",
    "BEGIN", "BEGIN IMMEDIATE", "BEGIN EXCLUSIVE", "COMMIT", "ROLLBACK", "SAVEPOINT s", "RELEASE s",
    "PRAGMA journal_mode = DELETE", "PRAGMA wal_checkpoint(TRUNCATE)", "PRAGMA user_version = 9", "PRAGMA query_only = 0", "PRAGMA writable_schema = 1",
    "PRAGMA trusted_schema = 1", "PRAGMA locking_mode = EXCLUSIVE", "PRAGMA temp_store_directory = 'OUT'", "PRAGMA incremental_vacuum", "PRAGMA optimize",
    "PRAGMA integrity_check", "SELECT * FROM pragma_user_version", "SELECT * FROM pragma_journal_mode",
    "SELECT load_extension('OUT')", "SELECT writefile('OUT', 'x')", "SELECT readfile('/etc/passwd')", "SELECT edit('x', 'touch OUT')", "SELECT fts3_tokenizer('x', x'00')",
    "SELECT LOAD_EXTENSION('OUT')", "SELECT * FROM fsdir('/')", "SELECT * FROM zipfile('OUT')", "SELECT * FROM sqlite_dbpage", "UPDATE sqlite_dbpage SET data = x'00'",
    "SELECT 1; DELETE FROM layer", "SELECT 1; ATTACH 'OUT' AS o", "EXPLAIN DELETE FROM layer", "WITH x AS (SELECT 1) DELETE FROM layer", "WITH x AS (SELECT 1) INSERT INTO meta SELECT 'a', 'b'",
    "DELETE FROM layer RETURNING id", "INSERT INTO sqlite_master VALUES (1, 2, 3, 4, 5)", ".shell touch OUT", ".output OUT", ".import OUT layer", "-- nothing", "", ";",
)  # fmt: skip


def _state(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith("-shm")
    }


def test_no_query_can_do_more_than_read(tmp_path: Path) -> None:
    """By the library, the command and its prompt: the store's files stay, byte for byte, and none is made elsewhere."""
    root, run, elsewhere = tmp_path / "root", tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with Store.open(root, run=run) as store:
        store.images.create(store.layers.import_(io.BytesIO(evil_tar()), id="l").id, id="i")
    before = _state(tmp_path)
    attempts = [attempt.replace("OUT", str(elsewhere / "made")) for attempt in ATTEMPTS]
    with Store.open(root, run=run) as store:
        for attempt in attempts:
            if attempt.startswith("SELECT * FROM pragma_"):
                continue
            with pytest.raises(Exception, match=r"only SELECT|cannot be run|returns no rows"):
                list(store.query(attempt)[1])
    for attempt in attempts:
        status, _, _ = ours(["-g", str(root), "-R", str(run), "sql", attempt])
        assert status or attempt.startswith("SELECT * FROM pragma_")
    prompt = [sys.executable, "-m", "lading.cli", "-g", str(root), "-R", str(run), "sql", "--shell"]
    subprocess.run(prompt, input="\n".join(attempts).encode(), capture_output=True, check=True)

    assert list(elsewhere.iterdir()) == []
    assert _state(tmp_path) == before


def test_the_shell_of_sqlite_is_taken_only_when_it_escapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older ones hand what is stored to the terminal: our prompt does instead."""
    from lading.catalog.sql import shell_command

    for script, taken in (('case "$*" in *-escape*) exit 0;; esac; exit 1', True), ("exit 1", False)):
        program = tmp_path / "sqlite3"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        words = shell_command(tmp_path / "catalog.db")
        assert (words is not None) is taken
        if words:
            assert {"-readonly", "-safe", "-escape"} <= set(words)
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert shell_command(tmp_path / "catalog.db") is None


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_query_that_would_never_end_can_be_stopped(tmp_path: Path, number: int, status: int) -> None:
    """A line, the status of the signal, and the store as before; also when the query is between two rows."""
    roots = ["-g", str(tmp_path / "root"), "-R", str(tmp_path / "run")]
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
    Store.open(tmp_path / "root", run=tmp_path / "run").close()
    words = [sys.executable, "-c", RUNNING, *roots, "sql", endless]
    # Whoever runs the tests may ignore the signal, and then the command would, too.
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # noqa: PLW1509 - no threads here
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"running\n"
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)

    assert process.returncode == status
    assert stdout == b""
    assert stderr.count(b"\n") == 1
    assert b"Traceback" not in stderr


RUNNING = """
import sys
from lading.catalog import sql
from lading.cli.entry import main
told = []
def breathe():
    if not told:
        told.append(True)
        print("running", flush=True)
    return 0
sql._breathe = breathe
main(sys.argv[1:], "lading")
"""
