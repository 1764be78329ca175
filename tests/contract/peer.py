"""Running a command on two stores at once: ours, and that of the program we stand in for.

What the two say is compared with generated ids, times and paths replaced by symbols. Deliberate differences are
listed with their reason in :data:`DOCUMENTED`.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from lading.cli import main
from lading.materialize import mounts
from lading.materialize.beneath import remove_tree

PEER = "containers-storage"

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
_LOG = re.compile(r'^time="[^"]*" level=.*\n', re.MULTILINE)


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    status: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Documented:
    """A deliberate difference."""

    reason: str
    applies: Callable[[Sequence[str], Said, Said], bool]  #: words, the peer's answer, ours


@dataclass
class Side:
    """One of the two stores."""

    folder: Path
    driver: str
    execute: Callable[[list[str]], tuple[int, bytes, bytes]]
    ids: dict[str, str] = field(default_factory=dict)  #: generated id to symbol

    def run(self, words: Sequence[str]) -> tuple[int, bytes, bytes]:
        """Run a command; symbols among its words become this side's ids."""
        by_symbol = {symbol: found for found, symbol in self.ids.items()}
        roots = ["-g", str(self.folder / "root"), "-R", str(self.folder / "run"), "-s", self.driver]
        return self.execute([*roots, *(by_symbol.get(word, word) for word in words)])

    def plain(self, text: str) -> str:
        """Replace what must differ by symbols."""
        for found, symbol in self.ids.items():
            text = text.replace(found, symbol)
        text = text.replace(str(self.folder / "root"), "ROOT").replace(str(self.folder / "run"), "RUN")
        return _LOG.sub("", _TIME.sub("TIME", text))

    def record(self, ref: str, kind: str) -> dict[str, object]:
        """A record as JSON."""
        status, stdout, _ = self.run([kind, "-j", ref])
        found = json.loads(stdout or b"[]") if status == 0 else []
        return dict(found[0]) if found else {}


def ours(words: list[str]) -> tuple[int, bytes, bytes]:
    """Run our command under the name that scripts use, in this process: a start costs more than most commands."""
    kept = sys.stdout, sys.stderr
    streams = [io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2)]
    sys.stdout, sys.stderr = streams
    try:
        status = main.run(words, main.COMPAT)
    finally:
        sys.stdout, sys.stderr = kept
    stdout, stderr = (stream.detach() for stream in streams)
    assert isinstance(stdout, io.BytesIO)
    assert isinstance(stderr, io.BytesIO)
    return status, stdout.getvalue(), stderr.getvalue()


def theirs(words: list[str]) -> tuple[int, bytes, bytes]:
    """Run the peer."""
    done = subprocess.run([PEER, *words], capture_output=True, check=False, stdin=subprocess.DEVNULL, timeout=60)
    return done.returncode, done.stdout, done.stderr


class Pair:
    """The two stores, and what was found to differ."""

    #: Commands compared, by name, over the whole session.
    counted: ClassVar[Counter[str]] = Counter()
    #: Times that a documented difference was met, by its reason.
    excused: ClassVar[Counter[str]] = Counter()

    def __init__(self, driver: str) -> None:
        """Make two empty stores with a driver."""
        self.driver = driver
        self.folder = Path(tempfile.mkdtemp(prefix="lading-pair-"))
        self.sides = tuple(Side(self.folder / name, driver, run) for name, run in (("peer", theirs), ("ours", ours)))
        self.history: list[tuple[str, ...]] = []
        self._symbols = 0

    def compare(self, *words: str, expect: Callable[[str], str] | None = None) -> Said:
        """Run a command on both and compare.

        Args:
            words: command, options and arguments; symbols stand for generated ids.
            expect: normalises standard output further, for what has no order.

        Returns:
            Our answer.
        """
        self.history.append(words)
        self.counted[words[0]] += 1
        answers = [side.run(words) for side in self.sides]
        self._learn(words, answers)
        said = []
        for side, (status, stdout, stderr) in zip(self.sides, answers, strict=True):
            text = side.plain(stdout.decode(errors="surrogateescape"))
            if words[0] in _MAPS and text.startswith("{"):
                text = json.dumps(json.loads(text), sort_keys=True) + "\n"  # keys are ids, whose order is chance
            said.append(Said(status, expect(text) if expect else text, side.plain(stderr.decode(errors="replace"))))
        peer, own = said
        if peer == own:
            return own
        for item in DOCUMENTED:
            if item.applies(words, peer, own):
                self.excused[item.reason] += 1
                return own
        history = "\n".join("  " + " ".join(map(repr, step)) for step in self.history)
        raise AssertionError(f"{self.driver}: after\n{history}\nthe peer said {peer}\nwe said {own}")

    def _learn(self, words: Sequence[str], answers: Sequence[tuple[int, bytes, bytes]]) -> None:
        """Give the ids that a command drew symbols, alike on both sides."""
        if not words[0].startswith(("create", "import")) or any(answer[0] for answer in answers):
            return
        found = []
        for side, (_, stdout, _) in zip(self.sides, answers, strict=True):
            first = stdout.decode().splitlines()[0]
            made = json.loads(first)["id"] if first.startswith("{") else first
            ids = [made]
            if "container" in words[0]:
                ids.append(str(side.record(made, "container").get("layer", "")))
            if "container" in words[0]:
                for image in json.loads(side.run(["images", "-j"])[1]) or ():
                    ids += image.get("mapped-layers", [])
            found.append(ids)
        for pair in zip(*found, strict=False):
            if pair[0] == pair[1] or pair[0] in self.sides[0].ids:
                continue
            self._symbols += 1
            for side, made in zip(self.sides, pair, strict=True):
                side.ids[made] = f"<{self._symbols}>"

    def close(self) -> None:
        """Unmount and remove everything."""
        for mount in reversed(mounts.mountinfo()):
            if mount.path.is_relative_to(self.folder):
                subprocess.run(["umount", "-l", str(mount.path)], check=False, capture_output=True)
        if os.path.isdir(self.folder):
            remove_tree(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)


#: Commands whose JSON has an object with a key for each argument.
_MAPS = frozenset({"metadata", "exists", "delete", "delete-layer", "delete-image", "delete-container"})


def _usage(words: Sequence[str], peer: Said, own: Said) -> bool:
    """Only the first line of a usage error is compared: what follows is help for people."""
    first = [said.stdout.partition("\n")[0] or said.stderr.partition("\n")[0] for said in (peer, own)]
    usage = "arguments" in first[0] or "flag" in first[0] or "unrecognized" in first[0] or "boolean" in first[0]
    return usage and first[0].split(":")[0:2] == first[1].split(":")[0:2] and peer.status == own.status


def _missing(words: Sequence[str], peer: Said, own: Said) -> bool:
    """What the installed version of the peer does not have yet."""
    return "unrecognized command" in peer.stdout or (
        "flag provided but not defined" in peer.stderr and own.status != 125
    )


def _damaged(words: Sequence[str], peer: Said, own: Said) -> bool:
    """Scripts look for these phrases only; which of them depends on where a reader gives up."""
    phrases = ("unexpected EOF", "invalid tar header")
    return peer.status == own.status == 1 and all(any(text in said.stderr for text in phrases) for said in (peer, own))


def _prefixed(words: Sequence[str], peer: Said, own: Said) -> bool:
    """The peer's later versions say the same as we do."""
    return words[0] == "images-by-digest" and peer.status == own.status == 1 and peer.stderr.endswith(own.stderr)


def _null(words: Sequence[str], peer: Said, own: Said) -> bool:
    return words[0] in ("layers", "images") and (peer.stdout, own.stdout) == ("[]\n", "null\n")


def _newline(words: Sequence[str], peer: Said, own: Said) -> bool:
    glued = own.stdout.replace("\n", "") == peer.stdout.replace("\n", "")
    return words[0].startswith("create-") and peer.status == own.status == 0 and glued


def _counted(words: Sequence[str], peer: Said, own: Said) -> bool:
    return "too many arguments" in own.stdout and "arguments" not in peer.stdout


_PATH = re.compile(r"(ROOT|RUN)/\S*[^\s:]")


def _layout(words: Sequence[str], peer: Said, own: Said) -> bool:
    """Paths below the roots are each program's own."""
    texts = [[_PATH.sub("PATH", text) for text in (said.stdout, said.stderr)] for said in (peer, own)]
    return peer.status == own.status and texts[0] == texts[1]


_USER = re.compile(r"(used by )(layer |container |image )?\S+(: )")


def _any_user(words: Sequence[str], peer: Said, own: Said) -> bool:
    """Which of several users is named is not said anywhere."""
    texts = [[_USER.sub(r"\1\2\3", text) for text in (said.stdout, said.stderr)] for said in (peer, own)]
    return peer.status == own.status and texts[0] == texts[1]


DOCUMENTED: tuple[Documented, ...] = (
    Documented("the installed version of the peer has no such command or option", _missing),
    Documented("a damaged diff is told in one line that holds one of the two phrases", _damaged),
    Documented("a malformed digest is told as in later versions of the peer", _prefixed),
    Documented("an empty list of layers or images is null in JSON, as in later versions of the peer", _null),
    Documented("every line ends with a newline, as in later versions of the peer", _newline),
    Documented("arguments that a command has no use for are refused, as in later versions of the peer", _counted),
    Documented("below its roots each program keeps things in its own way", _layout),
    Documented("of several records that need one, any may be named", _any_user),
    Documented("usage texts are our own help; their first line is the same", _usage),
)
