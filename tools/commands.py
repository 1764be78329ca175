"""Write docs/commands.md from the commands themselves, or with ``--check`` tell whether it is up to date."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from lading.cli.main import ALIASES, SECTIONS, cli
from lading.cli.parse import ContractCommand
from lading.cli.session import GLOBAL_OPTIONS

TARGET = Path(__file__).parents[1] / "docs/commands.md"

HEAD = """# Commands

Made by `tools/commands.py` from the commands themselves; a test keeps it true.

`lading [GLOBAL OPTIONS] COMMAND [OPTIONS] [ARGUMENTS]`. Options end at the first word that is none, or after `--`.
One-letter options may be bundled (`-qj`), values follow or stand behind `=` (`--name x`, `--name=x`, `-n=x`).
Where a layer, image or container is asked for, an id, a name or a unique prefix of an id will do.

Results go to standard output, errors as one line to standard error. Exit status: 0 success, 1 any failure, 125 an
option that is not understood, 130, 143 and 129 after an interrupt, a request to end or a hang-up, each of which is
one line as well; a second one cuts the tidying short. Progress is shown on a terminal only, for work of more than a
second.

A command that cannot write its results fails, and what it has done stays done: in silence when the reader has gone,
else with a line (`no space left on device`; `bad file descriptor` when standard output was closed from the start).
Without results to write it succeeds. A closed standard input cannot be read; what is said on a closed standard error
is dropped.
"""


def reference() -> str:
    """The whole page."""
    parts = [
        HEAD,
        "## Global options\n",
        "Before the command or among its own.\n",
        "| option | meaning |",
        "| --- | --- |",
    ]
    parts += [_option(click.Option(names, **settings)) for names, settings in GLOBAL_OPTIONS]
    context = click.Context(cli, info_name="lading")
    for title, names in SECTIONS:
        parts.append(f"\n## {title}")
        for name in names:
            command = cli.get_command(context, name)
            assert isinstance(command, ContractCommand)
            parts.append(_command(name, command))
    return "\n".join(parts) + "\n"


def _command(name: str, command: ContractCommand) -> str:
    usage = command.options_metavar.removeprefix("[OPTIONS]").strip() if command.options_metavar else ""
    lines = [f"\n### {name}\n", f"`lading {name} {usage}`".replace(" `", "`"), "", command.help or ""]
    aliases = [alias for alias, target in ALIASES.items() if target == name]
    if aliases:
        lines.append(f"\nAlso: {', '.join(f'`{alias}`' for alias in sorted(aliases))}.")
    options = [param for param in command.params if isinstance(param, click.Option) and not param.hidden]
    if options:
        lines += ["", "| option | meaning |", "| --- | --- |", *map(_option, options)]
    return "\n".join(lines)


def _option(option: click.Option) -> str:
    names = ", ".join(f"`{name}`" for name in sorted(option.opts, key=len))
    value = f" {option.metavar}" if option.metavar and not option.is_flag else ""
    return f"| {names}{value} | {option.help} |"


def main() -> int:
    """Write the page, or check it."""
    if "--check" in sys.argv:
        return 0 if TARGET.read_text() == reference() else 1
    TARGET.write_text(reference())
    return 0


if __name__ == "__main__":
    sys.exit(main())
