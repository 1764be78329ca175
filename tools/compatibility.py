"""Write docs/compatibility.md from the rows that the tests cover. ``--check`` only compares."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
TARGET: Final = ROOT / "docs/compatibility.md"
CONTRACT: Final = ROOT / "tests/contract"

HEAD: Final = """# Compatibility with containers/storage

Made by `tools/compatibility.py` from `tests/contract/rows.toml` and `differences.toml`; tests keep it true.

The command `lading-compat`, or `lading` called by the name `containers-storage`, takes the commands, options,
configuration and environment of the `containers-storage` command and answers with the same outputs and exit codes.
Programs written against the Go library find each of its operations in [api.md](api.md).

The two are also run side by side: random sequences of commands on a store of each, with both drivers, outputs and
exit codes compared (`tests/contract/test_differential.py`).

## Deliberate differences
"""


def load(name: str) -> dict[str, Any]:
    """One of the two files."""
    return tomllib.loads((CONTRACT / name).read_text())


def page() -> str:
    """The whole page."""
    rows = load("rows.toml")
    parts = [HEAD, "| about | containers/storage | Lading |", "| --- | --- | --- |"]
    parts += [
        f"| {item['area']} | {item['theirs']} | {item['ours']} |" for item in load("differences.toml")["difference"]
    ]
    parts += ["", "## Commands\n", "| command | use | tests |", "| --- | --- | --- |"]
    parts += [f"| `{name}` | {row['mark']} | {_tests(row['tests'])} |" for name, row in rows["commands"].items()]
    for title, key in (
        ("Parsing and configuration", "parsing"),
        ("Operations of the library", "operations"),
        ("Error texts", "errors"),
    ):
        parts += ["", f"## {title}\n", "| row | tests |", "| --- | --- |"]
        parts += [f"| {name} | {_tests(tests)} |" for name, tests in rows[key].items()]
    parts += ["", "## Behaviours that are easy to get wrong\n", "| number | what | tests |", "| --- | --- | --- |"]
    parts += [f"| {number} | {row['what']} | {_tests(row['tests'])} |" for number, row in rows["traps"].items()]
    return "\n".join(parts) + "\n"


def _tests(names: list[str]) -> str:
    return ", ".join(name.partition("::")[2] or name for name in names)


def main() -> int:
    """Write the page, or compare it."""
    wanted = page()
    if "--check" in sys.argv[1:]:
        return 0 if TARGET.exists() and TARGET.read_text() == wanted else 1
    TARGET.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
