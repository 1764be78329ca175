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


Strategy = Farm | Copy
