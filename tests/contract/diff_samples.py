"""Diffs drawn at random: small tars over few names, so that layers meet one another's files."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable
from typing import Final

import pyzstd
from hypothesis import strategies as st

from tests.tarmake import END, directory, file, header, link, pax, symlink

DIRECTORIES: Final = (b"d", b"d/e", b"g")
LEAVES: Final = (b"a", b"b", b"c", b"d/a", b"d/b", b"d/e/a", b"g/a")
CONTENTS: Final = (b"", b"x", b"hello", b"longer " * 150, bytes(600))

#: Targets of symlinks. With overlay the reference follows those of lower layers, on the host, when it looks for changes:
#: they lead to what is there in any case.
LINKS: Final = (b".", b"./.")

_CLOCKS = (b"00000000000", b"12345670000", b"07777777777")
_OWNERS = (b"0000000", b"0000001", b"0000144")

Write = Callable[[bytes], bytes]

clock = st.sampled_from(_CLOCKS)
owner = st.sampled_from(_OWNERS)


@st.composite
def _entry(draw: st.DrawFn, name: bytes, before: dict[bytes, bytes]) -> bytes:
    """Something that is no directory; of what came before, files that can be linked to, and their headers."""
    mtime, uid, gid = draw(clock), draw(owner), draw(owner)
    kind = draw(st.sampled_from("ffffffslpx"))
    if kind == "s":
        return symlink(name, draw(st.sampled_from(LINKS)))
    if kind == "l" and before:
        target = draw(st.sampled_from(sorted(before)))
        like = before[target]
        return header(
            name, b"1", target=target, mode=like[100:107], uid=like[108:115], gid=like[116:123], mtime=like[136:147]
        )
    if kind == "p":
        return header(name, b"6", mtime=mtime, uid=uid, gid=gid)
    extra = pax({b"SCHILY.xattr.user.k": b"v", b"mtime": b"1500000000.25"}) if kind == "x" else b""
    mode = draw(st.sampled_from([b"0000644", b"0000755", b"0004711"]))
    return extra + file(name, draw(st.sampled_from(CONTENTS)), mode=mode, mtime=mtime, uid=uid, gid=gid)


@st.composite
def plain_tar(draw: st.DrawFn, *, whiteouts: bool = True) -> bytes:
    """A diff as a packer writes it: directories before what is in them, every name once, no removal of its own file."""
    parts: list[bytes] = []
    folders = {b""}
    files: dict[bytes, bytes] = {}
    for folder in DIRECTORIES:
        if folder.rpartition(b"/")[0] not in folders:
            continue
        if draw(st.booleans()):
            folders.add(folder)
            parts.append(directory(folder + b"/", mtime=draw(clock)))
            if whiteouts and draw(st.integers(0, 5)) == 0:
                parts.append(file(folder + b"/.wh..wh..opq"))
        elif whiteouts and draw(st.integers(0, 5)) == 0:
            parts.append(_whiteout(folder))
    for name in LEAVES:
        if name.rpartition(b"/")[0] not in folders or not draw(st.booleans()):
            continue
        if whiteouts and draw(st.integers(0, 5)) == 0:
            parts.append(_whiteout(name))
            continue
        made = draw(_entry(name, files))
        parts.append(made)
        if made[156:157] == b"0":
            files[name] = made
    end = draw(st.sampled_from([END, END, END, b"", END + b"behind the end", bytes(10240)]))
    return b"".join(parts) + end


def _whiteout(name: bytes) -> bytes:
    folder, slash, base = name.rpartition(b"/")
    return file(folder + slash + b".wh." + base)


COMPRESSIONS: Final[dict[str, Write]] = {
    "plain": lambda data: data,
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "zstd": pyzstd.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}

#: The most usual first.
compression = st.sampled_from(["plain"] * 6 + ["gzip"] * 3 + ["zstd", "bzip2", "xz"])

_BASE = directory(b"d/") + file(b"d/a", b"hello" * 200) + END

#: Diffs that are refused, or nearly.
ODD: Final[dict[str, bytes]] = {
    "empty": b"",
    "zeros": bytes(512),
    "two blocks of zeros": bytes(1024),
    "junk": b"junk" * 400,
    "cut in a file": _BASE[:1300],
    "cut in a header": _BASE[:700],
    "gzip cut": gzip.compress(_BASE, mtime=0)[:-30],
    "gzip of junk": gzip.compress(b"junk" * 400, mtime=0),
    "junk behind gzip": gzip.compress(_BASE, mtime=0) + b"junk",
    "two gzip members": gzip.compress(_BASE[:512], mtime=0) + gzip.compress(_BASE[512:], mtime=0),
    "only a whiteout": file(b".wh.nothing") + END,
    "whiteout of nothing": file(b".wh.") + END,
    "hard link to nothing": link(b"h", b"nowhere") + END,
    "unknown type": header(b"u", b"Z") + END,
    "global header": pax({b"comment": b"c"}, b"g") + file(b"a", b"1") + END,
    "parent links": file(b"../../up", b"1") + file(b"/abs", b"2") + END,
}


def told(data: bytes) -> str:
    """What a diff holds, for the reader of a failure."""
    for magic, unpack in ((b"\x1f\x8b", gzip.decompress), (b"\x28\xb5\x2f\xfd", pyzstd.decompress),
                          (b"BZh", bz2.decompress), (b"\xfd7zXZ", lzma.decompress)):  # fmt: skip
        if data.startswith(magic):
            try:
                return f"{unpack.__module__} of {told(unpack(data))}"
            except (OSError, EOFError, ValueError, RuntimeError):
                return f"{len(data)} bytes, damaged"
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            return " ".join(_member(member) for member in archive) or "an empty tar"
    except tarfile.TarError:
        return f"{len(data)} bytes"


def _member(member: tarfile.TarInfo) -> str:
    end = {tarfile.DIRTYPE: "/", tarfile.LNKTYPE: f"={member.linkname}", tarfile.SYMTYPE: f"->{member.linkname}"}
    more = f"[{member.mode:o} {member.uid}:{member.gid} {member.mtime:g} {member.size}]"
    return member.name + end.get(member.type, "" if member.isfile() else "!") + more
