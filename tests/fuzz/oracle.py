"""The effective tree of a layer once more, by the plainest means: no caches, every look-up from the root."""

from __future__ import annotations

import os

from lading.objects.tarbase import Member
from lading.values import IMPLIED, PRESENT, WHITEOUT, Entry, Inode, component_key

_KINDS = {b"1": "", b"2": "l", b"3": "c", b"4": "b", b"5": "d", b"6": "p"}


class RefusedByModel(Exception):
    """The layer must not be unpacked."""


class _Name:
    """What a name stands for: a directory, or one of the names of an inode."""

    def __init__(self, inode: Inode | None, *, folder: bool) -> None:
        self.inode = inode
        self.names: dict[bytes, _Name] | None = {} if folder else None
        self.removed: set[bytes] = set()
        self.opaque = False
        self.shared: list[Inode] = [] if inode is None or folder else [inode]

    def holds_something(self) -> bool:
        """Whether it is more than the way to some removals."""
        if self.names is None or self.inode is not None:
            return True
        return any(child.holds_something() for child in self.names.values())


class Oracle:
    """Takes members, gives entries."""

    def __init__(self) -> None:
        self.root = _Name(None, folder=True)
        self.aside: dict[bytes, list[Inode]] = {}

    def add(self, member: Member) -> None:
        """Add the next member, as docs/tar.md says."""
        parts = _cleaned(member.name)
        if any(part.startswith(b".wh.") for part in parts) and self._marker(member, parts):
            return
        if not parts:
            if member.type != b"5":
                raise RefusedByModel("root")
            self.root.inode = _inode(member)
            return
        folder, name = self._folder(parts[:-1], make=True), parts[-1]
        assert folder is not None
        assert folder.names is not None
        old = folder.names.get(name)
        if member.type == b"1":
            shared = self._target(member, folder, name)
            new = _Name(None, folder=False)
            new.shared = shared
        elif member.type == b"5":
            if old is not None and old.names is not None:
                old.inode = _inode(member)
                return
            new = _Name(_inode(member), folder=True)
        else:
            new = _Name(_inode(member), folder=False)
        folder.names[name] = new

    def _marker(self, member: Member, parts: list[bytes]) -> bool:
        name = parts[-1]
        if name == b".wh..wh..opq":
            folder = self._folder(parts[:-1], make=True)
            assert folder is not None
            folder.opaque = True
            return True
        if any(part.startswith(b".wh..wh.") for part in parts):
            if member.type not in (b"1", b"5"):
                self.aside[b"/".join(parts)] = [_inode(member)]
            return True
        if any(part.startswith(b".wh.") for part in parts[:-1]) or name in (b".wh.", b".wh..", b".wh..."):
            raise RefusedByModel("removal")
        if not name.startswith(b".wh."):
            return False
        folder = self._folder(parts[:-1], make=True)
        assert folder is not None
        folder.removed.add(name[4:])
        return True

    def _folder(self, parts: list[bytes], *, make: bool) -> _Name | None:
        """Walk down; links of this layer lead on inside the root."""
        way: list[_Name] = [self.root]
        todo, hops = list(parts), 0
        while todo:
            part = todo.pop(0)
            if part == b"..":
                if len(way) > 1:
                    way.pop()
                continue
            names = way[-1].names
            assert names is not None
            found = names.get(part)
            if found is None:
                if hops and make:
                    raise RefusedByModel("nowhere")
                if hops or not make:
                    return None
                found = names[part] = _Name(None, folder=True)
            if found.names is None:
                inode = found.shared[0]
                hops += 1
                if inode.type != "l" or hops > 40:
                    if make:
                        raise RefusedByModel("no way")
                    return None
                if inode.target.startswith(b"/"):
                    way = [self.root]
                todo = [step for step in inode.target.split(b"/") if step not in (b"", b".")] + todo
                continue
            way.append(found)
        return way[-1]

    def _target(self, member: Member, folder: _Name, name: bytes) -> list[Inode]:
        if not member.target:
            raise RefusedByModel("no target")
        parts = _cleaned(member.target)
        aside = self.aside.get(b"/".join(parts))
        if aside is not None:
            return aside
        if not parts:
            raise RefusedByModel("root")
        holder = self._folder(parts[:-1], make=False)
        found = holder.names.get(parts[-1]) if holder is not None and holder.names is not None else None
        if found is None or found.names is not None or (holder is folder and parts[-1] == name):
            raise RefusedByModel("target")
        return found.shared

    def entries(self) -> list[Entry]:
        """The tree, sorted."""
        found: list[tuple[bytes, _Name | None, bool]] = []
        pending: list[tuple[bytes, _Name]] = [(b"", self.root)]
        while pending:
            path, node = pending.pop()
            assert node.names is not None
            for name in node.names.keys() | node.removed:
                child, below = node.names.get(name), path + b"/" + name if path else name
                if child is None or (name in node.removed and not child.holds_something()):
                    found.append((below, None, False))
                    continue
                found.append((below, child, child.opaque or (child.names is not None and name in node.removed)))
                if child.names is not None:
                    pending.append((below, child))
        found.sort(key=lambda item: component_key(item[0]))
        first: dict[int, bytes] = {}
        result = []
        if self.root.inode is not None or self.root.opaque:
            result.append(Entry(b"", PRESENT if self.root.inode else IMPLIED, self.root.inode, self.root.opaque))
        for path, child, opaque in found:
            if child is None:
                result.append(Entry(path, WHITEOUT))
            elif child.names is not None:
                result.append(Entry(path, PRESENT if child.inode else IMPLIED, child.inode, opaque))
            else:
                leader = first.setdefault(id(child.shared), path)
                result.append(Entry(path, PRESENT, child.shared[0], False, None if leader == path else leader))
        return result


def _cleaned(name: bytes) -> list[bytes]:
    if not name:
        raise RefusedByModel("no name")
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if not parts:
                raise RefusedByModel("climbs")
            parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    if any(len(part) > 255 for part in parts) or len(b"/".join(parts)) > 4095:
        raise RefusedByModel("long")
    return parts


def _inode(member: Member) -> Inode:
    kind = _KINDS.get(member.type, "f")
    if kind == "l" and not member.target:
        raise RefusedByModel("empty link")
    return Inode(
        kind,
        0o777 if kind == "l" else member.mode,
        member.uid,
        member.gid,
        member.mtime_ns,
        member.size if kind == "f" else 0,
        member.digest if kind == "f" else b"",
        member.target if kind == "l" else b"",
        os.makedev(member.major, member.minor) if kind in "cb" else 0,
        tuple(sorted(member.xattrs.items())),
        member.sparse if kind == "f" else (),
    )
