"""Our command under the name that scripts use, run in this process: a start costs more than most commands."""

from __future__ import annotations

import io
import sys

from lading.cli import main
from lading.cli.entry import COMPAT


def ours(words: list[str]) -> tuple[int, bytes, bytes]:
    """Run the command.

    Returns:
        Exit status, standard output, standard error.
    """
    kept = sys.stdout, sys.stderr
    streams = [io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2)]
    sys.stdout, sys.stderr = streams
    try:
        status = main.run(words, COMPAT)
    finally:
        sys.stdout, sys.stderr = kept
    stdout, stderr = (stream.detach() for stream in streams)
    assert isinstance(stdout, io.BytesIO)
    assert isinstance(stderr, io.BytesIO)
    return status, stdout.getvalue(), stderr.getvalue()
