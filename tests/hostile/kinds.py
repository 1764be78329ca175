"""Cases about kinds of files, their attributes and their numbers."""

from __future__ import annotations

from tests.hostile.cases import BELOW_TREE, accept, refuse, xattrs
from tests.hostile.expected import C, D, F, P
from tests.tarmake import END, checksummed, directory, file, header, long_name, padded, pax, record


def add_kinds() -> None:
    row = "device 0:0"
    accept(
        row,
        "one",
        header(b"dev", b"3") + file(b"k", b"1"),
        {b"k": F(b"1")},
        warns=1,
        only={"copy": {b"k": F(b"1"), b"dev": C(0, 0)}},
    )
    accept(
        row,
        "two, said once",
        header(b"dev", b"3") + header(b"dev2", b"3"),
        {},
        warns=1,
        only={"copy": {b"dev": C(0, 0), b"dev2": C(0, 0)}},
    )
    accept(row, "block", header(b"dev", b"4"), {b"dev": C(0, 0, "b")})
    row = "devices and fifos"
    accept(row, "character", header(b"n", b"3", device=(5, 1), mode=b"0000620"), {b"n": C(5, 1, mode=0o620)})
    accept(row, "block", header(b"n", b"4", device=(8, 300), mode=b"0000660"), {b"n": C(8, 300, "b", mode=0o660)})
    accept(row, "fifo", header(b"n", b"6", uid=b"0001750"), {b"n": P(uid=1000)})
    refuse(row, "number out of range", header(b"n", b"3", device=(1 << 12, 0)), "out of range")

    row = "setuid, setgid, capabilities"
    accept(row, "setuid", file(b"n", b"1", mode=b"0004755", uid=b"0001750"), {b"n": F(b"1", mode=0o4755, uid=1000)})
    accept(row, "setgid", file(b"n", b"1", mode=b"0002755", gid=b"0001750"), {b"n": F(b"1", mode=0o2755, gid=1000)})
    accept(row, "directory", header(b"n/", b"5", mode=b"0003777", gid=b"0001750"), {b"n": D(mode=0o3777, gid=1000)})
    capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
    accept(row, "capability", xattrs({b"security.capability": capability}) + file(b"n", b"1", uid=b"0001750"), {b"n": F(b"1", uid=1000, xattrs={"security.capability": capability})})  # fmt: skip

    row = "attributes of overlay"
    for key in (b"trusted.overlay.opaque", b"trusted.overlay.redirect", b"trusted.overlay.metacopy", b"trusted.overlay.whiteout", b"trusted.overlay.origin",
                b"user.overlay.opaque", b"user.overlay.redirect", b"user.overlay.whiteout", b"trusted.overlay.overlay.opaque"):  # fmt: skip
        for value in (b"y", b""):
            tar = xattrs({key: value}) + directory(b"d/") + xattrs({key: value or b"/f"}) + file(b"new", b"1")
            accept(row, f"{key.decode()}={value.decode()}", tar, {**BELOW_TREE, b"new": F(b"1")}, below=True)
    accept(row, "on the root", xattrs({b"trusted.overlay.opaque": b"y"}) + directory(b"./"), BELOW_TREE, below=True)

    row = "attributes of the host"
    acl = b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x04\0\x05\0\xff\xff\xff\xff\x20\0\x05\0\xff\xff\xff\xff"
    for key in (
        b"security.selinux",
        b"security.ima",
        b"system.posix_acl_access",
        b"system.nfs4_acl",
        b"system.anything",
    ):
        accept(row, key.decode(), xattrs({key: acl}) + file(b"n", b"1"), {b"n": F(b"1")})

    row = "attributes"
    accept(row, "kept", xattrs({b"user.a": b"v\0w", b"user.empty": b"", b"trusted.t": b"1"}) + file(b"n", b"1"), {b"n": F(b"1", xattrs={"user.a": b"v\0w", "user.empty": b"", "trusted.t": b"1"})})  # fmt: skip
    accept(
        row,
        "name of 255",
        xattrs({b"user." + b"n" * 250: b"v"}) + file(b"n", b"1"),
        {b"n": F(b"1", xattrs={"user." + "n" * 250: b"v"})},
    )
    refuse(row, "name of 256", xattrs({b"user." + b"n" * 251: b"v"}) + file(b"n"), "cannot be kept")
    refuse(row, "value over 64 KiB", xattrs({b"user.x": bytes(65537)}) + file(b"n"), "65537 bytes")
    refuse(row, "unknown namespace", xattrs({b"evil.x": b"v"}) + file(b"n"), "cannot be kept")
    refuse(row, "no namespace", xattrs({b"x": b"v"}) + file(b"n"), "cannot be kept")
    refuse(row, "no name", xattrs({b"": b"v"}) + file(b"n"), "cannot be kept")
    refuse(row, "hostile name", xattrs({b"evil\n\x1b[2J": b"v"}) + file(b"n"), r"evil\n\x1b[2J")
    big = bytes(range(1, 256)) * 257  # 65,535 bytes
    accept(row, "value that ext4 has no room for", xattrs({b"user.x": big}) + file(b"n", b"1"), {b"n": F(b"1")}, only={"erofs": {b"n": F(b"1", xattrs={"user.x": big})}}, shown_warns={"farm": 1, "copy": 1})  # fmt: skip
    accept(row, "value that no strategy has room for", xattrs({b"user.x": big + b"x"}) + file(b"n", b"1") + xattrs({b"user.x": big + b"y"}) + file(b"m", b"1"), {b"n": F(b"1"), b"m": F(b"1")}, shown_warns={"erofs": 1, "farm": 1, "copy": 1})  # fmt: skip
    accept(
        row,
        "nameless in its namespace",
        xattrs({b"user.": b"v"}) + file(b"n", b"1"),
        {b"n": F(b"1")},
        shown_warns={"erofs": 1, "farm": 1, "copy": 1},
    )


def _owned(what: bytes, value: bytes) -> bytes:
    return header(b"n", uid=value) if what == b"uid" else header(b"n", gid=value)


def add_numbers() -> None:
    row = "owners"
    accept(
        row,
        "largest",
        pax({b"uid": b"4294967294", b"gid": b"4294967294"}) + file(b"n", b"1"),
        {b"n": F(b"1", uid=4294967294, gid=4294967294)},
    )
    accept(row, "base 256", header(b"n", uid=b"\x80\0\0\0\xff\xff\xff\xfe"), {b"n": F(uid=4294967294)})
    for what in (b"uid", b"gid"):
        for name, value in {
            "means leave as is": b"4294967295",
            "wraps to root": b"4294967296",
            "huge": b"9" * 19,
        }.items():
            refuse(row, f"{what.decode()} {name}", pax({what: value}) + file(b"n"), "out of range")
        refuse(row, f"{what.decode()} negative", pax({what: b"-1"}) + file(b"n"), "is no number")
        refuse(
            row,
            f"{what.decode()} in the header wraps",
            _owned(what, b"\x80\0\0\x01\0\0\0\0"),
            "out of range",
        )
        refuse(row, f"{what.decode()} in the header negative", _owned(what, b"\xff" * 8), "out of range")
    accept("mode bits", "masked", header(b"n", mode=b"0107755"), {b"n": F(mode=0o7755)})
    accept("mode bits", "base 256", header(b"n", mode=b"\x80\0\0\0\0\xff\xff\xff"), {b"n": F(mode=0o7777)})

    row = "times"
    for name, text, moment in (
        ("before 1970", b"-1.5", -1_500_000_000), ("long before", b"-1000000000.25", -1_000_000_000_250_000_000),
        ("fraction", b"1700000000.123456789", 1_700_000_000_123_456_789), ("finer than nanoseconds", b"1.1234567899", 1_123_456_789),
        ("far ahead", b"9000000000", 9_000_000_000 * 10**9),
    ):  # fmt: skip
        accept(row, name, pax({b"mtime": text}) + file(b"n", b"1"), {b"n": F(b"1", mtime_ns=moment)})
    accept(
        row, "beyond 64 bits", pax({b"mtime": b"9" * 19}) + file(b"n", b"1"), {b"n": F(b"1", mtime_ns=(1 << 63) - 1)}
    )
    accept(row, "negative in the header", header(b"n", mtime=b"\xff" * 11 + b"\xfe"), {b"n": F(mtime_ns=-2 * 10**9)})
    for text in (b"yesterday", b"", b"1e9", b"--1", b"1.2.3", b"nan", b"0x10", b" 1"):
        refuse(row, f"no number: {text.decode()!r}", pax({b"mtime": text}) + file(b"n"), "mtime is no number")
    refuse(row, "no number in the header", header(b"n", mtime=b"9x"), "mtime is no number")

    row = "sizes"
    inner = file(b"smuggled", b"1") + END
    accept(
        row,
        "PAX wins over 0",
        pax({b"size": b"%d" % len(inner)}) + header(b"n", size=0) + padded(inner),
        {b"n": F(inner)},
    )
    accept(
        row,
        "PAX wins over more",
        pax({b"size": b"0"}) + header(b"n", size=1 << 30) + file(b"after", b"1"),
        {b"n": F(), b"after": F(b"1")},
    )
    accept(row, "PAX, a GNU header between", pax({b"size": b"3"}) + long_name(b"g" * 120) + header(b"x", size=0) + padded(b"abc") + file(b"after", b"1"), {b"g" * 120: F(b"abc"), b"after": F(b"1")})  # fmt: skip
    accept(row, "a size on what has none", header(b"d", b"5", mode=b"0000755", size=512) + header(b"p", b"6", size=9) + file(b"after", b"1"), {b"d": D(), b"p": P(), b"after": F(b"1")})  # fmt: skip
    refuse(row, "negative", header(b"n", size=b"\xff" * 12), "out of range")
    refuse(row, "negative by PAX", pax({b"size": b"-1"}) + file(b"n"), "is no number")
    refuse(row, "garbage", header(b"n", size=b"12z"), "size is no number")
    refuse(row, "over-long", header(b"n", size=b"\x80" + b"\x7f" * 11), "out of range")
    refuse(row, "over-long by PAX", pax({b"size": b"9" * 30}) + file(b"n"), "is no number")
    row = "damage"
    refuse(
        row, "checksum", file(b"ok", b"1") + header(b"n")[:148] + b"0000001\0" + header(b"n")[156:], "checksum is wrong"
    )
    refuse(row, "checksum no number", header(b"n")[:148] + b"zzzzzzzz" + header(b"n")[156:], "checksum is no number")
    for name, body in {"wrong length": b"99 a=bc\n", "no length": b"a=bc\n", "no key": b"6 bbb\n", "negative length": b"-1 a=b\n", "zero length": b"0 a=b\n",
                       "no end": b"6 a=bcX", "huge length": b"99999999999999999999 a=b\n"}.items():  # fmt: skip
        refuse(row, f"PAX record: {name}", header(b"p", b"x", size=len(body)) + padded(body) + file(b"n"), "PAX record")
    refuse(row, "cut in a header", file(b"n", b"1")[:100], "unexpected EOF", whole=False)
    refuse(row, "cut in content", file(b"n", b"1" * 600)[:700], "unexpected EOF", whole=False)
    refuse(row, "cut in padding", file(b"n", b"1" * 100)[:-20], "unexpected EOF", whole=False)
    refuse(row, "cut behind an extension", pax({b"path": b"x"}), "unexpected EOF", whole=False)
    refuse(row, "end behind an extension", pax({b"path": b"x"}), "unexpected EOF")
    refuse(row, "cut in an extension", long_name(b"n" * 600)[:900], "unexpected EOF", whole=False)

    row = "extension headers"
    refuse(row, "over 1 MiB", header(b"p", b"x", size=(1 << 20) + 1), "extension header has", whole=False)
    refuse(
        row,
        "8 GiB announced",
        header(b"p", b"L", size=b"\x80" + bytes(6) + b"\x02" + bytes(4)),
        "extension header has",
        whole=False,
    )
    accept(
        row,
        "64 in a row",
        pax({b"comment": b"x"}) * 63 + long_name(b"n" * 101) + file(b"x", b"1"),
        {b"n" * 101: F(b"1")},
    )
    refuse(row, "65 in a row", pax({b"comment": b"x"}) * 65 + file(b"n"), "in a row")
    refuse(row, "65 global ones", pax({b"comment": b"x"}, b"g") * 65 + file(b"n"), "in a row")
    refuse(row, "3,000 in a row", long_name(b"x") * 3000 + file(b"n"), "in a row")
    refuse(row, "sparse map 1.0 over 65,536", pax({b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"9"}) + file(b"s", padded(b"70000\n")), "too long")  # fmt: skip
    body = b"".join(
        record(b"GNU.sparse.offset", b"%d" % i) + record(b"GNU.sparse.numbytes", b"0") for i in range(12000)
    )
    halves = header(b"p", b"x", size=len(body)) + padded(body)
    refuse(row, "sparse map 0.0 over 65,536", halves * 6 + pax({b"GNU.sparse.size": b"99999"}) + file(b"s"), "too long")
    block = bytearray(header(b"s", b"S", magic=b"ustar  \0"))
    block[482], block[483:495] = 1, b"%011o\0" % 99
    more = b"".join(b"%011o\0%011o\0" % (i, 0) for i in range(21)) + b"\x01" + bytes(7)
    refuse(row, "old sparse map over 65,536", checksummed(bytes(block)) + more * 3130, "too long", whole=False)
