"""The ways to make a view of layers, as small frozen values; each has only its own options."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Farm:
    """A lowerdir of hardlinks into the pool, for an overlay mount."""

    as_root: bool = True  #: owners, devices and all attributes can be given
    userxattr: bool = False  #: overlay's marks are ``user.overlay.*`` instead of ``trusted.overlay.*``


@dataclass(frozen=True, slots=True)
class Copy:
    """A plain tree whose files are nobody else's."""

    as_root: bool = True  #: owners, devices and all attributes can be given
    reflink: bool = False  #: the filesystem shares blocks between files


@dataclass(frozen=True, slots=True)
class Erofs:
    """An EROFS image with metadata and contents."""


@dataclass(frozen=True, slots=True)
class Composefs:
    """An EROFS image with metadata alone, whose files lead to the pool's."""


Strategy = Erofs | Farm | Copy | Composefs
