"""Making filesystems while other tests mount and unmount theirs."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

#: Runs a command that sees an empty mount table.
_UNMOUNTED = ("unshare", "--mount", "sh", "-c", 'mount --bind /dev/null /proc/$$/mounts && exec "$@"', "sh")


def make_filesystem(command: Sequence[str], image: Path) -> None:
    """Run a ``mkfs`` command on an image.

    Some of them ask whether the image is mounted already, look at all that is, and give up when a disk of another test
    goes away meanwhile. This image is nobody else's.
    """
    subprocess.run([*_UNMOUNTED, *command, str(image)], check=True, stdout=subprocess.DEVNULL)
