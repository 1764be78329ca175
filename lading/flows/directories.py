"""Directories that belong to containers and images: one that lasts, one of this boot."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal

from lading.catalog import names
from lading.errors import InvalidInput, NotFound
from lading.flows import areas, stores
from lading.flows.context import Context
from lading.flows.opening import make_private
from lading.flows.tidying import tidying
from lading.objects.durable import make_dir, write_durably
from lading.values import check_record_id, printable

Kind = Literal["image", "container"]


def place(context: Context, kind: Kind, record_id: str, *, run: bool) -> Path:
    """Where a record's directory lies, there or not."""
    if run:
        return context.run / f"{kind}s" / record_id / "userdata"
    return context.layout.userdata(kind, record_id)


def _id_of(context: Context, kind: Kind, ref: str) -> str:
    from lading.flows import containers, images

    return images.get(context, ref).id if kind == "image" else containers.get(context, ref).id


def persistent(context: Context, kind: Kind, ref: str) -> Path:
    """Return a record's persistent directory, making it when missing."""
    folder = place(context, kind, _id_of(context, kind, ref), run=False)
    if not folder.is_dir():
        context.need_writable()
        for step in (folder.parent.parent, folder.parent, folder):
            if not step.is_dir():
                make_dir(step)
    return folder


def of_this_boot(context: Context, kind: Kind, ref: str) -> Path:
    """Return a record's directory of this boot, making it when missing."""
    folder = place(context, kind, _id_of(context, kind, ref), run=True)
    make_private(context.run)
    for step in (folder.parent.parent, folder.parent, folder):
        make_private(step)
    return folder


def remove(context: Context, kind: Kind, record_id: str) -> None:
    """Remove the directories of a record that is gone."""
    kept = place(context, kind, record_id, run=False).parent
    if kept.is_dir():
        with tidying(str(kept)):
            areas.discard(context, kept)
    shutil.rmtree(place(context, kind, record_id, run=True).parent, ignore_errors=True)


def _file(context: Context, ref: str, name: str, *, run: bool) -> Path:
    folder = of_this_boot(context, "container", ref) if run else persistent(context, "container", ref)
    parts = Path(name).parts
    if not parts or os.path.isabs(name) or ".." in parts or "\0" in name:
        raise InvalidInput(f'"{printable(name)}" is no relative path below the directory')
    found = folder.joinpath(*parts)
    if not Path(os.path.realpath(found)).is_relative_to(os.path.realpath(folder)):
        raise InvalidInput(f'"{printable(name)}" leads out of the directory')
    return found


def write_file(context: Context, ref: str, name: str, data: bytes, *, run: bool) -> None:
    """Write a file, whole or not at all; folders on the way are made."""
    path = _file(context, ref, name, run=run)
    if not run:
        context.catalog.make_durable("write file")  # in a relaxed store, too, no step is kept without those before it
    missing = [folder for folder in path.parents if not folder.is_dir()]
    for folder in reversed(missing):
        make_dir(folder)
    try:
        write_durably(path, data)
    except IsADirectoryError as error:
        raise InvalidInput(f'"{printable(name)}" is a directory') from error


def read_file(context: Context, ref: str, name: str, *, run: bool) -> bytes:
    """Read a file.

    Raises:
        NotFound: there is none of this name.
    """
    path = _file(context, ref, name, run=run)
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"open {printable(str(path))}: no such file or directory") from error
    except IsADirectoryError as error:
        raise InvalidInput(f'"{printable(name)}" is a directory') from error


def orphans(context: Context) -> list[Path]:
    """Persistent directories of images and containers that no record has."""
    found = []
    places: tuple[tuple[Kind, Path], ...] = (("image", context.layout.images), ("container", context.layout.containers))
    for kind, parent in places:
        try:
            listed = sorted(name for name in os.listdir(parent) if check_record_id(name) is None)
        except FileNotFoundError:
            continue
        with context.catalog.read() as conn:
            known = names.known_ids(conn, kind, listed)
        unknown = [name for name in listed if name not in known]
        if kind == "image":
            unknown = [name for name in unknown if stores.image_by_id(context, name) is None]
        found += [parent / name for name in unknown]
    return found
