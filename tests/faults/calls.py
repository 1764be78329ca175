"""The system calls that change state: numbers, what they act on, and the label a call is known by."""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from typing import Final

from tests.faults.seccomp import MACHINE, Rule, Stop, read_memory, read_text

_AT_FDCWD: Final = 0xFFFFFF9C

#: name: (number on x86_64, number on aarch64, how its arguments name what it acts on). -1: not there.
#: "f0": a descriptor; "p1": a path; "d0p1": a path relative to a descriptor. The last path named is the label's.
_TABLE: Final[dict[str, tuple[int, int, str]]] = {
    "write": (1, 64, "f0"), "pwrite64": (18, 68, "f0"), "writev": (20, 66, "f0"), "pwritev": (296, 70, "f0"),
    "pwritev2": (328, 287, "f0"), "open": (2, -1, "p0"), "creat": (85, -1, "p0"), "openat": (257, 56, "d0p1"),
    "openat2": (437, 437, "d0p1"), "fsync": (74, 82, "f0"), "fdatasync": (75, 83, "f0"), "syncfs": (306, 267, "f0"),
    "rename": (82, -1, "p1"), "renameat": (264, 38, "d2p3"), "renameat2": (316, 276, "d2p3"), "link": (86, -1, "p1"),
    "linkat": (265, 37, "d2p3"), "symlink": (88, -1, "p1"), "symlinkat": (266, 36, "d1p2"), "unlink": (87, -1, "p0"),
    "unlinkat": (263, 35, "d0p1"), "mkdir": (83, -1, "p0"), "mkdirat": (258, 34, "d0p1"), "rmdir": (84, -1, "p0"),
    "mknod": (133, -1, "p0"), "mknodat": (259, 33, "d0p1"), "truncate": (76, 45, "p0"), "ftruncate": (77, 46, "f0"),
    "fallocate": (285, 47, "f0"), "copy_file_range": (326, 285, "f2"), "sendfile": (40, 71, "f0"),
    "setxattr": (188, 5, "p0"), "lsetxattr": (189, 6, "p0"), "fsetxattr": (190, 7, "f0"), "removexattr": (197, 14, "p0"),
    "lremovexattr": (198, 15, "p0"), "fremovexattr": (199, 16, "f0"), "chmod": (90, -1, "p0"), "fchmod": (91, 52, "f0"),
    "fchmodat": (268, 53, "d0p1"), "chown": (92, -1, "p0"), "fchown": (93, 55, "f0"), "lchown": (94, -1, "p0"),
    "fchownat": (260, 54, "d0p1"), "utimensat": (280, 88, "d0p1"), "mount": (165, 40, "p1"), "umount2": (166, 39, "p0"),
    "fsconfig": (431, 431, ""), "fsmount": (432, 432, ""), "move_mount": (429, 429, "d2p3"), "open_tree": (428, 428, "d0p1"),
    "mount_setattr": (442, 442, ""), "ioctl": (16, 29, "f0"),
}  # fmt: skip

#: Calls that hand over bytes: they can be torn, or cut short.
WRITES: Final = frozenset({"write", "pwrite64"})
#: Calls that make what was written durable.
SYNCS: Final = frozenset({"fsync", "fdatasync", "syncfs"})

#: Flags of ``open``: O_CREAT, O_TRUNC. (O_TMPFILE is not used.)
_OPEN_FLAGS: Final = os.O_CREAT | os.O_TRUNC
#: Loop device commands.
_LOOP: Final = (0x4C00, 0x4D00)


def _rule(name: str, number: int) -> Rule:
    match name:
        case "write" | "writev" | "pwrite64" | "pwritev" | "pwritev2" | "sendfile":
            return Rule(number, argument=0, at_least=3)  # what is printed is no state
        case "open":
            return Rule(number, argument=1, bits=_OPEN_FLAGS)
        case "openat":
            return Rule(number, argument=2, bits=_OPEN_FLAGS)
        case "ioctl":
            return Rule(number, argument=1, at_least=_LOOP[0], below=_LOOP[1])
    return Rule(number)


def _number(name: str) -> int:
    x86_64, aarch64, _ = _TABLE[name]
    return x86_64 if MACHINE == "x86_64" else aarch64


NAMES: Final = {_number(name): name for name in _TABLE if _number(name) >= 0}
RULES: Final = tuple(_rule(name, number) for number, name in NAMES.items())


@dataclass(frozen=True, slots=True)
class Call:
    """A system call that is about to change something."""

    name: str
    path: str  #: what it acts on, as far as it can be told

    def label(self, base: str) -> str:
        """The call and the kind of file it is about: what differs from run to run is replaced."""
        path = self.path.replace(base, "") if base else self.path
        path = re.sub(r"[0-9a-f]{16,}", "*", path)
        path = re.sub(r"(\.probe-)[^/]*", r"\1*", path)
        path = re.sub(r"(pool/)[^/]*(/|$).*", r"\1*", path)
        return f"{self.name} {re.sub(r'[0-9]+', '#', path)}".strip()


def describe(stop: Stop, process: int) -> Call | None:
    """Tell what a stopped call is about; None when it changes nothing that is kept."""
    name = NAMES[stop.number]
    args = stop.arguments
    if name == "openat2":
        flags = struct.unpack("<Q", read_memory(process, args[2], 8))[0]
        if not flags & _OPEN_FLAGS:
            return None
    path = _path(_TABLE[name][2], args, process)
    if path.startswith(("pipe:", "socket:", "anon_inode:", "/memfd:", "/dev/null")):
        return None
    return Call(name, path)


def _path(what: str, args: tuple[int, ...], process: int) -> str:
    if not what:
        return ""
    if what[0] == "f":
        return _of_descriptor(process, args[int(what[1])])
    text = os.fsdecode(read_text(process, args[int(what[-1])])) if args[int(what[-1])] else ""
    if text.startswith("/") or what[0] == "p":
        return text
    folder = args[int(what[1])] & 0xFFFFFFFF
    above = "" if folder == _AT_FDCWD else _of_descriptor(process, folder)
    return f"{above}/{text}" if text else above


def _of_descriptor(process: int, descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/{process}/fd/{descriptor & 0xFFFFFFFF}")
    except OSError:
        return ""
