"""Commands that go beyond the contract: import, seal, sql, balance."""

from __future__ import annotations

import csv
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Final

import click

from lading.cli import output
from lading.cli.parse import FAILURE, json_option, names_option
from lading.cli.session import Session, command
from lading.errors import InvalidInput, LadingError

#: Rows of a table that are laid out together; later ones keep those widths.
TABLE_ROWS_MAX: Final = 100_000


@command("import", count=(1, 1), usage="SOURCE", params=(names_option, json_option))
def import_(session: Session, arguments: Sequence[str], names: Sequence[str], as_json: bool) -> None:
    """Import images from oci:DIR[:TAG] or docker-archive:FILE, every document byte for byte."""
    with session.progress_bar("import") as progress:
        found = session.store.import_image(arguments[0], names=names, progress=progress)
    if as_json:
        output.emit_json([output.image_json(image) for image in found])
        return
    for image in found:
        output.created_text(image, None)


@command("seal", count=(1, None), usage="LAYER...")
def seal(session: Session, arguments: Sequence[str]) -> int:
    """Turn what was written into layers into immutable, deduplicated contents."""
    status = 0
    for argument in arguments:
        try:
            session.store.layers.seal(argument)
        except LadingError as error:
            output.line(f"{output.shown(argument)}: {error}", err=True)
            status = FAILURE
    return status


@command("balance", params=(json_option,))
def balance(session: Session, arguments: Sequence[str], as_json: bool) -> None:
    """Account for every byte the store has on disk, by class."""
    result = session.store.balance()
    if as_json:
        output.emit_json({**result.classes, "total": result.total})
        return
    for text in output.table(["class", "bytes"], [*result.classes.items(), ("total", result.total)]):
        output.line(text)


@command(
    "sql",
    count=(0, 1),
    usage="[QUERY]",
    params=(
        json_option,
        click.option("--csv", "-c", "as_csv", is_flag=True, help="Print comma-separated values."),
        click.option("--shell", is_flag=True, help="Ask one query after another; nothing can be written."),
    ),
)
def sql(session: Session, arguments: Sequence[str], as_json: bool, as_csv: bool, shell: bool) -> None:
    """Ask the catalog a question in SQL; see the views in docs/catalog.md."""
    if shell:
        _shell(session)
        return
    if not arguments:
        raise InvalidInput('give a query ("SELECT …") or --shell')
    columns, rows = session.store.query(arguments[0])
    _print(columns, rows, as_json, as_csv)


def _print(columns: list[str], rows: Iterator[tuple[Any, ...]], as_json: bool, as_csv: bool) -> None:
    if as_json:
        output.emit_json([dict(zip(columns, map(_plain, row), strict=True)) for row in rows])
    elif as_csv:
        writer = csv.writer(output.Stream(), lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_plain(value) for value in row] for row in rows)
    else:
        first = list(itertools.islice(rows, TABLE_ROWS_MAX))
        for text in output.table(columns, first):
            output.line(text)
        for row in rows:
            output.line("  ".join(output.shown(str(_plain(value))) for value in row))


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value


def _shell(session: Session) -> None:
    """Hand over to a safe SQL shell, or prompt here when there is none."""
    store = session.store
    words = store.sql_shell_command()
    if words is not None and sys.stdin.isatty():
        store.close()
        sys.stdout.flush()
        os.execvp(words[0], words)  # noqa: S606 - a fixed command in its own read-only, safe mode
    while True:
        if sys.stdin.isatty():
            sys.stderr.write("lading> ")
            sys.stderr.flush()
        query = sys.stdin.readline()
        if not query:
            return
        if not query.strip():
            continue
        try:
            columns, rows = store.query(query)
            _print(columns, rows, False, False)
        except LadingError as error:
            output.line(str(error), err=True)
