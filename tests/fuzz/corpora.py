"""Where the inputs are: one archive a target of those that reach something new, one file each of those that hurt."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
REGRESSIONS = HERE / "regressions"


def read_corpus(target: str) -> list[bytes]:
    """The kept inputs of a target; none when there are none yet."""
    path = CORPUS / f"{target}.zip"
    if not path.exists():
        return []
    with zipfile.ZipFile(path) as archive:
        return [archive.read(name) for name in archive.namelist()]


def write_corpus(target: str, inputs: Iterable[bytes]) -> int:
    """Keep these inputs, and no others; the same inputs give the same file.

    Returns:
        How many there are.
    """
    by_name = {hashlib.sha256(data).hexdigest()[:16]: data for data in inputs}
    CORPUS.mkdir(exist_ok=True)
    with zipfile.ZipFile(CORPUS / f"{target}.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(by_name):
            archive.writestr(zipfile.ZipInfo(name), by_name[name], zipfile.ZIP_DEFLATED)
    return len(by_name)


def regressions(target: str) -> list[Path]:
    """Inputs that once broke a target; the names say what was wrong."""
    return sorted((REGRESSIONS / target).glob("*"))
