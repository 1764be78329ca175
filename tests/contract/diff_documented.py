"""Differences from the reference that are meant to be, each with its reason and with what it is recognised by."""

from __future__ import annotations

import json
import re
from typing import Final

from tests.contract.diff_changes import explained
from tests.contract.differential import Case, Documented, Records


def _usage(case: Case) -> bool:
    texts = [(said.out.partition("\n")[0], said.stderr.partition("\n")[0]) for said in (case.peer, case.own)]
    about = ("arguments required", "too many arguments", "flag provided", "flag needs", "boolean value", "unrecognized")
    named = any(word in line for line in texts[1] for word in about)
    return named and texts[0] == texts[1] and case.peer.status == case.own.status


def _missing(case: Case) -> bool:
    return "unrecognized command" in case.peer.out or (
        "flag provided but not defined" in case.peer.stderr and case.own.status != 125
    )


def _crashed(case: Case) -> bool:
    return "goroutine " in case.peer.stderr


def _newline(case: Case) -> bool:
    glued = case.peer.out.replace("\n", "") == case.own.out.replace("\n", "") and case.peer.stderr == case.own.stderr
    return case.command.startswith(("create-", "import-")) and glued


def _counted(case: Case) -> bool:
    return "too many arguments" in case.own.out and "arguments" not in case.peer.out


def _added_in_front(case: Case) -> bool:
    if case.command != "add-names" or case.peer.status or case.own.status or case.after is None:
        return False
    return _unordered(case.after[0]) == _unordered(case.after[1])


def _unordered(records: Records) -> object:
    """Records without the order of their names."""
    return [
        [
            {key: sorted(value) if key.startswith("names") else value for key, value in record.items()}
            for record in found
        ]
        for found in records.values()
    ]


def _prefixed(case: Case) -> bool:
    return case.command == "images-by-digest" and case.peer.stderr == f"{case.words[-1]}: {case.own.stderr}"


def _status(case: Case) -> bool:
    if case.command != "status" or case.peer.status or case.own.status:
        return False
    new = {"Supports shifting", "Supports volatile"}
    theirs, mine = ((said.out + said.stderr).split("\n") for said in (case.peer, case.own))
    return [line for line in mine if line not in new] == theirs


def _null(case: Case) -> bool:
    return case.command in ("layers", "images") and (case.peer.out.strip(), case.own.out.strip()) == ("[]", "null")


_DAMAGED: Final = re.compile("unexpected EOF|invalid tar header")


def _damaged(case: Case) -> bool:
    failed = case.peer.status == case.own.status == 1 and case.command in ("applydiff", "import-layer")
    return failed and all(_DAMAGED.search(said.stderr) for said in (case.peer, case.own))


_CHAINS: Final = frozenset(
    {
        "applydiff", "changes", "container", "create-container", "create-image", "create-layer", "diff", "diffsize", "image",
        "import-layer", "mount", "unmount",
    }
)  # fmt: skip


def _unhandled(case: Case) -> bool:
    text = "unhandled tar header type 90"
    return case.peer.status == case.own.status == 1 and text in case.peer.stderr and text in case.own.stderr


def _orphaned(case: Case) -> bool:
    """After an unchecked removal. Making records on such a chain is no such difference."""
    layers = {layer["id"]: layer.get("parent") for layer in case.before["layer"]}
    broken = any(parent and parent not in layers for parent in layers.values())
    return broken and case.command in _CHAINS and not (case.command.startswith("create-") and case.own.status == 0)


_USER: Final = re.compile(r"used by (layer |container |image )?[^:\n\"]+: ")


def _any_user(case: Case) -> bool:
    """Which of several records that need one is named is not said anywhere."""
    texts = [_USER.sub("used by: ", said.out + said.stderr) for said in (case.peer, case.own)]
    return case.command.startswith("delete") and texts[0] == texts[1] and case.peer.status == case.own.status


def _refused(case: Case) -> bool:
    return case.own.status == 1 and any(
        text in case.own.stderr for text in ("climbs above", "which is not in this layer", "names nothing that")
    )


def _replayed(case: Case) -> bool:
    given_up = ("open PATH: no such file", "file integrity checksum failed", "open PATH: too many levels")
    return case.command == "diff" and case.own.status == 0 and any(text in case.peer.stderr for text in given_up)


def _gone(case: Case) -> bool:
    """The reference lists layers that are gone among those it would remove."""
    layers = {layer["id"] for layer in case.before["layer"]}
    if case.command != "delete-image":
        return False
    if case.own.out.strip():
        theirs, mine = (json.loads(said.out) for said in (case.peer, case.own))
        for told in theirs.values():
            told["deleted-layers"] = [layer for layer in told.get("deleted-layers", ()) if layer in layers]
            if not told["deleted-layers"]:
                del told["deleted-layers"]
        return bool(theirs == mine)
    told = [
        line for line in case.peer.stderr.split("\n") if not re.fullmatch(r"[^:]+: \S+", line) or _last(line) in layers
    ]
    return told == case.own.stderr.split("\n")


def _last(line: str) -> str:
    return line.rpartition(": ")[2]


def _by_name(case: Case) -> bool:
    """The reference mounts a layer that is not mounted yet at a path made of the name."""
    failed = "no such file or directory" in case.peer.out + case.peer.stderr
    ids = {record["id"] for found in case.before.values() for record in found}
    return case.command in ("mount", "unmount") and failed and any(word not in ids for word in case.words[1:])


def _label(case: Case) -> bool:
    invalid = all("invalid argument" in said.out + said.stderr for said in (case.peer, case.own))
    return case.command == "mount" and case.peer.status == case.own.status == 1 and invalid


DOCUMENTED: Final[tuple[Documented, ...]] = (
    Documented("usage", "usage texts are each program's own; the first line is the same", _usage),
    Documented("newline", "created records: every line ends with a newline, as in later versions", _newline),
    Documented("counted", "arguments that nothing is made of are refused, as in later versions", _counted),
    Documented("added names", "added names come before the others, as in later versions", _added_in_front),
    Documented("digest prefix", "a malformed digest is told as in later versions", _prefixed),
    Documented("status", "later versions of the reference tell more", _status),
    Documented("null", "no layers or images are null in JSON, as in later versions", _null),
    Documented("damaged", "a damaged diff is told with one of the two phrases that scripts look for", _damaged),
    Documented("unhandled", "an unknown kind of entry is told with its name", _unhandled),
    Documented(
        "orphaned",
        "a chain with a hole, after an unchecked removal, is refused; the reference has copies",
        _orphaned,
        parts=True,
    ),
    Documented("any user", "of several records that need one, any may be named", _any_user),
    Documented(
        "refused",
        "diffs that lead out of the tree or link to nothing are refused in words of our own",
        _refused,
        parts=True,
    ),
    Documented("replay", "a layer's diff is what was applied, whatever was done to its files since", _replayed),
    Documented("gone", "layers that are gone are not among those that would be removed", _gone),
    Documented("changes", "what lower layers hide is not there: added, not modified, and removed but once", explained),
    Documented(
        "by name", "layers can be mounted by name or by the first digits of their ids, too", _by_name, parts=True
    ),
    Documented("label", "a mount label without a kernel for it is an invalid argument", _label),
    Documented("version", "the installed version of the reference lacks a command or option", _missing),
    Documented("crash", "the reference's command line crashes", _crashed, parts=True),
)


def _open_directories_in_diff(case: Case) -> bool:
    """D1, D2: which directories are in a generated diff."""
    theirs, mine = case.peer.out.split("\n"), case.own.out.split("\n")
    return case.command == "diff" and all(" b'5' " in line for line in set(theirs) ^ set(mine))


def _open_algorithm(case: Case) -> bool:
    """D4: sha512 is no algorithm for an image's digest."""
    return "unsupported digest algorithm" in case.peer.stderr and case.own.status == 0


def _open_hole(case: Case) -> bool:
    """D7: a container on a chain with a hole."""
    return case.command == "create-container" and "layer not known" in case.peer.stderr and case.own.status == 0


def _open_bundle(case: Case) -> bool:
    """D5: the words about an unknown letter in a bundle."""
    return "flag provided but not defined: -" in case.peer.stderr and case.own.stderr.startswith("flag provided")


def _open_repeated(case: Case) -> bool:
    """D10: a repeated argument is told once."""
    repeated = len(set(case.words)) < len(case.words)
    lines = [set(said.stderr.split("\n")) for said in (case.peer, case.own)]
    return case.command == "delete-image" and repeated and lines[0] == lines[1]


#: Differences that are not meant to be and wait for us.
OPEN: Final[tuple[Documented, ...]] = (
    Documented("D2", "directories in generated diffs", _open_directories_in_diff),
    Documented("D4", "sha512", _open_algorithm),
    Documented("D5", "bundles", _open_bundle),
    Documented("D10", "repeated arguments", _open_repeated),
    Documented("D7", "chains with a hole", _open_hole),
)
