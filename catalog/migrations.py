"""The schema's versions: what a catalog has, and how an older one becomes current.

Each step is frozen SQL in a module of its own. The version is in ``PRAGMA user_version``; views are dropped
and made anew by every migration, since only tables hold facts.
"""

from __future__ import annotations

from typing import Any, Final

from lading.catalog import m001_initial, m002_recipe_objects, m003_damage, m004_suspects, m005_scrub
from lading.catalog.engine import Connection
from lading.errors import Unsupported

#: Statements of each step; step N takes a catalog from version N-1 to N.
STEPS: Final[tuple[tuple[str, ...], ...]] = (
    m001_initial.STATEMENTS,
    m002_recipe_objects.STATEMENTS,
    m003_damage.STATEMENTS,
    m004_suspects.STATEMENTS,
    m005_scrub.STATEMENTS,
)

VERSION: Final = len(STEPS)


def version(conn: Connection) -> int:
    """The version of a catalog's schema; 0 for an empty file."""
    return int(conn.execute("PRAGMA user_version").fetchone()[0])


def check_version(conn: Connection) -> None:
    """Refuse a catalog that a newer version wrote.

    Raises:
        Unsupported: with both versions.
    """
    found = version(conn)
    if found > VERSION:
        raise Unsupported(f"the catalog has schema {found}; this version of Lading reads up to {VERSION}: upgrade it")


def is_current(conn: Connection) -> bool:
    """Tell whether nothing is to be done."""
    check_version(conn)
    return version(conn) == VERSION


def migrate(conn: Any) -> None:
    """Bring a catalog up to date in one transaction; the caller holds the writer lock."""
    from lading.catalog.views import VIEWS_SQL

    conn.execute("BEGIN IMMEDIATE")
    try:
        for name in [row[0] for row in conn.execute("SELECT name FROM sqlite_master WHERE type = 'view'")]:
            conn.execute(f'DROP VIEW "{name}"')
        for step in STEPS[version(conn) :]:
            for statement in step:
                conn.execute(statement)
        for statement in VIEWS_SQL:
            conn.execute(statement)
        conn.execute(f"PRAGMA user_version = {VERSION}")
        conn.execute("COMMIT")
    except BaseException:
        if conn.in_transaction:  # SQLite ends some by itself
            conn.execute("ROLLBACK")
        raise
