"""The mount system calls, by ctypes: the fd-based interface and the old one.

Source: fsopen(2), fsconfig(2), fsmount(2), move_mount(2), open_tree(2), mount_setattr(2), mount(2), umount2(2).
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)

#: Numbers that all architectures share: these calls came after the tables were unified.
_OPEN_TREE: Final = 428
_MOVE_MOUNT: Final = 429
_FSOPEN: Final = 430
_FSCONFIG: Final = 431
_FSMOUNT: Final = 432
_MOUNT_SETATTR: Final = 442

FSOPEN_CLOEXEC: Final = 1
FSCONFIG_SET_FLAG: Final = 0
FSCONFIG_SET_STRING: Final = 1
FSCONFIG_CMD_CREATE: Final = 6
FSMOUNT_CLOEXEC: Final = 1
MOVE_MOUNT_F_EMPTY_PATH: Final = 4
MOUNT_ATTR_RDONLY: Final = 1
MOUNT_ATTR_NOSUID: Final = 2
MOUNT_ATTR_NODEV: Final = 4
MOUNT_ATTR_NOEXEC: Final = 8
MOUNT_ATTR_IDMAP: Final = 0x00100000
OPEN_TREE_CLONE: Final = 1
_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000

MNT_DETACH: Final = 2
MS_RDONLY: Final = 1
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096


def _call(number: int, *arguments: int | bytes | None) -> int:
    converted = [ctypes.c_char_p(a) if isinstance(a, bytes) or a is None else ctypes.c_long(a) for a in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *converted))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def fsopen(filesystem: bytes) -> int:
    """Begin to describe a filesystem; returns a descriptor."""
    return _call(_FSOPEN, filesystem, FSOPEN_CLOEXEC)


def fsconfig_string(descriptor: int, key: bytes, value: bytes) -> None:
    """Set a text option."""
    _call(_FSCONFIG, descriptor, FSCONFIG_SET_STRING, key, value, 0)


def fsconfig_flag(descriptor: int, key: bytes) -> None:
    """Set an option without value."""
    _call(_FSCONFIG, descriptor, FSCONFIG_SET_FLAG, key, None, 0)


def fsconfig_create(descriptor: int) -> None:
    """Make the filesystem as described."""
    _call(_FSCONFIG, descriptor, FSCONFIG_CMD_CREATE, None, None, 0)


def fsmount(descriptor: int, attributes: int) -> int:
    """Mount a described filesystem, attached nowhere; returns a descriptor."""
    return _call(_FSMOUNT, descriptor, FSMOUNT_CLOEXEC, attributes)


def move_mount(descriptor: int, target: bytes) -> None:
    """Attach a mount."""
    _call(_MOVE_MOUNT, descriptor, b"", _AT_FDCWD, target, MOVE_MOUNT_F_EMPTY_PATH)


def open_tree_clone(path: bytes) -> int:
    """Clone the mount that a path is on, from that path on, attached nowhere; returns a descriptor."""
    return _call(_OPEN_TREE, _AT_FDCWD, path, OPEN_TREE_CLONE | os.O_CLOEXEC)


def mount_setattr_idmap(descriptor: int, namespace: int) -> None:
    """Show a detached mount's owners through the maps of a user namespace."""
    attributes = (ctypes.c_uint64 * 4)(MOUNT_ATTR_IDMAP, 0, 0, namespace)
    _call(_MOUNT_SETATTR, descriptor, b"", _AT_EMPTY_PATH, bytes(attributes), ctypes.sizeof(attributes))


def mount(source: bytes, target: bytes, filesystem: bytes, flags: int, options: bytes) -> None:
    """The old call: options as one text of at most a page."""
    if _libc.mount(source, target, filesystem, ctypes.c_ulong(flags), options) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def umount2(target: bytes, flags: int) -> None:
    """Detach a mount."""
    if _libc.umount2(target, flags) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fsdecode(target))


def syncfs(descriptor: int) -> None:
    """Write out everything of a filesystem."""
    if _libc.syncfs(descriptor) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
