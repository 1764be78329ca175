"""The option grammar: what scripts written for ``containers-storage`` may say.

click does the work. This module rewrites a command's arguments into a form that means the same to
click: bundles are split (``-qj``), ``-n=VALUE`` and ``--json=false`` are understood, one pair of quotes
around a ``=`` value is stripped, and options end at the first word that is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import click

from lading.values import tamed

#: Words a boolean option takes behind "=".
TRUE_WORDS: Final = frozenset({"1", "t", "T", "true", "TRUE", "True"})
FALSE_WORDS: Final = frozenset({"0", "f", "F", "false", "FALSE", "False"})

#: Exit statuses that scripts rely on.
FAILURE: Final = 1
USAGE_FAILURE: Final = 125


class OptionError(Exception):
    """An option that cannot be understood; the text is what the user sees."""


def normalise(arguments: Sequence[str], options: Sequence[click.Option]) -> tuple[list[str], list[str]]:
    """Split a command's words into plain options and arguments.

    Args:
        arguments: the words after the command.
        options: the options it knows.

    Returns:
        Option words that click reads as meant (``--name=VALUE`` or ``--flag``), and all words from the
        first argument on.

    Raises:
        OptionError: an unknown option, a missing value, a bad boolean.
    """
    by_name = {name: option for option in options for name in (*option.opts, *option.secondary_opts)}
    words = iter(arguments)
    result: dict[int, list[str]] = {}
    rest: list[str] = []
    for word in words:
        if word == "--":
            break
        if not word.startswith("-") or word == "-":
            rest.append(word)
            break
        for option, value in _read(word, words, by_name):
            _note(result, option, value)
    rest += words
    return [text for texts in result.values() for text in texts], rest


def _read(
    word: str, words: Iterator[str], by_name: dict[str, click.Option]
) -> Iterator[tuple[click.Option, str | None]]:
    """Read one word, which may be a bundle, and the values it takes from the words behind it."""
    name, equals, value = word.partition("=")
    if word.startswith("--"):
        option = _known(by_name, name, name)
        yield option, _value(option, name, _unquoted(value) if equals else None, words)
        return
    letters = name[1:]
    for letter in letters:
        _known(by_name, f"-{letter}", name)
    for position, letter in enumerate(letters):
        option = by_name[f"-{letter}"]
        last = position == len(letters) - 1
        yield option, _value(option, f"-{letter}", _unquoted(value) if equals and last else None, words)


def _known(by_name: dict[str, click.Option], name: str, shown: str) -> click.Option:
    option = by_name.get(name)
    if option is None:
        raise OptionError(f"flag provided but not defined: {shown}")
    return option


def _value(option: click.Option, name: str, given: str | None, words: Iterator[str]) -> str | None:
    """Find an option's value: behind "=", or the next word; flags take none of the latter."""
    if option.is_flag:
        if given is not None and given not in TRUE_WORDS | FALSE_WORDS:
            raise OptionError(
                f'invalid boolean value "{given}" for  {name}: strconv.ParseBool: parsing "{given}": invalid syntax'
            )
        return given
    if given is not None:
        return given
    try:
        return next(words)
    except StopIteration:
        raise OptionError(f"flag needs an argument: {name}") from None


def _note(result: dict[int, list[str]], option: click.Option, value: str | None) -> None:
    """Collect an option: lists grow, all others keep the last."""
    name = option.opts[0]
    if option.is_flag:
        result[id(option)] = [] if value in FALSE_WORDS else [name]
    elif option.multiple:
        result.setdefault(id(option), []).append(f"{_long(option)}={value}")
    else:
        result[id(option)] = [f"{_long(option)}={value}"]


def _long(option: click.Option) -> str:
    return next(name for name in option.opts if name.startswith("--"))


def _unquoted(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
        return value[1:-1]
    return value


class ContractCommand(click.Command):
    """A command with the contract's grammar and a bound on its number of arguments."""

    def __init__(self, *args: Any, count: tuple[int, int | None] = (0, None), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.count = count
        self.params.append(click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the words of this command; the number of arguments is checked before anything is done."""
        if any(word in ("--help", "-h", "-help") for word in _before_arguments(args)):
            click.echo(self.get_help(ctx))
            ctx.exit(0)
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        try:
            flags, rest = normalise(args, options)
        except OptionError as error:
            click.echo(f"{tamed(str(error))}\nSee '{ctx.command_path} --help'.", err=True)
            ctx.exit(USAGE_FAILURE)
        least, most = self.count
        if len(rest) < least:
            click.echo(f"{ctx.info_name}: more arguments required.\n{self.get_usage(ctx)}")
            ctx.exit(FAILURE)
        if most is not None and len(rest) > most:
            click.echo(f"{ctx.info_name}: too many arguments ([{tamed(' '.join(rest))}]).\n{self.get_usage(ctx)}")
            ctx.exit(FAILURE)
        return super().parse_args(ctx, [*flags, "--", *rest])


def _before_arguments(words: Sequence[str]) -> Iterator[str]:
    for word in words:
        if word == "--" or not word.startswith("-"):
            return
        yield word


json_option = click.option("--json", "-j", "as_json", is_flag=True, help="Print one JSON document.")
names_option = click.option("--name", "-n", "names", multiple=True, metavar="NAME", help="A name; may be given again.")
file_option = click.option(
    "--file", "-f", "file", default=None, metavar="PATH", help="Use this file, not the terminal."
)
quiet_option = click.option("--quiet", "-q", is_flag=True, help="Print less.")
