"""From headers to the effective tree of one layer: names cleaned, links resolved, last one wins.

A model in memory; no name ever touches a filesystem. Directories are dictionaries, so replacing a subtree
is one assignment whatever it holds, and nothing recurses.
"""

from __future__ import annotations

from collections.abc import Iterator
from os import makedev
from typing import Final

from lading.objects.tarbase import Member, TarLimits, TarSummary, refused, shown
from lading.values import IMPLIED, PRESENT, WHITEOUT, Entry, Inode

_WHITEOUT: Final = b".wh."
_OPAQUE: Final = b".wh..wh..opq"
_AUFS: Final = b".wh..wh."

#: Symlinks followed while a parent is looked up, as in the kernel.
_HOPS_MAX: Final = 40

#: Steps of one such walk: targets may be as long as paths, and each link may lead through all the others.
_STEPS_MAX: Final = 8192

#: What one region of a sparse map counts in the model's size.
_REGION_SIZE: Final = 128

#: Attributes that are kept in the recipe and never applied.
_NOT_APPLIED: Final = (b"trusted.overlay.", b"user.overlay.", b"system.", b"security.selinux", b"security.ima")

_TYPES: Final = {b"2": "l", b"3": "c", b"4": "b", b"5": "d", b"6": "p"}


class _Node:
    """A name of the tree. Names of one inode share the ``holder``; an implied directory has none.

    A directory that was replaced has no ``children`` any more: whoever remembers it sees so.
    """

    __slots__ = ("children", "holder", "opaque", "whiteouts")

    def __init__(self, holder: list[Inode] | None, children: dict[bytes, _Node] | None = None) -> None:
        self.holder = holder
        self.children = children  # None unless a directory
        self.whiteouts: set[bytes] | None = None
        self.opaque = False


class Tree:
    """The effective tree, built member by member."""

    def __init__(self, limits: TarLimits) -> None:
        self._limits = limits
        self._root = _Node(None, {})
        self._directories: dict[bytes, _Node] = {b"": self._root}  # by cleaned path; see ``_known``
        self._through: dict[bytes, _Node] = {}  # those reached through links, until a link or directory is replaced
        self._aside: dict[bytes, list[Inode]] = {}
        self._count = 0
        self._size = 0
        self._has_removals = False
        self._uids: set[int] = set()
        self._gids: set[int] = set()
        self._warnings: dict[str, str] = {}

    def add(self, member: Member) -> None:
        """Add the next member.

        Raises:
            TarError: it must not be unpacked.
        """
        path = self._clean(member.name, member.name)
        self._account(path, member.name)
        parent_path, _, name = path.rpartition(b"/")
        if _WHITEOUT in path and self._special(member, path, parent_path, name):
            return
        self._uids.add(member.uid)
        self._gids.add(member.gid)
        if not path:
            self._add_root(member)
            return
        parent = self._directory(parent_path, member.name)
        if member.type == b"1":
            self._add_link(member, path, parent, name)
        elif member.type == b"5":
            self._add_directory(member, path, parent, name)
        else:
            self._replace(parent, name, _Node([self._inode(member)]))

    def _account(self, path: bytes, wanted_by: bytes) -> None:
        """Count a name that the model keeps.

        Raises:
            TarError: there are more, or they take more memory, than the limits allow.
        """
        self._count += 1
        if self._count > self._limits.entries_max:
            raise refused(wanted_by, f"the tar has more than {self._limits.entries_max} entries")
        self._account_bytes(len(path), wanted_by)

    def _account_bytes(self, size: int, wanted_by: bytes) -> None:
        self._size += size
        if self._size > self._limits.tree_size_max:
            most = self._limits.tree_size_max
            raise refused(wanted_by, f"the tar's names, link targets and attributes take more than {most} bytes")

    def _clean(self, raw: bytes, wanted_by: bytes) -> bytes:
        """Normalise a name; ``b""`` is the root."""
        if not raw:
            raise refused(wanted_by, "an entry has no name")
        path = raw.rstrip(b"/")
        while path.startswith(b"./"):
            path = path[2:].lstrip(b"/")
        path = path.lstrip(b"/")
        if path.startswith(b".") or b"/." in path or b"//" in path:
            path = self._cleaned_parts(path, wanted_by)
        if len(path) > self._limits.name_size_max:
            self._check_lengths(path, wanted_by)
        return path

    def _cleaned_parts(self, path: bytes, wanted_by: bytes) -> bytes:
        parts: list[bytes] = []
        for part in path.split(b"/"):
            if part == b"..":
                if not parts:
                    raise refused(wanted_by, "the name climbs above the root")
                parts.pop()
            elif part not in (b"", b"."):
                parts.append(part)
        return b"/".join(parts)

    def _check_lengths(self, path: bytes, wanted_by: bytes) -> None:
        if len(path) > self._limits.path_size_max:
            raise refused(wanted_by, f"the name has more than {self._limits.path_size_max} bytes")
        if max(map(len, path.split(b"/"))) > self._limits.name_size_max:
            raise refused(wanted_by, f"a component of the name has more than {self._limits.name_size_max} bytes")

    def _special(self, member: Member, path: bytes, parent_path: bytes, name: bytes) -> bool:
        """Take removals, opaque markers and leftovers of AUFS; False for ordinary names."""
        if name == _OPAQUE:
            self._directory(parent_path, member.name).opaque = True
            return True
        parts = path.split(b"/")
        if any(part.startswith(_AUFS) for part in parts):
            if member.type not in b"15" and member.type:
                self._aside[path] = [self._inode(member)]
            return True
        if any(part.startswith(_WHITEOUT) for part in parts[:-1]):
            raise refused(member.name, "an entry lies below a removal")
        if not name.startswith(_WHITEOUT):
            return False
        gone = name[len(_WHITEOUT) :]
        if gone in (b"", b".", b".."):
            raise refused(member.name, "the removal names nothing that can be removed")
        parent = self._directory(parent_path, member.name)
        if parent.whiteouts is None:
            parent.whiteouts = set()
        self._has_removals = True
        parent.whiteouts.add(gone)
        return True

    def _add_root(self, member: Member) -> None:
        if member.type != b"5":
            raise refused(member.name, "the root can only be a directory")
        self._root.holder = [self._inode(member)]

    def _known(self, path: bytes) -> _Node | None:
        """A directory that was looked up before and is still there."""
        found = self._directories.get(path) or self._through.get(path)
        return found if found is not None and found.children is not None else None

    def _directory(self, path: bytes, wanted_by: bytes) -> _Node:
        """Find a directory, following this layer's own symlinks inside the root; implied ones are made.

        Raises:
            TarError: something on the way is no directory, a link leads nowhere or in a circle.
        """
        found = self._known(path)
        if found is not None:
            return found
        at: list[_Node] = [self._root]
        names: list[bytes] = []
        pending = path.split(b"/")[::-1] if path else []
        hops = steps = 0
        while pending:
            part = pending.pop()
            steps += 1
            if part == b"..":
                if names:
                    at.pop()
                    names.pop()
                continue
            children = at[-1].children
            assert children is not None
            child = children.get(part)
            if child is None:
                if hops:
                    raise refused(wanted_by, f'"{shown(part)}" is reached through a link that leads nowhere')
                self._account(b"/".join([*names, part]), wanted_by)
                child = children[part] = _Node(None, {})
            elif child.children is None:
                inode = child.holder[0] if child.holder else None
                if inode is None or inode.type != "l":
                    raise refused(wanted_by, f'"{shown(b"/".join([*names, part]))}" is not a directory')
                hops += 1
                if hops > _HOPS_MAX or steps > _STEPS_MAX:
                    raise refused(wanted_by, "too many links on the way")
                if inode.target.startswith(b"/"):
                    at, names = [self._root], []
                pending += [step for step in inode.target.split(b"/")[::-1] if step not in (b"", b".")]
                continue
            at.append(child)
            names.append(part)
            if not hops:
                self._directories[b"/".join(names)] = child
        if hops:
            self._through[path] = at[-1]
        return at[-1]

    def _inode(self, member: Member) -> Inode:
        kind = _TYPES.get(member.type, "f")
        kept = len(member.target) + _REGION_SIZE * len(member.sparse)
        kept += sum(len(name) + len(value) for name, value in member.xattrs.items())
        if kept:
            self._account_bytes(kept, member.name)
        if kind == "l" and not member.target:
            raise refused(member.name, "a symlink has no target")
        if len(member.target) > self._limits.path_size_max:
            raise refused(member.name, f"a link target has more than {self._limits.path_size_max} bytes")
        xattrs: tuple[tuple[bytes, bytes], ...] = ()
        if member.xattrs:
            xattrs = tuple(sorted(item for item in member.xattrs.items() if not item[0].startswith(_NOT_APPLIED)))
        if kind == "f":
            return Inode(
                "f",
                member.mode,
                member.uid,
                member.gid,
                member.mtime_ns,
                member.size,
                member.digest,
                b"",
                0,
                xattrs,
                member.sparse,
            )
        rdev = self._device(member) if kind in "cb" else 0
        target = member.target if kind == "l" else b""
        mode = 0o777 if kind == "l" else member.mode
        return Inode(kind, mode, member.uid, member.gid, member.mtime_ns, 0, b"", target, rdev, xattrs)

    def _device(self, member: Member) -> int:
        if not 0 <= member.major < 1 << 12 or not 0 <= member.minor < 1 << 20:
            raise refused(member.name, f"device {member.major}:{member.minor} is out of range")
        if member.type == b"3" and not member.major and not member.minor:
            self._warnings.setdefault("0:0", f'"{shown(member.name)}" is device 0:0, which a mount shows as a removal')
        return makedev(member.major, member.minor)

    def _replace(self, parent: _Node, name: bytes, node: _Node) -> None:
        """Put a node in place of whatever was there."""
        assert parent.children is not None
        old = parent.children.pop(name, None)
        if old is not None:
            if old.children is not None:
                _detach(old)
            if old.holder is None or old.holder[0].type in "dl":
                self._through.clear()
        parent.children[name] = node

    def _add_directory(self, member: Member, path: bytes, parent: _Node, name: bytes) -> None:
        assert parent.children is not None
        holder = [self._inode(member)]
        old = parent.children.get(name)
        if old is not None and old.children is not None:
            old.holder = holder
            return
        self._replace(parent, name, _Node(holder, {}))

    def _add_link(self, member: Member, path: bytes, parent: _Node, name: bytes) -> None:
        """Add a further name of an inode; the header's own owner, mode and times are ignored."""
        target = self._clean(member.target, member.name) if member.target else b""
        holder = self._aside.get(target)
        if holder is None:
            holder = self._linked(member, target, parent, name)
        self._replace(parent, name, _Node(holder))

    def _linked(self, member: Member, target: bytes, parent: _Node, name: bytes) -> list[Inode]:
        directory_path, _, last = target.rpartition(b"/")
        directory = self._existing(directory_path)
        node = directory.children.get(last) if directory is not None and directory.children is not None else None
        aim = shown(member.target)
        if not target or node is None or (node.holder is None and node.children is None):
            raise refused(member.name, f'hard link to "{aim}", which is not in this layer')
        if node.children is not None:
            raise refused(member.name, f'hard link to "{aim}", which is a directory')
        if directory is parent and last == name:
            raise refused(member.name, "hard link to itself")
        assert node.holder is not None
        return node.holder

    def _existing(self, path: bytes) -> _Node | None:
        """Find a directory without making any; behind a link of the layer, the long way, which makes none."""
        found = self._known(path)
        if found is not None:
            return found
        node = self._root
        for part in path.split(b"/"):
            child = node.children.get(part) if node.children is not None else None
            if child is None:
                return None
            if child.children is None:
                return self._directory(path, path) if child.holder and child.holder[0].type == "l" else None
            node = child
        return node

    def summary(self) -> TarSummary:
        """The tree as entries."""
        if self._has_removals:
            self._settle_removals()
        entries = list(self._entries())
        seen: set[int] = set()
        total = 0
        for _, node in self._walk():
            if node is not _GONE and node.children is None and node.holder is not None and id(node.holder) not in seen:
                seen.add(id(node.holder))
                total += node.holder[0].size + len(node.holder[0].target)
        return TarSummary(
            entries, tuple(sorted(self._uids)), tuple(sorted(self._gids)), tuple(self._warnings.values()), total
        )

    def _settle_removals(self) -> None:
        """Decide what removals of a name mean that is there as well.

        What the layer holds stays; a directory then hides all lower ones. One that is only there because
        something below it was removed goes with its name.
        """
        order: list[tuple[_Node, _Node, bytes]] = []  # directory, the one that it is in, its name
        pending = [self._root]
        while pending:
            node = pending.pop()
            assert node.children is not None
            for name, child in node.children.items():
                if child.children is not None:
                    order.append((child, node, name))
                    pending.append(child)
        hollow: set[int] = set()
        for node, parent, name in reversed(order):
            assert node.children is not None
            assert parent.children is not None
            is_hollow = node.holder is None and all(id(child) in hollow for child in node.children.values())
            if is_hollow:
                hollow.add(id(node))
            if parent.whiteouts and name in parent.whiteouts:
                if is_hollow:
                    del parent.children[name]
                else:
                    node.opaque = True

    def _entries(self) -> Iterator[Entry]:
        root = self._root
        if root.holder is not None or root.opaque:
            yield Entry(b"", PRESENT if root.holder else IMPLIED, root.holder[0] if root.holder else None, root.opaque)
        first_names: dict[int, bytes] = {}
        for path, node in self._walk():
            if node is _GONE:
                yield Entry(path, WHITEOUT)
            elif node.children is not None:
                inode = node.holder[0] if node.holder is not None else None
                yield Entry(path, IMPLIED if inode is None else PRESENT, inode, node.opaque)
            else:
                assert node.holder is not None
                first = first_names.setdefault(id(node.holder), path)
                yield Entry(path, PRESENT, node.holder[0], False, None if first is path else first)

    def _walk(self) -> Iterator[tuple[bytes, _Node]]:
        """All nodes below the root, sorted; removals as ``_GONE``."""
        pending: list[Iterator[tuple[bytes, _Node]]] = [_listed(self._root, b"")]
        while pending:
            item = next(pending[-1], None)
            if item is None:
                pending.pop()
                continue
            yield item
            if item[1].children is not None:
                pending.append(_listed(item[1], item[0] + b"/"))


#: Stands for a removed name.
_GONE: Final = _Node([])


def _detach(top: _Node) -> None:
    """Take a replaced directory apart, so that nobody who remembers part of it takes it for one."""
    pending = [top]
    while pending:
        node = pending.pop()
        if node.children is not None:
            pending += node.children.values()
            node.children = None


def _listed(directory: _Node, prefix: bytes) -> Iterator[tuple[bytes, _Node]]:
    """A directory's names, sorted, removals among them."""
    children = directory.children
    assert children is not None
    gone = directory.whiteouts
    for name in sorted(children.keys() | gone if gone else children):
        yield prefix + name, children.get(name, _GONE)
