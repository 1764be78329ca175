"""The command about the catalog itself."""

from __future__ import annotations

from collections.abc import Sequence

import click

from lading.cli import output
from lading.cli.parse import FAILURE, json_option
from lading.cli.session import Session, command
from lading.errors import InvalidInput
from lading.values import printable

_VERBS = ("rebuild", "rejournal")
_FORCE = ("--force", "-f")
_JSON = ("--json", "-j")


@command(
    "catalog",
    count=(1, None),
    usage="rebuild|rejournal",
    params=(
        click.option("--force", "-f", is_flag=True, help="rebuild: also when the present catalog is sound."),
        json_option,
    ),
    opens=False,
)
def catalog(session: Session, arguments: Sequence[str], force: bool, as_json: bool) -> int:
    """Make the catalog again from packs and journal, or the journal again from the catalog.

    Either is for a store that lost the other of the two, or part of it. What was there is put aside, never deleted.
    """
    verb, *rest = arguments
    if verb not in _VERBS:
        raise InvalidInput(f'catalog: unknown verb "{printable(verb)}"; known: {", ".join(_VERBS)}')
    for word in rest:  # options behind the verb, where people write them
        if word not in _FORCE + _JSON:
            raise InvalidInput(f'catalog {verb}: unknown word "{printable(word)}"')
        force = force or word in _FORCE
        as_json = as_json or word in _JSON
    if verb == "rejournal":
        return _rejournal(session, as_json)
    with session.progress_bar("rebuild") as progress:
        report = session.rebuild(force=force, progress=progress)
    if as_json:
        output.emit_json(report.as_dict())
    else:
        for text in report.lines():
            output.line(text)
    return 0 if report.complete else FAILURE


def _rejournal(session: Session, as_json: bool) -> int:
    kept = session.store.rejournal()
    if as_json:
        output.emit_json({"kept": kept})
    else:
        for path in kept:
            output.line(f"put aside: {output.shown(path)}")
    return 0
