"""How a layer differs from the diffs that were applied: what was written to it since.

Attributes of directories that no diff describes are not compared: a path below them only implies them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from lading import trees
from lading.catalog import content as catalog_content
from lading.flows import stores, views
from lading.flows.context import Context
from lading.values import PRESENT, Entry, Inode, Layer, printable

#: What tar calls a type of file, as a number.
_TAR_TYPES: Final = {"f": 48, "l": 50, "c": 51, "b": 52, "d": 53, "p": 54, "s": 0}

_NO_OWNERS: Final = frozenset({"uid", "gid"})


def differences(context: Context, layer: Layer) -> Iterator[str]:
    """Compare a layer's tree with the sum of its chain's diffs.

    Yields:
        A phrase for each difference; none for layers that hold just what was applied, which costs nothing,
        and for those that were never filled by a diff.
    """
    if not layer.replay or not layer.diff_digest:
        return
    try:
        chain = stores.chain(context, layer)
    except LookupError:
        return
    if any(not step.replay for step in chain):
        return
    if all(step.contents == (step.replay,) and not step.write_kind for step in chain):
        return
    described: set[bytes] = set()
    contents = []
    for step in reversed(chain):
        with stores.home(context, step).catalog.read() as conn:
            entries = catalog_content.entries(conn, step.replay)
        described.update(entry.path for entry in entries if entry.kind == PRESENT)
        contents.append(entries)
    expected = {entry.path: entry for entry in trees.flatten(contents)}
    live = views.LiveFiles(context.objects)
    actual = views.stack(context, layer, live).tree()
    ignored = _NO_OWNERS if context.settings.ignore_chown_errors else frozenset()
    for path in sorted(expected.keys() | actual.keys()):
        if path:
            yield from _differ(path, expected.get(path), actual.get(path), path in described, ignored)


def _differ(
    path: bytes, before: Entry | None, after: Entry | None, described: bool, ignored: frozenset[str]
) -> Iterator[str]:
    name = "/" + printable(path)
    if before is None:
        yield f"+{name}{_slash(after)}"
        return
    if after is None:
        yield f"-{name}{_slash(before)}"
        return
    old, new = before.inode, after.inode
    assert old is not None
    assert new is not None
    if old.type == new.type == "d" and not described:
        return
    changed = [words for attribute, words in _attributes(old, new) if attribute not in ignored]
    if not changed and old.digest == new.digest:
        return
    if changed:
        yield f"{name}({','.join(changed)})"
    if new.type != "d":
        yield f"+{name}"


def _slash(entry: Entry | None) -> str:
    return "/" if trees.is_directory(entry) else ""


def _attributes(old: Inode, new: Inode) -> Iterator[tuple[str, str]]:
    """Attributes that differ, with what was expected and what was found."""
    plain = (
        ("filetype", str(_TAR_TYPES[old.type]), str(_TAR_TYPES[new.type])),
        ("uid", str(old.uid), str(new.uid)),
        ("gid", str(old.gid), str(new.gid)),
        ("size", str(old.size), str(new.size)),
        ("mode", f"{old.mode:04o}", f"{new.mode:04o}"),
        ("mtime", f"{old.mtime_ns // 10**9:#x}", f"{new.mtime_ns // 10**9:#x}"),
    )
    for attribute, before, after in plain:
        if before != after:
            yield attribute, f"{attribute}:{before}\N{HALFWIDTH RIGHTWARDS ARROW}{after}"
