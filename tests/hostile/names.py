"""Cases about names: where they lead, how long they are, which bytes they have."""

from __future__ import annotations

from tests.hostile.cases import Make, accept, refuse
from tests.hostile.expected import D, F, L
from tests.tarmake import directory, file, header, link, long_name, pax, symlink


def add_climbing() -> None:
    row = "name climbs above the root"
    ways: dict[str, Make] = {
        "..": lambda out: file(b"../x", b"1"),
        "late": lambda out: file(b"a/../../x", b"1"),
        "from the root": lambda out: file(b"/../x", b"1"),
        "to a place outside": lambda out: long_name(b"../" * 30 + out + b"/planted") + file(b"x", b"1"),
        "PAX path": lambda out: pax({b"path": b"../x"}) + file(b"x", b"1"),
        "PAX path to a place outside": lambda out: pax({b"path": b"../" * 30 + out + b"/planted"}) + file(b"x", b"1"),
        "GNU long name": lambda out: long_name(b"a/../../x") + file(b"x", b"1"),
        "ustar prefix": lambda out: file(b"x", b"1", prefix=b"../.."),
        "sparse name": lambda out: (
            pax({b"GNU.sparse.name": b"../x", b"GNU.sparse.size": b"9", b"GNU.sparse.map": b"0,1"}) + file(b"x", b"1")
        ),
        "directory": lambda out: directory(b"a/../../d/"),
        "symlink": lambda out: symlink(b"../l", b"x"),
        "fifo": lambda out: header(b"../p", b"6"),
        "device": lambda out: header(b"../c", b"3", device=(1, 3)),
        "removal": lambda out: long_name(b"../" * 30 + out + b"/.wh.canary") + file(b"x"),
        "opaque marker": lambda out: long_name(b"../" * 30 + out + b"/.wh..wh..opq") + file(b"x"),
        "after a whole file": lambda out: file(b"ok", b"1") + file(b"../x", b"1"),
    }
    for name, make in ways.items():
        refuse(row, name, make, "climbs above the root")
    refuse(row, "with an escape sequence", file(b"../\x1b[2J\nx"), r"\x1b[2J\nx")
    refuse(row, "through a link", lambda out: symlink(b"l", b"/" + out) + file(b"l/planted", b"1"), "leads nowhere")
    refuse(
        row,
        "through a climbing link",
        lambda out: symlink(b"l", b"../" * 9 + out) + file(b"l/planted", b"1"),
        "leads nowhere",
    )
    refuse(
        row, "removal through a link", lambda out: symlink(b"l", b"/" + out) + file(b"l/.wh.canary"), "leads nowhere"
    )

    row = "names that stay inside"
    for name, tar in {
        "..": file(b"a/../b", b"1"), ".": file(b"./b", b"1"), "./ twice": file(b"././b", b"1"), "inner .": file(b"./b", b"1"),
        "//": file(b"//b", b"1"), "leading /": file(b"/b", b"1"), "deep ..": file(b"x/y/../../b", b"1"),
        "trailing /.": directory(b"q/.") + file(b"b", b"1"),
    }.items():  # fmt: skip
        accept(row, name, tar, {b"b": F(b"1"), **({b"q": D()} if name.startswith("trailing") else {})})
    accept(
        row,
        "absolute",
        lambda out: long_name(b"/" + out + b"/planted") + file(b"x", b"1"),
        lambda out: {out + b"/planted": F(b"1")},
    )


def add_names() -> None:
    row = "root and empty names"
    refuse(row, "no name", file(b"", b"1"), "no name")
    refuse(row, "empty PAX path and no name", pax({b"path": b""}) + file(b"", b"1"), "no name")
    for name, tar in {
        "file": file(b".", b"1"), "symlink": symlink(b"./", b"x"), "fifo": header(b"/", b"6"), "hard link": file(b"f") + link(b".", b"f"),
        "by ..": file(b"a/..", b"1"),
    }.items():  # fmt: skip
        refuse(row, f"root as {name}", tar, "the root can only be a directory")
    accept(row, "root as a directory", directory(b"./") + file(b"f", b"1"), {b"f": F(b"1")})

    row = "lengths"
    long_path = b"/".join([b"p" * 200] * 20)  # 4019 bytes
    accept(row, "255", long_name(b"n" * 255) + file(b"x", b"1"), {b"n" * 255: F(b"1")})
    refuse(row, "256", long_name(b"n" * 256) + file(b"x", b"1"), "more than 255 bytes")
    refuse(row, "256 in the middle", long_name(b"n" * 256 + b"/x") + file(b"x", b"1"), "more than 255 bytes")
    accept(
        row, "4095", long_name(long_path + b"/" + b"e" * 75) + file(b"x", b"1"), {long_path + b"/" + b"e" * 75: F(b"1")}
    )
    refuse(row, "4096", long_name(long_path + b"/" + b"e" * 76) + file(b"x", b"1"), "more than 4095 bytes")
    accept(row, "target 4095", long_name(b"t" * 4095, b"K") + symlink(b"l", b"x"), {b"l": L(b"t" * 4095)})
    refuse(row, "target 4096", long_name(b"t" * 4096, b"K") + symlink(b"l", b"x"), "more than 4095 bytes")
    refuse(row, "NUL in path", pax({b"path": b"a\0b"}) + file(b"x"), "NUL")
    refuse(row, "NUL in linkpath", pax({b"linkpath": b"a\0b"}) + symlink(b"l", b"x"), "NUL")
    refuse(row, "NUL in an owner's name", pax({b"uname": b"a\0b"}) + file(b"x"), "NUL")
    refuse(row, "NUL in a comment", pax({b"comment": b"a\0b"}) + file(b"x"), "NUL")
    refuse(row, "NUL in a global path", pax({b"path": b"a\0b"}, b"g") + file(b"x"), "NUL")
    deep = b"/".join([b"d"] * 1200)
    accept("1,200 levels", "directories", long_name(deep + b"/") + directory(b"x"), {deep: D()})
    accept("1,200 levels", "a file", long_name(deep + b"/f") + file(b"x", b"1"), {deep + b"/f": F(b"1")})

    row = "any bytes"
    strange = [
        b"\xff\xfe", b"new\nline", b"\x1b[31mred", b"back\\slash", b"quote\"'", b"Case", b"case", "e\u0301".encode(), "é".encode(),
        b" ", b"-rf", b"$(x)", b"*", b"a:b,c", b"\x7f", "\u202e".encode(), b"..x", b"...",
    ]  # fmt: skip
    accept(row, "names", b"".join(file(name, name) for name in strange), {name: F(name) for name in strange})
    accept(row, "targets", b"".join(symlink(b"l%d" % i, name) for i, name in enumerate(strange)), {b"l%d" % i: L(name) for i, name in enumerate(strange)})  # fmt: skip
