"""EROFS images of layer contents, written straight from objects in one sequential pass.

An image is planned first: sizes are known, so that every inode and every block has its place before the first
content is read. What lies where, in blocks of 4096 bytes:

    superblock · inodes, with the ends of their files · directories · shared attributes · data

Everything before the data is the *metadata*. Inodes are placed window by window in the order of the entries,
the largest of a window first, each where it leaves the least room: nearly no gaps, and neighbours in the tree stay
neighbours in the image. Contents are read in the order of the entries. Metadata and data are two streams into the
file, both forwards only. The same entries always give the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final

from blake3 import blake3

from lading.errors import Corrupt
from lading.materialize import erofsformat as form
from lading.materialize.beneath import split
from lading.materialize.erofsplan import Chunks, Node, Plan, Redirect, is_read
from lading.values import ContentSource, Entry, printable

#: Bytes that are gathered before they are written.
BUFFER_SIZE: Final = 1 << 20
READ_SIZE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """An image that was written."""

    size: int  #: bytes of the file
    meta_size: int  #: bytes before the data
    meta_digest: bytes  #: BLAKE3 of these
    entries: int
    files: int  #: names of regular files
    bytes: int  #: their sizes, each inode counted once
    warnings: tuple[str, ...] = ()  #: what the format cannot hold, one sentence a kind


def write_image(
    descriptor: int, entries: Sequence[Entry], source: ContentSource, *, redirect: Redirect | None = None
) -> ImageInfo:
    """Write the image of one content, or of a full tree.

    Args:
        descriptor: of a new, empty file.
        entries: sorted by ``component_key``; implied directories have been given their inherited attributes,
            those left are 0755, 0:0, time 0.
        source: where contents come from.
        redirect: for an image without contents: tells where overlay finds a file's in a data-only lowerdir.

    Returns:
        What is needed to check the image later. Nothing is synced.

    Raises:
        Corrupt: a content is missing, damaged or not of its recorded size.
        InvalidInput: entries that make no tree.
        Unsupported: more than the format can address (16 TiB, 2**32 inodes).
    """
    plan = Plan(entries, redirect)
    _Writer(descriptor, plan).write(source)
    return ImageInfo(
        plan.blocks * form.BLOCK, plan.data_block * form.BLOCK, meta_digest(descriptor, plan.data_block * form.BLOCK),
        len(entries), plan.files, plan.bytes, tuple(plan.warnings.values()),
    )  # fmt: skip


def meta_digest(descriptor: int, size: int) -> bytes:
    """Digest of an image's first bytes."""
    state = blake3()
    position = 0
    while position < size and (chunk := os.pread(descriptor, min(READ_SIZE, size - position), position)):
        state.update(chunk)
        position += len(chunk)
    return state.digest()


class _Writer:
    """Puts a planned image into a file."""

    def __init__(self, descriptor: int, plan: Plan) -> None:
        self._fd = descriptor
        self._plan = plan
        self._numbers = {id(node): number for number, node in enumerate(plan.nodes, 1)}

    def write(self, source: ContentSource) -> None:
        plan = self._plan
        os.ftruncate(self._fd, plan.blocks * form.BLOCK)
        root = plan.nodes[0].nid
        features = form.CHUNKED_FILE if any(node.table is not None for node in plan.nodes) else 0
        head = form.superblock(
            root=root, inodes=len(plan.nodes), time_ns=plan.time_ns, blocks=plan.blocks, meta_block=0,
            xattr_block=plan.xattr_block, incompatible=features,
        )  # fmt: skip
        _write_at(self._fd, head, 0)
        _write_at(self._fd, plan.shared_area, plan.xattr_block * form.BLOCK)
        for node in plan.outside:
            full = node.body * form.BLOCK
            _write_at(self._fd, self._own_data(node)[:full], node.block * form.BLOCK)
        wanted = [node for node in plan.nodes if is_read(node)]
        contents = iter(source.contents(node.inode.digest for node in wanted))
        with open(os.dup(self._fd), "wb", buffering=BUFFER_SIZE) as data:
            data.seek(plan.data_block * form.BLOCK)
            for group, block, count in plan.windows:
                self._write_window(group, block, count, contents, data)

    def _write_window(
        self,
        group: Sequence[Node],
        block: int,
        count: int,
        contents: Iterator[Iterator[bytes]],
        data: BinaryIO,
    ) -> None:
        window = bytearray(count * form.BLOCK)
        start = block * form.SLOTS
        for node in group:
            offset = (node.nid - start) * form.SLOT
            head = self._inode(node) + self._plan.attributes(node)
            if node.table is not None:
                head += node.table.map(node.block)
                if is_read(node):
                    self._copy_chunks(node, node.table, next(contents), data)
            elif is_read(node):
                head += self._copy(node, next(contents), data)
            elif node.layout == form.FLAT_INLINE:
                head += self._own_data(node)[node.body * form.BLOCK :]
            window[offset : offset + len(head)] = head
        _write_at(self._fd, bytes(window), block * form.BLOCK)

    def _inode(self, node: Node) -> bytes:
        inode = node.inode
        if node.table is not None:
            data = node.table.bits
        elif inode.type in "cb":
            data = form.device_number(inode.rdev)
        else:
            data = node.block
        xattrs = len(self._plan.attributes(node))
        mode = form.mode_of(inode.type, inode.mode)
        number = self._numbers[id(node)]
        if node.head - xattrs == form.COMPACT_SIZE:
            return form.compact_inode(
                node.layout, xattrs, mode, node.nlink, node.size, data, number, inode.uid, inode.gid
            )
        return form.extended_inode(
            node.layout, xattrs, mode, node.nlink, node.size, data, number, inode.uid, inode.gid, inode.mtime_ns
        )

    def _own_data(self, node: Node) -> bytes:
        """The data of a directory or a link."""
        if node.children is None:
            return node.inode.target
        parent = self._plan_parent(node)
        kinds = [(name, child.nid, form.file_type(child.inode.type)) for name, child in node.children]
        kinds += [(b".", node.nid, form.file_type("d")), (b"..", parent.nid, form.file_type("d"))]
        return form.directory(sorted(kinds))

    def _plan_parent(self, node: Node) -> Node:
        return self._plan.folders[split(node.path)[0]] if node.path else node

    def _copy(self, node: Node, chunks: Iterator[bytes], data: BinaryIO) -> bytes:
        """Write a file's blocks; returns what of it lies behind the inode."""
        size = node.inode.size
        outside = size if node.layout == form.FLAT_PLAIN else size - size % form.BLOCK
        written = 0
        tail = b""
        for chunk in chunks:
            left = outside - written
            if left >= len(chunk):
                data.write(chunk)
            else:
                data.write(memoryview(chunk)[:left])
                tail += chunk[max(left, 0) :]
            written += len(chunk)
        _check_size(node, written, size)
        if node.layout == form.FLAT_PLAIN:
            data.write(bytes(-size % form.BLOCK))
        return tail

    def _copy_chunks(self, node: Node, table: Chunks, chunks: Iterator[bytes], data: BinaryIO) -> None:
        first = node.block * form.BLOCK
        pieces = table.pieces(node.inode)
        offset = left = written = 0
        for chunk in chunks:
            view = memoryview(chunk)
            written += len(view)
            while view:
                if not left:
                    offset, left = next(pieces, (0, 0))
                    if not left:
                        _check_size(node, written, -1)
                    data.seek(first + offset)
                part = view[:left]
                data.write(part)
                view, left = view[len(part) :], left - len(part)
        _check_size(node, written, sum(length for _, length in node.inode.sparse))
        data.seek(first + node.body * form.BLOCK)


def _check_size(node: Node, found: int, recorded: int) -> None:
    if found != recorded:
        word = "shorter" if 0 <= found < recorded else "longer"
        raise Corrupt(f"{printable(node.path)}: its content is {word} than recorded")


def _write_at(descriptor: int, data: bytes, position: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, position)
        view, position = view[count:], position + count


def damaged_files(descriptor: int, entries: Sequence[Entry]) -> list[bytes]:
    """Compare every content in an image with its digest.

    Args:
        descriptor: of an image whose metadata is sound.
        entries: what it was written from.

    Returns:
        Paths of files whose bytes are not what they should be, the first name of each.
    """
    plan = Plan(entries)
    damaged = []
    for node in plan.nodes:
        if not is_read(node):
            continue
        state = blake3()
        for offset, length in _extents(node):
            end = offset + length
            while offset < end and (chunk := os.pread(descriptor, min(READ_SIZE, end - offset), offset)):
                state.update(chunk)
                offset += len(chunk)
        if state.digest() != node.inode.digest:
            damaged.append(node.path)
    return damaged


def _extents(node: Node) -> list[tuple[int, int]]:
    """Where in the image a file's stored bytes lie."""
    first = node.block * form.BLOCK
    if node.table is not None:
        return [(first + offset, length) for offset, length in node.table.pieces(node.inode)]
    if node.layout == form.FLAT_PLAIN:
        return [(first, node.size)]
    tail = node.size % form.BLOCK
    behind = node.nid * form.SLOT + node.head
    return [(first, node.size - tail), (behind, tail)]
