"""Check the rooms' import contract, as pyproject.toml states it."""

from __future__ import annotations

import sys

from importlinter.cli import lint_imports_command

if __name__ == "__main__":
    sys.exit(lint_imports_command(["--no-cache"]))
