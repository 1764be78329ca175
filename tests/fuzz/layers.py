"""Targets about layer tars: raw bytes, and trees made of hostile names."""

from __future__ import annotations

import hashlib
import io
import os

from blake3 import blake3

from lading.errors import InvalidInput, Unsupported
from lading.materialize.erofs import damaged_files, write_image
from lading.materialize.listing import listing, read_listing
from lading.objects.recipe import Literal, RecipeEncoder, read_recipe
from lading.objects.tar import _members, ingest_tar
from lading.objects.tarbase import Source, TarError, TarLimits, TarSummary
from lading.values import IMPLIED, PRESENT, WHITEOUT, Entry, Inode, component_key
from tests import tarmake
from tests.fuzz.draw import Draw, check_message
from tests.fuzz.oracle import Oracle, RefusedByModel
from tests.materialize.conftest import MemorySource

#: Small bounds, so that reaching them is cheap.
LIMITS = TarLimits(
    entries_max=5000, size_max=1 << 32, extension_size_max=64 << 10, extensions_max=8, sparse_regions_max=256
)

#: Stored bytes up to which an accepted layer is written as an image, too.
IMAGE_SIZE_MAX = 1 << 20


class Sink:
    """Takes a tar apart into a recipe and contents, in memory."""

    def __init__(self) -> None:
        self.recipe: list[bytes] = []
        self.encoder = RecipeEncoder(self.recipe.append)
        self.literal = self.encoder.literal
        self.source = MemorySource()

    def put(self, data: bytes) -> bytes:
        digest = blake3(data).digest()
        self.source.blobs[digest] = data
        self.encoder.reference(digest, len(data))
        return digest

    def stream(self, chunks: object, size: int) -> bytes:
        data = b"".join(chunks)  # type: ignore[arg-type]
        assert len(data) == size
        return self.put(data)


def run_tar(data: bytes) -> None:
    """Any bytes: refused by one line, or taken apart without losing one byte, into a tree that is one."""
    whole = _ingested(data, 1 << 20)
    parts = _ingested(data, 61)
    assert isinstance(whole, str) == isinstance(parts, str)
    if isinstance(whole, str) or isinstance(parts, str):
        assert whole == parts
        return
    summary, sink = whole
    assert summary == parts[0]
    check_replay(data, sink)
    check_tree(summary.entries)
    check_image(summary.entries, sink.source)


def _ingested(data: bytes, step: int) -> str | tuple[TarSummary, Sink]:
    stream, sink = io.BytesIO(data), Sink()
    try:
        summary = ingest_tar(lambda size: stream.read(min(size, step)), sink, LIMITS)
    except InvalidInput as error:
        check_message(error)
        return str(error)
    return summary, sink


def check_replay(data: bytes, sink: Sink) -> None:
    """Literals and contents are the stream."""
    sink.encoder.finish(len(data), hashlib.sha256(data).hexdigest())
    parts = []
    for part in read_recipe(sink.recipe):
        if isinstance(part, Literal):
            parts.append(part.data)
        else:
            parts.append(sink.source.blobs[part.digest])
            assert len(parts[-1]) == part.size
    assert b"".join(parts) == data


def check_tree(entries: list[Entry]) -> None:
    """What every list of entries must be, whatever it was made from."""
    by_path = {entry.path: entry for entry in entries}
    assert len(by_path) == len(entries)
    assert entries == sorted(entries, key=lambda entry: component_key(entry.path))
    for entry in entries:
        parts = entry.path.split(b"/") if entry.path else []
        assert not {b"", b".", b".."} & set(parts), entry.path
        assert b"\0" not in entry.path
        assert len(entry.path) <= LIMITS.path_size_max
        assert all(len(part) <= LIMITS.name_size_max for part in parts)
        parent = by_path.get(b"/".join(parts[:-1]))
        assert parent is not None or len(parts) <= 1, entry.path
        assert parent is None or parent.kind == IMPLIED or (parent.inode is not None and parent.inode.type == "d")
        _check_entry(entry, by_path)
    assert list(read_listing(listing(entries))) == entries


def _check_entry(entry: Entry, by_path: dict[bytes, Entry]) -> None:
    inode = entry.inode
    if entry.kind in (WHITEOUT, IMPLIED):
        assert inode is None
        assert entry.link is None
        assert not entry.opaque or entry.kind == IMPLIED
        return
    assert entry.kind == PRESENT
    assert inode is not None
    assert not entry.opaque or inode.type == "d"
    if entry.link is not None:
        first = by_path[entry.link]
        assert first.link is None
        assert first.inode == inode
        assert inode.type != "d"
        assert component_key(entry.link) < component_key(entry.path)
    _check_inode(inode)


def _check_inode(inode: Inode) -> None:
    assert inode.type in "fdlcbp"
    assert 0 <= inode.mode <= 0o7777
    assert 0 <= inode.uid <= (1 << 32) - 2
    assert 0 <= inode.gid <= (1 << 32) - 2
    assert abs(inode.mtime_ns) < 1 << 63
    assert 0 <= inode.size <= LIMITS.size_max
    assert (inode.type == "l") == bool(inode.target)
    assert len(inode.target) <= LIMITS.path_size_max
    assert b"\0" not in inode.target
    assert list(inode.xattrs) == sorted(dict(inode.xattrs).items())
    for name, _ in inode.xattrs:
        assert name.startswith((b"user.", b"trusted.", b"security."))
        assert not name.startswith((b"user.overlay.", b"trusted.overlay."))
    end = 0
    for offset, length in inode.sparse:
        assert offset >= end
        assert length > 0
        end = offset + length
    assert end <= inode.size


def check_image(entries: list[Entry], source: MemorySource) -> None:
    """Whatever a layer was accepted with can be shown."""
    if (
        sum(entry.inode.size for entry in entries if entry.inode is not None and not entry.inode.sparse)
        > IMAGE_SIZE_MAX
    ):
        return
    descriptor = os.memfd_create("image")
    try:
        write_image(descriptor, entries, source)
        assert damaged_files(descriptor, entries) == []
    except Unsupported as error:
        check_message(error)
    finally:
        os.close(descriptor)


def repair_checksums(data: bytes) -> bytes:
    """Give every header of a tar its checksum, so that a mutation reaches what lies behind the comparison."""
    out = bytearray(data)
    position = 0
    while position + 512 <= len(out):
        block = bytes(out[position : position + 512])
        if any(block):
            out[position : position + 512] = tarmake.checksummed(block)
        try:
            size = int(block[124:136].partition(b"\0")[0].strip() or b"0", 8)
        except ValueError:
            size = 0
        if block[156:157] in b"123456" and block[156:157]:
            size = 0
        position += 512 + (size + 511) // 512 * 512 if 0 <= size <= len(out) else 512
    return bytes(out)


_PARTS = (
    b"a", b"b", b"c", b"d", b"e", b"..", b".", b"", b".wh.a", b".wh.b", b".wh..wh..opq", b".wh..wh.plnk", b".wh.", b".wh..",
    b"\xff\xfe", b"n\nl",
)  # fmt: skip


def _path(draw: Draw) -> bytes:
    # Mostly plain names, so that trees grow before something refuses them.
    names = [draw.pick(_PARTS if draw.chance(8) else _PARTS[:5]) for _ in range(1 + draw.below(4))]
    path = b"/".join(names)
    return b"/" + path if draw.chance(8) else path


def layer_of(draw: Draw) -> bytes:
    """A tar of up to 64 members with names that meet each other."""
    members: list[bytes] = []
    while draw.more and len(members) < 64:
        name, kind = _path(draw), draw.below(9)
        match kind:
            case 0 | 1:
                members.append(tarmake.file(name, draw.some(3), uid=b"%07o" % draw.byte()))
            case 2:
                members.append(tarmake.directory(name + b"/", gid=b"%07o" % draw.byte()))
            case 3:
                target = _path(draw)
                members.append(tarmake.symlink(name, b"../" * draw.below(4) + target))
            case 4:
                members.append(tarmake.link(name, _path(draw)))
            case 5:
                members.append(tarmake.file(name.rpartition(b"/")[0] + b"/.wh." + draw.pick(_PARTS[:5])))
            case 6:
                members.append(tarmake.file((name + b"/.wh..wh..opq").lstrip(b"/")))
            case 7:
                members.append(
                    tarmake.header(name, draw.pick((b"3", b"4", b"6")), device=(draw.below(3), draw.below(3)))
                )
            case _:
                members.append(tarmake.long_name(name + b"/" + b"x" * draw.below(300)) + tarmake.file(b"short", b"1"))
    return b"".join(members) + tarmake.END


def run_tree(data: bytes) -> None:
    """Trees of hostile names: as a plain model without caches says, refusals included."""
    tar = layer_of(Draw(data))
    found = _ingested(tar, 1 << 20)
    oracle = Oracle()
    try:
        for member in _members(Source(io.BytesIO(tar).read, LIMITS.size_max), Sink(), LIMITS):
            oracle.add(member)
        wanted = oracle.entries()
    except (TarError, RefusedByModel):
        assert isinstance(found, str), "accepted what the model refuses"
        return
    assert not isinstance(found, str), f"refused what the model accepts: {found}"
    summary, sink = found
    assert summary.entries == wanted
    check_replay(tar, sink)
    check_tree(summary.entries)
    check_image(summary.entries, sink.source)
