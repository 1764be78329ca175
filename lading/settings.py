"""Which store, and how: command-line options over configuration files, for both names of the command.

``lading`` reads its own file. Under the other name the file is ``storage.conf``, and it counts only when no
option before the command says where the store is or how it works.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from lading import config
from lading.config import Settings
from lading.errors import IncompleteOptions, InvalidInput, Unsupported
from lading.values import printable

#: Options that decide, before the command, whether storage.conf counts.
_DECIDING: Final = ("graph", "run_root", "driver", "storage_options")


@dataclass(frozen=True, slots=True)
class Chosen:
    """What was decided."""

    root: Path
    run: Path
    settings: Settings
    warnings: tuple[str, ...] = ()


def choose(environ: Mapping[str, str], uid: int, before: Mapping[str, Any], after: Mapping[str, Any]) -> Chosen:
    """Decide for ``lading``: options, wherever they stand, win over the configuration file.

    Args:
        environ: the environment.
        uid: the effective user.
        before: options before the command: ``graph``, ``run_root``, ``driver``, ``storage_options``,
            ``image_store``, ``transient``; those not given are missing.
        after: options among the command's own.

    Raises:
        InvalidInput, Unsupported: a value that cannot be used.
    """
    found = config.load(environ, uid)
    given = {**before, **after}
    pairs = (*before.get("storage_options", ()), *after.get("storage_options", ()))
    root = Path(given.get("graph") or found.root)
    settings = _with_options(found.settings, given, pairs, root)
    return Chosen(root, Path(given.get("run_root") or found.run), settings)


def choose_compatible(
    environ: Mapping[str, str], uid: int, before: Mapping[str, Any], after: Mapping[str, Any]
) -> Chosen:
    """Decide by the rules of ``containers-storage``; arguments as in :func:`choose`.

    Raises:
        IncompleteOptions: neither root is given, though other settings are.
    """
    from lading import storageconf

    decided = any(before.get(key) for key in _DECIDING)
    if decided:
        given = {**before, **after}
        pairs = (*before.get("storage_options", ()), *after.get("storage_options", ()))
        if not given.get("graph") and not given.get("run_root"):
            raise IncompleteOptions("no storage runroot or graphroot specified")
        settings = Settings()
        conf = None
        if not given.get("graph") or not given.get("run_root"):
            conf = storageconf.load(environ, uid)
        root = given.get("graph") or (conf.graph_root if conf else "")
        run = given.get("run_root") or (conf.run_root if conf else "")
        return Chosen(Path(root), Path(run), _with_options(settings, given, pairs, Path(root)))
    conf = storageconf.load(environ, uid)
    root = after.get("graph") or conf.graph_root
    run = after.get("run_root") or conf.run_root
    given = {"driver": conf.driver, "image_store": conf.image_store, "transient": conf.transient_store, **after}
    pairs = (*conf.driver_options, *after.get("storage_options", ()))
    settings = replace(
        Settings(), disable_volatile=conf.disable_volatile,
        pull_options=tuple(f"{key}={value}" for key, value in (conf.pull_options or {}).items()),
        auto_userns_user=conf.root_auto_userns_user or "containers",
        auto_userns_min_size=conf.auto_userns_min_size or 1024, auto_userns_max_size=conf.auto_userns_max_size or 65536,
    )  # fmt: skip
    return Chosen(Path(root), Path(run), _with_options(settings, given, pairs, Path(root)), conf.warnings)


def _with_options(settings: Settings, given: Mapping[str, Any], pairs: Sequence[str], root: Path) -> Settings:
    """Settings with what options say about driver, driver options, image store and transience."""
    driver = given.get("driver") or settings.driver
    driver = "overlay" if driver == "overlay2" else driver
    if driver not in ("", *config.DRIVERS):
        raise InvalidInput(f"failed to GetDriver graph {printable(driver)} {root}: driver not supported")
    settings = replace(
        settings, driver=driver, image_store=given.get("image_store") or settings.image_store,
        transient=bool(given.get("transient")) or settings.transient,
    )  # fmt: skip
    all_pairs = (*settings.driver_options, *pairs)
    if not all_pairs:
        return settings
    from lading import driveroptions

    options = driveroptions.parse(driver or "overlay", all_pairs, filesystem=lambda: _filesystem(root))
    if options.size or options.inodes:
        raise Unsupported("overlay.size and overlay.inodes: this version sets no quotas")
    if options.force_mask is not None:
        raise Unsupported("overlay.force_mask: attributes are kept in the catalog, files are always as they should be")
    if options.use_composefs:
        settings = replace(settings, strategy="composefs")
    return replace(
        settings, driver_options=tuple(all_pairs),
        additional_stores=(*settings.additional_stores, *(str(path) for path in options.image_stores)),
        layer_stores=(*settings.layer_stores, *options.layer_stores),
        mount_options=options.mount_options or settings.mount_options,
        ignore_chown_errors=options.ignore_chown_errors or settings.ignore_chown_errors,
    )  # fmt: skip


def _filesystem(root: Path) -> str:
    from lading.flows.upkeep import backing_filesystem

    folder = Path(os.path.abspath(root))
    while not folder.exists():
        folder = folder.parent
    return backing_filesystem(folder)


def show(environ: Mapping[str, str], uid: int, path: str | None) -> dict[str, Any]:
    """The configuration of ``lading`` as a JSON object: every setting, given or not."""
    found = config.load({**environ, "LADING_CONFIG": path} if path else environ, uid)
    return {"root": str(found.root), "run": str(found.run), **asdict(found.settings)}


def show_compatible(environ: Mapping[str, str], uid: int, path: str | None) -> dict[str, Any]:
    """The configuration as ``containers-storage config`` shows it; a named file as it is."""
    from lading import storageconf

    found = storageconf.load(environ, uid, path=Path(path), raw=True) if path else storageconf.load(environ, uid)
    return storageconf.as_json(found)
