"""The algebra of trees: laying contents over each other, merging them, comparing trees. Pure.

A *tree* maps paths to entries that are all present; a *content* is a list of entries sorted by
``values.component_key``, with removals, opaque and implied directories. All is linear in what goes in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from blake3 import blake3

from lading.values import (
    ADDED,
    DELETED,
    IMPLIED,
    MODIFIED,
    PRESENT,
    WHITEOUT,
    Change,
    Entry,
    Inode,
    component_key,
    inode_key,
)

#: What an implied directory is like when nothing lies below it.
IMPLIED_INODE: Final = Inode("d", 0o755, 0, 0, 0)

Tree = dict[bytes, Entry]


def _sort_key(entry: Entry) -> list[bytes]:
    return component_key(entry.path)


def sorted_entries(entries: Iterable[Entry]) -> list[Entry]:
    """Put entries in order: a directory before what is in it."""
    return sorted(entries, key=_sort_key)


def is_directory(entry: Entry | None) -> bool:
    """Tell whether an entry is a directory, be it only implied."""
    if entry is None:
        return False
    return entry.kind == IMPLIED or (entry.inode is not None and entry.inode.type == "d")


class _Laid:
    """Contents laid over each other, lowest first.

    What lies below a directory is found by an index that is made when something is removed for the first
    time, then kept: the work goes by what is added and removed, however many contents there are.
    """

    def __init__(self) -> None:
        self.entries: Tree = {}
        self.origins: dict[bytes, int] = {}  #: number of the content that a path came from
        self._children: dict[bytes, set[bytes]] | None = None

    def put(self, entry: Entry, number: int) -> None:
        """Add an entry, or replace one that has nothing below it."""
        if self._children is not None and entry.path not in self.entries:
            self._adopt(self._children, entry.path)
        self.entries[entry.path] = entry
        self.origins[entry.path] = number

    @staticmethod
    def _adopt(children: dict[bytes, set[bytes]], path: bytes) -> None:
        """Note a path as a child, and directories above it that have no entry of their own."""
        while path:
            parent = path.rpartition(b"/")[0]
            siblings = children.get(parent)
            if siblings is not None:
                siblings.add(path)
                return
            children[parent] = {path}
            path = parent

    def hide(self, content: Iterable[Entry]) -> None:
        """Take away what a content hides: removed names, lower children, what changes between file and directory."""
        for entry in content:
            if entry.kind == WHITEOUT:
                self._remove(entry.path, itself=True)
                continue
            below = self.entries.get(entry.path)
            if below is not None and below.kind != WHITEOUT and is_directory(below) != is_directory(entry):
                self._remove(entry.path, itself=True)
            elif entry.opaque:
                self._remove(entry.path, itself=False)

    def _remove(self, path: bytes, *, itself: bool) -> None:
        if not self.entries:
            return
        if self._children is None:
            self._children = {}
            for other in self.entries:
                self._adopt(self._children, other)
        children = self._children
        pending = list(children.pop(path, ()))
        if itself:
            pending.append(path)
            siblings = children.get(path.rpartition(b"/")[0])
            if siblings is not None:
                siblings.discard(path)
        while pending:
            gone = pending.pop()
            self.entries.pop(gone, None)
            self.origins.pop(gone, None)
            pending += children.pop(gone, ())

    def sorted(self) -> list[Entry]:
        """All entries in order, links leading to names that are there."""
        return relinked(sorted_entries(self.entries.values()), self.origins)


def flatten(contents: Sequence[Iterable[Entry]]) -> list[Entry]:
    """Lay contents over each other, lowest first.

    Returns:
        The full tree, sorted; every entry is present. A hard link whose first name was hidden leads to the
        first of its inode's names that is left.
    """
    laid = _Laid()
    for number, content in enumerate(contents):
        entries = list(content)
        laid.hide(entries)
        for entry in entries:
            if entry.kind == WHITEOUT:
                continue
            below = laid.entries.get(entry.path)
            if entry.kind != IMPLIED or not is_directory(below):
                laid.put(_settled(entry, below), number)
    return laid.sorted()


def settled_tree(visible: Iterable[Entry], origins: Mapping[bytes, int]) -> list[Entry]:
    """Make a full tree of entries of which it is known that nothing hides them, and which content each is of."""
    return relinked(sorted_entries(_settled(entry, None) for entry in visible), origins)


def _settled(entry: Entry, below: Entry | None) -> Entry:
    """An entry as a full tree has it."""
    if entry.kind == IMPLIED:
        inode = below.inode if below is not None and is_directory(below) else IMPLIED_INODE
        return Entry(entry.path, PRESENT, inode)
    return entry._replace(opaque=False) if entry.opaque else entry


def relinked(entries: list[Entry], origins: Mapping[bytes, int]) -> list[Entry]:
    """Let the names of an inode lead to the first of them that is left; names are of one content."""
    if not any(entry.link for entry in entries):
        return entries
    first: dict[tuple[int, bytes], bytes] = {}
    result = []
    for entry in entries:
        origin = origins[entry.path]
        if entry.link is None:
            first.setdefault((origin, entry.path), entry.path)
            result.append(entry)
            continue
        leader = first.setdefault((origin, entry.link), entry.path)
        result.append(entry._replace(link=None if leader == entry.path else leader))
    return result


def inherit(below: Mapping[bytes, Entry], content: Iterable[Entry]) -> tuple[list[Entry], str]:
    """Give implied directories the attributes of what they lie over.

    Args:
        below: the full tree below the content, or the part of it at implied paths.
        content: the content.

    Returns:
        The content without implied directories, and a digest of what they inherited; empty when there are
        none.
    """
    state = blake3()
    result = []
    found = False
    for entry in content:
        if entry.kind == IMPLIED:
            found = True
            settled = _settled(entry, below.get(entry.path))
            assert settled.inode is not None
            state.update(len(entry.path).to_bytes(4, "little") + entry.path + inode_key(settled.inode))
            entry = settled._replace(opaque=entry.opaque)
        result.append(entry)
    return result, state.hexdigest(16) if found else ""


def stack_changes(
    contents: Sequence[Sequence[Entry]], lower: Callable[[], Mapping[bytes, Entry]] | None = None
) -> list[Entry]:
    """Merge the contents of one layer, lowest first, into one change set that does the same.

    Removals and opaque directories are kept, since what lies below the layer still needs them.

    Args:
        contents: of the layer.
        lower: called for the full tree below, if it matters: a removal of what an earlier content of the layer
            itself brought is left out when nothing below has the name.
    """
    if len(contents) == 1:
        return list(contents[0])
    own: set[bytes] = set()  #: names that a later content removes and an earlier one had
    laid = _Laid()
    removed: set[bytes] = set()  #: what an earlier content hid: a directory made there later starts empty
    for number, content in enumerate(contents):
        if lower is not None:
            own.update(
                entry.path
                for entry in content
                if entry.kind == WHITEOUT and (had := laid.entries.get(entry.path)) is not None and had.kind != WHITEOUT
            )
        laid.hide(content)
        for entry in content:
            below = laid.entries.get(entry.path)
            if entry.kind == IMPLIED and entry.path in removed and not is_directory(below):
                # It was something else, or gone: what lies below the layer gives it no attributes.
                entry = Entry(entry.path, PRESENT, IMPLIED_INODE, True)
            if entry.kind == IMPLIED and is_directory(below):
                if entry.opaque and below is not None:
                    laid.put(below._replace(opaque=True), laid.origins[entry.path])
                continue
            opaque = entry.opaque or (is_directory(entry) and (entry.path in removed or _was_opaque(below)))
            laid.put(entry._replace(opaque=opaque), number)
        removed.update(entry.path for entry in content if entry.kind == WHITEOUT or not is_directory(entry))
    result = laid.sorted()
    if lower is None or not any(entry.kind == WHITEOUT and entry.path in own for entry in result):
        return result
    below_tree = lower()
    return [entry for entry in result if entry.kind != WHITEOUT or entry.path not in own or entry.path in below_tree]


def _was_opaque(below: Entry | None) -> bool:
    return below is not None and below.opaque


def _attributes_differ(old: Inode, new: Inode) -> bool:
    """Compare what a listing of changes goes by; contents are not read."""
    if (old.type, old.mode, old.uid, old.gid, old.rdev, old.target) != (
        new.type,
        new.mode,
        new.uid,
        new.gid,
        new.rdev,
        new.target,
    ):
        return True
    # A directory's size and time follow from what is in it, which is told by itself.
    if old.type != "d" and (old.size != new.size or _times_differ(old.mtime_ns, new.mtime_ns)):
        return True
    return _shown_xattrs(old) != _shown_xattrs(new)


def _times_differ(old: int, new: int) -> bool:
    """Times are compared by whole seconds when one of them has no fraction."""
    if old % 1_000_000_000 and new % 1_000_000_000:
        return old != new
    return old // 1_000_000_000 != new // 1_000_000_000


def _shown_xattrs(inode: Inode) -> tuple[tuple[bytes, bytes], ...]:
    return tuple(item for item in inode.xattrs if item[0] == b"security.capability" or item[0].startswith(b"user."))


def _differ(old: Entry, new: Entry) -> bool:
    """Compare two present entries of one path."""
    assert old.inode is not None
    assert new.inode is not None
    return old.inode != new.inode and _attributes_differ(old.inode, new.inode)


def _needs_entry(old: Entry, new: Entry) -> bool:
    """Tell whether a diff must hold a path, so that the one tree becomes the other exactly.

    Which name of an inode is the first says nothing; it may only have changed because another one went.
    """
    return old.inode != new.inode or (new.link is not None and old.link is None)


def changes_upper(lower: Mapping[bytes, Entry], content: Iterable[Entry]) -> list[Change]:
    """List what a layer changes on its parent: what is present in the layer decides.

    A directory that is as below is listed only when something was added to or deleted from it.
    """
    own = [entry for entry in content if entry.path]
    grown: set[bytes] = set()
    for entry in own:
        if entry.kind == WHITEOUT or entry.path not in lower:
            grown.add(entry.path.rpartition(b"/")[0])
    result: list[Change] = []
    replaced: set[bytes] = set()
    for entry in own:
        path = b"/" + entry.path
        below = lower.get(entry.path)
        parent = entry.path.rpartition(b"/")[0]
        if parent in replaced:
            replaced.add(entry.path)
            if entry.kind != WHITEOUT:
                result.append(Change(path, ADDED))
            continue
        if entry.kind == WHITEOUT:
            result.append(Change(path, DELETED))
        elif entry.opaque and below is not None:
            replaced.add(entry.path)
            result.append(Change(path, DELETED))
        elif below is None:
            result.append(Change(path, ADDED))
        elif is_directory(entry) and is_directory(below):
            if entry.path in grown or (entry.kind == PRESENT and _directory_differs(below, entry)):
                result.append(Change(path, MODIFIED))
        else:
            result.append(Change(path, MODIFIED))
    return result


def _directory_differs(old: Entry, new: Entry) -> bool:
    assert old.inode is not None
    assert new.inode is not None
    same_owner = (old.inode.uid, old.inode.gid) == (new.inode.uid, new.inode.gid)
    return not same_owner or old.inode.mode != new.inode.mode or _times_differ(old.inode.mtime_ns, new.inode.mtime_ns)


def changes_naive(old: Mapping[bytes, Entry], new: Mapping[bytes, Entry]) -> list[Change]:
    """List how two full trees differ. A directory with any change below it is listed as modified."""
    found: dict[bytes, int] = {}
    for path in sorted(old.keys() | new.keys(), key=component_key):
        if not path:
            continue
        before, after = old.get(path), new.get(path)
        if after is None:
            if is_directory(new.get(path.rpartition(b"/")[0])) or b"/" not in path:
                found[path] = DELETED
        elif before is None:
            found[path] = ADDED
        elif _differ(before, after):
            found[path] = MODIFIED
    for path in list(found):
        parent = path
        while b"/" in parent:
            parent = parent.rpartition(b"/")[0]
            if parent in found:
                break
            found[parent] = MODIFIED
    return [Change(b"/" + path, found[path]) for path in sorted(found, key=component_key)]


def diff_between(old: Mapping[bytes, Entry], new: Mapping[bytes, Entry]) -> list[Entry]:
    """Entries that turn one full tree into another: what was added or modified, and removals."""
    result = []
    for path in sorted(old.keys() | new.keys(), key=component_key):
        before, after = old.get(path), new.get(path)
        if not path:
            continue
        if after is None:
            if is_directory(new.get(path.rpartition(b"/")[0])) or b"/" not in path:
                result.append(Entry(path, WHITEOUT))
        elif before is None or _needs_entry(before, after):
            result.append(after)
    listed = {entry.path for entry in result}
    for path in list(listed):
        while b"/" in path:  # a directory with a change below it counts as changed, too
            path = path.rpartition(b"/")[0]
            if path in listed:
                break
            listed.add(path)
            if path in new:
                result.append(new[path])
    return _with_leaders(sorted_entries(result))


def _with_leaders(entries: list[Entry]) -> list[Entry]:
    """Let links lead to names that are in the list."""
    return relinked(entries, dict.fromkeys((entry.path for entry in entries), 0))


def diff_size(entries: Iterable[Entry]) -> int:
    """Sum the sizes of all non-directories, an inode once; a symlink counts its target, a removal nothing."""
    return sum(
        entry.inode.size + len(entry.inode.target)
        for entry in entries
        if entry.inode is not None and entry.link is None and entry.inode.type != "d"
    )
