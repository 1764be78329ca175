"""Files that share blocks until one of them is written: what XFS and btrfs call reflinks.

Source: ioctl_ficlone(2).
"""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

_FICLONE: Final = 0x40049409

#: Errors that mean "not between these two".
_REFUSED: Final = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM, errno.EACCES)


def clone(source: int, target: int) -> bool:
    """Give an open, empty file the blocks of another one.

    Returns:
        False when these two cannot share blocks.
    """
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        return False
    return True


def works_between(one: Path, other: Path) -> bool:
    """Try whether files of two folders can share blocks; both are left as they were."""
    with suppress(OSError), tempfile.TemporaryFile(dir=one) as source:
        source.write(bytes(os.fstatvfs(source.fileno()).f_bsize))
        source.flush()
        with tempfile.TemporaryFile(dir=other) as target:
            return clone(source.fileno(), target.fileno())
    return False
