"""Reading ``storage.conf``, the configuration of other programs for container storage."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
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

#: Keys of ``[storage.options]`` that are driver options under a general name. Here and below the order is the
#: one in which ``status`` shows them.
_GENERAL: Final = ("size", "mount_program", "skip_mount_home", "ignore_chown_errors", "force_mask", "mountopt")

#: Tables of drivers that this project does not have: used by nobody, and no reason for a warning.
_FOREIGN: Final = frozenset({"btrfs", "zfs", "aufs", "thinpool"})

_OPTIONS: Final = frozenset(
    {
        *_GENERAL, "additionalimagestores", "additionallayerstores", "root-auto-userns-user", "auto-userns-min-size",
        "auto-userns-max-size", "disable-volatile", "pull_options", "overlay", "vfs", *_FOREIGN,
    }
)  # fmt: skip
_STORAGE: Final = frozenset(
    {
        "driver", "graphroot", "runroot", "rootless_storage_path", "imagestore", "driver_priority", "transient_store", "options",
    }
)  # fmt: skip
_DRIVER_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "overlay": (
        "ignore_chown_errors", "mount_program", "mountopt", "size", "inodes", "skip_mount_home", "force_mask", "use_composefs",
    ),
    "vfs": ("ignore_chown_errors",),
}  # fmt: skip

_RENAMED: Final = "Switching default driver from overlay2 to the equivalent overlay driver"


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

    Args:
        environ: the environment; ``CONTAINERS_STORAGE_CONF`` names the only file that counts.
        uid: the effective user; others than root have a file of their own even without ``XDG_CONFIG_HOME``.
        system: where the system's file may be.

    Raises:
        InvalidInput: the one that the environment names does not exist.
    """
    named = environ.get("CONTAINERS_STORAGE_CONF")
    if named is not None:
        # Set but empty is not "unset": whoever meant a file must not get the system's store instead.
        try:
            os.stat(named)
        except (OSError, ValueError) as error:
            raise InvalidInput(_stat_words(named, error)) from error
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
        InvalidInput: the file is missing though named, is no TOML, or has a value of a wrong type; a root is
            empty, or the image store is the graph root.
    """
    chosen = path or find(environ, uid, system=system)
    driver = "" if raw else environ.get("STORAGE_DRIVER", "")
    conf = _from_file(chosen, driver) if chosen is not None else _decoded({}, Path(), driver)
    if raw:
        return conf
    named = path is not None or "CONTAINERS_STORAGE_CONF" in environ
    if uid != 0 and not named and chosen in system:
        conf = _for_others(conf)
    graph, run = _default_roots(environ, uid)
    rootless = _expanded("rootless_storage_path", conf.rootless_storage_path, environ, uid)
    conf = replace(
        conf, graph_root=_expanded("graphroot", conf.graph_root or (rootless if uid else "") or graph, environ, uid),
        run_root=_expanded("runroot", conf.run_root or run, environ, uid), rootless_storage_path=rootless,
        image_store=_expanded("imagestore", conf.image_store, environ, uid),
    )  # fmt: skip
    options = environ.get("STORAGE_OPTS")
    if options is not None:
        # An empty word between commas stays, to be refused where options are understood.
        conf = replace(conf, driver_options=tuple(options.split(",")) if options else ())
    if conf.image_store and conf.image_store == conf.graph_root:
        shown = printable(conf.image_store)
        raise InvalidInput(f"imagestore {shown} must either be not set or be a different than graphroot")
    return conf


def _for_others(conf: StorageConf) -> StorageConf:
    """What the system's file tells users other than root; the rest of it is about root's own store."""
    owners = [option for option in conf.driver_options if "ignore_chown_errors" in option]
    return StorageConf(
        rootless_storage_path=conf.rootless_storage_path, driver=conf.driver, driver_priority=conf.driver_priority,
        driver_options=tuple(owners[:1]) if conf.driver == "overlay" else (), pull_options=conf.pull_options,
        warnings=conf.warnings,
    )  # fmt: skip


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


def _expanded(key: str, path: str, environ: Mapping[str, str], uid: int) -> str:
    """Put variables in, and follow links as far as the path exists; an empty path stays empty."""
    if not path:
        return ""
    values = {**environ, "UID": str(uid)}
    text = re.sub(r"\$(?:(\w+)|\{(\w+)\})", lambda match: values.get(match[1] or match[2], ""), path, flags=re.ASCII)
    # An unset variable must not make the current folder a store.
    if not text:
        raise InvalidInput(f"{key} must be set")
    try:
        return os.path.realpath(text)
    except ValueError as error:
        raise InvalidInput(f"{key} {printable(text)}: {error}") from error


def _stat_words(path: str, error: OSError | ValueError) -> str:
    words = (error.strerror or "").lower() if isinstance(error, OSError) else "invalid argument"
    return f"stat {printable(path)}: {words}"


def _from_file(path: Path, driver: str) -> StorageConf:
    try:
        os.stat(path)
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise InvalidInput(f"reload: {_stat_words(str(path), error)}") from error
    except OSError as error:
        raise InvalidInput(f"reload: open {printable(str(path))}: {(error.strerror or '').lower()}") from error
    try:
        values = tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        raise _broken(content.count(b"\n", 0, error.start) + 1, "invalid UTF-8 byte") from error
    except ValueError as error:  # besides TOMLDecodeError: a number of more digits than Python converts
        place = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", str(error))
        line = int(place[1]) if place and place[1] else content.count(b"\n") + 1 if place else 1
        raise _broken(line, str(error)[: place.start()] if place else str(error)) from error
    except RecursionError as error:
        raise _broken(1, "nested too deep") from error
    return _decoded(values, path, driver)


def _broken(line: int, words: str) -> InvalidInput:
    return InvalidInput(f"reload: toml: line {line}: {printable(words)}")


def _decoded(values: Mapping[str, Any], path: Path, driver: str) -> StorageConf:
    """The settings of a file.

    Args:
        values: its content.
        path: where it lies, for messages.
        driver: the one that the environment names; it also decides which table counts.
    """
    top = _canonical(values, ("storage",))
    storage = _canonical(_table(top, "storage", path), _STORAGE)
    options = _canonical(_table(storage, "options", path), _OPTIONS)
    tables = {name: _canonical(_table(options, name, path), known) for name, known in _DRIVER_KEYS.items()}
    warnings = []
    unknown = list(_unknown(top, storage, options, tables))
    if unknown:
        listed = " ".join(f'"{printable(key)}"' for key in unknown)
        warnings.append(f'Failed to decode the keys [{listed}] from "{printable(str(path))}"')
    written = driver or _text(storage, "driver", path)
    if written == "overlay2":
        warnings.append(_RENAMED)
    return StorageConf(
        run_root=_text(storage, "runroot", path), graph_root=_text(storage, "graphroot", path),
        rootless_storage_path=_text(storage, "rootless_storage_path", path), image_store=_text(storage, "imagestore", path),
        driver="overlay" if written == "overlay2" else written, driver_priority=_list(storage, "driver_priority", path),
        driver_options=tuple(_driver_options(written, options, tables, path)),
        root_auto_userns_user=_text(options, "root-auto-userns-user", path),
        auto_userns_min_size=_int(options, "auto-userns-min-size", path),
        auto_userns_max_size=_int(options, "auto-userns-max-size", path),
        pull_options=_pull_options(options, path),
        disable_volatile=_flag(options, "disable-volatile", path), transient_store=_flag(storage, "transient_store", path),
        warnings=tuple(warnings),
    )  # fmt: skip


def _canonical(table: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Spell known keys in lower case: other readers of the file take them in any, the exact one first."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        name = key.lower() if key.lower() in known else key
        if name == key or name not in table:
            found[name] = value
    return found


def _unknown(
    top: Mapping[str, Any],
    storage: Mapping[str, Any],
    options: Mapping[str, Any],
    tables: Mapping[str, Mapping[str, Any]],
) -> Iterator[str]:
    """Keys that mean nothing, each table of them with all it holds."""
    strange = [(key, top[key]) for key in top if key != "storage"]
    strange += [(f"storage.{key}", storage[key]) for key in storage if key not in _STORAGE]
    strange += [(f"storage.options.{key}", options[key]) for key in options if key not in _OPTIONS]
    for driver, table in tables.items():
        strange += [(f"storage.options.{driver}.{key}", table[key]) for key in table if key not in _DRIVER_KEYS[driver]]
    strange.reverse()
    while strange:  # a loop, as dotted keys nest deeper than Python calls
        key, value = strange.pop()
        yield key
        if isinstance(value, dict):
            strange += [(f"{key}.{name}", inner) for name, inner in reversed(value.items())]


def _driver_options(
    driver: str, options: Mapping[str, Any], tables: Mapping[str, Mapping[str, Any]], path: Path
) -> Iterator[str]:
    """Driver options: general ones first, so that those of the driver's table win.

    The general ones carry the driver's name as written, also none: then no table counts, and either driver
    may turn out to be the one. What the table leaves open, it takes from the general options once more.
    """
    for key, name in (("additionalimagestores", "imagestore"), ("additionallayerstores", "additionallayerstore")):
        yield from (f"{driver}.{name}={value}" for value in _list(options, key, path))
    general = {key: _plain(options, key, path) for key in _GENERAL}
    yield from (f"{driver}.{key}={value}" for key, value in general.items() if value)
    own = {name: {key: _plain(table, key, path) for key in _DRIVER_KEYS[name]} for name, table in tables.items()}
    name = "overlay" if driver == "overlay2" else driver
    for key, value in own.get(name, {}).items():
        chosen = value or general.get(key)
        if chosen:
            yield f"{name}.{key}={chosen}"


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
    if isinstance(found, int) and abs(found) < 1 << 63:
        if key == "force_mask":
            return f"{found:o}" if found else ""
        return str(found)
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
