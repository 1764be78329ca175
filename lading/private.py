"""Files and folders that are their owner's alone, whatever the process's umask is; that is never changed.

A umask takes bits away: one that takes too few makes what is private readable, and one that takes the owner's own
shuts ordinary users out of what they just made. So modes are looked at, and set, after making.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

_FILE = 0o600
_FOLDER = 0o700


def opened(path: str | os.PathLike[str], flags: int, *, dir_fd: int | None = None) -> int:
    """Open a file that is made when it is missing, if the flags say so.

    Returns:
        A descriptor that no program inherits, of a file with mode 0600.

    Raises:
        OSError: as ``os.open``.
    """
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, _FILE, dir_fd=dir_fd)
    found = os.fstat(descriptor)
    if stat.S_IMODE(found.st_mode) != _FILE and found.st_uid == os.geteuid():
        with suppress(OSError):  # on a filesystem without modes
            os.fchmod(descriptor, _FILE)
    return descriptor


def make_folder(path: str | os.PathLike[str], *, dir_fd: int | None = None) -> None:
    """Make a folder with mode 0700.

    Raises:
        FileExistsError: it is there; nothing is changed.
    """
    os.mkdir(path, _FOLDER, dir_fd=dir_fd)
    with suppress(FileNotFoundError):  # somebody who tidies up was quicker: whoever goes on with it finds out
        if stat.S_IMODE(os.stat(path, dir_fd=dir_fd, follow_symlinks=False).st_mode) != _FOLDER:
            os.chmod(path, _FOLDER, dir_fd=dir_fd)


def make_folders(path: str | os.PathLike[str]) -> None:
    """Make a folder and those above it that are missing, each with mode 0700; one that is there stays as it is."""
    missing = []
    step = os.fspath(path)
    while step and not os.path.isdir(step):
        missing.append(step)
        step = os.path.dirname(step)
    for step in reversed(missing):
        with suppress(FileExistsError):
            make_folder(step)
    if missing and not os.path.isdir(path):
        raise NotADirectoryError(f"{os.fspath(path)}: not a directory")
