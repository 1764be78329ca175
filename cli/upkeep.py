"""Commands about the store as a whole."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

import lading
from lading.cli import output
from lading.cli.duration import nanoseconds
from lading.cli.parse import FAILURE, json_option
from lading.cli.session import Session, command
from lading.errors import InvalidInput, LadingError
from lading.values import printable

if TYPE_CHECKING:
    from lading.flows.checking import CheckReport


@command("version", params=(json_option,))
def version(session: Session, arguments: Sequence[str], as_json: bool) -> None:
    """Print the version."""
    if as_json:
        output.emit_json([["Version", lading.__version__]])
    else:
        output.line(f"Version: {lading.__version__}", err=True)


@command("status", params=(json_option,))
def status(session: Session, arguments: Sequence[str], as_json: bool) -> None:
    """Describe the store's roots and driver."""
    pairs = session.store.status()
    if as_json:
        output.emit_json([list(pair) for pair in pairs])
        return
    for key, value in pairs:
        output.line(f"{key}: {output.shown(value)}", err=True)


@command("wipe", params=(json_option,))
def wipe(session: Session, arguments: Sequence[str], as_json: bool) -> int:
    """Delete all containers, images and layers."""
    try:
        session.store.wipe()
    except LadingError as error:
        if as_json:
            output.emit_json({})
        else:
            output.line(f"wipe: {error}", err=True)
        return FAILURE
    if as_json:
        output.emit_json("")
    return 0


@command(
    "shutdown",
    params=(click.option("--force", "-f", is_flag=True, help="Unmount everything first."), json_option),
)
def shutdown(session: Session, arguments: Sequence[str], force: bool, as_json: bool) -> int:
    """Release what the store holds in the kernel."""
    try:
        session.store.shutdown(force=force)
    except LadingError as error:
        if as_json:
            output.emit_json({})
        else:
            output.line(f"shutdown: {error}", err=True)
        return FAILURE
    if as_json:
        output.emit_json("")
    return 0


@command(
    "gc",
    params=(
        click.option("--dry-run", "-n", "dry_run", is_flag=True, help="Only tell what would be freed."),
        json_option,
    ),
)
def gc(session: Session, arguments: Sequence[str], dry_run: bool, as_json: bool) -> int:
    """Collect garbage: bytes that no record needs any more."""
    report = session.store.gc(dry_run=dry_run)
    if dry_run:
        if as_json:
            output.emit_json(report.as_dict())
        else:
            for text in report.lines():
                output.line(text)
        return 0
    if as_json:
        output.emit_json("")
    elif sys.stderr.isatty() and session.progress == "auto":
        for text in report.lines():
            output.line(text, err=True)
    for warning in report.warnings:
        output.line(warning, err=True)
    return FAILURE if report.warnings else 0


#: Groups of findings: the word before the id, and the key in JSON. Our own, about the store, is in neither of its lists.
_GROUPS: Final = (
    ("layer", "Layers"), ("read-only layer", "ROLayers"), ("image", "Images"), ("read-only image", "ROImages"),
    ("container", "Containers"),
)  # fmt: skip


@command(
    "check",
    params=(
        click.option(
            "--max", "-m", "max_age", default="24h", metavar="DURATION", help="Age from which unused layers count."
        ),
        click.option(
            "--repair", "-r", is_flag=True, help="Heal what is damaged; remove images and layers that stay so."
        ),
        click.option("--force", "-f", is_flag=True, help="Remove damaged containers too."),
        click.option("--quick", "-q", is_flag=True, help="Do not compare what was written with what was applied."),
        click.option("--content", is_flag=True, help="Read and hash every stored byte; goes on where it was stopped."),
        click.option("--rate", metavar="SIZE", help="With --content: stored bytes read in a second, such as 50m."),
        click.option(
            "--for",
            "duration",
            metavar="DURATION",
            help="With --content: read nothing more after this time; 0: no limit.",
        ),
        click.option("--heal", is_flag=True, help="Give what is damaged its bytes back from any copy; delete nothing."),
        click.option(
            "--from",
            "sources",
            multiple=True,
            metavar="SOURCE",
            help="A copy to heal from: FILE.tar, oci:DIR[:TAG] or docker-archive:FILE; may be given again.",
        ),
        json_option,
    ),
)
def check(
    session: Session,
    arguments: Sequence[str],
    max_age: str,
    repair: bool,
    force: bool,
    quick: bool,
    content: bool,
    rate: str | None,
    duration: str | None,
    heal: bool,
    sources: tuple[str, ...],
    as_json: bool,
) -> int:
    """Look for damage; silent when there is none."""
    store = session.store
    age = nanoseconds(max_age)
    limit = nanoseconds(duration) if duration is not None else 0
    if limit < 0:
        raise InvalidInput(f'invalid duration "{printable(duration or "")}": it must not be negative')
    store.check_sources(sources)
    report = store.check(
        content=content or rate is not None or duration is not None, modifications=not quick, max_age_ns=age,
        rate=rate or 0, seconds=limit / 1e9,
    )  # fmt: skip
    _show(report, as_json)
    if session.progress == "auto" and sys.stderr.isatty():
        for name, seconds, looked_at in report.depths:
            output.line(f"{name}: {looked_at}, {seconds:.2f} s", err=True)
    incomplete = report.incomplete
    healed = None
    if report.damaged and (heal or repair or force or sources):
        healed = store.heal(sources)
        for text in healed.lines():
            output.line(text, err=True)
        report = store.check(modifications=not quick, max_age_ns=age)
    if not repair and not force:
        if report.findings:
            output.line(_counted(report, [kind for kind, _ in _GROUPS]), err=True)
        return FAILURE if report.findings or report.incomplete or incomplete else 0
    failures = store.repair(report, containers_too=force, healed=healed)
    if failures:
        if as_json:
            output.emit_json([{} for _ in failures])
        else:
            for message in failures:
                output.line(message, err=True)
        output.line(failures[0], err=True)
        return FAILURE
    left = ["read-only layer", "read-only image", *([] if force else ["container"])]
    now = report
    if report.ids("store"):  # what nobody needs any more is no damage
        now = store.check(modifications=False, max_age_ns=age)
    if any(report.ids(kind) for kind in left) or now.ids("store"):
        output.line(_counted(report if any(report.ids(kind) for kind in left) else now, left), err=True)
        return FAILURE
    return FAILURE if now.incomplete or incomplete else 0


def _counted(report: CheckReport, kinds: Sequence[str]) -> str:
    """How many of each kind have errors; those of the store itself when there are no others."""
    counts = {kind: len(report.ids(kind)) for kind in kinds}
    if not any(counts.values()):
        counts["store"] = len(report.ids("store"))
    return ", ".join(f"{count} {kind} errors" for kind, count in counts.items())


def _show(report: CheckReport, as_json: bool) -> None:
    groups: dict[str, dict[str, list[str]]] = {}
    for finding in report.findings:
        groups.setdefault(finding.kind, {}).setdefault(finding.id, []).append(finding.message)
    if as_json:
        found: dict[str, dict[str, Any]] = {
            key: {name: [{}] * len(words) for name, words in groups.get(kind, {}).items()} for kind, key in _GROUPS
        }
        output.emit_json({key: output.sorted_map(values) for key, values in found.items()})
        for name, messages in sorted(groups.get("store", {}).items()):  # the document has no place for these
            for message in messages:
                output.line(f"store {output.shown(name)}: {message}", err=True)
        return
    for kind in (*(kind for kind, _ in _GROUPS), "store"):
        for name, messages in sorted(groups.get(kind, {}).items()):
            output.line(f"{kind} {output.shown(name)}:")
            for message in messages:
                output.line(f" {message}")


@command(
    "dedup",
    params=(
        click.option(
            "--hash-method", "method", default="crc", metavar="NAME", help="crc, size or sha256; makes no difference."
        ),
        json_option,
    ),
)
def dedup(session: Session, arguments: Sequence[str], method: str, as_json: bool) -> None:
    """Tell how many bytes are stored once for several files; nothing is left to be shared."""
    shared = session.store.dedup(method)
    if as_json:
        output.emit_json({"Deduped": shared})
    else:
        output.line(f"Deduplicated {shared} bytes")


@command("config", count=(0, 1), usage="[FILE]")
def config(session: Session, arguments: Sequence[str]) -> None:
    """Show the configuration, or that of a file, as JSON."""
    output.emit_json(session.configuration(arguments[0] if arguments else None))


@command("unshare", count=(0, None), usage="[COMMAND...]")
def unshare(session: Session, arguments: Sequence[str]) -> int:
    """Run a command, or a shell, in a user namespace in which the caller is root."""
    from lading.userns import run

    _ = session.store  # a store that cannot be opened is told before anything runs
    words = list(arguments) or [os.environ.get("SHELL") or "/bin/sh"]
    sys.stdout.flush()
    ended = run(words, os.environ)
    for warning in ended.warnings:
        output.line(f"warning: {warning}", err=True)
    message = ended.words(words[0])
    if message:
        output.line(message, err=True)
    return FAILURE if message else 0
