"""What driver options mean: ``overlay.mountopt=nodev``, ``.imagestore=/path``, ``mountopt=…``."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from stat import S_ISDIR
from typing import Final

from lading.errors import InvalidInput
from lading.values import printable

_SHARED_MASK: Final = 0o755
_PRIVATE_MASK: Final = 0o700

_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
_SIZE_MAX: Final = (1 << 63) - 1
_INODES_MAX: Final = (1 << 64) - 1
_MASK_MAX: Final = (1 << 31) - 1


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
        key, value = key.strip(), value.strip()
        found = _vfs(found, key.lower(), value) if driver == "vfs" else _overlay(found, key, value)
    # Asked last: a filesystem may be slow to answer, and most stores have no quota.
    if (found.size or found.inodes) and (name := filesystem()) != "xfs":
        raise InvalidInput(
            f"storage option overlay.size and overlay.inodes only supported for backingFS XFS. Found {name}"
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
    match key.lower().removeprefix("overlay.").removeprefix("overlay2.").removeprefix("."):
        case "override_kernel_check":
            return found
        case "mountopt":
            return replace(found, mount_options=tuple(word for word in value.split(",") if word))
        case "size":
            return replace(found, size=parse_size(value))
        case "inodes":
            return replace(found, inodes=_number("Uint", value, 10, _INODES_MAX))
        case "imagestore" | "additionalimagestore":
            stores = _paths(value)
            for path in stores:
                _need_folder(path)
            return replace(found, image_stores=(*found.image_stores, *stores))
        case "additionallayerstore":
            return replace(found, layer_stores=(*found.layer_stores, *_layer_stores(value)))
        case "mount_program":
            if value:
                _stat(f'overlay: can\'t stat program "{printable(value)}"', value)
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
    return tuple(Path(os.path.normpath(path)) for path in value.split(",") if path)


def _stat(context: str, path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except (OSError, ValueError) as error:
        words = (error.strerror or "").lower() if isinstance(error, OSError) else "invalid argument"
        raise InvalidInput(f"{context}: stat {printable(path)}: {words}") from error


def _need_folder(path: Path) -> None:
    shown = printable(str(path))
    if not path.is_absolute():
        raise InvalidInput(f'overlay: image path "{shown}" is not absolute.  Can not be relative')
    if not S_ISDIR(_stat(f"overlay: can't stat imageStore dir {shown}", str(path)).st_mode):
        raise InvalidInput(f'overlay: image path "{shown}" must be a directory')


def _layer_stores(value: str) -> tuple[str, ...]:
    found = tuple(word for word in value.split(",") if word)
    for word in found:
        path, colon, flag = word.partition(":")
        shown = printable(path)
        if not os.path.isabs(path):
            raise InvalidInput(f'overlay: additionallayerstore path "{shown}" is not absolute.  Can not be relative')
        if colon and flag != "ref":
            raise InvalidInput(f"overlay: unknown additionallayerstore flag {printable(flag)}")
        if not S_ISDIR(_stat("overlay: can't stat additionallayerstore dir", path).st_mode):
            raise InvalidInput(f'overlay: additionallayerstore path "{shown}" must be a directory')
    return found


def _boolean(value: str) -> bool:
    if value in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if value in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise InvalidInput(f'strconv.ParseBool: parsing "{printable(value)}": invalid syntax')


def _number(kind: str, value: str, base: int, largest: int) -> int:
    """A whole number of plain digits; ``int`` alone would take signs, spaces, underscores and prefixes too."""
    digits = "01234567" if base == 8 else "0123456789"
    context = f'strconv.Parse{kind}: parsing "{printable(value)}"'
    if not value or value.strip(digits):
        raise InvalidInput(f"{context}: invalid syntax")
    significant = value.lstrip("0")
    # Compared by length first: Python refuses to convert thousands of digits.
    if len(significant) > len(str(_INODES_MAX)) or int(significant or "0", base) > largest:
        raise InvalidInput(f"{context}: value out of range")
    return int(significant or "0", base)


def _mask(value: str) -> int:
    if value in ("shared", "private"):
        return _SHARED_MASK if value == "shared" else _PRIVATE_MASK
    return _number("Int", value, 8, _MASK_MAX)


def parse_size(value: str) -> int:
    """Read a size with a binary unit: ``10g`` is 10 GiB.

    Units are b, k, m, g, t and p in either case, all but the first also as ``kb`` or ``kib``; a fraction and one
    space before the unit are allowed. What is left of a byte is dropped.

    Raises:
        InvalidInput: no number, a number that is too large, or an unknown unit.
    """
    match = re.fullmatch(r"(\d+)(?:\.(\d+))? ?([^\d. ]*)", value, re.ASCII)
    if match is None or len(match[1]) > len(str(_SIZE_MAX)) + 2:
        raise InvalidInput(f"invalid size: '{printable(value)}'")
    suffix = match[3].lower()
    # "b" stands alone or after a unit's letter, "ib" only after one.
    unit = "" if suffix == "b" else suffix[:1] if suffix[1:] in ("", "b", "ib") else suffix
    if unit not in _UNITS:
        raise InvalidInput(f"invalid suffix: '{printable(suffix)}'")
    # Whole numbers throughout: a float would be off by some bytes above 8 PiB.
    fraction = (match[2] or "")[:20]
    size: int = int(match[1] + fraction) * _UNITS[unit] // int("1" + "0" * len(fraction))
    if size > _SIZE_MAX:
        raise InvalidInput(f"invalid size: '{printable(value)}'")
    return size
