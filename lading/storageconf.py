"""Reading ``storage.conf``, the configuration of other programs for container storage."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from lading.errors import InvalidInput
from lading.values import printable

#: Where the system's file may be, the first that exists counts.
SYSTEM_FILES: Final = (Path("/etc/containers/storage.conf"), Path("/usr/share/containers/storage.conf"))

_ROOT: Final = "/var/lib/containers/storage"
_RUN: Final = "/run/containers/storage"

#: Pull options that are shown although nobody set them.
_PULL_DEFAULTS: Final = {"enable_partial_images": "false", "use_hard_links": "false", "ostree_repos": ""}

#: Keys of ``[storage.options]`` that are driver options under a general name.
_GENERAL: Final = ("size", "mount_program", "skip_mount_home", "ignore_chown_errors", "mountopt", "force_mask")

#: Tables of drivers that this project does not have: read by nobody, and no reason for a warning.
_FOREIGN: Final = frozenset({"btrfs", "zfs", "aufs", "thinpool"})

_OPTIONS: Final = frozenset(
    {
        *_GENERAL, "additionalimagestores", "additionallayerstores", "root-auto-userns-user", "auto-userns-min-size",
        "auto-userns-max-size", "disable-volatile", "pull_options", "overlay", "vfs", "remap-uids", "remap-gids",
        "remap-user", "remap-group", *_FOREIGN,
    }
)  # fmt: skip
_STORAGE: Final = frozenset(
    {
        "driver", "graphroot", "runroot", "rootless_storage_path", "imagestore", "driver_priority", "transient_store", "options",
    }
)  # fmt: skip
_DRIVER_KEYS: Final = {
    "overlay": (
        "mountopt", "mount_program", "size", "inodes", "ignore_chown_errors", "force_mask", "skip_mount_home", "use_composefs",
    ),
    "vfs": ("ignore_chown_errors",),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StorageConf:
    """What a file says, with what the environment and the defaults add."""

    run_root: str = ""
    graph_root: str = ""
    rootless_storage_path: str = ""
    image_store: str = ""
    driver: str = ""
    driver_priority: tuple[str, ...] = ()
    driver_options: tuple[str, ...] = ()
    root_auto_userns_user: str = ""
    auto_userns_min_size: int = 0
    auto_userns_max_size: int = 0
    pull_options: Mapping[str, str] | None = None
    disable_volatile: bool = False
    transient_store: bool = False
    warnings: tuple[str, ...] = ()


def find(environ: Mapping[str, str], uid: int, *, system: tuple[Path, ...] = SYSTEM_FILES) -> Path | None:
    """Find the file that counts; None when there is none.

    Raises:
        InvalidInput: the one that the environment names does not exist.
    """
    named = environ.get("CONTAINERS_STORAGE_CONF")
    if named:
        if not os.path.exists(named):
            raise InvalidInput(f"stat {printable(named)}: no such file or directory")
        return Path(named)
    home = environ.get("XDG_CONFIG_HOME")
    if not home and uid != 0:
        home = os.path.join(environ.get("HOME") or "/", ".config")
    own = (Path(home) / "containers/storage.conf",) if home else ()
    return next((path for path in (*own, *system) if path.is_file()), None)


def load(
    environ: Mapping[str, str],
    uid: int,
    *,
    path: Path | None = None,
    raw: bool = False,
    system: tuple[Path, ...] = SYSTEM_FILES,
) -> StorageConf:
    """Read the configuration.

    Args:
        environ: the environment; names of settings in it win over the file.
        uid: the effective user.
        path: the file; None for the one that counts.
        raw: show a file just as it is, without environment, defaults and expansion.
        system: where the system's file may be.

    Raises:
        InvalidInput: the file is missing though named, is no TOML, or has a value of a wrong type.
    """
    chosen = path or find(environ, uid, system=system)
    conf = StorageConf()
    if chosen is not None:
        conf = _from_file(chosen)
    if raw:
        return conf
    graph, run = _default_roots(environ, uid)
    if uid != 0 and conf.rootless_storage_path:
        graph = conf.rootless_storage_path
    if uid != 0 and chosen is not None and chosen in system:
        conf = replace(conf, graph_root="", run_root="")  # the system's file says where root keeps things
    conf = replace(
        conf, graph_root=_expanded(conf.graph_root or graph, environ, uid),
        run_root=_expanded(conf.run_root or run, environ, uid),
        image_store=_expanded(conf.image_store, environ, uid) if conf.image_store else "",
        driver=environ.get("STORAGE_DRIVER") or conf.driver,
    )  # fmt: skip
    if "STORAGE_OPTS" in environ:
        conf = replace(conf, driver_options=tuple(word for word in environ["STORAGE_OPTS"].split(",") if word))
    if conf.driver == "overlay2":
        conf = replace(conf, driver="overlay")
    if conf.image_store and conf.image_store == conf.graph_root:
        raise InvalidInput(f"imagestore {conf.image_store} must either be not set or be a different than graphroot")
    return conf


def _default_roots(environ: Mapping[str, str], uid: int) -> tuple[str, str]:
    if uid == 0:
        return _ROOT, _RUN
    data = environ.get("XDG_DATA_HOME") or os.path.join(environ.get("HOME") or "/", ".local/share")
    runtime = environ.get("XDG_RUNTIME_DIR")
    if not runtime and _is_private(f"/run/user/{uid}", uid):
        runtime = f"/run/user/{uid}"
    if not runtime:
        runtime = os.path.join(environ.get("TMPDIR") or "/tmp", f"storage-run-{uid}")  # noqa: S108 - checked when opened
    return os.path.join(data, "containers/storage"), os.path.join(runtime, "containers")


def _is_private(path: str, uid: int) -> bool:
    try:
        found = os.stat(path)
    except OSError:
        return False
    return found.st_uid == uid and found.st_mode & 0o777 == 0o700


def _expanded(path: str, environ: Mapping[str, str], uid: int) -> str:
    """Put variables in, and follow links as far as the path exists."""
    values = {**environ, "UID": str(uid)}
    text = re.sub(r"\$(?:(\w+)|\{(\w+)\})", lambda match: values.get(match[1] or match[2], ""), path)
    return os.path.realpath(text) if text else text


def _from_file(path: Path) -> StorageConf:
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except FileNotFoundError as error:
        raise InvalidInput(f"reload: stat {printable(str(path))}: no such file or directory") from error
    except OSError as error:
        raise InvalidInput(f"reload: open {printable(str(path))}: {(error.strerror or '').lower()}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        line = re.search(r"line (\d+)", str(error))
        words = printable(re.sub(r" \(at .*\)$", "", str(error)))
        raise InvalidInput(f"reload: toml: line {line[1] if line else 1}: {words}") from error
    storage = _table(values, "storage", path)
    options = _table(storage, "options", path)
    warnings = []
    unknown = list(_unknown(values, storage, options))
    if unknown:
        listed = " ".join(f'"{printable(key)}"' for key in unknown)
        warnings.append(f'Failed to decode the keys [{listed}] from "{printable(str(path))}"')
    driver = _text(storage, "driver", path)
    return StorageConf(
        run_root=_text(storage, "runroot", path), graph_root=_text(storage, "graphroot", path),
        rootless_storage_path=_text(storage, "rootless_storage_path", path), image_store=_text(storage, "imagestore", path),
        driver=driver, driver_priority=_list(storage, "driver_priority", path),
        driver_options=tuple(_driver_options("overlay" if driver == "overlay2" else driver or "overlay", options, path)),
        root_auto_userns_user=_text(options, "root-auto-userns-user", path),
        auto_userns_min_size=_int(options, "auto-userns-min-size", path),
        auto_userns_max_size=_int(options, "auto-userns-max-size", path),
        pull_options=_pull_options(options, path),
        disable_volatile=_flag(options, "disable-volatile", path), transient_store=_flag(storage, "transient_store", path),
        warnings=tuple(warnings),
    )  # fmt: skip


def _unknown(values: Mapping[str, Any], storage: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
    yield from (key for key in values if key != "storage")
    yield from (f"storage.{key}" for key in storage if key not in _STORAGE)
    yield from (f"storage.options.{key}" for key in options if key not in _OPTIONS)
    for driver, known in _DRIVER_KEYS.items():
        table = options.get(driver)
        if isinstance(table, dict):
            yield from (f"storage.options.{driver}.{key}" for key in table if key not in known)


def _driver_options(driver: str, options: Mapping[str, Any], path: Path) -> Iterator[str]:
    """Driver options, general ones first, so that the driver's own win."""
    for key, name in (("additionalimagestores", "imagestore"), ("additionallayerstores", "additionallayerstore")):
        for value in _list(options, key, path):
            if value:
                yield f"{driver}.{name}={value}"
    own = _DRIVER_KEYS.get(driver, ())
    for key in _GENERAL:
        value = _plain(options, key, path)
        if value and key in own:
            yield f"{driver}.{key}={value}"
    table = _table(options, driver, path) if driver in options else {}
    for key in own:
        value = _plain(table, key, path)
        if value:
            yield f"{driver}.{key}={value}"


def _pull_options(options: Mapping[str, Any], path: Path) -> dict[str, str] | None:
    if "pull_options" not in options:
        return None
    table = _table(options, "pull_options", path)
    return {**_PULL_DEFAULTS, **{key: _plain(table, key, path) for key in table}}


def _wrong(path: Path, key: str, wanted: str) -> InvalidInput:
    return InvalidInput(f"reload: toml: {printable(str(path))}: {printable(key)} must be {wanted}")


def _table(values: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    found = values.get(key, {})
    if not isinstance(found, dict):
        raise _wrong(path, key, "a table")
    return found


def _text(values: Mapping[str, Any], key: str, path: Path) -> str:
    found = values.get(key, "")
    if not isinstance(found, str):
        raise _wrong(path, key, "a string")
    return found


def _plain(values: Mapping[str, Any], key: str, path: Path) -> str:
    """A string, or a number or a boolean as one."""
    found = values.get(key, "")
    if isinstance(found, bool):
        return "true" if found else "false"
    if isinstance(found, int):
        return f"{found:o}" if key == "force_mask" else str(found)
    if not isinstance(found, str):
        raise _wrong(path, key, "a string")
    return found


def _list(values: Mapping[str, Any], key: str, path: Path) -> tuple[str, ...]:
    found = values.get(key, [])
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise _wrong(path, key, "a list of strings")
    return tuple(found)


def _int(values: Mapping[str, Any], key: str, path: Path) -> int:
    found = values.get(key, 0)
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < 1 << 32:
        raise _wrong(path, key, "a number that is not negative")
    return found


def _flag(values: Mapping[str, Any], key: str, path: Path) -> bool:
    found = values.get(key, False)
    if not isinstance(found, bool):
        raise _wrong(path, key, "true or false")
    return found


def as_json(conf: StorageConf) -> dict[str, Any]:
    """The configuration as ``config`` shows it: what is empty is left out, but for a few."""
    found: dict[str, Any] = {}
    if conf.run_root:
        found["runroot"] = conf.run_root
    if conf.graph_root:
        found["root"] = conf.graph_root
    if conf.image_store:
        found["imagestore"] = conf.image_store
    found["RootlessStoragePath"] = conf.rootless_storage_path
    optional = (
        ("driver", conf.driver), ("driver-priority", list(conf.driver_priority)), ("driver-options", list(conf.driver_options)),
        ("root_auto_ns_user", conf.root_auto_userns_user), ("auto_userns_min_size", conf.auto_userns_min_size),
        ("auto_userns_max_size", conf.auto_userns_max_size),
    )  # fmt: skip
    found.update({key: value for key, value in optional if value})
    found["PullOptions"] = None if conf.pull_options is None else dict(sorted(conf.pull_options.items()))
    if conf.disable_volatile:
        found["disable-volatile"] = True
    if conf.transient_store:
        found["transient_store"] = True
    return found
