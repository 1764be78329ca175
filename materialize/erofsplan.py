"""Planning an EROFS image: every inode and every block gets its place before the first content is read."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from lading.errors import InvalidInput, Unsupported
from lading.materialize import erofsformat as form
from lading.materialize.beneath import split
from lading.materialize.build import BARE_DIRECTORY
from lading.materialize.whiteout import MAY_HIDE, Xattrs, layer_xattrs, own_prefix
from lading.values import PRESENT, WHITEOUT, Entry, Inode, printable

#: Bytes of inodes that are placed, and later written, together.
WINDOW_SIZE: Final = 1 << 20
#: Contents that occur again and are larger than this lie in blocks of their own, which all their files share.
SHARED_MIN: Final = form.BLOCK // 2
#: Chunks of one sparse file; larger files have larger chunks.
CHUNKS_MAX: Final = 1 << 18

#: Absolute path of a file's content in a data-only lowerdir.
Redirect = Callable[[Inode], bytes]

_WHITEOUT: Final = Inode("c", 0, 0, 0, 0)
_REDIRECT: Final = own_prefix(False) + b"redirect"
_METACOPY: Final = own_prefix(False) + b"metacopy"
_OPAQUE: Final = ((own_prefix(False) + b"opaque", b"y"),)
_MAY_HIDE: Final = (own_prefix(False) + MAY_HIDE, b"")


class Node:
    """One inode of the image, on its way to a place."""

    __slots__ = (
        "block", "body", "children", "head", "inode", "layout", "named", "nid", "nlink", "path", "size", "table", "xattrs",
    )  # fmt: skip

    def __init__(self, path: bytes, inode: Inode) -> None:
        self.path = path
        self.inode = inode
        self.nlink = 1
        self.named = False  #: its first name was seen
        self.size = inode.size if inode.type == "f" else len(inode.target)
        self.xattrs: Xattrs = inode.xattrs
        self.layout = form.FLAT_PLAIN
        self.head = 0  #: bytes of inode and attributes
        self.body = 0  #: blocks outside the inode's own
        self.block = 0  #: the first of these
        self.nid = 0
        self.children: list[tuple[bytes, Node]] | None = None
        self.table: Chunks | None = None


class Chunks:
    """A sparse file's chunks: which of them hold something."""

    def __init__(self, inode: Inode) -> None:
        self.bits = form.chunk_bits(inode.size, CHUNKS_MAX if inode.sparse else 1)
        self.size = form.BLOCK << self.bits
        self.count = -(-inode.size // self.size)
        self.used: dict[int, int] = {}  # chunk to block, counted from the file's first
        self.blocks = 0
        total = form.blocks_of(inode.size)
        for offset, length in inode.sparse:
            for chunk in range(offset // self.size, -(-(offset + length) // self.size)):
                if chunk not in self.used:
                    self.used[chunk] = self.blocks
                    self.blocks += min(1 << self.bits, total - (chunk << self.bits))

    def map(self, first: int) -> bytes:
        """The table behind the inode."""
        found = [form.NO_BLOCK] * self.count
        for chunk, block in self.used.items():
            found[chunk] = first + block
        return struct.pack(f"<{self.count}I", *found)

    def pieces(self, inode: Inode) -> Iterator[tuple[int, int]]:
        """Where the stored bytes go: offset from the file's first block, and length."""
        for offset, length in inode.sparse:
            while length:
                chunk, inside = divmod(offset, self.size)
                part = min(length, self.size - inside)
                yield self.used[chunk] * form.BLOCK + inside, part
                offset, length = offset + part, length - part


class Plan:
    """Where everything goes."""

    def __init__(self, entries: Sequence[Entry], redirect: Redirect | None = None) -> None:
        """Lay out the image of some entries; see ``erofs.write_image``."""
        self._redirect = redirect
        self.warnings: dict[str, str] = {}
        self.files = 0
        self.bytes = 0
        self.nodes: list[Node] = []
        self.folders: dict[bytes, Node] = {}
        self.windows: list[tuple[list[Node], int, int]] = []  # nodes, first block, blocks
        self.shared_data: dict[bytes, int] = {}  # digest to first block
        self._collect(entries)
        self.time_ns = _most_common([node.inode.mtime_ns for node in self.nodes])
        self._share_attributes()
        self._measure()
        block = self._place_directories(self._place_inodes(1))
        self.xattr_block = block
        self.data_block = block + form.blocks_of(len(self.shared_area))
        self.blocks = self._place_data(self.data_block)
        if self.blocks > form.NO_BLOCK:
            raise Unsupported("an EROFS image holds at most 16 TiB")

    def _collect(self, entries: Sequence[Entry]) -> None:
        """Make nodes of entries: one for each inode, names in their directories."""
        by_path: dict[bytes, Node] = {}
        folders = self.folders
        if not entries or entries[0].path:
            entries = [Entry(b"", PRESENT, BARE_DIRECTORY), *entries]
        for entry in entries:
            path, link = entry.path, entry.link
            first = path if link is None else link
            node = by_path.get(first)
            if node is None:  # also where the first name is still to come
                node = by_path[first] = self._node(entry, path)
                if node.children is not None:
                    folders[path] = node
            else:
                node.nlink += 1
            if link is None:
                node.named = True
            if node.inode.type == "f":
                self.files += 1
            if path:
                parent, name = split(path)
                folder = folders.get(parent)
                if folder is None or folder.children is None:
                    raise InvalidInput(f"{printable(path)} lies in no directory of its tree")
                folder.children.append((name, node))
                if entry.kind == WHITEOUT and _MAY_HIDE not in folder.xattrs:
                    folder.xattrs = (*folder.xattrs, _MAY_HIDE)
                if node.children is not None:
                    folder.nlink += 1
        for first, node in by_path.items():
            if not node.named:
                what = f"{printable(node.path)} is a further name of {printable(first)}"
                raise InvalidInput(f"{what}, which is not there")

    def _node(self, entry: Entry, path: bytes) -> Node:
        inode = entry.inode
        if entry.kind == WHITEOUT:
            inode = _WHITEOUT
        elif inode is None:
            inode = BARE_DIRECTORY
        node = Node(path, inode)
        self.nodes.append(node)
        if inode.xattrs or entry.opaque:
            node.xattrs = layer_xattrs(inode.xattrs, userxattr=False) + (_OPAQUE if entry.opaque else ())
        if inode.type == "d":
            node.children = []
            node.nlink = 2
        elif inode.type == "f":
            self.bytes += inode.size
            if self._redirect is not None and inode.size:
                found = layer_xattrs(inode.xattrs, userxattr=False)
                node.xattrs = (*found, (_REDIRECT, self._redirect(inode)), (_METACOPY, b""))
                node.inode = inode._replace(digest=b"", sparse=())  # a hole of the file's size
        return node

    def _share_attributes(self) -> None:
        """Encode attributes; those of several inodes, and those that fit nowhere else, lie in the shared area."""
        sets = Counter(node.xattrs for node in self.nodes if node.xattrs)
        counts: Counter[tuple[bytes, bytes]] = Counter()
        for xattrs, count in sets.items():
            counts.update(dict.fromkeys(xattrs, count))
        self._areas: dict[Xattrs, bytes] = {(): b""}
        area = bytearray()
        places: dict[tuple[bytes, bytes], int] = {}
        for xattrs in sets:
            shared: list[int] = []
            inline: list[bytes] = []
            size = 0
            for pair in xattrs:
                data = form.xattr_entry(*pair)
                if data is None:
                    self.warnings["xattr"] = "extended attributes that an EROFS image cannot hold are left out"
                elif (counts[pair] > 1 or size + len(data) > form.BLOCK // 2) and len(shared) < form.XATTR_SHARED_MAX:
                    if pair not in places:
                        places[pair] = len(area) // 4
                        area += data
                    shared.append(places[pair])
                elif size + len(data) <= form.XATTR_AREA_MAX - 4 * form.XATTR_SHARED_MAX:
                    inline.append(data)
                    size += len(data)
                else:
                    self.warnings["xattrs"] = (
                        "files with more extended attributes than an EROFS image can hold lose some"
                    )
            self._areas[xattrs] = form.xattr_area(shared, inline)
        self.shared_area = bytes(area)

    def attributes(self, node: Node) -> bytes:
        """What lies behind a node's inode."""
        return self._areas[node.xattrs]

    def _measure(self) -> None:
        """Decide how each node's data lies."""
        digests = Counter(
            node.inode.digest for node in self.nodes if node.inode.size > SHARED_MIN and not node.inode.sparse
        )
        sizes = {xattrs: len(area) for xattrs, area in self._areas.items()}
        for node in self.nodes:
            inode = node.inode
            compact = (
                inode.mtime_ns == self.time_ns and inode.uid < 1 << 16 and inode.gid < 1 << 16
                and inode.size < 1 << 32 and node.nlink < 1 << 16
            )  # fmt: skip
            node.head = (form.COMPACT_SIZE if compact else form.EXTENDED_SIZE) + sizes[node.xattrs]
            if node.children is not None:
                node.size = form.directory_size(form.with_dots([name for name, _ in node.children]))
            size = node.size
            if inode.type == "f" and size and (inode.sparse or not inode.digest):
                node.layout = form.CHUNK_BASED
                node.table = Chunks(inode)
                node.body = node.table.blocks
            elif inode.type == "f" and digests[inode.digest] > 1:
                node.body = form.blocks_of(size)
            else:
                full, tail = divmod(size, form.BLOCK)
                if tail and node.head + tail <= form.BLOCK:
                    node.layout = form.FLAT_INLINE
                elif tail:
                    full += 1
                node.body = full

    def _place_inodes(self, first: int) -> int:
        """Give every node its slot; returns the block behind the last."""
        group: list[Node] = []
        size = 0
        block = first  # numbers count from the image's begin, so that none is 0: readers of directories skip that
        for node in self.nodes:
            need = _slots(node) * form.SLOT
            if group and size + need > WINDOW_SIZE:
                block = self._close_window(group, block)
                group, size = [], 0
            group.append(node)
            size += need
        return self._close_window(group, block)

    def _close_window(self, group: list[Node], block: int) -> int:
        count = _pack(group, block * form.SLOTS)
        self.windows.append((group, block, count))
        return block + count

    def _place_directories(self, block: int) -> int:
        """Place what is metadata and does not fit behind an inode: directories and long link targets."""
        self.outside = [node for node in self.nodes if node.body and node.inode.type in "dl"]
        for node in self.outside:
            node.block = block
            block += node.body
        return block

    def _place_data(self, block: int) -> int:
        for node in self.nodes:
            inode = node.inode
            if inode.type != "f" or not node.body:
                continue
            if node.layout == form.FLAT_PLAIN and inode.digest in self.shared_data:
                node.block = self.shared_data[inode.digest]
                node.body = 0  # written with the first of these files
                continue
            if node.layout == form.FLAT_PLAIN:
                self.shared_data[inode.digest] = block
            node.block = block
            block += node.body
        return block


def _slots(node: Node) -> int:
    size = node.head
    if node.table is not None:
        size += 4 * node.table.count
    elif node.layout == form.FLAT_INLINE:
        size += node.size % form.BLOCK
    return -(-size // form.SLOT)


def _most_common(times: Sequence[int]) -> int:
    counts = Counter(times)
    return max(counts, key=lambda time: (counts[time], time))


def _pack(group: Sequence[Node], start: int) -> int:
    """Place nodes into blocks, the largest first, each where it leaves least; returns how many blocks it took.

    Args:
        group: the nodes; each gets its ``nid``.
        start: slot of the first block.
    """
    rooms: list[list[int]] = [[] for _ in range(form.SLOTS + 1)]  # free slots to the slots where they begin
    filled = 0  # bit n: some block has n free slots
    blocks = 0
    # The root goes first: its number has 16 bits.
    for need, node in sorted(((_slots(node), node) for node in group), key=lambda item: (bool(item[1].path), -item[0])):
        if need > form.SLOTS:
            node.nid = start + blocks * form.SLOTS
            blocks += -(-need // form.SLOTS)
            continue
        fitting = filled >> need
        if fitting:
            free = need + (fitting & -fitting).bit_length() - 1
            node.nid = rooms[free].pop()
            if not rooms[free]:
                filled &= ~(1 << free)
        else:
            free = form.SLOTS
            node.nid = start + blocks * form.SLOTS
            blocks += 1
        if free > need:
            rooms[free - need].append(node.nid + need)
            filled |= 1 << (free - need)
    return blocks


def is_read(node: Node) -> bool:
    """Whether a content is read for a node: not if its blocks are another file's."""
    if node.inode.type != "f" or not node.inode.digest:
        return False
    return bool(node.body) or node.layout == form.FLAT_INLINE
