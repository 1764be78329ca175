"""Changing trees through mount points, and comparing what is seen there."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from hypothesis import strategies as st

#: Times that operations give to what they touch: those of the clock would differ between the two sides.
_CLOCK: Final = (1_600_000_000, 1_600_000_000)

NAMES: Final = ("a", "b", "c", "d", "d/a", "d/b", "d/e", "d/e/a", "g", "g/a", "new", "new/x", "g/sub")

#: An operation: its kind, the path it is about, and something more.
Operation = tuple[str, str, str]

_name = st.sampled_from(NAMES)

operations = st.lists(
    st.one_of(
        st.tuples(st.just("write"), _name, st.sampled_from(["", "text", "much " * 900])),
        st.tuples(st.just("append"), _name, st.just("more")),
        st.tuples(st.just("remove"), _name, st.just("")),
        st.tuples(st.just("mkdir"), _name, st.sampled_from(["755", "700", "1777"])),
        st.tuples(st.just("symlink"), _name, st.sampled_from([".", "./."])),
        st.tuples(st.just("link"), _name, _name),
        st.tuples(st.just("rename"), _name, _name),
        st.tuples(st.just("chmod"), _name, st.sampled_from(["600", "4755", "711"])),
        st.tuples(st.just("chown"), _name, st.sampled_from(["0", "7", "1000"])),
        st.tuples(st.just("xattr"), _name, st.sampled_from(["one", "two"])),
        st.tuples(st.just("fifo"), _name, st.just("")),
    ),
    min_size=1,
    max_size=5,
)  # fmt: skip


def act(root: Path, todo: Sequence[Operation]) -> list[str]:
    """Do operations one after the other below a root.

    Returns:
        How each ended: "done", or the error's name; the same on both sides if the trees were the same.
    """
    ended = []
    for kind, name, more in todo:
        path = root / name
        try:
            _ACTS[kind](root, path, more)
            ended.append("done")
        except OSError as error:
            ended.append(f"{kind} {name}: {error.strerror}")
        folders = {path.parent, (root / more).parent} if kind == "rename" else {path.parent}
        for touched in (path, root / more if kind in ("rename", "link") else path, *folders):
            if touched != root and os.path.lexists(touched):
                os.utime(touched, _CLOCK, follow_symlinks=False)
    return ended


def _write(root: Path, path: Path, more: str) -> None:
    path.unlink(missing_ok=True)  # not through a symlink, which may lead out of the tree
    path.write_text(more)


def _append(root: Path, path: Path, more: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK), "w") as file:
        file.write(more)


def _remove(root: Path, path: Path, more: str) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _mkdir(root: Path, path: Path, more: str) -> None:
    path.mkdir()
    path.chmod(int(more, 8))


def _chmod(root: Path, path: Path, more: str) -> None:
    if not path.is_symlink():
        path.chmod(int(more, 8))


def _xattr(root: Path, path: Path, more: str) -> None:
    os.setxattr(path, "user.k", more.encode(), follow_symlinks=False)


def _rename(root: Path, path: Path, more: str) -> None:
    if path.is_dir() and not path.is_symlink():
        raise OSError(0, "directories stay")  # across layers the kernel refuses it here and there
    path.rename(root / more)


_ACTS: Final[dict[str, Callable[[Path, Path, str], object]]] = {
    "write": _write,
    "append": _append,
    "remove": _remove,
    "mkdir": _mkdir,
    "symlink": lambda root, path, more: path.symlink_to(more),
    "link": lambda root, path, more: os.link(root / more, path, follow_symlinks=False),
    "rename": _rename,
    "chmod": _chmod,
    "chown": lambda root, path, more: os.chown(path, int(more), int(more), follow_symlinks=False),
    "xattr": _xattr,
    "fifo": lambda root, path, more: os.mkfifo(path),
}


def listing(root: Path) -> tuple[list[str], set[tuple[str, str]]]:
    """All that is below a root: a line each with what a user may notice, and the pairs of names of one file."""
    recent = time.time() - 86_400
    lines: list[str] = []
    names: dict[tuple[int, int], list[str]] = {}
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted([*folders, *files]):
            path = os.path.join(folder, name)
            shown = os.path.relpath(path, root)
            try:
                found = os.lstat(path)
            except FileNotFoundError:
                continue  # the kernel lists a whiteout that hides nothing, which is not there all the same
            more = ""
            if stat.S_ISREG(found.st_mode):
                more = f"{found.st_size} {hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]}"
                names.setdefault((found.st_dev, found.st_ino), []).append(shown)
            elif stat.S_ISLNK(found.st_mode):
                more = os.readlink(path)
            when = "now" if found.st_mtime > recent else f"{found.st_mtime_ns}"
            xattrs = {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in os.listxattr(path, follow_symlinks=False)
                if key.startswith(("user.", "security.capability")) and not key.startswith("user.overlay.")
            }
            lines.append(f"{shown} {found.st_mode:o} {found.st_uid}:{found.st_gid} {when} {xattrs or ''} {more}")
    linked = {(group[0], other) for group in names.values() for other in group[1:]}
    return lines, linked
