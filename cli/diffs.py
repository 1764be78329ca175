"""Commands about what a layer changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from lading.cli import output
from lading.cli.parse import file_option, json_option
from lading.cli.session import Session, command
from lading.errors import InvalidInput


@command("applydiff", count=(1, 1), usage="LAYER", params=(file_option,))
def applydiff(session: Session, arguments: Sequence[str], file: str | None) -> None:
    """Apply a diff (a tar, plain or compressed) on top of what a layer holds."""
    with output.opened(file) as stream, session.progress_bar("applydiff") as progress:
        session.store.layers.apply(arguments[0], stream, progress=progress)


@command("applydiff-using-staging-dir", count=(2, 2), usage="LAYER DIRECTORY")
def applydiff_using_staging_dir(session: Session, arguments: Sequence[str]) -> None:
    """Put a directory's tree into a layer, by way of staging; the layer is made when there is none."""
    session.store.layers.apply_directory(arguments[0], Path(arguments[1]))


def _owner(text: str | None) -> tuple[int, int] | None:
    """Read ``UID[:GID]``.

    Raises:
        InvalidInput: in the contract's words.
    """
    if text is None:
        return None
    user, colon, group = text.partition(":")
    return _number(user, "UID"), _number(group if colon else user, "GID")


def _number(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) >= 1 << 32:
        reason = "value out of range" if text.isascii() and text.isdigit() else "invalid syntax"
        raise InvalidInput(f'bad {what}: strconv.ParseUint: parsing "{text}": {reason}')
    return int(text)


@command(
    "copy",
    count=(2, None),
    usage="[LAYER:]SOURCE... [LAYER:]TARGET",
    params=(
        click.option("--chown", "-o", default=None, metavar="UID[:GID]", help="Owner of everything copied."),
        json_option,
    ),
)
def copy(session: Session, arguments: Sequence[str], chown: str | None, as_json: bool) -> None:
    """Copy files and folders into a layer, out of one, or between two."""
    *sources, target = arguments
    session.store.copy(sources, target, chown=_owner(chown))


@command(
    "diff",
    count=(1, 2),
    usage="LAYER [REFERENCE]",
    params=(
        file_option,
        click.option("--uncompressed", "-u", is_flag=True, help="Do not compress."),
        click.option("--gzip", "-c", "gzip_", is_flag=True, help="Compress with gzip."),
        click.option("--bzip2", "--bz2", "-b", "bzip2", is_flag=True, help="Not supported; says so."),
        click.option("--xz", "-x", is_flag=True, help="Not supported; says so."),
    ),
)
def diff(
    session: Session, arguments: Sequence[str], file: str | None, uncompressed: bool, gzip_: bool, bzip2: bool, xz: bool
) -> None:
    """Write a layer's diff as a tar stream."""
    compression = 3 if xz else 1 if bzip2 else 2 if gzip_ else 0 if uncompressed else None
    reference = arguments[1] if len(arguments) > 1 else None
    store = session.store
    with output.created(file) as target, session.progress_bar("diff") as progress:
        done = 0
        with store.layers.diff(arguments[0], reference, compression=compression) as chunks:
            for chunk in chunks:
                target.write(chunk)
                done += len(chunk)
                progress(done, None)


@command("changes", count=(1, 2), usage="LAYER [REFERENCE]", params=(json_option,))
def changes(session: Session, arguments: Sequence[str], as_json: bool) -> None:
    """List the paths that a layer adds, modifies and deletes."""
    found = session.store.layers.changes(*arguments)
    if as_json:
        output.emit_json(
            [{"Path": change.path.decode(errors="replace"), "Kind": change.kind} for change in found] or None
        )
        return
    for change in found:
        output.line(output.change_line(change))


@command("diffsize", count=(1, 2), usage="LAYER [REFERENCE]")
def diffsize(session: Session, arguments: Sequence[str]) -> None:
    """Estimate the bytes of the files in a layer's diff."""
    output.line(str(session.store.layers.diffsize(*arguments)))
