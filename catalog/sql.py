"""Questions to the catalog: one reading statement, on a connection that can do nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from lading.catalog.database import Catalog
from lading.catalog.engine import busy, sqlite
from lading.errors import Busy, Corrupt, InvalidInput

#: What SQLite may be asked to do while a statement is prepared: reading, functions, recursion.
_ALLOWED: Final = frozenset({20, 21, 31, 33})  # READ, SELECT, FUNCTION, RECURSIVE
_OK: Final = 0
_DENY: Final = 1

#: Functions that reach beyond the database.
_FORBIDDEN_FUNCTIONS: Final = frozenset({"load_extension", "readfile", "writefile", "edit", "fts3_tokenizer"})

#: Steps of SQLite's machine between two looks for a signal: about a millisecond.
_STEPS: Final = 20_000

#: Rows fetched at a time.
_FETCH: Final = 500


def _authorize(action: int, first: str | None, second: str | None, database: str | None, trigger: str | None) -> int:
    del first, database, trigger
    if action not in _ALLOWED:
        return _DENY
    return _DENY if action == 31 and (second or "").lower() in _FORBIDDEN_FUNCTIONS else _OK


def _breathe() -> int:
    """Let signals in: while SQLite works, none reaches Python but here. What one raises interrupts the statement."""
    return 0


def query(catalog: Catalog, sql: str, parameters: Sequence[Any] = ()) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
    """Run one SELECT.

    Args:
        catalog: whose database is read, through a connection of its own.
        sql: the statement.
        parameters: values for its question marks.

    Returns:
        Column names, and an iterator over the rows; the connection closes with its end.

    Raises:
        InvalidInput: a statement that is wrong, or does more than read.
        KeyboardInterrupt: a signal came while it ran, and its handler raised something.
    """
    # A path of /proc or a colon cannot confuse this: the same opening as the catalog's own.
    reader = Catalog.open(catalog.path, catalog.journal_folder, catalog.path, read_only=True)
    connection = reader.connection()
    connection.set_authorizer(_authorize)
    connection.set_progress_handler(_breathe, _STEPS)
    try:
        cursor = connection.execute(sql, tuple(parameters))
    except (sqlite.Error, sqlite.Warning, ValueError, OverflowError) as error:
        refused = _refusal(error, catalog.path)
        reader.close()
        raise refused from error
    if cursor.description is None:
        reader.close()
        raise InvalidInput("the query returns no rows: give a SELECT")
    columns = [column[0] for column in cursor.description]
    return columns, _rows(reader, cursor)


def _rows(reader: Catalog, cursor: Any) -> Iterator[tuple[Any, ...]]:
    try:
        while rows := cursor.fetchmany(_FETCH):
            yield from rows
    except sqlite.Error as error:
        raise _refusal(error, reader.path) from error
    finally:
        reader.close()


def _refusal(error: Exception, path: Path) -> InvalidInput | Busy | Corrupt:
    words = " ".join(str(error).split())
    if words == "interrupted":
        raise KeyboardInterrupt
    if "not authorized" in words or "prohibited" in words or "readonly" in words:
        return InvalidInput("the query does more than read: only SELECT is allowed")
    if "locked" in words or "busy" in words:
        return busy(words, path)
    if "malformed" in words:
        return Corrupt(f"the catalog is damaged: {words}; run `lading catalog rebuild`")
    return InvalidInput(f"the query cannot be run: {words}")


def shell_command(path: Path) -> list[str] | None:
    """The command line of a shell that cannot write or reach beyond the catalog, nor hand control characters to the terminal.

    Returns:
        None when there is none: older ones print what is stored as it is.
    """
    program = shutil.which("sqlite3")
    if program is None:
        return None
    safe = [program, "-init", os.devnull, "-readonly", "-safe", "-escape", "ascii"]
    tried = subprocess.run([*safe, ":memory:", "SELECT 1"], capture_output=True, stdin=subprocess.DEVNULL, check=False)
    return [*safe, "-header", "-column", str(path)] if tried.returncode == 0 else None
