"""What driver options mean: ``overlay.mountopt=nodev``, ``.imagestore=/path``, ``mountopt=…``."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from lading.errors import InvalidInput
from lading.values import printable

_SHARED_MASK: Final = 0o755
_PRIVATE_MASK: Final = 0o700

_UNITS: Final = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}


@dataclass(frozen=True, slots=True)
class DriverOptions:
    """The driver options of a store."""

    image_stores: tuple[Path, ...] = ()  #: roots of stores to read from as well
    layer_stores: tuple[str, ...] = ()  #: ``PATH[:ref]``
    mount_options: tuple[str, ...] = ()
    mount_program: str = ""  #: accepted where it exists, and not used: the kernel mounts
    size: int = 0  #: bytes of a writable layer
    inodes: int = 0
    ignore_chown_errors: bool = False
    force_mask: int | None = None
    skip_mount_home: bool = False  #: there is no private mount to skip
    use_composefs: bool = False


def parse(driver: str, pairs: Sequence[str], *, filesystem: Callable[[], str]) -> DriverOptions:
    """Read driver options, later ones over earlier ones; image and layer stores add up.

    Args:
        driver: "overlay" or "vfs".
        pairs: ``KEY=VALUE`` each.
        filesystem: names the filesystem below the store: "extfs", "xfs", ….

    Raises:
        InvalidInput: in the words scripts know.
    """
    found = DriverOptions()
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise InvalidInput(f"unable to parse key/value option: {printable(pair)}")
        found = _vfs(found, key.lower(), value) if driver == "vfs" else _overlay(found, key.lower(), value)
    if (found.size or found.inodes) and filesystem() != "xfs":
        raise InvalidInput(
            f"storage option overlay.size and overlay.inodes only supported for backingFS XFS. Found {filesystem()}"
        )
    return found


def _vfs(found: DriverOptions, key: str, value: str) -> DriverOptions:
    match key:
        case "vfs.imagestore" | ".imagestore":
            return replace(found, image_stores=(*found.image_stores, *_paths(value)))
        case "vfs.ignore_chown_errors" | ".ignore_chown_errors":
            return replace(found, ignore_chown_errors=_boolean(value))
        case "vfs.mountopt" | ".mountopt":
            raise InvalidInput("vfs driver does not support mount options")
    name = key.removeprefix("vfs.").removeprefix(".")
    raise InvalidInput(f"vfs driver does not support {printable(name)} options")


def _overlay(found: DriverOptions, key: str, value: str) -> DriverOptions:
    match key.removeprefix("overlay2.").removeprefix("overlay.").removeprefix("."):
        case "override_kernel_check":
            return found
        case "mountopt":
            return replace(found, mount_options=tuple(word for word in value.split(",") if word))
        case "size":
            return replace(found, size=parse_size(value))
        case "inodes":
            return replace(found, inodes=_number(value))
        case "imagestore" | "additionalimagestore":
            stores = _paths(value)
            for path in stores:
                _need_folder(path)
            return replace(found, image_stores=(*found.image_stores, *stores))
        case "additionallayerstore":
            return replace(found, layer_stores=(*found.layer_stores, *_layer_stores(value)))
        case "mount_program":
            if value and not os.path.exists(value):
                raise InvalidInput(
                    f"overlay: can't stat program {printable(value)!r}: stat {printable(value)}: no such file or directory"
                )
            return replace(found, mount_program=value)
        case "skip_mount_home":
            return replace(found, skip_mount_home=_boolean(value))
        case "ignore_chown_errors":
            return replace(found, ignore_chown_errors=_boolean(value))
        case "use_composefs":
            return replace(found, use_composefs=_boolean(value))
        case "force_mask":
            return replace(found, force_mask=_mask(value))
    raise InvalidInput(f"overlay: unknown option {printable(key)}")


def _paths(value: str) -> tuple[Path, ...]:
    return tuple(Path(path) for path in value.split(",") if path)


def _need_folder(path: Path) -> None:
    if not path.is_absolute():
        raise InvalidInput(f'overlay: image path "{printable(str(path))}" is not absolute.  Can not be relative')
    if not path.exists():
        shown = printable(str(path))
        raise InvalidInput(f"overlay: can't stat imageStore dir {shown}: stat {shown}: no such file or directory")
    if not path.is_dir():
        raise InvalidInput(f'overlay: image path "{printable(str(path))}" must be a directory')


def _layer_stores(value: str) -> tuple[str, ...]:
    found = tuple(word for word in value.split(",") if word)
    for word in found:
        path, colon, flag = word.partition(":")
        if not os.path.isabs(path):
            raise InvalidInput(
                f'overlay: additionallayerstore path "{printable(path)}" is not absolute.  Can not be relative'
            )
        if colon and flag != "ref":
            raise InvalidInput(f"overlay: unknown additionallayerstore flag {printable(flag)}")
    return found


def _boolean(value: str) -> bool:
    if value in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if value in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise InvalidInput(f'strconv.ParseBool: parsing "{printable(value)}": invalid syntax')


def _number(value: str) -> int:
    if not (value.isascii() and value.isdigit()):
        raise InvalidInput(f'strconv.ParseUint: parsing "{printable(value)}": invalid syntax')
    return int(value)


def _mask(value: str) -> int:
    if value in ("shared", "private"):
        return _SHARED_MASK if value == "shared" else _PRIVATE_MASK
    try:
        return int(value, 8)
    except ValueError as error:
        raise InvalidInput(f'strconv.ParseUint: parsing "{printable(value)}": invalid syntax') from error


def parse_size(value: str) -> int:
    """Read a size with a binary unit: ``10g`` is 10 GiB.

    Raises:
        InvalidInput: no number, or an unknown unit.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-zA-Z]*)", value)
    if match is None:
        raise InvalidInput(f"invalid size: '{printable(value)}'")
    suffix = match[2].lower()
    unit = (
        suffix.removesuffix("ib") if suffix.endswith("ib") else suffix.removesuffix("b") if len(suffix) > 1 else suffix
    )
    if unit not in _UNITS:
        raise InvalidInput(f"invalid suffix: '{printable(match[2])}'")
    return int(float(match[1]) * _UNITS[unit])
