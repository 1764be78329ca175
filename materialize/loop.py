"""Loop devices: a file as a block device that goes by itself when nobody uses it any more.

Source: loop(4), ``include/uapi/linux/loop.h``.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import Final

from lading.errors import Unsupported

_SET_FD: Final = 0x4C00
_CLR_FD: Final = 0x4C01
_SET_STATUS64: Final = 0x4C04
_GET_FREE: Final = 0x4C82
_CONFIGURE: Final = 0x4C0A
_READ_ONLY: Final = 1
_AUTOCLEAR: Final = 4
_BLOCK_MAJOR: Final = 7

#: device, inode, rdevice, offset, sizelimit, number, encrypt type, key size, flags, two names, key, init.
_INFO: Final = struct.Struct("<QQQQQIIII64s64s32s2Q")
#: descriptor, block size, info, reserved.
_CONFIG: Final = struct.Struct(f"<II{_INFO.size}s64s")

#: Tries for a device that others take at the same time.
_TRIES_MAX: Final = 64


def attach(image: int, *, block_size: int) -> tuple[int, Path]:
    """Make a read-only loop device of an open file.

    Args:
        image: descriptor of the file.
        block_size: of the device, in bytes.

    Returns:
        A descriptor that keeps the device, and the device's path. Mount it, then close the descriptor: the
        device goes with its last user.

    Raises:
        Unsupported: there are no loop devices here, or none is free.
    """
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise Unsupported(f"loop devices cannot be used here: {(error.strerror or '').lower()}") from error
    try:
        for _ in range(_TRIES_MAX):
            number = fcntl.ioctl(control, _GET_FREE)
            path = Path(f"/dev/loop{number}")
            try:
                device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError as error:
                raise Unsupported(f"{path} is missing: loop devices cannot be used here") from error
            try:
                _configure(device, image, block_size)
            except OSError as error:
                os.close(device)
                if error.errno not in (errno.EBUSY, errno.ENXIO):
                    raise Unsupported(f"loop device {path}: {(error.strerror or '').lower()}") from error
            else:
                return device, path
    except OSError as error:
        raise Unsupported(f"loop devices cannot be used here: {(error.strerror or '').lower()}") from error
    finally:
        os.close(control)
    raise Unsupported("no loop device is free; others take each one first")


def _configure(device: int, image: int, block_size: int) -> None:
    info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, _READ_ONLY | _AUTOCLEAR, b"", b"", b"", 0, 0)
    try:
        fcntl.ioctl(device, _CONFIGURE, _CONFIG.pack(image, block_size, info, b""))
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTTY):
            raise
        # Kernels before 5.8: in two steps. A kill between them leaves a device that nobody uses, for losetup -d.
        fcntl.ioctl(device, _SET_FD, image)
        try:
            fcntl.ioctl(device, _SET_STATUS64, info)
        except OSError:
            fcntl.ioctl(device, _CLR_FD)
            raise
