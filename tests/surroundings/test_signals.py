"""Signals, closed pipes and closed terminals at any moment of long commands: a line, the right status, a store that is fine."""

from __future__ import annotations

import io
import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from lading import Store
from tests.flows.test_gc import layer_of
from tests.flows.test_layers import taken_out

ROOT = Path(__file__).resolve().parent.parent.parent

#: Tells when the command is about to begin, so that no signal hits an interpreter that only starts.
RUNNER = """
import os, sys
from lading.cli.entry import main
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
from lading.cli.entry import main
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
from lading.cli.entry import main
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
from lading.cli.entry import main
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


def awaited(process: subprocess.Popen[bytes]) -> None:
    """Wait until a command takes all its signals, or has ended."""
    last = 1 << list(STATUS)[-1] - 1
    while process.poll() is None:
        caught = re.search(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
        if caught is not None and int(caught[1], 16) & last:
            return


def begun(words: list[str]) -> subprocess.Popen[bytes]:
    """Start a command as everybody does; it has just begun when this returns."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lading.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in STATUS],  # noqa: PLW1509 - no threads here
    )  # fmt: skip
    awaited(process)
    return process


def duration(words: list[str]) -> float:
    """How long a command takes from there on."""
    process = begun(words)
    began = time.monotonic()
    process.communicate(timeout=60)
    return time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize("word", ["version", "layers"])
def test_a_signal_while_the_program_loads_is_a_line(grounds: Grounds, word: str) -> None:
    """From the first moment on, as short commands hardly do anything but load."""
    words = [*grounds.roots, word] if word == "layers" else [word]
    takes = duration(words)
    draw = random.Random(word)
    for turn in range(12):
        number = list(STATUS)[turn % 3]
        process = begun(words)
        time.sleep(draw.random() * takes)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode in (0, STATUS[number]), (number, stderr)
        assert b"Traceback" not in stderr + stdout
        assert len([line for line in stderr.splitlines() if not line.startswith(b"Version: ")]) <= 1, stderr


#: The console script, and a signal to itself at the import of one module.
AT_AN_IMPORT = """
import importlib, os, signal, sys
place, at, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
module, function = place.split(":")
class Finder:
    seen = 0
    def find_spec(self, name, path=None, target=None):
        if name not in (module, "lading", "lading.cli", "__future__", "gc", "os", "signal"):
            Finder.seen += 1
            if Finder.seen == at:
                os.kill(os.getpid(), number)
        return None
del sys.argv[1:4]
sys.meta_path.insert(0, Finder())
getattr(importlib.import_module(module), function)()
"""


@pytest.mark.parametrize("script", ["lading", "lading-compat"])
@pytest.mark.parametrize("number", list(STATUS))
def test_a_signal_at_the_import_of_a_module_is_a_line(script: str, number: signal.Signals) -> None:
    """Of the first one that takes time, and of some later ones."""
    place = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"][script]
    for at in (1, 10, 40):
        process = subprocess.run(
            [sys.executable, "-c", AT_AN_IMPORT, place, str(at), str(int(number)), "version"],
            check=False, capture_output=True, timeout=60,
        )  # fmt: skip
        assert (process.returncode, process.stdout) == (STATUS[number], b""), (at, process.stderr)
        assert process.stderr in (b"interrupted\n", b"terminated\n", b"hung up\n")


@pytest.mark.slow
def test_two_signals_are_one_line(grounds: Grounds) -> None:
    """The second one may come while the command is told of the first, or says so."""
    words = [*grounds.roots, "layers"]
    takes = duration(words)
    draw = random.Random(2)
    for _ in range(16):
        numbers = [draw.choice(list(STATUS)) for _ in range(2)]
        process = begun(words)
        time.sleep(draw.random() * takes)
        process.send_signal(numbers[0])
        time.sleep(draw.random() * 0.004)
        process.send_signal(numbers[1])
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode in (0, *(STATUS[number] for number in numbers)), (numbers, stderr)
        assert b"Traceback" not in stderr + stdout
        assert stderr in (b"", b"interrupted\n", b"terminated\n", b"hung up\n")
    grounds.assert_fine("layers")


#: A signal in a command, and a second one so many lines later in what runs the command and ends it; for many numbers
#: of lines. Tells the statuses and what was said.
LATER = """
import json, os, signal, sys
from lading.cli import output, upkeep
from lading.cli.entry import main
from lading.cli.main import run
def trace(frame, event, arg):
    global left
    if event == "line" and os.path.basename(os.path.dirname(frame.f_code.co_filename)) == "cli":
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGTERM)
    return trace
def line(text, err):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        frame = sys._getframe().f_back
        sys.settrace(trace)
        while frame:
            frame.f_trace = trace
            frame = frame.f_back
output.line = line
for left in range(1, 60):
    said, say = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(say, 2)
        main(["version"], "lading")
    os.close(say)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([status, os.read(said, 10000).decode()]), flush=True)
    os.close(said)
"""


def test_a_second_signal_at_any_step_of_the_ending_adds_nothing() -> None:
    """No second line, no traceback, the same status; one that comes just before the line is written takes its place."""
    process = subprocess.run([sys.executable, "-c", LATER], check=True, capture_output=True, timeout=60)
    ended = [json.loads(line) for line in process.stdout.splitlines()]

    assert len(ended) == 59
    assert [one for one in ended if one not in ([143, "terminated\n"], [143, ""])] == []
    assert ended.count([143, ""]) < 10


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
