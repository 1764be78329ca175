"""What a layer tar may hold: each row of docs/tar.md."""

from __future__ import annotations

import io
import random

import pytest
from blake3 import blake3

from lading.errors import InvalidInput
from lading.objects.tar import ingest_tar
from lading.objects.tarbase import TarLimits, TarSummary
from lading.values import IMPLIED, PRESENT, WHITEOUT, Entry
from tests.tarmake import END, checksummed, directory, file, header, link, long_name, padded, pax, symlink


class Sink:
    """Puts the stream together again, and keeps contents by digest."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.contents: dict[bytes, bytes] = {}

    def literal(self, data: bytes) -> None:
        self.parts.append(data)

    def put(self, data: bytes) -> bytes:
        self.parts.append(data)
        digest = blake3(data).digest()
        self.contents[digest] = data
        return digest

    def stream(self, chunks: object, size: int) -> bytes:
        data = b"".join(chunks)  # type: ignore[arg-type]
        assert len(data) == size
        return self.put(data)


def read(tar: bytes, limits: TarLimits | None = None, step: int = 1 << 20) -> tuple[TarSummary, Sink]:
    """Parse a tar, checking that nothing of it is lost."""
    sink = Sink()
    stream = io.BytesIO(tar)
    summary = ingest_tar(lambda size: stream.read(min(size, step)), sink, limits)
    assert b"".join(sink.parts) == tar
    return summary, sink


def entries(tar: bytes) -> dict[bytes, Entry]:
    """The effective tree of a tar."""
    return {entry.path: entry for entry in read(tar)[0].entries}


REFUSED: list[tuple[str, bytes, str]] = [
    ("climbs", file(b"../x"), "climbs above the root"),
    ("climbs late", file(b"a/../../x"), "climbs above the root"),
    ("climbs by pax", pax({b"path": b"../x"}) + file(b"x"), "climbs above the root"),
    ("climbs by long name", long_name(b"a/../../x") + file(b"x"), "climbs above the root"),
    ("no name", file(b""), "no name"),
    ("root as a file", file(b"./"[:1]), "root can only be a directory"),
    ("long component", long_name(b"d/" + b"n" * 256) + file(b"x"), "more than 255 bytes"),
    ("long path", long_name(b"/".join([b"d" * 200] * 21)) + file(b"x"), "more than 4095 bytes"),
    ("long target", long_name(b"t" * 4096, b"K") + symlink(b"l", b"x"), "more than 4095 bytes"),
    ("NUL in a pax path", pax({b"path": b"a\0b"}) + file(b"x"), "NUL"),
    ("below a file", file(b"a", b"1") + file(b"a/b"), "is not a directory"),
    ("parent link leads nowhere", symlink(b"l", b"gone") + file(b"l/x"), "leads nowhere"),
    ("parent links in a circle", symlink(b"a", b"b") + symlink(b"b", b"a") + file(b"a/x"), "too many links"),
    ("hard link to nothing", link(b"h", b"gone"), "not in this layer"),
    ("hard link to a later file", link(b"h", b"f") + file(b"f", b"1"), "not in this layer"),
    ("hard link to itself", file(b"f", b"1") + link(b"f", b"f"), "itself"),
    ("hard link to a directory", directory(b"d/") + link(b"h", b"d"), "is a directory"),
    ("hard link outside", link(b"h", b"../../etc/passwd"), "climbs above the root"),
    ("empty symlink", symlink(b"l", b""), "no target"),
    ("whiteout of nothing named", file(b".wh."), "removal"),
    ("whiteout of the directory", file(b"d/.wh.."), "removal"),
    ("whiteout of the parent", file(b"d/.wh..."), "removal"),
    ("entry below a removal", file(b".wh.x/y"), "below a removal"),
    ("uid that wraps to root", pax({b"uid": b"4294967296"}) + file(b"f"), "uid 4294967296 is out of range"),
    ("uid that means leave", pax({b"uid": b"4294967295"}) + file(b"f"), "out of range"),
    ("negative uid", header(b"f", uid=b"\xff" * 8), "out of range"),
    ("mtime no number", pax({b"mtime": b"yesterday"}) + file(b"f"), "mtime"),
    ("mtime no octal", header(b"f", mtime=b"9x"), "mtime"),
    ("negative size", header(b"f", size=b"\xff" * 12), "out of range"),
    ("garbage size", header(b"f", size=b"12z"), "size"),
    ("huge size", header(b"f", size=b"\x80" + b"\x7f" * 11), "out of range"),
    ("bad checksum", checksummed(header(b"f"))[:148] + b"0000001\0" + header(b"f")[156:], "checksum"),
    ("junk", random.Random(1).randbytes(2048), "invalid tar header"),
    ("text", b"<html>no such layer</html>\n" * 40, "invalid tar header"),
    ("pax length wrong", header(b"p", b"x", size=8) + padded(b"99 a=bc\n") + file(b"f"), "wrong length"),
    ("pax length missing", header(b"p", b"x", size=5) + padded(b"a=bc\n") + file(b"f"), "no length"),
    ("pax key missing", header(b"p", b"x", size=6) + padded(b"6 bbb\n") + file(b"f"), "no key"),
    ("pax negative length", header(b"p", b"x", size=7) + padded(b"-1 a=b\n") + file(b"f"), "no length"),
    ("huge extension", header(b"p", b"x", size=2 << 20), "extension header has"),
    ("many extensions", pax({b"comment": b"x"}) * 65 + file(b"f"), "more than 64 extension headers"),
    ("many global ones behind an extension", pax({b"mtime": b"1"}) + pax({b"c": b"x"}, b"g") * 65 + file(b"f"), "in a row"),
    ("unknown type", header(b"f", b"Z"), "unhandled tar header type 90"),
    ("xattr name", pax({b"SCHILY.xattr.user." + b"n" * 251: b"v"}) + file(b"f"), "cannot be kept"),
    ("xattr namespace", pax({b"SCHILY.xattr.evil.x": b"v"}) + file(b"f"), "cannot be kept"),
    ("xattr value", pax({b"SCHILY.xattr.user.x": bytes(65537)}) + file(b"f"), "65537 bytes"),
    ("cut in a header", file(b"f", b"1")[:100], "unexpected EOF"),
    ("cut in content", file(b"f", b"1" * 600)[:700], "unexpected EOF"),
    ("cut in padding", file(b"f", b"1" * 100)[:-20], "unexpected EOF"),
    ("cut behind an extension", pax({b"path": b"x"}), "unexpected EOF"),
    ("device out of range", header(b"c", b"3", device=(1 << 12, 0)), "out of range"),
    ("sparse out of order", pax({b"GNU.sparse.size": b"100", b"GNU.sparse.map": b"50,2,0,2"}) + file(b"s", b"abcd"), "not in order"),
    ("sparse beyond its size", pax({b"GNU.sparse.size": b"10", b"GNU.sparse.map": b"8,4"}) + file(b"s", b"abcd"), "not in order"),
    ("sparse without data", pax({b"GNU.sparse.size": b"100", b"GNU.sparse.map": b"0,9"}) + file(b"s", b"abcd"), "does not fit"),
    (
        "sparse map too long",
        pax({b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"9"}) + file(b"s", padded(b"70000\n")),
        "too long",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("tar", "message"), [pytest.param(tar, message, id=name) for name, tar, message in REFUSED])
def test_what_must_not_be_unpacked_is_refused_with_one_line(tar: bytes, message: str) -> None:
    """The message says what is wrong, on one printable line."""
    with pytest.raises(InvalidInput) as caught:
        read(tar + END)if not message.startswith("unexpected EOF") else read(tar)  # fmt: skip

    assert message in str(caught.value)
    assert str(caught.value).isprintable()


def test_names_are_normalised_and_kept() -> None:
    """Dots, double and leading slashes mean nothing; any other byte is kept."""
    names = [
        b"./a",
        b"//b",
        b"/c/../d",
        b"e/./f",
        b"g\n\x1b[31m",
        b"h\\",
        b"\xff\xfe",
        b"I",
        b"i",
        "e\u0301".encode(),
        "é".encode(),
    ]

    found = entries(b"".join(file(name, b"x") for name in names) + END)

    wanted = {
        b"a",
        b"b",
        b"d",
        b"e",
        b"e/f",
        b"g\n\x1b[31m",
        b"h\\",
        b"\xff\xfe",
        b"I",
        b"i",
        "e\u0301".encode(),
        "é".encode(),
    }
    assert set(found) == wanted


def test_deep_paths_need_no_recursion() -> None:
    """1,200 levels and back."""
    path = b"/".join([b"d"] * 1200)

    found = entries(long_name(path) + directory(b"x") + END)

    assert len(found) == 1200
    assert found[path].kind == PRESENT
    assert found[b"d"].kind == IMPLIED


def test_the_last_of_one_name_wins() -> None:
    """File over directory with all below it, directory over file, link over fifo."""
    found = entries(
        directory(b"d/") + file(b"d/x", b"1") + file(b"d", b"2") + file(b"f", b"1") + directory(b"f/") + file(b"f/y", b"3")
        + header(b"p", b"6") + symlink(b"p", b"f") + END
    )  # fmt: skip

    kinds = {path: entry.inode.type for path, entry in found.items() if entry.inode}
    assert kinds == {b"d": "f", b"f": "d", b"f/y": "f", b"p": "l"}


def test_parents_that_are_links_are_resolved_in_the_model() -> None:
    """Absolute and climbing targets stay inside the root."""
    tar = directory(b"usr/") + directory(b"usr/lib/") + symlink(b"lib", b"/usr/lib") + symlink(b"up", b"../../../usr")
    found = entries(tar + file(b"lib/x", b"1") + file(b"up/lib/y", b"2") + END)

    assert {b"usr/lib/x", b"usr/lib/y"} < set(found)
    assert found[b"lib"].inode is not None


def test_hard_links_share_an_inode_and_ignore_their_own_header() -> None:
    """Owner, mode and time are the first name's; the first in order leads."""
    found = entries(file(b"z", b"1", uid=b"0000012") + link(b"a", b"z") + symlink(b"s", b"z") + link(b"t", b"s") + END)

    assert found[b"z"].link == b"a"
    assert found[b"a"].link is None
    assert found[b"a"].inode == found[b"z"].inode
    assert found[b"a"].inode is not None
    assert found[b"a"].inode.uid == 0o12
    assert found[b"t"].link == b"s"


def test_a_replaced_first_name_leaves_the_other_names_their_inode() -> None:
    """The content is not lost with the name it came with."""
    found = entries(file(b"a", b"old") + link(b"b", b"a") + file(b"a", b"new!") + END)

    assert found[b"b"].inode is not None
    assert found[b"b"].inode.size == 3
    assert found[b"b"].link is None


def test_removals_and_opaque_directories() -> None:
    """Also of nothing, at the root, after siblings, and with entries of the same name."""
    found = entries(
        file(b".wh.gone") + directory(b"o/") + file(b"o/new", b"1") + file(b"o/.wh..wh..opq") + file(b".wh..wh..opq")
        + file(b"kept", b"1") + file(b".wh.kept") + file(b".wh.dir") + directory(b"dir/") + file(b"dir/.wh.x")
        + file(b".wh.only") + file(b"only/.wh.below") + END
    )  # fmt: skip

    assert found[b"gone"].kind == WHITEOUT
    assert found[b"o"].opaque
    assert found[b"o/new"].kind == PRESENT
    assert found[b""].opaque
    assert found[b"kept"].kind == PRESENT
    assert found[b"dir"].opaque
    assert found[b"dir/x"].kind == WHITEOUT
    assert found[b"only"].kind == WHITEOUT
    assert b"only/below" not in found


def test_leftovers_of_aufs_are_no_files() -> None:
    """They stay in the stream; a hard link to one still has its content."""
    found = entries(
        file(b".wh..wh.plnk/1.2", b"data") + file(b".wh..wh.aufs", b"x") + link(b"h", b".wh..wh.plnk/1.2") + END
    )

    assert set(found) == {b"h"}
    assert found[b"h"].inode is not None
    assert found[b"h"].inode.size == 4


def test_modes_are_masked_and_times_kept() -> None:
    """Bits over 07777 go; times before 1970 and fractions stay."""
    found = entries(header(b"m", mode=b"0107755") + pax({b"mtime": b"-1.5"}) + file(b"t") + END)

    assert found[b"m"].inode is not None
    assert found[b"m"].inode.mode == 0o7755
    assert found[b"t"].inode is not None
    assert found[b"t"].inode.mtime_ns == -1_500_000_000


def test_pax_size_wins_for_the_file_only() -> None:
    """A GNU header in between keeps its own size."""
    tar = (
        pax({b"size": b"3"})
        + long_name(b"n" * 120)
        + header(b"x", size=0)
        + padded(b"abc")
        + file(b"after", b"1")
        + END
    )

    found = entries(tar)

    assert found[b"n" * 120].inode is not None
    assert found[b"n" * 120].inode.size == 3
    assert b"after" in found


def test_global_headers_name_nothing() -> None:
    """What they say of path, target and size is ignored, and they make no folder."""
    found = entries(pax({b"path": b"evil", b"size": b"9"}, b"g") + file(b"f", b"1") + END)

    assert set(found) == {b"f"}


@pytest.mark.parametrize(
    ("records", "data", "regions", "size"),
    [
        ([(b"GNU.sparse.size", b"20"), (b"GNU.sparse.offset", b"4"), (b"GNU.sparse.numbytes", b"2"), (b"GNU.sparse.offset", b"10"),
          (b"GNU.sparse.numbytes", b"2")], b"abcd", ((4, 2), (10, 2)), 20),
        ([(b"GNU.sparse.size", b"20"), (b"GNU.sparse.map", b"4,2,10,2")], b"abcd", ((4, 2), (10, 2)), 20),
        ([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.name", b"s"), (b"GNU.sparse.realsize", b"20")],
         padded(b"2\n4\n2\n10\n2\n") + b"abcd", ((4, 2), (10, 2)), 20),
    ],
    ids=["0.0", "0.1", "1.0"],
)  # fmt: skip
def test_sparse_files_store_their_data_alone(
    records: list[tuple[bytes, bytes]], data: bytes, regions: tuple[tuple[int, int], ...], size: int
) -> None:
    """All PAX forms; the map of 1.0 is no content."""
    summary, sink = read(pax(records) + file(b"s", data) + END)

    inode = summary.entries[0].inode
    assert inode is not None
    assert (inode.size, inode.sparse) == (size, regions)
    assert sink.contents[inode.digest] == b"abcd"


def test_old_gnu_sparse_files() -> None:
    """Regions in the header and in blocks behind it."""
    block = bytearray(header(b"s", b"S", size=4, magic=b"ustar  \0"))
    block[386:434] = b"%011o\0%011o\0%011o\0%011o\0" % (4, 2, 10, 1)
    block[482] = 1
    block[483:495] = b"%011o\0" % 40
    extension = (b"%011o\0%011o\0" % (30, 1)).ljust(512, b"\0")

    summary, sink = read(checksummed(bytes(block)) + extension + padded(b"abcd") + END)

    inode = summary.entries[0].inode
    assert inode is not None
    assert (inode.size, inode.sparse) == (40, ((4, 2), (10, 1), (30, 1)))
    assert sink.contents[inode.digest] == b"abcd"


def test_attributes_of_overlay_and_host_stay_in_the_stream() -> None:
    """An empty value is common and kept."""
    keys = [
        b"trusted.overlay.opaque",
        b"user.overlay.redirect",
        b"security.selinux",
        b"system.posix_acl_access",
        b"user.kept",
    ]
    tar = pax([(b"SCHILY.xattr." + key, b"") for key in keys]) + file(b"f", b"1") + END

    found = entries(tar)

    assert found[b"f"].inode is not None
    assert found[b"f"].inode.xattrs == ((b"user.kept", b""),)


@pytest.mark.parametrize(
    "rest", [b"", END, END + b"junk behind the end", END + file(b"second", b"1") + END, bytes(10240)], ids=range(5)
)
def test_whatever_follows_the_end_is_kept_and_not_read(rest: bytes) -> None:
    """No end marker, junk, a second archive, padding."""
    assert set(entries(file(b"f", b"1") + rest)) == {b"f"}


@pytest.mark.parametrize("size", [0, 512, 1024, 10240])
def test_nothing_but_zeros_is_an_empty_layer(size: int) -> None:
    """An empty stream, too."""
    assert entries(bytes(size)) == {}


def test_reading_in_small_steps_changes_nothing() -> None:
    """A source may hand out as little as it likes."""
    tar = pax({b"path": b"x" * 200}) + file(b"f", b"1" * 3000) + file(b"g", b"2") + END

    assert read(tar, step=7)[0] == read(tar)[0]


def test_one_name_and_many_markers_take_linear_time() -> None:
    """3,000 times one directory with an opaque marker and a file."""
    tar = (directory(b"d/") + file(b"d/.wh..wh..opq") + file(b"d/f", b"1")) * 3000 + END

    assert set(entries(tar)) == {b"d", b"d/f"}


def test_too_many_entries_are_refused() -> None:
    """Implied directories count."""
    with pytest.raises(InvalidInput, match="more than 5 entries"):
        read(long_name(b"a/b/c/d/e/f/g") + file(b"x") + END, TarLimits(entries_max=5))


def test_device_zero_is_kept_and_said_once() -> None:
    """A mount can only show it as a removal."""
    summary, _ = read(header(b"a", b"3") + header(b"b", b"3") + END)

    assert len(summary.entries) == 2
    assert len(summary.warnings) == 1
