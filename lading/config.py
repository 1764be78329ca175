"""Settings of a store, as one value. Reading files and environments is left to whoever has them."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from lading.errors import InvalidInput
from lading.values import printable

#: Where root's store lies, and its run root, when nothing else is said.
SYSTEM_ROOT: Final = Path("/var/lib/lading")
SYSTEM_RUN: Final = Path("/run/lading")

DRIVERS: Final = ("overlay", "vfs")
STRATEGIES: Final = ("erofs", "farm", "composefs")
SYNCS: Final = ("full", "relaxed")


@dataclass(frozen=True, slots=True)
class Settings:
    """What can be chosen about a store's work; never what is stored.

    Sizes are bytes, times are seconds.
    """

    driver: str = ""  #: "overlay", "vfs", or "" = overlay where it works, else vfs
    strategy: str = ""  #: "erofs", "farm" or "composefs" for what overlay stacks; "" = the first that works
    flatten_depth: int = 64  #: contents in a chain from which they are shown as one
    cache_budget: int = 0  #: bytes of the cache that mounts leave behind at most; 0 = no bound
    sync: str = "full"  #: "full", or "relaxed" = a power loss may take the newest acknowledged steps
    level: int = 0  #: zstd level of new objects; 0 = the default of ``objects.writer``
    workers: int = 0  #: threads that compress and hash; 0 = one per processor
    pack_size: int = 64 << 20  #: bound of a pack
    wait_s: float = 30.0  #: longest wait for another writer
    min_free: int = 64 << 20  #: bytes that storing contents leaves free on the store's filesystem; 0 = use all of it
    repack_share: float = 0.3  #: dead share from which gc rewrites a pack
    entries_max: int = 4_000_000  #: names in one layer tar
    size_max: int = 1 << 40  #: bytes of one layer tar, uncompressed
    tree_size_max: int = 1 << 30  #: bytes of all its names, link targets and attributes
    image_store: str = ""  #: root of a separate store for images and read-only layers; "" = all in one
    additional_stores: tuple[str, ...] = ()  #: roots of stores to read from as well
    layer_stores: tuple[str, ...] = ()  #: folders of layers by the digest of their table of contents: ``PATH[:ref]``
    transient: bool = False  #: containers end with the run root
    mount_options: tuple[str, ...] = ()  #: given to mounts that bring none of their own
    ignore_chown_errors: bool = False  #: owners that a map has no place for are no error
    disable_volatile: bool = False  #: sync volatile containers like others
    driver_options: tuple[str, ...] = ()  #: as they were given, for ``status``
    auto_userns_user: str = "containers"  #: whose sub-IDs automatic maps take
    auto_userns_min_size: int = 1024  #: fewest IDs of an automatic map
    auto_userns_max_size: int = 65536  #: most
    pull_options: tuple[str, ...] = ()  #: ``KEY=VALUE`` for programs that fetch images


@dataclass(frozen=True, slots=True)
class Configuration:
    """A configuration file's answer: where the store is and how it works."""

    root: Path
    run: Path
    settings: Settings


def default_roots(environ: Mapping[str, str], uid: int) -> tuple[Path, Path]:
    """Tell where store and run root lie when nothing is configured.

    Returns:
        Store root and run root: below ``/var/lib`` and ``/run`` for root, below the user's data and
        runtime folders for everybody else.
    """
    if uid == 0:
        return SYSTEM_ROOT, SYSTEM_RUN
    home = Path(environ.get("HOME") or "/")
    data = Path(environ.get("XDG_DATA_HOME") or home / ".local/share")
    runtime = environ.get("XDG_RUNTIME_DIR") or f"/tmp/lading-run-{uid}"  # noqa: S108 - made 0700 and checked when opened
    return data / "lading", Path(runtime) / "lading"


def config_file(environ: Mapping[str, str]) -> Path | None:
    """Find the configuration file: the one named by ``LADING_CONFIG``, the user's, or the system's."""
    named = environ.get("LADING_CONFIG")
    if named:
        return Path(named)
    home = environ.get("XDG_CONFIG_HOME") or os.path.join(environ.get("HOME") or "/", ".config")
    for path in (Path(home) / "lading/config.toml", Path("/etc/lading/config.toml")):
        if path.is_file():
            return path
    return None


def load(environ: Mapping[str, str], uid: int) -> Configuration:
    """Read the configuration that applies to a user.

    Keys of the TOML file: ``root``, ``run`` and the fields of ``Settings``.

    Raises:
        InvalidInput: the file is missing though named, is no TOML, or has an unknown or wrong value.
    """
    root, run = default_roots(environ, uid)
    settings = Settings()
    path = config_file(environ)
    if path is not None:
        values = _parse(path)
        root, run = (_path(path, key, values.pop(key, found)) for key, found in (("root", root), ("run", run)))
        settings = _settings(path, values)
    return Configuration(root, run, settings)


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise InvalidInput(f"configuration file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"configuration file {path}: byte {error.start} is not valid UTF-8") from error
    except ValueError as error:  # besides TOMLDecodeError: a number of more digits than Python converts
        raise InvalidInput(f"configuration file {path}: {printable(str(error))}") from error
    except RecursionError as error:
        raise InvalidInput(f"configuration file {path}: nested too deep") from error


def _path(path: Path, key: str, value: object) -> Path:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise InvalidInput(f"configuration file {path}: {key} must be a path")
    return Path(value)


def _settings(path: Path, values: Mapping[str, Any]) -> Settings:
    known = {field.name: field for field in fields(Settings)}
    for key, value in values.items():
        if key not in known:
            raise InvalidInput(f"configuration file {path}: unknown key {printable(key)}")
        wanted = type(getattr(Settings(), key))
        if wanted is tuple and isinstance(value, list) and all(isinstance(item, str) for item in value):
            values = {**values, key: tuple(value)}
            continue
        is_wrong = not isinstance(value, wanted) or isinstance(value, bool) is not (wanted is bool)
        if is_wrong and not (wanted is float and isinstance(value, int) and not isinstance(value, bool)):
            raise InvalidInput(f"configuration file {path}: {key} must be of type {wanted.__name__}")
    settings = replace(Settings(), **values)
    if settings.driver not in ("", *DRIVERS):
        raise InvalidInput(f"configuration file {path}: driver must be one of {', '.join(DRIVERS)}")
    if settings.strategy not in ("", *STRATEGIES):
        raise InvalidInput(f"configuration file {path}: strategy must be one of {', '.join(STRATEGIES)}")
    if settings.sync not in SYNCS:
        raise InvalidInput(f"configuration file {path}: sync must be one of {', '.join(SYNCS)}")
    for key in ("flatten_depth", "cache_budget", "min_free"):
        if getattr(settings, key) < 0:
            raise InvalidInput(f"configuration file {path}: {key} must not be negative")
    return settings
