"""The format marker: what makes a folder a store. A copy lies with the journal, in case the marker is lost."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from lading.catalog.journal import holds_lines
from lading.errors import Corrupt, InvalidInput, LadingError
from lading.objects.durable import write_durably
from lading.objects.folder import FolderBackend
from lading.objects.layout import Layout


def read(layout: Layout) -> dict[str, Any] | None:
    """Read the marker; None when there is none.

    Raises:
        Corrupt: it is damaged.
        InvalidInput: the root is no folder, or may not be read.
    """
    return _read(layout, layout.format_marker)


def _read(layout: Layout, path: Path) -> dict[str, Any] | None:
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise InvalidInput(f"store {layout.root}: not a directory") from error
    except PermissionError as error:
        raise InvalidInput(f"store {layout.root}: permission denied") from error
    try:
        marker = json.loads(text)
        if not isinstance(marker, dict) or not isinstance(marker["id"], str) or not isinstance(marker["version"], int):
            raise ValueError("wrong shape")
    except (ValueError, KeyError) as error:
        raise Corrupt(
            f"store {layout.root}: the format marker {path.name} is damaged; run `lading catalog rebuild`"
        ) from error
    return marker


def keep_copy(layout: Layout, marker: dict[str, Any]) -> None:
    """Put a copy of the marker beside the journal when there is none; on a full disk it has to wait."""
    if not layout.marker_copy.exists():
        with suppress(LadingError, OSError):
            write_durably(layout.marker_copy, _text(marker))


def refuse_lost(layout: Layout) -> None:
    """Refuse to make a store where one is that lost its marker: it would get another id, and look new.

    Raises:
        Corrupt: packs, or journal lines, are there.
    """
    if _is_store(layout) and read(layout) is None:  # unless another process has made it just now
        raise Corrupt(f"store {layout.root}: the format marker is missing; run `lading catalog rebuild`")


def _is_store(layout: Layout) -> bool:
    return (layout.journal.is_dir() and holds_lines(layout.journal)) or any(True for _ in FolderBackend(layout.packs))


def recognise(layout: Layout) -> dict[str, Any]:
    """Tell what store lies at a root, by its marker, by the marker's copy, or by what else is there.

    Returns:
        The marker as it is or should be. A store that has lost both gets a new id: what it has mounted in this boot
        is then not known any more.

    Raises:
        InvalidInput: there is no store.
        Unsupported: a newer version wrote it.
    """
    from lading.flows import opening

    found = None
    for path in (layout.format_marker, layout.marker_copy):
        try:
            found = found or _read(layout, path)
        except Corrupt:
            continue
    if found is None:
        if not _is_store(layout):
            raise InvalidInput(f"there is no store at {layout.root}")
        found = opening.new_marker()
    if not opening.check_format(found, layout.root):
        raise InvalidInput(f"store {layout.root} may only be read by this version of Lading")
    return found


def restore(layout: Layout, marker: dict[str, Any]) -> None:
    """Put the marker back where it is missing or damaged."""
    try:
        present = read(layout)
    except Corrupt:
        present = None
        os.rename(layout.format_marker, layout.format_marker.with_name(f"{layout.format_marker.name}.damaged"))
    if present is None:
        write_durably(layout.format_marker, _text(marker))


def _text(marker: dict[str, Any]) -> bytes:
    return json.dumps(marker).encode() + b"\n"
