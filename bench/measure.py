"""Running a command and telling what it cost; the two programs that are compared; statistics of rounds."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

#: Names of the two programs in figures and tables.
PEER: Final = "containers-storage"
OURS: Final = "lading"


class Cost(NamedTuple):
    """What one command cost, its children included."""

    wall_s: float
    cpu_s: float  #: user and system time
    peak: int  #: bytes of resident memory of its largest process


class Failed(Exception):
    """A measured command did not succeed; its figures would mean nothing."""


#: Starts commands for this process, one JSON line each, and tells status, seconds and resident kilobytes of each. A
#: child begins as a copy of its parent, whose memory then counts as the child's peak: this parent holds nothing.
_LAUNCHER: Final = """
import json, os, sys, time
for line in sys.stdin:
    words, stdin, output = json.loads(line)
    actions = [(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2)]
    started = time.perf_counter()
    try:
        child = os.posix_spawnp(words[0], words, os.environ, file_actions=actions)
    except OSError as error:
        os.write(output, str(error).encode())
        print(json.dumps([127, 0, 0, 0]), flush=True)
        continue
    _, status, usage = os.wait4(child, 0)
    wall_s = time.perf_counter() - started
    cpu_s = usage.ru_utime + usage.ru_stime
    print(json.dumps([os.waitstatus_to_exitcode(status), wall_s, cpu_s, usage.ru_maxrss]), flush=True)
"""


def run(command: Sequence[str], *, stdin: IO[bytes] | None = None) -> tuple[Cost, str]:
    """Run a command to its end.

    Returns:
        Its cost and what it wrote, errors included. The peak's floor is an empty interpreter, about 9 MB.

    Raises:
        Failed: the command could not be started, or its exit status was not 0.
    """
    with tempfile.TemporaryFile() as output, open(os.devnull, "rb") as nothing:
        source = (stdin or nothing).fileno()
        launcher = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _LAUNCHER],
            input=json.dumps([list(command), source, output.fileno()]), stdout=subprocess.PIPE, text=True, check=True,
            pass_fds=(source, output.fileno()),
        )  # fmt: skip
        status, wall_s, cpu_s, kilobytes = json.loads(launcher.stdout)
        output.seek(0)
        written = output.read().decode(errors="replace")
    if status != 0:
        raise Failed(f"{' '.join(command)}: status {status}: {written[-2000:]}")
    return Cost(wall_s, cpu_s, kilobytes * 1024), written


@dataclass(frozen=True)
class StoreOf:
    """A store of one of the two programs, below a folder of its own."""

    tool: str
    folder: Path
    binary: str = ""

    @property
    def graph(self) -> Path:
        """The store's root."""
        return self.folder / "graph"

    @property
    def run_root(self) -> Path:
        """The store's run root."""
        return self.folder / "run"

    def command(self, *words: str | Path) -> list[str]:
        """Spell a command on this store."""
        where = [str(self.graph), "--run", str(self.run_root)]
        if self.tool == PEER:
            return [PEER, "--graph", *where, "--storage-driver", "overlay", *map(str, words)]
        return [self.binary or str(Path(sys.executable).parent / OURS), "--graph", *where, *map(str, words)]

    def do(self, *words: str | Path, stdin: IO[bytes] | None = None) -> Cost:
        """Run a command on this store and tell its cost."""
        return run(self.command(*words), stdin=stdin)[0]

    def create_layer(self, parent: str = "") -> str:
        """Make a layer, unmeasured; tell its id."""
        return run(self.command("create-layer", *([parent] if parent else [])))[1].split()[0]

    def bytes_at_rest(self) -> tuple[int, int]:
        """Add up what the store has on disk, every inode once.

        Returns:
            The files' sizes, and the blocks that files and folders occupy; in bytes.
        """
        sizes, blocks, seen = 0, 0, set()
        for folder, _, files in os.walk(self.graph):
            for path in (folder, *(os.path.join(folder, name) for name in files)):
                state = os.lstat(path)
                if (state.st_dev, state.st_ino) not in seen:
                    seen.add((state.st_dev, state.st_ino))
                    sizes += state.st_size if path is not folder else 0
                    blocks += state.st_blocks * 512
        return sizes, blocks

    def remove(self) -> None:
        """Remove the store and whatever it has mounted."""
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        for target in sorted((line.split()[4] for line in mounts), reverse=True):
            if target.startswith(f"{self.folder}/"):
                subprocess.run(["umount", target], check=True)
        subprocess.run(["rm", "-rf", "--one-file-system", str(self.folder)], check=True)


def fresh(tool: str, scratch: Path, name: str = "") -> StoreOf:
    """Make a place for a new store; what was there is removed."""
    store = StoreOf(tool, scratch / f"{tool}{'-' + name if name else ''}")
    store.remove()
    store.folder.mkdir(parents=True)
    return store


def in_turn(round_number: int) -> tuple[str, str]:
    """The two programs in the order for a round: who goes first alternates."""
    return (PEER, OURS) if round_number % 2 == 0 else (OURS, PEER)


def settle() -> None:
    """Let earlier writes reach the disk, so that the next figure does not pay for them."""
    os.sync()


def warm(path: Path) -> None:
    """Bring a file into the page cache: programs are compared, not the disk."""
    with path.open("rb") as file, open(os.devnull, "wb") as nowhere:
        shutil.copyfileobj(file, nowhere, 1 << 20)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, extremes and number of figures, for keeping."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "count": len(values)}


def compare(peer: Sequence[float], ours: Sequence[float]) -> dict[str, Any]:
    """Both spreads, and the median of the rounds' ratios (the peer's figure divided by ours)."""
    ratios = [first / second for first, second in zip(peer, ours, strict=True)]
    return {PEER: spread(peer), OURS: spread(ours), "ratio": statistics.median(ratios)}
