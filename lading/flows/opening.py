"""Opening a store: what makes a folder a store, who may open it, and where this boot's state lies."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

from lading import config, private
from lading.catalog.database import Catalog
from lading.config import Settings
from lading.errors import InvalidInput, LadingError, ReadOnly, Unsupported
from lading.flows import install, reserve, transient
from lading.flows import marker as marker_file
from lading.flows.context import Context
from lading.objects.durable import make_dir, write_durably
from lading.objects.layout import Layout
from lading.values import printable, unique

#: Version of the on-disk format as a whole. A store with a higher one is not opened.
FORMAT_VERSION: Final = 1

#: Feature names this version knows, by what not knowing one would mean.
KNOWN_INCOMPATIBLE: Final[frozenset[str]] = frozenset()
KNOWN_READ_ONLY_COMPATIBLE: Final[frozenset[str]] = frozenset()


def open_context(root: Path, run: Path | None, driver: str, settings: Settings) -> Context:
    """Open the store at a root, making it when there is none.

    Args:
        root: the store's folder; relative paths are taken from the current folder.
        run: run root; None for the user's default.
        driver: "overlay", "vfs" or empty; wins over the settings.
        settings: how to work.

    Raises:
        InvalidInput: an unknown driver.
        Unsupported: newer format, or a folder that belongs to another program.
        ReadOnly: no store is there and none can be made.
        Corrupt: the format marker cannot be read.
    """
    driver = driver or settings.driver
    if driver not in ("", *config.DRIVERS):
        raise InvalidInput(f"failed to GetDriver graph {printable(driver)} {root}: driver not supported")
    # One folder, one path: what is mounted, locked or open is compared with what another process has by another name.
    root = Path(os.path.realpath(root))
    run_root = Path(os.path.realpath(run or config.default_roots(os.environ, os.geteuid())[1]))
    image_root = Path(os.path.realpath(settings.image_store)) if settings.image_store else None
    if image_root == root:
        raise InvalidInput(f"imagestore {image_root} must either be not set or be a different than graphroot")
    with ExitStack() as opened:
        image_store = None
        if image_root is not None:
            image_store = _open_one(image_root, run_root, driver, settings)
            opened.callback(image_store.close)
        additional = []
        for path in unique([os.path.realpath(path) for path in settings.additional_stores]):
            if Path(path) in (root, image_root):
                continue
            found = _open_beside(Path(path), run_root, driver, settings)
            if found is not None:
                opened.callback(found.close)
                additional.append(found)
        context = _open_one(root, run_root, driver, settings, image_store, additional)
        opened.pop_all()
    try:
        if context.writable:
            context.with_room(lambda: transient.forget_lost(context))
    except BaseException:
        context.close()
        raise
    return context


def _open_one(
    root: Path,
    run_root: Path,
    driver: str,
    settings: Settings,
    image_store: Context | None = None,
    additional: Sequence[Context] = (),
) -> Context:
    """Open a store that may be written to, making it when there is none."""
    layout = Layout(root)
    marker = marker_file.read(layout)
    if marker is None:
        _refuse_foreign(root)
        marker_file.refuse_lost(layout)
        marker = _make_store(layout)
    may_write = check_format(marker, root)
    writable = may_write and os.access(root, os.W_OK) and not _read_only_filesystem(root)
    if writable:
        _make_folders(layout)
        marker_file.keep_copy(layout, marker)
        install.settle(layout, settings.wait_s)
    # Records of two stores name each other: each must be sure of the other's, so that neither can be relaxed.
    relaxed = settings.sync == "relaxed" and not settings.image_store
    opening = partial(
        Catalog.open, layout.catalog_db, layout.journal, layout.writer_lock, create=writable, read_only=not writable,
        wait_s=settings.wait_s, relaxed=relaxed,
    )  # fmt: skip
    # Even reading needs a log and shared memory beside the database, and who is to free space has to look first.
    catalog = reserve.with_room(layout, opening) if writable else opening()
    return Context(
        root, run_root, str(marker["id"]), catalog, settings, driver, writable, image_store=image_store, additional=additional
    )  # fmt: skip


def _open_beside(root: Path, run_root: Path, driver: str, settings: Settings) -> Context | None:
    """Open a store to read from it, writing nothing there; None when the folder holds no store yet."""
    layout = Layout(root)
    marker = marker_file.read(layout)
    if marker is None:
        _refuse_foreign(root)
        marker_file.refuse_lost(layout)
        return None
    check_format(marker, root)
    catalog = Catalog.open(
        layout.catalog_db, layout.journal, layout.writer_lock, read_only=True, wait_s=settings.wait_s
    )
    return Context(root, run_root, str(marker["id"]), catalog, settings, driver, False)


def check_format(marker: dict[str, Any], root: Path) -> bool:
    """Tell whether a store of this format may be written.

    Raises:
        Unsupported: it may not even be read.
    """
    if marker["version"] > FORMAT_VERSION:
        raise Unsupported(
            f"store {root} has format {marker['version']}; this version of Lading reads up to {FORMAT_VERSION}: upgrade it"
        )
    unknown = set(marker.get("incompatible", ())) - KNOWN_INCOMPATIBLE
    if unknown:
        raise Unsupported(f"store {root} uses {printable(', '.join(sorted(unknown)))}: upgrade Lading to open it")
    return not set(marker.get("read_only_compatible", ())) - KNOWN_READ_ONLY_COMPATIBLE


def _refuse_foreign(root: Path) -> None:
    """Refuse a root that another program keeps its layers in."""
    try:
        names = os.listdir(root)
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise InvalidInput(f"store {root}: not a directory") from error
    except PermissionError as error:
        raise InvalidInput(f"store {root}: permission denied") from error
    foreign = "libpod" in names or any(
        name.endswith("-layers") and (root / name / "layers.json").exists() for name in names
    )
    if foreign:
        raise Unsupported(f"{root} belongs to containers/storage; choose another root and use `lading import`")


def new_marker() -> dict[str, Any]:
    """The marker of a store that is new."""
    return {
        "version": FORMAT_VERSION, "id": os.urandom(16).hex(),
        "compatible": [], "read_only_compatible": [], "incompatible": [],
    }  # fmt: skip


def _make_store(layout: Layout) -> dict[str, Any]:
    """Make an empty store. The marker is written last: what has one is whole."""
    marker = new_marker()
    try:
        _make_folders(layout)
        if os.stat(layout.root).st_uid == os.geteuid():
            os.chmod(layout.root, 0o700)  # made by somebody else's hand, and wider
        reserve.put_back(layout)
        try:
            write_durably(layout.format_marker, json.dumps(marker).encode() + b"\n", replace=False)
        except FileExistsError:  # another process made the store at this moment
            made = marker_file.read(layout)
            if made is not None:
                return made
            raise
    except OSError as error:
        raise _cannot_make(layout.root, error) from error
    return marker


def _cannot_make(root: Path, error: OSError) -> LadingError:
    if error.errno == errno.EROFS:
        return ReadOnly(f"store {root}: no store is there, and the filesystem is read-only")
    return InvalidInput(f"store {root} cannot be made: {error.strerror}")


def _make_folders(layout: Layout) -> None:
    """Make the folders that are missing; all are the owner's alone."""
    for folder in (
        layout.root,
        layout.objects,
        layout.packs,
        layout.staging,
        layout.journal,
        layout.cache,
        layout.layers,
    ):
        if not folder.is_dir():
            make_dir(folder)


def _read_only_filesystem(path: Path) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def claim_run_root(context: Context) -> None:
    """Remember this boot's run root in the store, and refuse a second one.

    Two run roots would mean two mount tables, each blind to what the other has mounted.

    Raises:
        InvalidInput: another run root is in use in this boot.
    """
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    note = context.root / "run"
    try:
        known = json.loads(note.read_bytes())
    except (FileNotFoundError, ValueError):
        known = {}
    if known.get("boot") == boot_id and os.path.realpath(str(known.get("run"))) != str(context.run_root):
        from lading.materialize.mounttable import MountTable

        if MountTable(Path(str(known.get("run")), context.store_id)).records():
            raise InvalidInput(
                f"store {context.root} keeps its mounts of this boot in {known['run']}; give that as run root, or shut it down"
            )
    make_private(context.run)
    _refuse_run_root_of_others(context.run_root)
    if context.writable and known != {"boot": boot_id, "run": str(context.run_root)}:
        write_durably(note, json.dumps({"boot": boot_id, "run": str(context.run_root)}).encode())


def _refuse_run_root_of_others(folder: Path) -> None:
    """Refuse a run root that another user made: who owns a folder may exchange what is in it.

    Raises:
        InvalidInput: with its path.
    """
    if os.stat(folder).st_uid not in (0, os.geteuid()):
        raise InvalidInput(f"{folder} belongs to somebody else")


def make_private(folder: Path) -> None:
    """Make a folder that only the user can enter, and refuse one that somebody else owns.

    Raises:
        InvalidInput: the folder exists and is not the user's own.
    """
    private.make_folders(folder)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise InvalidInput(f"{folder} belongs to somebody else")
    if found.st_mode & 0o077:
        os.chmod(folder, 0o700)
