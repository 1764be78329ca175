"""Why the two sides may tell different changes of a layer: path by path."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from tests.contract.differential import Case, Statistics

_KINDS: Final = ("Modify", "Add", "Delete")


@dataclass
class Changes:
    """What both sides say about paths."""

    case: Case
    peer: dict[str, str] = field(default_factory=dict)
    own: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.peer, self.own = _parsed(self.case.peer.out), _parsed(self.case.own.out)
        self._parent: set[str] | None = None

    @property
    def differing(self) -> set[str]:
        """Paths of which they say different things."""
        return {path for path in self.peer.keys() | self.own.keys() if self.peer.get(path) != self.own.get(path)}

    def replaced(self, path: str) -> bool:
        """Whether a directory above is told as removed."""
        parts = path.split("/")
        return any(self.own.get("/".join(parts[:count])) == "Delete" for count in range(2, len(parts)))

    def in_parent(self, path: str) -> bool:
        """Whether the layer's parent shows a path."""
        if self._parent is None:
            ref = next(word for word in self.case.words[1:] if not word.startswith("-"))
            parent = _layer(self.case, ref).get("parent")
            self._parent = self.case.shows(parent) if isinstance(parent, str) else set()
        return path in self._parent


def _parsed(text: str) -> dict[str, str]:
    if text.lstrip().startswith("["):
        return {change["Path"]: _KINDS[change["Kind"]] for change in json.loads(text)}
    lines = [line.partition(" ") for line in text.split("\n") if line and line != "null"]
    return {path.strip('"'): kind for kind, _, path in lines}


def _layer(case: Case, ref: str) -> dict[str, Any]:
    """The layer that a reference is about, or nothing."""
    for layer in case.before["layer"]:
        drawn = ref.endswith(">") and layer["id"] == re.sub(":.*>", ">", ref)
        if ref in (layer["id"], *(layer.get("names") or ())) or drawn:
            return layer
    return {}


def _hidden(changes: Changes, path: str) -> bool:
    """The reference finds a path in a lower layer although a layer between hides it; nobody sees it there."""
    told = changes.peer.get(path), changes.own.get(path)
    return told == ("Modify", "Add") and (changes.replaced(path) or not changes.in_parent(path))


def _redundant(changes: Changes, path: str) -> bool:
    """A removal within a directory that is told as removed."""
    return changes.peer.get(path) == "Delete" and path not in changes.own and changes.replaced(path)


def _open_directory_times(changes: Changes, path: str) -> bool:
    """D1: compared file by file, a directory's times do not count."""
    return path not in changes.peer and changes.own[path] == "Modify"


def _open_removed(changes: Changes, path: str) -> bool:
    """D8: what a layer's own diff brought and its mount removed is told as removed."""
    return path not in changes.peer and changes.own[path] == "Delete" and not changes.in_parent(path)


_OVERLAY: Final[dict[str, Callable[[Changes, str], bool]]] = {
    "hidden": _hidden,
    "redundant": _redundant,
    "D8": _open_removed,
}
_COMPARED: Final[dict[str, Callable[[Changes, str], bool]]] = {"D1": _open_directory_times}


def explained(case: Case) -> bool:
    """Whether each path that they tell differently has a reason to be."""
    if case.command != "changes" or case.peer.status or case.own.status:
        return False
    changes = Changes(case)
    against_parent = sum(not word.startswith("-") for word in case.words[1:]) == 1
    reasons = _OVERLAY if case.driver == "overlay" and against_parent else _COMPARED
    found = [
        next((name for name, applies in reasons.items() if applies(changes, path)), None)
        for path in sorted(changes.differing)
    ]
    if None in found:
        return False
    Statistics.excused.update(f"changes: {name}" for name in found)
    return True
