"""The same commands on two stores: that of ``containers-storage``, the reference, and ours.

Each side has roots of its own. What differs of necessity is replaced by symbols before answers are compared: drawn ids
(``<l1>``, ``<i1>``, ``<c1>``, numbered as they appear), times, paths below the roots. After every command that may have
changed something the records of both stores are compared as well, so that a slip is seen where it happens.
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from lading.cli import main
from lading.cli.entry import COMPAT
from lading.materialize import mounts
from lading.materialize.beneath import remove_tree

REFERENCE = "containers-storage"

#: Run our command as a process of its own, as scripts do; slow, so that it is not the default.
AS_PROCESS = os.environ.get("LADING_DIFFERENTIAL_PROCESS") == "1"

KINDS = ("layer", "image", "container")

#: Commands after which the records are as before.
READING = frozenset(
    {
        "changes", "container", "containers", "diff", "diffsize", "diff-size", "exists", "get-names", "getnames", "image",
        "images", "images-by-digest", "layer", "layers", "metadata", "mounted", "status", "version",
    }
)  # fmt: skip

_SYMBOL = re.compile(r"<([lic]\d+)(?::(\d+))?>")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{0,8}[1-9])?Z")
_LOG = re.compile(r'^time="[^"]*" level=.*\n', re.MULTILINE)
_PATH = re.compile(r"(?<=^open )(ROOT|RUN)/[^:\n]*|(ROOT|RUN)/[^\s\"':,]*(?::(?=\S)[^\s\"':,]*)*", re.MULTILINE)


@dataclass(frozen=True)
class Said:
    """What a command answered, in symbols; standard output stays bytes where it is no text."""

    status: int
    stdout: str | bytes
    stderr: str

    @property
    def out(self) -> str:
        """Standard output as text."""
        return self.stdout.decode(errors="replace") if isinstance(self.stdout, bytes) else self.stdout


Records = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Case:
    """A command and both answers: what a documented difference is recognised by."""

    driver: str
    words: Sequence[str]
    peer: Said
    own: Said
    before: Records  #: the records before the command, in symbols
    after: tuple[Records, Records] | None  #: the peer's and ours after it; None when it only reads
    shows: Callable[[str], set[str]]  #: the paths that are to be seen in a layer of ours

    @property
    def command(self) -> str:
        """The command's main spelling."""
        return main.ALIASES.get(self.words[0], self.words[0])


@dataclass(frozen=True)
class Documented:
    """A deliberate difference. One that ``parts`` the stores ends the sequence: what follows would differ anyhow."""

    name: str
    reason: str
    applies: Callable[[Case], bool]
    parts: bool = False


class Difference(AssertionError):
    """The two sides differ, and nothing says that they may."""


class Parted(Exception):
    """The stores hold different things now, for a documented reason."""


@dataclass
class Side:
    """One of the two stores."""

    folder: Path
    driver: str
    digits: int  #: of a drawn id
    execute: Callable[[list[str], bytes], tuple[int, bytes, bytes]]
    ids: dict[str, str] = field(default_factory=dict)  #: symbol to drawn id

    def word(self, word: str) -> str:
        """A word of a command with this side's ids, or their first digits, for symbols."""

        def found(match: re.Match[str]) -> str:
            return self.ids[match[1]][: int(match[2]) if match[2] else None]

        return _SYMBOL.sub(found, word)

    def run(self, words: Sequence[str], stdin: bytes = b"") -> tuple[int, bytes, bytes]:
        """Run a command."""
        roots = ["-g", str(self.folder / "root"), "-R", str(self.folder / "run"), "-s", self.driver]
        return self.execute([*roots, *map(self.word, words)], stdin)

    def plain(self, text: str, words: Sequence[str] = ()) -> str:
        """Replace what differs of necessity by symbols."""
        for symbol, drawn in self.ids.items():
            text = text.replace(drawn, f"<{symbol}>")
        for word in words:  # where a command repeats the first digits of an id
            for match in _SYMBOL.finditer(word):
                if match[2]:
                    text = text.replace(self.word(match[0]), match[0])
        text = text.replace(str(self.folder / "root"), "ROOT").replace(str(self.folder / "run"), "RUN")
        return _TIME.sub("TIME", _PATH.sub("PATH", text))

    def records(self) -> Records:
        """All records, as this side shows them."""
        found: Records = {}
        for kind in KINDS:
            status, stdout, stderr = self.run([f"{kind}s", "-j"])
            assert status == 0, f"{kind}s -j: {stdout!r} {stderr!r}"
            found[kind] = json.loads(stdout) or []
        return found

    def is_drawn(self, text: str) -> bool:
        """Whether a text may be an id that this side has drawn."""
        return re.fullmatch(f"[0-9a-f]{{{self.digits}}}", text) is not None


def ours(words: list[str], stdin: bytes) -> tuple[int, bytes, bytes]:
    """Run our command under the name that scripts use; in this process, where a start costs nothing."""
    if AS_PROCESS:
        program = [sys.executable, "-c", "from lading.cli.entry import compat; compat()"]
        return _process([*program, *words], stdin)
    kept = sys.stdin, sys.stdout, sys.stderr
    streams = [io.TextIOWrapper(io.BytesIO(data), write_through=True) for data in (stdin, b"", b"")]
    sys.stdin, sys.stdout, sys.stderr = streams
    try:
        status = main.run(words, COMPAT)
    finally:
        sys.stdin, sys.stdout, sys.stderr = kept
    _, stdout, stderr = (stream.detach() for stream in streams)
    assert isinstance(stdout, io.BytesIO)
    assert isinstance(stderr, io.BytesIO)
    return status, stdout.getvalue(), stderr.getvalue()


def reference(words: list[str], stdin: bytes) -> tuple[int, bytes, bytes]:
    """Run the reference."""
    return _process([REFERENCE, *words], stdin)


def _process(words: list[str], stdin: bytes) -> tuple[int, bytes, bytes]:
    done = subprocess.run(words, input=stdin, capture_output=True, check=False, timeout=120)
    return done.returncode, done.stdout, done.stderr


class Statistics:
    """What a session of tests has compared."""

    sequences: ClassVar[Counter[str]] = Counter()  #: by driver
    commands: ClassVar[Counter[str]] = Counter()  #: by name
    steps: ClassVar[Counter[str]] = Counter()  #: file operations through mounts, records compared
    excused: ClassVar[Counter[str]] = Counter()  #: documented differences met, by name
    samples: ClassVar[dict[str, str]] = {}  #: one of each
    parted: ClassVar[Counter[str]] = Counter()  #: sequences that one of them ended

    @classmethod
    def report(cls) -> str:
        """All of it as text."""
        lines = [
            f"{cls.sequences.total()} sequences ({_listed(cls.sequences)}), {cls.parted.total()} of them cut short"
        ]
        lines += [f"{cls.commands.total()} commands compared, {_listed(cls.steps)}"]
        lines += [f"{count:7} {name}" for name, count in cls.commands.most_common()]
        lines += ["documented differences met:"]
        lines += [f"{count:7} {name}" for name, count in cls.excused.most_common()]
        return "\n".join(lines) + "\n"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "nothing else"


class Pair:
    """The two stores; every command runs on both.

    Args:
        driver: the driver of both.
        documented: differences that are no mistakes.
    """

    def __init__(self, driver: str, documented: Sequence[Documented]) -> None:
        self.driver = driver
        self.documented = documented
        self.folder = Path(tempfile.mkdtemp(prefix="lading-differential-"))
        self.peer = Side(self.folder / "peer", driver, 64, reference)
        self.own = Side(self.folder / "ours", driver, 32, ours)
        self.history: list[str] = []
        self.state: Records = {kind: [] for kind in KINDS}
        self.numbers: Counter[str] = Counter()
        Statistics.sequences[driver] += 1

    @property
    def sides(self) -> tuple[Side, Side]:
        """The reference's, and ours."""
        return self.peer, self.own

    def compare(
        self,
        *words: str,
        stdin: bytes = b"",
        order: Callable[[str], str] | None = None,
        binary: Callable[[bytes], bytes] | None = None,
        hint: str = "",
    ) -> Said:
        """Run a command on both and compare.

        Args:
            words: command, options and arguments; ``<l1>`` is a drawn id, ``<l1:8>`` its first digits.
            stdin: what it reads.
            order: puts standard output in an order, where nothing is said about one.
            binary: standard output is no text; what this makes of it is compared.
            hint: what the history says about what the command reads.

        Returns:
            Our answer.

        Raises:
            Difference: the answers differ, or the records do.
            Parted: a documented difference makes further comparison pointless.
        """
        self.history.append(" ".join(map(repr, words)) + (f" # {hint}" if hint else ""))
        command = main.ALIASES.get(words[0], words[0])
        Statistics.commands[command] += 1
        answers = [side.run(words, stdin) for side in self.sides]
        before, after = self.state, None
        if command not in READING:
            after = self._look()
        said = [
            self._said(side, words, answer, order, binary) for side, answer in zip(self.sides, answers, strict=True)
        ]
        case = Case(self.driver, words, said[0], said[1], before, after, self.shows)
        same_records = after is None or after[0] == after[1]
        if said[0] != said[1] or not same_records:
            self._excuse(case)
        return said[1]

    def _said(
        self,
        side: Side,
        words: Sequence[str],
        answer: tuple[int, bytes, bytes],
        order: Callable[[str], str] | None,
        binary: Callable[[bytes], bytes] | None,
    ) -> Said:
        status, stdout, stderr = answer
        errors = _LOG.sub("", side.plain(stderr.decode(errors="surrogateescape"), words))
        if binary is not None:
            return Said(status, binary(stdout), errors)
        text = side.plain(stdout.decode(errors="surrogateescape"), words)
        return Said(status, order(text) if order else text, order(errors) if order else errors)

    def _excuse(self, case: Case) -> None:
        """Find the documented reason for a difference."""
        for item in self.documented:
            if item.applies(case):
                Statistics.excused[item.name] += 1
                Statistics.samples.setdefault(item.name, self._told(case))
                if item.parts or (case.after is not None and case.after[0] != case.after[1]):
                    Statistics.parted[item.name] += 1
                    raise Parted(item.name)
                return
        raise Difference(self._told(case))

    def _told(self, case: Case) -> str:
        lines = [f"{self.driver}: after", *(f"  {step}" for step in self.history)]
        for name, said in (("the reference", case.peer), ("ours", case.own)):
            lines += [f"{name}: status {said.status}", f"  stdout {said.stdout!r}", f"  stderr {said.stderr!r}"]
        if case.after is not None:
            lines += _record_differences(*case.after)
        return "\n".join(lines)

    def _look(self) -> tuple[Records, Records]:
        """Both sides' records in symbols; new ids get theirs in the order of the records."""
        Statistics.steps["times all records"] += 1
        peer, own = _stored(self.peer), self.own.records()
        for kind in KINDS:
            for theirs, mine in zip(peer[kind], own[kind], strict=False):
                self._learn(kind[0], theirs["id"], mine["id"])
                if kind == "container":
                    self._learn("l", theirs["layer"], mine["layer"])
        found = (self._symbolic(self.peer, peer), self._symbolic(self.own, own))
        self.state = found[1]
        return found

    def _learn(self, letter: str, theirs: str, mine: str) -> None:
        drawn = self.peer.is_drawn(theirs) and self.own.is_drawn(mine)
        if not drawn or theirs in self.peer.ids.values() or mine in self.own.ids.values():
            return
        self.numbers[letter] += 1
        symbol = f"{letter}{self.numbers[letter]}"
        self.peer.ids[symbol], self.own.ids[symbol] = theirs, mine

    @staticmethod
    def _symbolic(side: Side, records: Records) -> Records:
        found: Records = json.loads(side.plain(json.dumps(records, ensure_ascii=False)))
        return found

    def do(self, told: str, point: str, act: Callable[[Path], None]) -> None:
        """Change files below a mounted layer's or container's root on both sides.

        Args:
            told: what is done, for the history.
            point: a reference to what is mounted.
            act: does it, given the root.
        """
        self.history.append(f"at {point}: {told}")
        Statistics.steps["file operations"] += 1
        for side in self.sides:
            act(self.root(side, point))

    @staticmethod
    def root(side: Side, point: str) -> Path:
        """Where a side has mounted something; counts are as before."""
        status, stdout, stderr = side.run(["mount", point])
        assert status == 0, stderr
        assert side.run(["unmount", point])[0] == 0
        return Path(stdout.decode().rstrip("\n"))

    def shows(self, ref: str) -> set[str]:
        """The paths that are to be seen in a layer of ours."""
        status, stdout, _ = self.own.run(["mount", ref])
        if status:
            return set()
        root = Path(stdout.decode().rstrip("\n"))
        found = {f"/{path.relative_to(root)}" for path in root.rglob("*")}
        self.own.run(["unmount", ref])
        return found

    def close(self) -> None:
        """Unmount and remove everything."""
        for _ in range(2):  # what one pass leaves mounted below another mount goes with the next
            for mount in reversed(mounts.mountinfo()):
                if mount.path.is_relative_to(self.folder):
                    subprocess.run(["umount", "-l", str(mount.path)], check=False, capture_output=True)
        if os.path.isdir(self.folder):
            remove_tree(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)


def _stored(side: Side) -> Records:
    """The reference's records out of its own files: what its lists print, at no cost."""
    found: Records = {}
    for kind in KINDS:
        found[kind] = []
        for base in ("root", "run"):
            folder = side.folder / base / f"{side.driver}-{kind}s"
            for file in (folder / f"{kind}s.json", folder / f"volatile-{kind}s.json"):
                if file.exists() and file.stat().st_size:
                    found[kind] += json.loads(file.read_bytes()) or []
    return found


def _record_differences(peer: Records, own: Records) -> Iterator[str]:
    """Records field by field."""
    for kind in KINDS:
        theirs, mine = ([record["id"] for record in side[kind]] for side in (peer, own))
        if theirs != mine:
            yield f"{kind}s: the reference has {theirs}, we have {mine}"
            continue
        for one, other in zip(peer[kind], own[kind], strict=True):
            for key in sorted(one.keys() | other.keys()):
                if one.get(key) != other.get(key):
                    yield f"{kind} {one['id']}: {key} is {one.get(key)!r} there, {other.get(key)!r} here"
