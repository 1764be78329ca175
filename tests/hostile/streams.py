"""Cases about the stream itself: sparse files, what stands around files, compression."""

from __future__ import annotations

import base64
import bz2
import gzip
import lzma
import random
from collections.abc import Callable, Mapping
from dataclasses import replace

import pyzstd

from tests.hostile.cases import CASES, accept, as_it_is, packed, refuse
from tests.hostile.expected import F, L
from tests.tarmake import END, checksummed, file, header, padded, pax, symlink


def add_sparse() -> None:
    row = "sparse"
    wanted = {b"s": F(b"\0\0\0\0ab\0\0\0\0cd" + bytes(8))}
    offsets = [(b"GNU.sparse.size", b"20"), (b"GNU.sparse.offset", b"4"), (b"GNU.sparse.numbytes", b"2"), (b"GNU.sparse.offset", b"10"), (b"GNU.sparse.numbytes", b"2")]  # fmt: skip
    accept(row, "PAX 0.0", pax(offsets) + file(b"s", b"abcd"), wanted)
    accept(
        row, "PAX 0.1", pax({b"GNU.sparse.size": b"20", b"GNU.sparse.map": b"4,2,10,2"}) + file(b"s", b"abcd"), wanted
    )
    version = {
        b"GNU.sparse.major": b"1",
        b"GNU.sparse.minor": b"0",
        b"GNU.sparse.name": b"s",
        b"GNU.sparse.realsize": b"20",
    }
    accept(row, "PAX 1.0", pax(version) + file(b"other", padded(b"2\n4\n2\n10\n2\n") + b"abcd"), wanted)
    block = bytearray(header(b"s", b"S", size=4, magic=b"ustar  \0"))
    block[386:434] = b"%011o\0%011o\0%011o\0%011o\0" % (4, 2, 10, 2)
    block[483:495] = b"%011o\0" % 20
    accept(row, "old GNU", checksummed(bytes(block)) + padded(b"abcd"), wanted)
    refuse(row, "1.0 without a size", pax({b"GNU.sparse.major": b"1"}) + file(b"s", padded(b"1\n0\n4\n") + b"data"), "no size")  # fmt: skip
    refuse(row, "0.1 without a size", pax({b"GNU.sparse.map": b"0,4"}) + file(b"s", b"data"), "no size")
    refuse(row, "of a version to come", pax({b"GNU.sparse.major": b"2"}) + file(b"s", b"data"), "no size")
    huge = pax({b"GNU.sparse.size": b"%d" % (1 << 39), b"GNU.sparse.map": b"%d,4" % (1 << 38)})
    accept(row, "half a terabyte of nothing", huge + file(b"s", b"data"), {b"s": F(b"%d data" % (1 << 39))})
    refuse(
        row,
        "larger than the limit",
        pax({b"GNU.sparse.size": b"%d" % (1 << 50), b"GNU.sparse.map": b"0,4"}) + file(b"s", b"data"),
        "out of range",
    )
    refuse(
        row,
        "out of order",
        pax({b"GNU.sparse.size": b"100", b"GNU.sparse.map": b"50,2,0,2"}) + file(b"s", b"abcd"),
        "not in order",
    )
    refuse(
        row,
        "overlapping",
        pax({b"GNU.sparse.size": b"100", b"GNU.sparse.map": b"0,3,2,1"}) + file(b"s", b"abcd"),
        "not in order",
    )
    refuse(
        row,
        "beyond its size",
        pax({b"GNU.sparse.size": b"10", b"GNU.sparse.map": b"8,4"}) + file(b"s", b"abcd"),
        "not in order",
    )
    refuse(
        row,
        "less data than regions",
        pax({b"GNU.sparse.size": b"100", b"GNU.sparse.map": b"0,9"}) + file(b"s", b"abcd"),
        "does not fit",
    )
    refuse(
        row,
        "odd map",
        pax({b"GNU.sparse.size": b"100", b"GNU.sparse.map": b"0,4,9"}) + file(b"s", b"abcd"),
        "odd or too long",
    )
    refuse(
        row,
        "no number",
        pax({b"GNU.sparse.size": b"100", b"GNU.sparse.map": b"0,-4"}) + file(b"s", b"abcd"),
        "no number",
    )
    refuse(row, "map cut", pax(version) + file(b"s", b"5\n4\n2\n10\n2\n"), "is cut")


def add_streams() -> None:
    row = "global header"
    accept(row, "says nothing", pax({b"path": b"evil", b"size": b"9", b"linkpath": b"evil", b"uid": b"7", b"mtime": b"9"}, b"g") + file(b"n", b"1") + symlink(b"l", b"t"), {b"n": F(b"1"), b"l": L(b"t")})  # fmt: skip
    accept(row, "behind the last file", file(b"n", b"1") + pax({b"comment": b"x"}, b"g"), {b"n": F(b"1")})
    row = "types"
    for kind in b"ZAVMDNXE8\xff":
        refuse(row, f"unknown {bytes([kind])!r}", header(b"n", bytes([kind])), f"unhandled tar header type {kind}")
    accept(row, "7 is a file", header(b"n", b"7", size=1) + padded(b"1"), {b"n": F(b"1")})
    accept(row, "NUL is a file", header(b"n", b"\0", size=1) + padded(b"1"), {b"n": F(b"1")})

    row = "end of the archive"
    for name, rest in {"none": b"", "one block": bytes(512), "junk behind it": END + b"junk", "a second archive": END + file(b"second", b"1") + END,
                       "long padding": bytes(10240), "an odd number of bytes": END + b"\0" * 7}.items():  # fmt: skip
        as_it_is(row, name, file(b"n", b"1") + rest, {b"n": F(b"1")})
    for size in (0, 512, 1024, 10240):
        as_it_is("empty input", f"{size} bytes", bytes(size), {})

    row = "junk"
    refuse(row, "random", random.Random(1).randbytes(2048), "invalid tar header", whole=False)
    refuse(row, "text", b"<html>no such layer</html>\n" * 40, "invalid tar header", whole=False)
    refuse(row, "short", b"x", "unexpected EOF", whole=False)
    refuse(row, "base64", base64.b64encode(bytes(range(256)) * 8), "invalid tar header", whole=False)


def _gzip(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def _zstd(data: bytes) -> bytes:
    options: dict[int, int] = {pyzstd.CParameter.checksumFlag: 1}
    return pyzstd.compress(data, options)


def _windowed(log: int) -> Callable[[bytes], bytes]:
    def pack(data: bytes) -> bytes:
        compressor = pyzstd.ZstdCompressor({pyzstd.CParameter.windowLog: log})
        return compressor.compress(data) + compressor.flush()

    return pack


SKIPPED = b"\x5a\x2a\x4d\x18\x04\0\0\0skip"
PACKERS: Mapping[str, Callable[[bytes], bytes]] = {
    "gzip": _gzip, "bzip2": bz2.compress, "xz": lzma.compress, "zstd": _zstd,
}  # fmt: skip


def _halves(pack: Callable[[bytes], bytes], between: bytes = b"") -> Callable[[bytes], bytes]:
    return lambda data: pack(data[:700]) + between + pack(data[700:])


def add_compressed() -> None:
    row = "members and frames in a row"
    for name, pack in PACKERS.items():
        packed(row, f"{name}: one", pack)
        packed(row, f"{name}: two", _halves(pack))
        packed(row, f"{name}: 2,000 empty ones between", _halves(pack, pack(b"") * 2000))
        accept("empty input", f"{name} of nothing", b"", {})
        CASES[-1] = replace(CASES[-1], make=lambda outside: b"", pack=pack)
    packed(
        row, "xz: padding", lambda data: lzma.compress(data[:700]) + bytes(8) + lzma.compress(data[700:]) + bytes(4096)
    )
    packed(row, "zstd: skippable frames", lambda data: SKIPPED + _halves(_zstd, SKIPPED * 2)(data) + SKIPPED)
    packed(row, "zstd: window of 128 MiB", _windowed(27))
    packed("zstd window", "256 MiB", _windowed(28), "is damaged")

    # Cut behind the tar: the checksum at the end, or a part of it. A wrong byte: in a checksum.
    _damaged("gzip", _gzip, cut=8, at=-8)
    _damaged("bzip2", bz2.compress, cut=4, at=10)
    _damaged("xz", lzma.compress, cut=12, at=-30)
    _damaged("zstd", _zstd, cut=4, at=-1)
    row = "damaged streams"
    packed(row, "gzip: wrong length", lambda data: _flipped(_gzip(data), -1), "is damaged")
    packed(row, "xz: padding not in fours", lambda data: lzma.compress(data) + bytes(6), "not in fours")


def _damaged(name: str, pack: Callable[[bytes], bytes], *, cut: int, at: int) -> None:
    row = "damaged streams"
    other = bz2.compress(b"") if name == "gzip" else _gzip(b"")
    packed(row, f"{name}: cut", lambda data: pack(data)[:-40], "unexpected EOF")
    packed(row, f"{name}: cut behind the tar", lambda data: pack(data)[:-cut], "unexpected EOF")
    packed(row, f"{name}: cut in a second member", lambda data: pack(data) + pack(b"more")[:-3], "unexpected EOF")
    packed(row, f"{name}: junk behind", lambda data: pack(data) + b"junk and more", "junk follows")
    packed(row, f"{name}: another compression behind", lambda data: pack(data) + other, "junk follows")
    packed(row, f"{name}: of junk", lambda data: pack(b"junk" * 999), "invalid tar header")
    packed(row, f"{name}: magic alone", lambda data: pack(data)[:6], "unexpected EOF")
    packed(row, f"{name}: wrong checksum", lambda data: _flipped(pack(data), at), "is damaged")


def _flipped(data: bytes, at: int) -> bytes:
    found = bytearray(data)
    found[at] ^= 1
    return bytes(found)
