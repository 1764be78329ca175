"""Signals, closed pipes and closed terminals at any moment of long commands: a line, the right status, a store that is fine."""

from __future__ import annotations

import io
import os
import pty
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lading import Store
from tests.flows.test_gc import layer_of
from tests.flows.test_layers import taken_out

#: Tells when the command is about to begin, so that no signal hits an interpreter that only starts.
RUNNER = """
import os, sys
from lading.cli.main import main
os.write(int(sys.argv[1]), b".")
main(sys.argv[2:], "lading")
"""

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}

#: How the last command of a shell's line ends when it was killed so, or was done before.
ENDED = {0, *STATUS.values()}


class Grounds:
    """A store with something to do for each command, and what must be in it afterwards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.roots = ["-g", str(folder / "root"), "-R", str(folder / "run")]
        self.kept = layer_of(1, files=300)
        self.new = folder / "new.tar"
        self.new.write_bytes(layer_of(2, files=500))
        with self.open() as store:
            store.layers.import_(io.BytesIO(self.kept), id="kept")
            store.images.create("kept", id="i")

    def open(self) -> Store:
        return Store.open(self.folder / "root", run=self.folder / "run")

    def prepare(self, name: str) -> list[str]:
        """Make something to do, and say by which words."""
        with self.open() as store:
            if name == "gc":
                made = store.layers.import_(io.BytesIO(layer_of(random.Random(name).randrange(100, 10**9), files=300)))
                store.layers.delete(made.id)
            if name == "applydiff":
                store.layers.create(id="target")
        return {
            "applydiff": ["applydiff", "-f", str(self.new), "target"],
            "diff": ["diff", "-f", str(self.folder / "out.tar"), "kept"],
            "gc": ["gc"],
            "check": ["check", "--content"],
            "checkout": ["checkout", "kept", str(self.folder / "tree")],
        }[name]

    def assert_fine(self, name: str) -> None:
        """The store as before, or with the whole of what was done; the next commands just work."""
        with self.open() as store:
            if name == "applydiff":
                assert taken_out(store, "target") in (b"", bytes(1024), bytes(10240), self.new.read_bytes())
                store.layers.delete("target")
            assert [layer.id for layer in store.layers.all()] == ["kept"]
            store.gc()
            assert os.listdir(store.root / "objects/staging") == []
            assert taken_out(store, "kept") == self.kept
            assert store.check(content=True).findings == ()
        if (self.folder / "tree").exists():
            assert (self.folder / "tree/own/1/0").stat().st_size == 3000
            subprocess.run(["rm", "-rf", self.folder / "tree"], check=True)


@pytest.fixture
def grounds(tmp_path: Path) -> Grounds:
    return Grounds(tmp_path)


def started(grounds: Grounds, words: list[str], **streams: int) -> subprocess.Popen[bytes]:
    """Start a command; it is about to begin when this returns."""
    ready, tell = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", RUNNER, str(tell), *grounds.roots, *words], pass_fds=[tell], **streams
    )  # type: ignore[call-overload]
    os.close(tell)
    assert os.read(ready, 1) == b"."
    os.close(ready)
    return process  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["applydiff", "diff", "gc", "check", "checkout"])
def test_a_signal_at_any_moment_is_a_line_and_no_harm(grounds: Grounds, name: str) -> None:
    """Moments are drawn over the whole of the command's time, and a little beyond."""
    words = grounds.prepare(name)
    began = time.monotonic()
    assert started(grounds, words, stdout=subprocess.DEVNULL).wait() == 0
    takes = time.monotonic() - began
    grounds.assert_fine(name)
    draw = random.Random(name)
    for turn in range(3):
        number = list(STATUS)[turn % 3]
        words = grounds.prepare(name)
        process = started(grounds, words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(0.02 + draw.random() * takes)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode in (0, STATUS[number]), (name, number, stderr)
        assert b"Traceback" not in stderr + stdout
        assert stderr.count(b"\n") <= 1, stderr
        grounds.assert_fine(name)


#: A signal in the middle of making a class, as when a module is loaded: the interpreter makes another error of it.
IN_A_CLASS = """
import os, signal, sys
from lading.cli.main import main
from lading.store import Store
class Field:
    def __set_name__(self, owner, name):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal came late")
def gc(store, dry_run=False):
    class Made:
        field = Field()
Store.gc = gc
main(sys.argv[1:], "lading")
"""


def test_a_signal_that_the_interpreter_makes_another_error_of_is_a_line(grounds: Grounds) -> None:
    """As it does when a class is being made."""
    process = subprocess.run(
        [sys.executable, "-c", IN_A_CLASS, *grounds.roots, "gc"], check=False, capture_output=True, timeout=60
    )
    assert (process.returncode, process.stdout, process.stderr) == (143, b"", b"terminated\n")
    grounds.assert_fine("gc")


#: A signal in a callback of the interpreter's, which reports what was raised in it and goes on.
IN_A_CALLBACK = """
import os, signal, sys, time, weakref
from lading.cli.main import main
from lading.store import Store
class Thing:
    pass
def gc(store, dry_run=False):
    thing = Thing()
    watcher = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGHUP))
    del thing
    time.sleep(30)
    raise AssertionError("the signal was lost")
Store.gc = gc
main(sys.argv[1:], "lading")
"""

#: What is left of a closed catalog when the last reference to it goes, after a signal.
AFTER_A_SIGNAL = """
import os, signal, sys
from lading.cli.main import main
from lading.store import Store
def gc(store, dry_run=False):
    class Left:
        def __del__(self):
            raise RuntimeError("nothing to be told of")
    left = Left()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        del left
Store.gc = gc
main(sys.argv[1:], "lading")
"""


@pytest.mark.parametrize(
    ("program", "status", "words"), [(IN_A_CALLBACK, 129, b"hung up\n"), (AFTER_A_SIGNAL, 143, b"terminated\n")]
)
def test_a_signal_where_nothing_can_be_raised_ends_the_command_all_the_same(
    grounds: Grounds, program: str, status: int, words: bytes
) -> None:
    """A moment later, and with nothing but its line."""
    process = subprocess.run(
        [sys.executable, "-c", program, *grounds.roots, "gc"], check=False, capture_output=True, timeout=60
    )
    assert (process.returncode, process.stdout, process.stderr) == (status, b"", words)
    grounds.assert_fine("gc")


@pytest.mark.parametrize(
    "words", [["diff", "-u", "kept"], ["sql", "SELECT * FROM v_file f1, v_file f2 LIMIT 200000"], ["changes", "kept"]]
)
def test_a_reader_that_goes_away_ends_a_command_in_silence(grounds: Grounds, words: list[str]) -> None:
    """No line, no traceback; the status is a failure's."""
    process = started(grounds, words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() in (0, 1)
    grounds.assert_fine("diff")


@pytest.mark.parametrize("name", ["applydiff", "check"])
def test_a_terminal_that_is_closed_ends_a_command_and_harms_nothing(grounds: Grounds, name: str) -> None:
    """The kernel sends a hang-up, and writing to it fails."""
    words = grounds.prepare(name)
    ours, theirs = pty.openpty()
    ready, tell = os.pipe()
    process = subprocess.Popen(
        ["setsid", "-c", sys.executable, "-c", RUNNER, str(tell), *grounds.roots, *words],
        stdin=theirs, stdout=theirs, stderr=theirs, pass_fds=[tell],
    )  # fmt: skip
    os.close(theirs)
    os.close(tell)
    os.read(ready, 1)
    os.close(ready)
    os.close(ours)
    # A terminal hangs up more than once, and the second time ends even the tidying.
    assert process.wait(timeout=120) in (0, 1, STATUS[signal.SIGHUP], -signal.SIGHUP)
    grounds.assert_fine(name)


def test_a_hang_up_that_is_ignored_stays_ignored(grounds: Grounds) -> None:
    """As nohup wants it."""
    words = grounds.prepare("check")
    process = subprocess.Popen(
        ["nohup", sys.executable, "-m", "lading.cli", *grounds.roots, *words],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    time.sleep(0.2)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=120)
    assert process.returncode == 0
