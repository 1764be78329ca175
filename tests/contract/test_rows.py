"""Every row of what others rely on has a test, and every test named there exists."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from lading.cli.main import ALIASES, COMMANDS
from tests.contract.transcript import sections

FOLDER: Final = Path(__file__).parent
ROWS: Final[dict[str, Any]] = tomllib.loads((FOLDER / "rows.toml").read_text())

#: Commands that only we have.
OURS: Final = {"balance", "cache", "catalog", "checkout", "clone", "commit", "import", "seal", "sql"}


def named_by(row: Any) -> list[str]:
    """The tests a row names."""
    return list(row["tests"] if isinstance(row, dict) else row)


def rows() -> Iterator[tuple[str, list[str]]]:
    """All rows."""
    for table, entries in ROWS.items():
        for name, row in entries.items():
            yield f"{table}: {name}", named_by(row)


def known() -> set[str]:
    """Everything that can be named: sections of transcripts, functions of this folder."""
    found = {section.name for section in sections()}
    for path in FOLDER.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found.add(f"{path.name}::{node.name}")
    return found


def test_every_row_has_tests_that_exist() -> None:
    """A row without one fails, as does a name that nothing has."""
    there = known()
    missing = [(row, name) for row, names in rows() for name in names or ["no test"] if name not in there]
    assert missing == []


def test_the_rows_are_complete() -> None:
    """61 commands, 89 operations, 56 traps; every command of ours is a row, but for those that only we have."""
    assert {len(ROWS["commands"]), len(ROWS["operations"]), len(ROWS["traps"])} == {61, 89, 56}
    assert set(ROWS["commands"]) == set(COMMANDS) - OURS
    assert len([alias for alias in ALIASES if ALIASES[alias] in ROWS["commands"]]) >= 29


def test_every_operation_has_a_call() -> None:
    """The table of calls and the rows name the same operations, and each call has words."""
    place = importlib.util.spec_from_file_location("api", FOLDER.parents[1] / "tools/api.py")
    assert place is not None
    assert place.loader is not None
    api = importlib.util.module_from_spec(place)
    place.loader.exec_module(api)
    paths = {name: path for group in api.OPERATIONS.values() for name, path in group.items()}
    assert set(paths) == set(ROWS["operations"])
    assert all(api.summary(path).endswith(".") for path in paths.values())


@pytest.mark.parametrize("phrase", list(ROWS["errors"]))
def test_every_error_text_is_produced(phrase: str) -> None:
    """In what a session expects, or in what a test of the library matches."""
    for name in ROWS["errors"][phrase]:
        if "::" in name:
            assert phrase in (FOLDER / name.partition("::")[0]).read_text()
            continue
        (section, *_) = [found for found in sections() if found.name == name]
        said = [line for step in section.steps for line in (*step.stdout, *step.stderr)]
        assert any(phrase in line for line in said), name


@pytest.mark.parametrize("tool", ["api", "compatibility"])
def test_the_pages_are_up_to_date(tool: str) -> None:
    """What is in docs is what the tools make."""
    root = FOLDER.parents[1]
    assert subprocess.run([sys.executable, f"tools/{tool}.py", "--check"], cwd=root, check=False).returncode == 0
