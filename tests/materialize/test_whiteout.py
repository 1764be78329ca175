"""How deletions and overlay's own attributes are spelt."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from lading.materialize.whiteout import layer_xattrs, make_whiteout, mark_opaque, plain_xattrs

SEEN = (
    (b"security.capability", b"c"),
    (b"security.selinux", b"label"),
    (b"security.ima", b"sum"),
    (b"system.posix_acl_access", b"acl"),
    (b"system.nfs4_acl", b"x"),
    (b"trusted.overlay.redirect", b"/etc"),
    (b"trusted.other", b""),
    (b"user.note", b"n"),
    (b"user.overlay.opaque", b"y"),
)


def test_plain_trees_get_neither_overlay_marks_nor_host_labels() -> None:
    assert [name for name, _ in plain_xattrs(SEEN)] == [
        b"security.capability",
        b"system.posix_acl_access",
        b"trusted.other",
        b"user.note",
    ]


@pytest.mark.parametrize(
    ("userxattr", "escaped"), [(False, b"trusted.overlay.overlay.redirect"), (True, b"user.overlay.overlay.opaque")]
)
def test_marks_of_an_image_are_escaped_in_a_lowerdir(userxattr: bool, escaped: bytes) -> None:
    """An image that says "redirect" or "opaque" must not steer the mount."""
    extra = set(layer_xattrs(SEEN, userxattr=userxattr)) - set(plain_xattrs(SEEN))

    assert [name for name, _ in extra] == [escaped]


@pytest.mark.privileged
def test_marks_are_what_overlay_looks_for(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    make_whiteout(b"gone", folder)
    mark_opaque(folder, userxattr=False)
    mark_opaque(folder, userxattr=True)
    os.close(folder)

    status = os.lstat(tmp_path / "gone")
    assert (stat.S_ISCHR(status.st_mode), status.st_rdev) == (True, 0)
    assert os.getxattr(tmp_path, "trusted.overlay.opaque") == os.getxattr(tmp_path, "user.overlay.opaque") == b"y"
