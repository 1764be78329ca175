"""Cases about links, names that come twice, and removals."""

from __future__ import annotations

from tests.hostile.cases import BELOW_TREE, Make, accept, refuse
from tests.hostile.expected import C, D, F, L, Node, P
from tests.tarmake import directory, file, header, link, long_name, pax, symlink


def add_links() -> None:
    row = "parent is a link of the same layer"
    usr = directory(b"usr/") + directory(b"usr/lib/")
    base: dict[bytes, Node] = {b"usr": D(), b"usr/lib": D()}
    for name, target in {
        "relative": b"usr/lib",
        "absolute": b"/usr/lib",
        "climbing": b"../../usr/lib",
        "dots": b"./usr/../usr//lib/",
    }.items():
        tar = usr + symlink(b"lib", target) + file(b"lib/x", b"1") + directory(b"lib/sub/")
        accept(row, name, tar, {**base, b"lib": L(target), b"usr/lib/x": F(b"1"), b"usr/lib/sub": D()})
    accept(row, "chain", usr + symlink(b"a", b"b") + symlink(b"b", b"usr") + file(b"a/lib/x", b"1"), {**base, b"a": L(b"b"), b"b": L(b"usr"), b"usr/lib/x": F(b"1")})  # fmt: skip
    accept(row, "removal", usr + symlink(b"l", b"d") + directory(b"d/") + file(b"l/.wh.x"), {**base, b"d": D(), b"d/y": F(b"low y"), b"d/deep": D(), b"d/deep/z": F(b"low z"), b"f": F(b"low f"), b"s": L(b"d"), b"l": L(b"d")}, below=True)  # fmt: skip
    refuse(row, "nowhere", symlink(b"l", b"gone") + file(b"l/x"), "leads nowhere")
    refuse(row, "circle", symlink(b"a", b"b") + symlink(b"b", b"a") + file(b"a/x"), "too many links")
    refuse(row, "itself", symlink(b"a", b"a") + file(b"a/x"), "too many links")
    refuse(row, "a file", file(b"f", b"1") + symlink(b"l", b"f") + file(b"l/x"), "is not a directory")
    refuse(row, "only in a lower layer", symlink(b"l", b"d") + file(b"l/new", b"1"), "leads nowhere", below=True)

    row = "parent is a link of a lower layer"
    rest = {path: node for path, node in BELOW_TREE.items() if path != b"s"}
    accept(row, "file", file(b"s/new", b"1"), {**rest, b"s": D(), b"s/new": F(b"1")}, below=True)
    accept(
        row,
        "directory",
        directory(b"s/", gid=b"0000005") + file(b"s/x", b"1"),
        {**rest, b"s": D(gid=5), b"s/x": F(b"1")},
        below=True,
    )
    accept(row, "removal", file(b"s/.wh.x"), {**rest, b"s": D()}, below=True)

    row = "entry below a file"
    refuse(row, "file", file(b"a", b"1") + file(b"a/b"), "is not a directory")
    refuse(row, "fifo", header(b"a", b"6") + file(b"a/b"), "is not a directory")
    refuse(row, "removal", file(b"a", b"1") + file(b"a/.wh.b"), "is not a directory")
    refuse(row, "opaque marker", file(b"a", b"1") + file(b"a/.wh..wh..opq"), "is not a directory")

    row = "same name twice"
    made = {
        "file": (file(b"n", b"1"), {b"n": F(b"1")}), "other file": (file(b"n", b"22", mode=b"0000600"), {b"n": F(b"22", mode=0o600)}),
        "directory": (directory(b"n/") + file(b"n/in", b"3"), {b"n": D(), b"n/in": F(b"3")}), "link": (symlink(b"n", b"t"), {b"n": L(b"t")}),
        "fifo": (header(b"n", b"6"), {b"n": P()}), "device": (header(b"n", b"3", device=(1, 5)), {b"n": C(1, 5)}),
    }  # fmt: skip
    for first in made:
        for second in made:
            if first != second:
                tree = {**made[first][1], **made[second][1]} if first == second == "directory" else made[second][1]
                accept(row, f"{second} over {first}", made[first][0] + made[second][0], tree)
    accept(
        row,
        "directory twice",
        directory(b"n/") + file(b"n/in", b"3") + directory(b"n/", gid=b"0000007"),
        {b"n": D(gid=7), b"n/in": F(b"3")},
    )
    accept(
        row,
        "3,000 times",
        (directory(b"n/") + file(b"n/.wh..wh..opq") + file(b"n/f", b"1")) * 3000,
        {b"n": D(), b"n/f": F(b"1")},
    )

    row = "hard link"
    wrong = header(b"h", b"1", target=b"o", uid=b"0000007", mode=b"0000777", mtime=b"00000000077")
    accept(
        row,
        "to a file",
        file(b"o", b"1", gid=b"0000003") + wrong,
        {b"o": F(b"1", gid=3, nlink=2), b"h": F(b"1", gid=3, nlink=2)},
    )
    accept(
        row,
        "to a symlink",
        symlink(b"o", b"/etc/passwd") + wrong,
        {b"o": L(b"/etc/passwd", nlink=2), b"h": L(b"/etc/passwd", nlink=2)},
    )
    accept(
        row, "to a device", header(b"o", b"3", device=(1, 5)) + wrong, {b"o": C(1, 5, nlink=2), b"h": C(1, 5, nlink=2)}
    )
    accept(row, "to a fifo", header(b"o", b"6") + wrong, {b"o": P(nlink=2), b"h": P(nlink=2)})
    accept(
        row,
        "first name replaced",
        file(b"o", b"old") + wrong + file(b"o", b"new!"),
        {b"o": F(b"new!"), b"h": F(b"old")},
    )
    accept(
        row,
        "to a link",
        file(b"o", b"1") + wrong + link(b"i", b"h"),
        {name: F(b"1", nlink=3) for name in (b"o", b"h", b"i")},
    )
    accept(
        row, "absolute target", file(b"o", b"1") + link(b"h", b"/o"), {b"o": F(b"1", nlink=2), b"h": F(b"1", nlink=2)}
    )
    refuse(row, "to nothing", link(b"h", b"gone"), "not in this layer")
    refuse(row, "to a later name", link(b"h", b"o") + file(b"o", b"1"), "not in this layer")
    refuse(row, "to itself", file(b"h", b"1") + link(b"h", b"h"), "itself")
    refuse(row, "to itself, spelt otherwise", file(b"h", b"1") + link(b"./h", b"x/../h"), "itself")
    refuse(row, "to a directory", directory(b"o/") + link(b"h", b"o"), "is a directory")
    refuse(row, "to the root", link(b"h", b"/"), "not in this layer")
    refuse(
        row,
        "outside",
        lambda out: long_name(b"../" * 30 + out + b"/canary", b"K") + link(b"h", b"x"),
        "climbs above the root",
    )
    refuse(
        row,
        "outside, absolute",
        lambda out: long_name(b"/" + out + b"/canary", b"K") + link(b"h", b"x"),
        "not in this layer",
    )
    refuse(
        row, "outside, through a link", lambda out: symlink(b"l", b"/" + out) + link(b"h", b"l/canary"), "leads nowhere"
    )
    refuse(row, "only in a lower layer", link(b"h", b"f"), "not in this layer", below=True)
    refuse(row, "no target", link(b"h", b""), "not in this layer")

    row = "symlink"
    aims: dict[str, Make] = {
        "absolute": lambda out: b"/" + out + b"/canary", "climbing": lambda out: b"../" * 9 + out + b"/canary",
        "a folder outside": lambda out: b"/" + out, "nothing": lambda out: b"gone", "itself": lambda out: b"l", "the root": lambda out: b"/",
        "proc": lambda out: b"/proc/self/root",
    }  # fmt: skip
    for name, aim in aims.items():
        _points(row, name, aim)
    refuse(row, "no target", symlink(b"l", b""), "no target")
    refuse(row, "empty PAX target", pax({b"linkpath": b""}) + symlink(b"l", b""), "no target")


def _points(row: str, name: str, target: Make) -> None:
    accept(
        row, name, lambda out: long_name(target(out), b"K") + symlink(b"l", b"x"), lambda out: {b"l": L(target(out))}
    )


def add_removals() -> None:
    row = "whiteout"
    less = dict(BELOW_TREE)
    accept(row, "of a file", file(b".wh.f"), {p: n for p, n in less.items() if p != b"f"}, below=True)
    accept(row, "of a directory", file(b".wh.d"), {b"f": F(b"low f"), b"s": L(b"d")}, below=True)
    accept(row, "of a link", file(b".wh.s"), {p: n for p, n in less.items() if p != b"s"}, below=True)
    accept(row, "inside", file(b"d/.wh.x"), {p: n for p, n in less.items() if p != b"d/x"}, below=True)
    accept(row, "of nothing", file(b".wh.nothing") + file(b"d/.wh.nothing"), less, below=True)
    accept(row, "of nothing at all", file(b".wh.nothing") + file(b"k", b"1"), {b"k": F(b"1")})
    accept(row, "below a whiteout", file(b".wh.d") + file(b"d/.wh.x"), {b"f": F(b"low f"), b"s": L(b"d")}, below=True)
    accept(row, "through a link, below a whiteout", directory(b"o/") + symlink(b"o/l", b"../d/deep") + file(b"d/deep/.wh.z") + file(b".wh.d") + file(b"o/l/new", b"1"), {b"o": D(), b"o/l": L(b"../d/deep"), b"f": F(b"low f"), b"s": L(b"d"), b"d": D(), b"d/deep": D(), b"d/deep/new": F(b"1")}, below=True)  # fmt: skip
    accept(row, "with content and other attributes", file(b".wh.f", b"content", mode=b"0004777", uid=b"0000007"), {p: n for p, n in less.items() if p != b"f"}, below=True)  # fmt: skip
    accept(row, "of a name that is hard to write", file(b".wh.a\nb"), less, below=True)
    refuse(row, "entry below its name", file(b".wh.x/y"), "below a removal")
    row = "whiteout of no name"
    for name in (b".wh.", b".wh..", b".wh..."):
        refuse(row, name.decode(), file(name), "names nothing that can be removed")
        refuse(row, f"d/{name.decode()}", file(b"d/" + name), "names nothing that can be removed", below=True)

    row = "opaque directory"
    opaque = {b"f": F(b"low f"), b"s": L(b"d"), b"d": D(), b"d/new": F(b"1")}
    accept(
        row, "before its files", directory(b"d/") + file(b"d/.wh..wh..opq") + file(b"d/new", b"1"), opaque, below=True
    )
    accept(
        row, "after its files", directory(b"d/") + file(b"d/new", b"1") + file(b"d/.wh..wh..opq"), opaque, below=True
    )
    accept(
        row,
        "before its directory",
        file(b"d/.wh..wh..opq") + directory(b"d/") + file(b"d/new", b"1"),
        opaque,
        below=True,
    )
    accept(
        row,
        "a lower name again",
        file(b"d/.wh..wh..opq") + file(b"d/x", b"2"),
        {b"f": F(b"low f"), b"s": L(b"d"), b"d": D(), b"d/x": F(b"2")},
        below=True,
    )
    accept(row, "inside", file(b"d/deep/.wh..wh..opq"), {p: n for p, n in less.items() if p != b"d/deep/z"}, below=True)
    accept(row, "at the root", file(b".wh..wh..opq") + file(b"new", b"1"), {b"new": F(b"1")}, below=True)
    accept(
        row, "at the root, after siblings", file(b"new", b"1") + file(b"./.wh..wh..opq"), {b"new": F(b"1")}, below=True
    )
    accept(row, "over nothing", directory(b"q/") + file(b"q/.wh..wh..opq"), {b"q": D()})
    row = "leftovers of AUFS"
    accept(row, "file", file(b".wh..wh.aufs", b"x") + file(b"k", b"1"), {b"k": F(b"1")})
    accept(
        row,
        "directory",
        directory(b".wh..wh.plnk/") + file(b".wh..wh.plnk/1.2", b"x") + file(b"k", b"1"),
        {b"k": F(b"1")},
    )
    accept(row, "linked to", file(b".wh..wh.plnk/1.2", b"x") + link(b"h", b".wh..wh.plnk/1.2"), {b"h": F(b"x")})

    row = "whiteout and entry of one name"
    stays = {**{p: n for p, n in less.items() if p != b"f"}, b"f": F(b"new")}
    accept(row, "whiteout first", file(b".wh.f") + file(b"f", b"new"), stays, below=True)
    accept(row, "entry first", file(b"f", b"new") + file(b".wh.f"), stays, below=True)
    hidden = {b"f": F(b"low f"), b"s": L(b"d"), b"d": D(gid=9), b"d/new": F(b"1")}
    new = directory(b"d/", gid=b"0000011") + file(b"d/new", b"1")
    accept(row, "whiteout before a directory", file(b".wh.d") + new, hidden, below=True)
    accept(row, "directory before a whiteout", new + file(b".wh.d"), hidden, below=True)
    accept(row, "implied directory", file(b".wh.d") + file(b"d/new", b"1"), {**hidden, b"d": D()}, below=True)
