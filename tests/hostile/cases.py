"""Every row of the table of what a layer may contain, and every alternative in a row, with its exact result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.hostile.expected import D, F, L, Tree
from tests.tarmake import END, directory, file, pax, symlink

#: The lower layer of cases that have one.
BELOW = (
    directory(b"d/") + file(b"d/x", b"low x") + file(b"d/y", b"low y") + directory(b"d/deep/") + file(b"d/deep/z", b"low z")
    + file(b"f", b"low f") + symlink(b"s", b"d") + END
)  # fmt: skip
BELOW_TREE: Tree = {
    b"d": D(), b"d/x": F(b"low x"), b"d/y": F(b"low y"), b"d/deep": D(), b"d/deep/z": F(b"low z"), b"f": F(b"low f"), b"s": L(b"d"),
}  # fmt: skip

#: Makes a tar; gets an absolute path outside, without its leading slash, that must stay as it is.
Make = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Case:
    """One input and what must become of it."""

    row: str  #: of the table
    name: str
    make: Make
    refused: str = ""  #: words of the sentence; empty: accepted
    tree: Callable[[bytes], Tree] = field(default=lambda outside: {})
    below: bool = False  #: on top of BELOW
    warns: int = 0  #: sentences said when it comes in
    only: Mapping[str, Tree] = field(default_factory=dict)  #: what a strategy shows instead
    shown_warns: Mapping[str, int] = field(default_factory=dict)  #: sentences said when a strategy shows it
    pack: Callable[[bytes], bytes] = bytes  #: makes the stream as presented of the tar

    @property
    def id(self) -> str:
        """For the test's name."""
        return f"{self.row}: {self.name}"


CASES: list[Case] = []


def refuse(row: str, name: str, tar: bytes | Make, words: str, *, below: bool = False, whole: bool = True) -> None:
    """Add a case that must be refused; ``whole`` puts an end marker behind it."""
    end = END if whole else b""
    make = (lambda outside: tar(outside) + end) if callable(tar) else (lambda outside: tar + end)
    CASES.append(Case(row, name, make, words, below=below))


def accept(row: str, name: str, tar: bytes | Make, tree: Tree | Callable[[bytes], Tree], **more: object) -> None:
    """Add a case that must be accepted with this tree, on top of BELOW unless ``below`` is false."""
    make = (lambda outside: tar(outside) + END) if callable(tar) else (lambda outside: tar + END)
    shown = tree if callable(tree) else (lambda outside: tree)
    CASES.append(Case(row, name, make, "", shown, **more))  # type: ignore[arg-type]


def as_it_is(row: str, name: str, tar: bytes, tree: Tree) -> None:
    """Add a case that must be accepted, without an end marker of ours."""
    CASES.append(Case(row, name, lambda outside: tar, "", lambda outside: tree))


def packed(row: str, name: str, pack: Callable[[bytes], bytes], refused: str = "") -> None:
    """Add a case about how a sound tar is compressed."""
    shown = {} if refused else {b"n": F(b"1" * 3000), b"d": D()}
    tar = file(b"n", b"1" * 3000) + directory(b"d/") + END
    CASES.append(Case(row, name, lambda outside: tar, refused, lambda outside: shown, pack=pack))


def xattrs(pairs: Mapping[bytes, bytes]) -> bytes:
    """A PAX header with a file's attributes."""
    return pax([(b"SCHILY.xattr." + key, value) for key, value in pairs.items()])
