"""Sessions written down: commands, and what each must answer.

A file holds sections. ``## TITLE`` begins one and an empty store; ``## TITLE (overlay)`` and ``(vfs)`` are for that
driver alone. Within it::

    $ create-layer -i base      a command, in shell words; $NAME is replaced by the environment of the section
    base                        what it prints
    ! layer not known           what it prints as an error
    |  text                     the same, for lines that begin with a space
    = 1                         its exit status, when it is not 0
    ~                           its output is not looked at
    % sh -c 'echo x > $RUN/x'   a command of the machine, which must succeed; what it prints counts, too

In what is expected ``<ID>`` is a generated id, ``<TIME>`` a time, ``<ANY>`` any text within a line. Lines in ``{``
``}`` are sorted before they are compared.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.contract.command import ours

FOLDER = Path(__file__).parent / "transcripts"

_PATTERNS = {
    "<ID>": "[0-9a-f]{32}", "<TIME>": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?Z", "<ANY>": ".*",
}  # fmt: skip


@dataclass
class Step:
    """A command and its answer."""

    command: str
    line: int
    host: bool
    stdout: list[str] = field(default_factory=list)
    stderr: list[str] = field(default_factory=list)
    status: int = 0
    ignored: bool = False
    unordered: bool = False


@dataclass
class Section:
    """A session on an empty store."""

    file: str
    title: str
    drivers: tuple[str, ...]
    steps: list[Step] = field(default_factory=list)

    @property
    def name(self) -> str:
        """By which rows of the contract refer to it."""
        return f"{self.file}#{self.title}"


def sections() -> Iterator[Section]:
    """All sections of all files."""
    for path in sorted(FOLDER.glob("*.txt")):
        yield from _parse(path.stem, path.read_text().splitlines())


def _parse(file: str, lines: Sequence[str]) -> Iterator[Section]:
    section: Section | None = None
    for number, line in enumerate(lines, 1):
        if line.startswith("## "):
            if section is not None:
                yield section
            title, _, driver = line[3:].partition(" (")
            section = Section(file, title, (driver.rstrip(")"),) if driver else ("overlay", "vfs"))
        elif section is None or line.startswith("#"):
            continue
        elif line.startswith(("$ ", "% ")):
            section.steps.append(Step(line[2:], number, line[0] == "%"))
        elif not section.steps:
            continue
        elif line == "~":
            section.steps[-1].ignored = True
        elif line in ("{", "}"):
            section.steps[-1].unordered = True
        elif re.fullmatch(r"= \d+", line):
            section.steps[-1].status = int(line[2:])
        elif line.startswith("! "):
            section.steps[-1].stderr.append(line[2:])
        elif line:
            section.steps[-1].stdout.append(line.removeprefix("|"))
    if section is not None:
        yield section


def play(section: Section, driver: str, environment: dict[str, str]) -> None:
    """Run a section's commands one after the other.

    Raises:
        AssertionError: the first answer that is not as expected.
    """
    for step in section.steps:
        command = re.sub(r"\$([A-Z]+)", lambda match: environment.get(match[1], match[0]), step.command)
        words = shlex.split(command)
        if step.host:
            done = subprocess.run(words, capture_output=True, check=False, cwd=environment["TMP"])
            status, stdout, stderr = done.returncode, done.stdout, done.stderr
        else:
            roots = ["-g", environment["ROOT"], "-R", environment["RUN"], "-s", driver]
            status, stdout, stderr = ours(words[1:] if words[0] == "bare" else [*roots, *words])
        if step.ignored:
            continue
        where = f"{section.file}.txt:{step.line} ({driver}): {step.command}"
        for wanted, found in ((step.stdout, stdout), (step.stderr, stderr)):
            text = _without_logs(found.decode(errors="backslashreplace"))
            _compare(where, wanted, text.splitlines(), environment, unordered=step.unordered)
        assert status == step.status, f"{where}: status {status}, not {step.status}\n{stdout.decode()}{stderr.decode()}"


def _without_logs(text: str) -> str:
    return re.sub(r'^time="[^"]*" level=(?!warning).*\n', "", text, flags=re.MULTILINE)


def _compare(where: str, wanted: list[str], found: list[str], environment: dict[str, str], *, unordered: bool) -> None:
    wanted = [re.sub(r"\$([A-Z]+)", lambda match: environment.get(match[1], match[0]), line) for line in wanted]
    if unordered:
        wanted, found = sorted(wanted), sorted(found)
    same = len(wanted) == len(found) and all(map(_matches, wanted, found))
    assert same, f"{where}\nexpected:\n  " + "\n  ".join(wanted) + "\nfound:\n  " + "\n  ".join(found)


def _matches(wanted: str, found: str) -> bool:
    pattern = "".join(_PATTERNS.get(part) or re.escape(part) for part in re.split(r"(<ID>|<TIME>|<ANY>)", wanted))
    return re.fullmatch(pattern, found) is not None


def environment(folder: Path) -> dict[str, str]:
    """What commands of a section may name: roots, and files to read."""
    from tests.contract import samples

    for name in ("root", "run", "files", "out"):
        (folder / name).mkdir()
    os.rmdir(folder / "root")
    os.rmdir(folder / "run")
    found = {"ROOT": str(folder / "root"), "RUN": str(folder / "run"), "OUT": str(folder / "out"), "TMP": str(folder)}
    for name, data in samples.FILES.items():
        path = folder / "files" / name
        path.write_bytes(data)
        found[name.upper().replace(".", "").replace("-", "")] = str(path)
    return found
