"""The algebra of trees, as properties over random ones, and the contract's own cases."""

from __future__ import annotations

import time

from hypothesis import given, settings
from hypothesis import strategies as st

from lading import trees
from lading.materialize.listing import listing, read_listing
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

PLAIN = Inode("f", 0o644, 0, 0, 0, 1, b"d" * 32)
NAMES = st.sampled_from([b"a", b"b", b"c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)
U63 = st.integers(0, (1 << 63) - 1)
XATTRS = st.lists(st.tuples(st.binary(min_size=1, max_size=3), st.binary(max_size=3)), max_size=2).map(tuple)
REGIONS = st.lists(st.tuples(U63, U63), max_size=2).map(tuple)
FILES = st.builds(
    Inode, type=st.just("f"), mode=st.just(0o644), uid=st.just(0), gid=st.just(0), mtime_ns=st.integers(-3, 3), size=st.integers(1, 3),
    digest=st.binary(min_size=32, max_size=32), target=st.just(b""), rdev=st.just(0), xattrs=XATTRS, sparse=REGIONS,
)  # fmt: skip
DIRECTORIES = st.builds(
    Inode, type=st.just("d"), mode=st.sampled_from([0o755, 0o700]), uid=st.integers(0, 2), gid=st.just(0), mtime_ns=st.just(5),
    size=st.just(0), digest=st.just(b""), target=st.just(b""), rdev=st.just(0), xattrs=XATTRS, sparse=st.just(()),
)  # fmt: skip


@st.composite
def contents(draw: st.DrawFn) -> list[Entry]:
    """A content as the parser makes them: parents before children, no entry below a file or a removal."""
    found: dict[bytes, Entry] = {}
    for path in draw(st.lists(PATHS, max_size=8, unique=True)):
        kind = draw(st.sampled_from(["file", "directory", "opaque", "removal"]))
        if kind == "file":
            entry = Entry(path, PRESENT, draw(FILES))
        elif kind == "removal":
            entry = Entry(path, WHITEOUT)
        else:
            entry = Entry(path, PRESENT, draw(DIRECTORIES), kind == "opaque")
        parents = [path[:i] for i, byte in enumerate(path) if byte == ord("/")]
        if any(p in found and not trees.is_directory(found[p]) for p in parents):
            continue
        if not trees.is_directory(entry) and any(other.startswith(path + b"/") for other in found):
            continue
        for parent in parents:
            found.setdefault(parent, Entry(parent, IMPLIED))
        found[path] = entry
    return trees.sorted_entries(found.values())


def as_tree(entries: list[Entry]) -> dict[bytes, Entry]:
    return {entry.path: entry for entry in entries}


def slow(stack: list[list[Entry]]) -> dict[bytes, Inode]:
    """The same by the plainest means: one name after the other, on a dictionary."""
    shown: dict[bytes, Inode] = {}

    def remove(path: bytes, *, itself: bool) -> None:
        for other in list(shown):
            if other.startswith(path + b"/") or (itself and other == path):
                del shown[other]

    for content in stack:
        for entry in content:
            old = shown.get(entry.path)
            if entry.kind == WHITEOUT:
                remove(entry.path, itself=True)
            elif not trees.is_directory(entry):
                remove(entry.path, itself=True)
                assert entry.inode is not None
                shown[entry.path] = entry.inode
            else:
                if old is not None and old.type != "d":
                    remove(entry.path, itself=True)
                    old = None
                if entry.opaque:
                    remove(entry.path, itself=False)
                shown[entry.path] = entry.inode or old or trees.IMPLIED_INODE
    return shown


@settings(max_examples=150, deadline=None)
@given(st.lists(contents(), max_size=4))
def test_laying_contents_over_each_other_is_what_it_says(stack: list[list[Entry]]) -> None:
    """Against the plain model."""
    assert {entry.path: entry.inode for entry in trees.flatten(stack)} == slow(stack)


@settings(max_examples=150, deadline=None)
@given(st.lists(contents(), min_size=1, max_size=3), st.lists(contents(), min_size=1, max_size=3))
def test_a_merged_change_set_does_what_its_parts_do(below: list[list[Entry]], own: list[list[Entry]]) -> None:
    """Over any tree."""
    merged = trees.stack_changes(own)

    assert trees.flatten([*below, merged]) == trees.flatten([*below, *own])


@settings(max_examples=150, deadline=None)
@given(st.lists(contents(), max_size=3), st.lists(contents(), max_size=3))
def test_a_generated_diff_turns_one_tree_into_the_other(old: list[list[Entry]], new: list[list[Entry]]) -> None:
    """And there is nothing left to change."""
    before, after = as_tree(trees.flatten(old)), as_tree(trees.flatten(new))

    reached = as_tree(trees.flatten([list(before.values()), trees.diff_between(before, after)]))

    assert {path: entry.inode for path, entry in reached.items()} == {
        path: entry.inode for path, entry in after.items()
    }
    assert trees.changes_naive(reached, after) == []


@given(contents())
def test_a_listing_comes_back(content: list[Entry]) -> None:
    """Equal entries have equal bytes."""
    data = b"".join(listing(content))

    assert list(read_listing([data[:7], data[7:]])) == content
    assert b"".join(listing(list(content))) == data


@given(FILES, FILES)
def test_inodes_have_one_key_each(one: Inode, two: Inode) -> None:
    """Equal ones share it, others do not."""
    assert (inode_key(one) == inode_key(two)) == (one == two)


def present(path: bytes, kind: str = "f", mtime: int = 0, **fields: object) -> Entry:
    return Entry(path, PRESENT, Inode(kind, 0o644 if kind == "f" else 0o755, 0, 0, mtime * 10**9, **fields))  # type: ignore[arg-type]


def test_a_new_child_modifies_its_directory_and_a_modified_one_does_not() -> None:
    """Of an overlay's upper directory."""
    lower = as_tree([present(b"d", "d"), present(b"d/old"), present(b"e", "d"), present(b"e/f")])
    upper = [
        present(b"d", "d"),
        present(b"d/new"),
        Entry(b"d/old", WHITEOUT),
        present(b"e", "d"),
        present(b"e/f", mtime=9),
    ]

    assert trees.changes_upper(lower, upper) == [
        Change(b"/d", MODIFIED), Change(b"/d/new", ADDED), Change(b"/d/old", DELETED), Change(b"/e/f", MODIFIED),
    ]  # fmt: skip


def test_a_replaced_directory_is_deleted_and_filled_anew() -> None:
    """What an opaque mark says."""
    lower = as_tree([present(b"d", "d"), present(b"d/old")])
    upper = [present(b"d", "d")._replace(opaque=True), present(b"d/new")]

    assert trees.changes_upper(lower, upper) == [Change(b"/d", DELETED), Change(b"/d/new", ADDED)]


def test_whole_trees_are_compared_by_attributes() -> None:
    """Times by the second when one has no fraction; directories show what is below them."""
    old = as_tree([present(b"d", "d"), present(b"d/gone", "d"), present(b"d/gone/x"), present(b"same", mtime=3)])
    fraction = present(b"same")._replace(inode=Inode("f", 0o644, 0, 0, 3_500_000_000))
    new = as_tree([present(b"d", "d"), fraction, present(b"new")])

    assert trees.changes_naive(old, new) == [
        Change(b"/d", MODIFIED),
        Change(b"/d/gone", DELETED),
        Change(b"/new", ADDED),
    ]


def test_names_of_an_inode_lead_to_the_first_that_is_left() -> None:
    """When the first is hidden, the next one takes its place."""
    inode = Inode("f", 0o644, 0, 0, 0, 1, b"x" * 32)
    lower = [
        Entry(b"a", PRESENT, inode),
        Entry(b"b", PRESENT, inode, False, b"a"),
        Entry(b"c", PRESENT, inode, False, b"a"),
    ]

    found = as_tree(trees.flatten([lower, [Entry(b"a", WHITEOUT)]]))

    assert (found[b"b"].link, found[b"c"].link) == (None, b"b")


def test_sizes_count_an_inode_once() -> None:
    """Links and removals nothing, symlinks their target."""
    inode = Inode("f", 0o644, 0, 0, 0, 100, b"x" * 32)
    entries = [
        Entry(b"a", PRESENT, inode),
        Entry(b"b", PRESENT, inode, False, b"a"),
        present(b"l", "l", target=b"12345"),
        Entry(b"w", WHITEOUT),
    ]

    assert trees.diff_size(entries) == 105
    assert component_key(b"a/b") == [b"a", b"b"]


def test_many_removals_cost_what_they_remove() -> None:
    """Two thousand contents with a removal each, over twenty thousand names: never a walk of the tree for each."""
    base = [present(b"d%04d" % number, "d") for number in range(2000)]
    base += [present(b"d%04d/f%d" % (number, file)) for number in range(2000) for file in range(9)]
    stack = [trees.sorted_entries(base), *([Entry(b"d%04d" % number, WHITEOUT)] for number in range(2000))]

    begun = time.process_time()
    assert trees.flatten(stack) == []
    assert len(trees.stack_changes(stack)) == 2000
    assert time.process_time() - begun < 5  # half a minute and more if each removal looked at every name


def test_removing_what_the_layer_itself_brought_is_no_deletion() -> None:
    """Only what lies below can be deleted; a tar's own removal of nothing stays."""
    first = [Entry(b"a", PRESENT, PLAIN), Entry(b"b", PRESENT, PLAIN), Entry(b"gone", WHITEOUT)]
    second = [Entry(b"a", WHITEOUT), Entry(b"b", WHITEOUT)]
    below = {b"b": Entry(b"b", PRESENT, PLAIN)}

    found = trees.stack_changes([first, second], lambda: below)

    assert [(entry.path, entry.kind) for entry in found] == [(b"b", WHITEOUT), (b"gone", WHITEOUT)]


def test_a_difference_holds_the_directories_on_the_way() -> None:
    """As a list of changes does."""
    folder = Entry(b"d", PRESENT, Inode("d", 0o755, 0, 0, 0))
    old = {b"d": folder}
    new = {b"d": folder, b"d/f": Entry(b"d/f", PRESENT, PLAIN)}

    assert [entry.path for entry in trees.diff_between(old, new)] == [b"d", b"d/f"]


def test_a_directorys_time_alone_is_no_change() -> None:
    """It follows from what was done in it."""
    old = {b"d": Entry(b"d", PRESENT, Inode("d", 0o755, 0, 0, 1))}
    new = {b"d": Entry(b"d", PRESENT, Inode("d", 0o755, 0, 0, 10**10))}
    assert trees.changes_naive(old, new) == []
