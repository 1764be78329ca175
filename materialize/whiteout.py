"""How overlay spells deletions and its own attributes; pure but for making the marks.

Source: Documentation/filesystems/overlayfs.rst of the kernel ("whiteouts and opaque directories",
"nesting overlayfs mounts").
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import Final

from lading.errors import Unsupported

#: Attribute, behind the own prefix, of a directory that holds whiteouts. Overlay takes a directory that it merges with
#: none for free of them and would list their names, unless it bears this mark of one that was copied up.
MAY_HIDE: Final = b"origin"

Xattrs = tuple[tuple[bytes, bytes], ...]

TRUSTED: Final = b"trusted.overlay."
USER: Final = b"user.overlay."

#: Attributes that belong to the host, not to an image: labels and measurements made by another system.
_HOST_OWNED: Final = (b"security.selinux", b"security.ima", b"security.evm")
_ACLS: Final = (b"system.posix_acl_access", b"system.posix_acl_default")


def own_prefix(userxattr: bool) -> bytes:
    """Prefix of the attributes that an overlay mount keeps to itself."""
    return USER if userxattr else TRUSTED


def plain_xattrs(xattrs: Xattrs) -> Xattrs:
    """Choose the attributes that a plain tree gets.

    Overlay's own marks are left out, since a plain tree may become a lowerdir of somebody's mount; so are
    labels that only the host may give. Access control lists are kept.
    """
    return tuple(
        (name, value)
        for name, value in xattrs
        if not name.startswith((TRUSTED, USER))
        and name not in _HOST_OWNED
        and (not name.startswith(b"system.") or name in _ACLS)
    )


def layer_xattrs(xattrs: Xattrs, *, userxattr: bool) -> Xattrs:
    """Choose and spell the attributes that an overlay lowerdir gets.

    As :func:`plain_xattrs`; overlay's own marks in an image are escaped (``…overlay.x`` becomes
    ``…overlay.overlay.x``), so that the mount shows them as attributes and never acts on them. Marks of
    the form that this mount does not own are left out.
    """
    prefix = own_prefix(userxattr)
    escaped = tuple(
        (prefix + b"overlay." + name[len(prefix) :], value) for name, value in xattrs if name.startswith(prefix)
    )
    return plain_xattrs(xattrs) + escaped


def make_whiteout(name: bytes, dir_fd: int) -> None:
    """Make a name that hides the same name of lower layers: a character device 0:0.

    The kernel lets ordinary users make this one device too (5.8 and newer).

    Raises:
        Unsupported: neither the kernel nor the privileges allow it.
    """
    try:
        os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=dir_fd)
    except PermissionError as error:
        raise Unsupported("whiteouts cannot be made here: mknod of device 0:0 is not permitted") from error


def mark_hiding(descriptor: int, *, userxattr: bool) -> None:
    """Tell overlay that a directory holds whiteouts; where that is refused, their names may be listed."""
    with suppress(OSError):
        os.setxattr(descriptor, own_prefix(userxattr) + MAY_HIDE, b"")


def mark_opaque(descriptor: int, *, userxattr: bool) -> None:
    """Make a directory hide all that lower layers hold in it.

    Raises:
        Unsupported: the filesystem or the privileges refuse the mark; without it wrong files would show.
    """
    name = own_prefix(userxattr) + b"opaque"
    try:
        os.setxattr(descriptor, name, b"y")
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EOPNOTSUPP):
            raise Unsupported(f"opaque directories cannot be marked here: {name.decode()}: {error.strerror}") from error
        raise
