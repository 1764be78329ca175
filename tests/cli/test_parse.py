"""The option grammar."""

from __future__ import annotations

import click
import pytest

from lading.cli.parse import OptionError, normalise

OPTIONS = [
    click.Option(["--quiet", "-q"], is_flag=True),
    click.Option(["--json", "-j"], is_flag=True),
    click.Option(["--name", "-n"], multiple=True),
    click.Option(["--id", "-i"]),
]


@pytest.mark.parametrize(
    ("words", "options", "arguments"),
    [
        (["-qj"], ["--quiet", "--json"], []),
        (["-nj", "foo"], ["--name=foo", "--json"], []),
        (["-ni", "foo", "bar"], ["--name=foo", "--id=bar"], []),
        (["-n=foo", "x"], ["--name=foo"], ["x"]),
        (["--name='a b'"], ["--name=a b"], []),
        (["--name=\"'x'\""], ["--name='x'"], []),
        (["--json=false", "-q"], ["--quiet"], []),
        (["--json", "true"], ["--json"], ["true"]),
        (["base", "--id", "zz"], [], ["base", "--id", "zz"]),
        (["--", "-j"], [], ["-j"]),
        (["-", "-j"], [], ["-", "-j"]),
        (["-n", "a", "-n", "b,c"], ["--name=a", "--name=b,c"], []),
        (["-i", "a", "-i", "b"], ["--id=b"], []),
        (["-i", "-j"], ["--id=-j"], []),
        ([""], [], [""]),
    ],
)
def test_words_are_read_as_scripts_mean_them(words: list[str], options: list[str], arguments: list[str]) -> None:
    """Bundles, values behind "=", quotes, and the end of options."""
    flags, rest = normalise(words, OPTIONS)

    found = [name.replace("-q", "--quiet") if name == "-q" else name for name in flags]
    assert sorted(found) == sorted(options)
    assert rest == arguments


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-x"], "flag provided but not defined: -x"),
        (["--nope"], "flag provided but not defined: --nope"),
        (["-json"], "flag provided but not defined: -json"),
        (["--id"], "flag needs an argument: --id"),
        (["-qi"], "flag needs an argument: -i"),
        (["--json=bogus"], 'invalid boolean value "bogus" for  --json: '),
    ],
)
def test_what_cannot_be_read_is_named(words: list[str], message: str) -> None:
    """The message names the option, in the words scripts know."""
    with pytest.raises(OptionError) as caught:
        normalise(words, OPTIONS)

    assert str(caught.value).startswith(message)
